// Renders /openapi.json as a page to read: plain DOM, no library, nothing from elsewhere.

/** Makes an element: h("p", {className: "x"}, "text", node, …). Text is always text, never HTML. */
function h(tag, props, ...children) {
  const el = Object.assign(document.createElement(tag), props);
  el.append(...children.filter((c) => c !== null && c !== undefined && c !== ""));
  return el;
}

/** Text with `code` in backquotes as elements. */
function prose(text, tag = "p") {
  const el = h(tag, {});
  (text ?? "").split("`").forEach((part, i) => el.append(i % 2 ? h("code", {}, part) : part));
  return el;
}

let spec;

/** The schema that a $ref leads to. */
function resolve(schema) {
  let s = schema ?? {};
  while (s.$ref) s = spec.components.schemas[s.$ref.split("/").pop()] ?? {};
  return s;
}

/** A type in a few words. */
function typeName(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  const types = [].concat(schema.type ?? "any").filter((t) => t !== "null");
  if (types[0] === "array") return `${typeName(schema.items)}[]`;
  if (types[0] === "object" && typeof schema.additionalProperties === "object") return `{${typeName(schema.additionalProperties)}}`;
  return types.join(" | ");
}

/** Fields of an object, one row each; the fields of objects in it follow, with their path. */
function fieldRows(schema, asked, prefix = "", depth = 0) {
  const s = resolve(schema);
  const rows = [];
  for (const [name, field] of Object.entries(s.properties ?? {})) {
    const must = asked && (s.required ?? []).includes(name); // what we answer with is no duty of the reader's
    rows.push(row(prefix + name, field, must, field.description));
    const isList = [].concat(field.type ?? "").includes("array");
    const inner = resolve(isList ? field.items : field);
    if (inner.properties && depth < 2) rows.push(...fieldRows(inner, asked, prefix + name + (isList ? "[]." : "."), depth + 1));
  }
  return rows;
}

function row(name, schema, must, description) {
  const words = schema.enum ?? schema.items?.enum;
  const notes = [description, words ? `One of: ${words.map((w) => `\`${w}\``).join(", ")}.` : "", schema.default !== undefined ? `Default: \`${schema.default}\`.` : ""];
  return h("tr", {},
    h("td", {}, h("code", {}, name), must ? " " : "", must ? h("span", { className: "must" }, "required") : ""),
    h("td", { className: "type" }, typeName(schema)),
    prose(notes.filter(Boolean).join(" "), "td"));
}

function table(rows, first) {
  return h("div", { className: "table", tabIndex: 0 },
    h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, first), h("th", {}, "Type"), h("th", {}, ""))), h("tbody", {}, ...rows)));
}

/** A request to try in a shell. */
function curl(method, path, op) {
  const lines = [`curl -X ${method.toUpperCase()} "$SANDLOT_URL${path.replace(/{(\w+)}/g, (_, p) => "$" + p.toUpperCase())}"`];
  if (op.security === undefined) lines.push('-H "Authorization: Bearer $SANDLOT_API_KEY"');
  const content = op.requestBody?.content ?? {};
  if (content["application/json"]) {
    const s = resolve(content["application/json"].schema);
    const example = {};
    for (const name of s.required ?? []) example[name] = s.properties[name].examples?.[0] ?? (typeName(s.properties[name]).endsWith("[]") ? ["…"] : "…");
    lines.push('-H "Content-Type: application/json"', `-d '${JSON.stringify(example)}'`);
  } else if (content["application/octet-stream"]) {
    lines.push("--data-binary @FILE");
  }
  if (op.responses?.["200"]?.content?.["text/event-stream"]) lines.push("-N");
  return h("pre", { tabIndex: 0 }, lines.join(" \\\n  "));
}

function operation(method, path, op) {
  const parts = [];
  if (op.description) parts.push(prose(op.description));
  parts.push(curl(method, path, op));
  const params = op.parameters ?? [];
  if (params.length) {
    parts.push(h("h4", {}, "Parameters"), table(params.map((p) => row(p.name, p.schema ?? {}, p.required, `${p.description ?? ""} (${p.in})`)), "Name"));
  }
  for (const [type, media] of Object.entries(op.requestBody?.content ?? {})) {
    parts.push(h("h4", {}, `Body: ${type}`));
    const rows = fieldRows(media.schema, true);
    if (rows.length) parts.push(table(rows, "Field"));
  }
  for (const [status, response] of Object.entries(op.responses ?? {})) {
    for (const [type, media] of Object.entries(response.content ?? {})) {
      if (status === "default") continue;
      parts.push(h("h4", {}, `Answer ${status}: ${type}`));
      if (media.schema?.description) parts.push(prose(media.schema.description));
      const rows = fieldRows(media.schema, false);
      if (rows.length) parts.push(table(rows, "Field"));
    }
    if (!response.content && status !== "default") parts.push(h("h4", {}, `Answer ${status}, without a body`));
  }
  return h("details", { id: op.operationId },
    h("summary", {}, h("span", { className: `method ${method}` }, method.toUpperCase()), h("code", {}, path), h("span", { className: "what" }, op.summary ?? "")),
    h("div", { className: "body" }, ...parts));
}

/** Opens the operation that the address names. */
function openNamed() {
  const el = document.getElementById(location.hash.slice(1));
  if (el instanceof HTMLDetailsElement) {
    el.open = true;
    el.scrollIntoView();
  }
}

async function main() {
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`/openapi.json answered ${answer.status}`);
  spec = await answer.json();
  document.getElementById("version").textContent = `· version ${spec.info.version} · OpenAPI ${spec.openapi}`;

  const groups = new Map();
  for (const [path, item] of Object.entries(spec.paths)) {
    for (const method of ["get", "post", "put", "patch", "delete"]) {
      const op = item[method];
      if (!op) continue;
      const tag = op.tags?.[0] ?? "Other";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push({ method, path, op });
    }
  }
  const order = ["Sandboxes", "Claude", "Runs", "Files", "Account", "Server"];
  const rank = (tag) => (order.indexOf(tag) + order.length + 1) % (order.length + 1);
  const nav = document.getElementById("nav");
  const main = document.getElementById("main");
  main.replaceChildren();
  for (const para of (spec.info.description ?? "").split("\n\n")) main.append(prose(para.replaceAll("\n", " ")));
  for (const [tag, ops] of [...groups].sort((a, b) => rank(a[0]) - rank(b[0]))) {
    main.append(h("h2", {}, tag));
    const list = h("ul", {});
    for (const { method, path, op } of ops) {
      main.append(operation(method, path, op));
      list.append(h("li", {}, h("a", { href: `#${op.operationId}` }, op.summary ?? `${method} ${path}`)));
    }
    nav.append(h("h2", {}, tag), list);
  }
  main.append(h("h2", {}, "Errors"), prose("Every error is `application/problem+json`."), table(fieldRows({ $ref: "#/components/schemas/Problem" }, false), "Field"));
  openNamed();
  addEventListener("hashchange", openNamed);
}

main().catch((err) => {
  document.getElementById("main").replaceChildren(h("p", { className: "error", role: "alert" }, `The description could not be read: ${err.message}. Reload to try again.`));
});
