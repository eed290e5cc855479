// Tabs, colours, what is dropped or pasted, and the store's figures.

import { ask, byId, make } from "/static/api.js";
import * as captions from "/static/captions.js";
import * as search from "/static/search.js";

const tabs = [...document.querySelectorAll('[role="tab"]')];

function open(tab) {
  for (const other of tabs) {
    const isOpen = other === tab;
    other.setAttribute("aria-selected", isOpen);
    other.tabIndex = isOpen ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !isOpen;
  }
  history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
  if (tab.id === "tab-store") showStore();
  if (tab.id === "tab-captions") captions.offer();
}

for (const [place, tab] of tabs.entries()) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    const next = tabs[(place + step + tabs.length) % tabs.length];
    open(next);
    next.focus();
  });
}

async function showStore() {
  const facts = byId("facts");
  try {
    const store = await ask("/api/store");
    const recall = store.recall_at_10;
    const lines = {
      Images: store.items.toLocaleString(),
      Encoder: store.model,
      Captioners: store.captioners.join(", "),
      Index: store.index || "none: every image is compared",
      "Recall@10 of the index": recall === null ? "exact" : `${(100 * recall).toFixed(1)} % of exact search`,
      "Could not be encoded": store.failed.toLocaleString(),
      "Opened again": `${store.reloads} times`,
    };
    if (store.notes.length) lines.Notes = store.notes.join("; ");
    facts.replaceChildren(...Object.entries(lines).flatMap(([name, text]) => [make("dt", { text: name }), make("dd", { text })]));
    byId("failed-title").hidden = !store.failures.length;
    byId("failed").replaceChildren(...store.failures.map(({ id, reason }) => make("li", { text: `${id}: ${reason}` })));
  } catch (error) {
    facts.replaceChildren(make("dd", { text: error.message, className: "bad" }));
  }
}

function colour(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

const system = matchMedia("(prefers-color-scheme: dark)");
const kept = localStorage.getItem("theme");
colour(kept ?? (system.matches ? "dark" : "light"));
system.addEventListener("change", () => {
  if (!localStorage.getItem("theme")) colour(system.matches ? "dark" : "light");
});
byId("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("theme", theme);
  colour(theme);
});

function take(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/"));
  if (!images.length) return;
  if (byId("captions").hidden) {
    open(byId("tab-search"));
    search.searchBy(images[0]);
  } else captions.chooseFiles(images);
}

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => take(event.clipboardData.files));

search.begin();
captions.begin();
open(byId(`tab-${location.hash.slice(1)}`) ?? tabs[0]);
