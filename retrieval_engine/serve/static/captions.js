// The captioner tab: images in, sentences out, to be copied or saved.

import { ask, byId, make, save, say } from "/static/api.js";

let chosen = []; // {name, file} or {name, id, src}
let rows = [];

export function choose(images) {
  for (const { file, src } of chosen) if (file) URL.revokeObjectURL(src);
  chosen = images;
  const names = images.map(({ name }) => name);
  byId("chosen").textContent = names.length === 1 ? names[0] : `${names.length} images`;
}

export function chooseFiles(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
  if (!images.length) return;
  choose(images.map((file) => ({ name: file.name || "pasted image", file, src: URL.createObjectURL(file) })));
  write();
}

function formOf(options) {
  const data = new FormData();
  for (const { file, id } of chosen) {
    if (file) data.append("images", file, file.name);
    else data.append("ids", id);
  }
  for (const [name, value] of Object.entries(options)) data.append(name, value);
  return data;
}

async function run(asked) {
  const said = byId("captions-said");
  if (!chosen.length) {
    say(said, "Choose an image first.", true);
    return;
  }
  say(said, "Writing …");
  try {
    const answers = [];
    for (const options of asked) answers.push(await ask("/api/caption", formOf(options)));
    rows = chosen.map(({ name, src }, place) => {
      const found = answers.map((answer) => answer.images[place]);
      const sentences = found.flatMap((one, n) => one.captions.map((text, i) => ({
        text,
        score: one.scores[i],
        temperature: asked[n].temperature ?? null,
        model: answers[n].model,
      })));
      return { image: name, src, sentences, error: found[0].error };
    });
    show();
    say(said, `Written by ${[...new Set(answers.map(({ model }) => model))].join(" and ")}.`);
  } catch (error) {
    say(said, error.message, true);
  }
}

const value = (id) => Number(byId(id).value);

function write() {
  return run([{ length: value("length"), beams: value("beams"), model: byId("model").value }]);
}

// The same images by every model, side by side.
function compare() {
  const models = [...byId("model").options].map((option) => option.value);
  return run(models.map((model) => ({ length: value("length"), beams: value("beams"), model })));
}

function vary() {
  const lowest = value("temperature");
  return run([0, 0.25, 0.5].map((more, seed) => ({
    length: value("length"),
    temperature: Math.min(2, lowest + more).toFixed(2),
    seed,
    model: byId("model").value,
  })));
}

// What the server may write with; one alone is no choice.
export async function offer() {
  if (byId("model").options.length) return;
  try {
    const { captioners } = await ask("/api/store");
    byId("model").replaceChildren(...captioners.map((name) => make("option", { value: name, text: name })));
    byId("models").hidden = captioners.length < 2;
  } catch (error) {
    say(byId("captions-said"), error.message, true);
  }
}

function line({ text, temperature }) {
  const copy = make("button", { type: "button", className: "quiet", text: "Copy" });
  copy.setAttribute("aria-label", `Copy “${text}”`);
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  const note = temperature ? make("span", { className: "small", text: ` temperature ${temperature}` }) : "";
  return make("li", {}, make("span", { text }, note), copy);
}

function show() {
  byId("written").replaceChildren(...rows.map(({ image, src, sentences, error }) => {
    const models = [...new Set(sentences.map(({ model }) => model))];
    const lists = models.map((model) => make("ol", {}, ...sentences.filter((one) => one.model === model).map(line)));
    if (error) lists.push(make("ol", {}, make("li", { text: error, className: "bad" })));
    const titled = (list, place) => make("div", {}, make("h3", { text: models[place] }), list);
    const beside = models.length > 1 ? [make("div", { className: "sides" }, ...lists.map(titled))] : lists;
    return make("li", {}, make("img", { src, alt: sentences[0]?.text ?? image }), ...beside);
  }));
  byId("to-csv").disabled = byId("to-json").disabled = !rows.length;
}

// A spreadsheet would run as a formula what begins so.
const cell = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;

function toCsv() {
  const lines = rows.flatMap(({ image, sentences, error }) => (sentences.length ? sentences : [{ text: "", score: "" }])
    .map(({ text, score, temperature, model }) => [cell(image), cell(text), score, temperature ?? "", cell(model ?? ""), cell(error ?? "")].join(",")));
  save("captions.csv", "text/csv", ["image,caption,score,temperature,model,error", ...lines, ""].join("\r\n"));
}

function toJson() {
  const plain = rows.map(({ src, ...row }) => row);
  save("captions.json", "application/json", JSON.stringify(plain, null, 2));
}

async function takeSamples() {
  try {
    const { hits } = await ask("/api/search", { text: "a picture", k: 4 });
    choose(hits.map(({ id, thumbnail }) => ({ name: id, id, src: thumbnail })));
    await write();
  } catch (error) {
    say(byId("captions-said"), error.message, true);
  }
}

export function begin() {
  byId("caption-files").addEventListener("change", (event) => {
    chooseFiles(event.target.files);
    event.target.value = "";
  });
  byId("samples").addEventListener("click", takeSamples);
  byId("write").addEventListener("submit", (event) => {
    event.preventDefault();
    write();
  });
  byId("variations").addEventListener("click", vary);
  byId("compare").addEventListener("click", compare);
  byId("to-csv").addEventListener("click", toCsv);
  byId("to-json").addEventListener("click", toJson);
  for (const output of document.querySelectorAll("output")) {
    const knob = byId(output.htmlFor.value);
    knob.addEventListener("input", () => { output.value = knob.value; });
  }
}
