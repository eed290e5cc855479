// The search tab: words or an image in, a grid out; a click shows an image and what is like it.

import { ask, byId, make, say } from "/static/api.js";

const PAGE = 24;
let query = null;
let shown = 0;
let turn = 0;

function card(hit) {
  const caption = hit.captions.reduce((a, b) => (b.length > a.length ? b : a), "") || hit.title;
  const image = make("img", { src: hit.thumbnail, alt: caption, loading: "lazy" });
  const match = hit.match === null ? "" : ` · ${percent(hit.match)} sure`;
  const score = make("span", { className: "small", text: `${hit.rank} · ${hit.score.toFixed(3)}${match}` });
  const button = make("button", { type: "button", className: "card" }, image, make("span", { className: "words", text: caption }), score);
  button.addEventListener("click", () => showItem(hit));
  return make("li", {}, button);
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;

function nothing({ note, best_match: best }) {
  const sure = best === null ? "Nothing was found." : `Nothing matches: the likeliest image has ${percent(best)}.`;
  return `${sure} ${note}`;
}

function form(image, values) {
  const data = new FormData();
  if (image) data.append("image", image);
  for (const [name, value] of Object.entries(values)) if (value !== "") data.append(name, value);
  return data;
}

async function load() {
  const mine = (turn += 1);
  const said = byId("search-said");
  say(said, "Searching …");
  try {
    const values = { k: PAGE, offset: shown, where: query.where, min_match: query.least };
    const answer = await ask("/api/search", query.image ? form(query.image, { ...values, text: query.text }) : { ...values, text: query.text });
    if (mine !== turn) return;
    byId("hits").append(...answer.hits.map(card));
    shown += answer.hits.length;
    byId("more").hidden = answer.hits.length < PAGE || shown >= answer.items;
    say(said, shown ? `The ${shown} best of ${answer.items.toLocaleString()} images for “${answer.query}”` : nothing(answer));
  } catch (error) {
    if (mine === turn) say(said, error.message, true);
  }
}

export function search() {
  const text = byId("words").value.trim();
  const image = query?.image ?? null;
  if (!text && !image) return;
  query = { text, image, where: byId("only").value.trim(), least: byId("sure").checked && !image ? 0.5 : 0 };
  shown = 0;
  byId("hits").replaceChildren();
  byId("more").hidden = true;
  load();
}

export function searchBy(file) {
  setImage(file);
  search();
}

function setImage(file) {
  query = { text: "", image: file };
  const preview = byId("query-shown");
  if (preview.src) URL.revokeObjectURL(preview.src);
  byId("query-image").hidden = !file;
  if (file) preview.src = URL.createObjectURL(file);
  else preview.removeAttribute("src");
}

async function showItem(hit) {
  byId("item-id").textContent = hit.id;
  byId("item-whole").href = hit.image;
  Object.assign(byId("item-image"), { src: hit.image, alt: hit.captions[0] ?? hit.title });
  byId("item-captions").replaceChildren(...hit.captions.map((text) => make("li", { text })));
  byId("item-score").textContent = `Score ${hit.score.toFixed(3)}`;
  const like = byId("like");
  like.replaceChildren();
  looked(hit);
  if (!byId("item").open) byId("item").showModal();
  byId("item").scrollTop = 0;
  try {
    const answer = await ask(`/api/similar/${encodeURIComponent(hit.id)}?k=12`);
    if (byId("item-id").textContent === hit.id) like.replaceChildren(...answer.hits.map(card));
  } catch (error) {
    like.replaceChildren(make("li", { text: error.message, className: "bad" }));
  }
}

// A PNG for each word of the question darkens what did not matter to the match.
async function looked(hit) {
  const text = query?.text;
  const [said, words] = [byId("looked-said"), byId("looked-words")];
  words.replaceChildren();
  light(null);
  byId("looked").hidden = !text;
  if (!text) return;
  say(said, "Looking …");
  try {
    const answer = await ask("/api/explain", { id: hit.id, text });
    if (byId("item-id").textContent !== hit.id) return;
    words.replaceChildren(...answer.words.map(word));
    say(said, `The words match with ${(100 * answer.probability).toFixed(0)} %. Point at a word.`);
  } catch (error) {
    if (byId("item-id").textContent === hit.id) say(said, error.message);
  }
}

function word({ word: text, map }) {
  const button = make("button", { type: "button", text });
  button.setAttribute("aria-pressed", "false");
  const chosen = () => document.querySelector('#looked-words [aria-pressed="true"]');
  button.addEventListener("click", () => {
    const before = chosen();
    before?.setAttribute("aria-pressed", "false");
    if (before !== button) button.setAttribute("aria-pressed", "true");
    light(before === button ? null : map);
  });
  button.addEventListener("pointerenter", () => light(map));
  button.addEventListener("pointerleave", () => light(chosen()?.dataset.map ?? null));
  button.dataset.map = map;
  return button;
}

function light(map) {
  const shade = byId("item-shade");
  shade.hidden = !map;
  if (map) shade.src = map;
}

// A picture of the camera's, as a file that was dropped would be.
async function shoot() {
  const [view, said] = [byId("shoot-view"), byId("shoot-said")];
  say(said, "");
  byId("shoot").showModal();
  try {
    view.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
  } catch (error) {
    say(said, `There is no camera to use: ${error.message}`, true);
  }
}

function take() {
  const view = byId("shoot-view");
  if (!view.videoWidth) return;
  const canvas = make("canvas", { width: view.videoWidth, height: view.videoHeight });
  canvas.getContext("2d").drawImage(view, 0, 0);
  canvas.toBlob((blob) => searchBy(new File([blob], "camera.jpg", { type: "image/jpeg" })), "image/jpeg", 0.9);
  byId("shoot").close();
}

export function begin() {
  byId("camera").addEventListener("click", shoot);
  byId("shoot-take").addEventListener("click", take);
  byId("shoot-close").addEventListener("click", () => byId("shoot").close());
  byId("shoot").addEventListener("close", () => {
    for (const track of byId("shoot-view").srcObject?.getTracks() ?? []) track.stop();
    byId("shoot-view").srcObject = null;
  });
  byId("item-image").addEventListener("load", ({ target }) => {
    byId("item-seen").style.setProperty("--ratio", target.naturalWidth / target.naturalHeight);
  });
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  byId("more").addEventListener("click", load);
  byId("query-file").addEventListener("change", (event) => {
    if (event.target.files[0]) searchBy(event.target.files[0]);
    event.target.value = "";
  });
  byId("query-clear").addEventListener("click", () => setImage(null));
  byId("item-close").addEventListener("click", () => byId("item").close());
  byId("item").addEventListener("click", (event) => {
    if (event.target === byId("item")) byId("item").close();
  });
}
