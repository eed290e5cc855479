// Shows openapi.json: each address, what it takes, and an example as a command.

import { byId, make } from "/static/api.js";

const dark = matchMedia("(prefers-color-scheme: dark)").matches;
document.documentElement.dataset.theme = localStorage.getItem("theme") ?? (dark ? "dark" : "light");

function kind(schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  const any = schema.anyOf?.map(kind).filter((name) => name !== "null").join(" or ");
  const items = schema.items ? ` of ${kind(schema.items)}` : "";
  const limits = ["minimum", "maximum", "maxLength", "maxItems"]
    .filter((name) => name in schema).map((name) => `${name} ${schema[name]}`);
  const base = any ?? (schema.enum?.join(" or ") ?? schema.type ?? "any");
  return base + items + (limits.length ? ` (${limits.join(", ")})` : "");
}

function fields(schema) {
  return make("dl", {}, ...Object.entries(schema.properties ?? {}).flatMap(([name, field]) => {
    const must = schema.required?.includes(name) ? "required, " : "";
    const usual = field.default !== undefined && field.default !== null ? `, default ${JSON.stringify(field.default)}` : "";
    const text = `${must}${kind(field)}${usual}. ${field.description ?? ""}`;
    return [make("dt", { text: name }), make("dd", { text })];
  }));
}

function section(path, method, says, components) {
  const parts = [make("h2", { text: `${method.toUpperCase()} ${path}` }), make("p", { text: says.description ?? says.summary })];
  for (const { name, schema } of says.parameters ?? []) parts.push(make("p", { className: "small", text: `${name}: ${kind(schema)}` }));
  const json = says.requestBody?.content["application/json"];
  if (json) {
    parts.push(fields(json.schema));
    const body = JSON.stringify(json.example).replaceAll("'", "'\\''");
    parts.push(make("pre", { text: `curl ${location.origin}${path} -H 'Content-Type: application/json' -d '${body}'` }));
  }
  const answer = says.responses?.["200"]?.content?.["application/json"]?.schema?.$ref;
  if (answer) parts.push(make("h3", { text: "Answer" }), fields(components[answer.split("/").at(-1)]));
  return make("section", {}, ...parts);
}

const api = await (await fetch("/openapi.json")).json();
byId("paths").replaceChildren(...Object.entries(api.paths).flatMap(([path, methods]) => Object.entries(methods)
  .map(([method, says]) => section(path, method, says, api.components.schemas))));
