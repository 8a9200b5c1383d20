"use strict";
const make = (tag, text, ...children) => {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  element.append(...children);
  return element;
};

const typeOf = (schema) => {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  for (const word of ["oneOf", "anyOf", "allOf"]) {
    if (schema[word]) return schema[word].map(typeOf).join(" or ");
  }
  if (schema.type === "array") return "array of " + typeOf(schema.items);
  return [schema.type].flat().join(" or ") + (schema.enum ? ": " + schema.enum.join(", ") : "");
};

function fields(schema, api) {
  const name = schema.$ref ? schema.$ref.split("/").pop() : null;
  const whole = name ? api.components.schemas[name] : schema;
  const table = make("table");
  const head = table.createTHead().insertRow();
  for (const text of ["Field", "Type", "Meaning"]) {
    const cell = make("th", text);
    cell.scope = "col";
    head.append(cell);
  }
  const body = table.createTBody();
  for (const [field, about] of Object.entries(whole.properties || {})) {
    const row = body.insertRow();
    row.insertCell().append(make("code", field));
    row.insertCell().textContent = typeOf(about) + ((whole.required || []).includes(field) ? ", required" : "");
    row.insertCell().textContent = about.description || "";
  }
  const scroll = make("div", "", table);
  scroll.className = "scroll";
  return scroll;
}

function operation(method, path, about, api) {
  const section = make("section", "", make("h2", method.toUpperCase() + " " + path));
  section.append(make("p", about.description || about.summary || ""));
  const body = about.requestBody?.content?.["application/json"]?.schema;
  if (body) section.append(make("h3", "Body"), fields(body, api));
  const answers = make("ul");
  for (const [status, answer] of Object.entries(about.responses)) {
    answers.append(make("li", status + ": " + answer.description));
  }
  const details = make("details", "", make("summary", "Answers"), answers);
  section.append(details);
  return section;
}

fetch("/openapi.json").then((response) => response.json()).then((api) => {
  const sections = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, about]) => operation(method, path, about, api)));
  document.getElementById("operations").replaceChildren(...sections);
}).catch((error) => {
  document.getElementById("operations").textContent = String(error);
});
