// What is behind a ledger's row: output, a diff, fields.

import { html, useState } from "../lib.js";
import { fold, plain, runs } from "../ansi.js";
import { bytes, plural } from "../format.js";
import { diffLines } from "../tools.js";
import { Copy } from "./bits.js";
import { Prose } from "./prose.js";

const colored = (text) => runs(text).map((r) => (r.cls ? html`<span class=${r.cls}>${r.text}</span>` : r.text));

export function Output({ text, tone, empty, images, command }) {
  const [all, setAll] = useState(false);
  const f = fold(text || "", all);
  const folded = f.hidden > 0 || all;
  return html`
    ${command && (command.length > 70 || command.includes("\n")) && html`<pre class="out cmd-line"><span class="faint">$ </span>${command}</pre>`}
    <div class="out-box"><pre class="out" tabindex="0" role="region" aria-label="Output">${
      text ? html`<span class=${tone}>${colored(f.head)}</span>` : html`<span class="faint">${empty || "Nothing was written."}</span>`
    }${f.tail && html`${"\n"}<span class="faint">… ${plural(f.hidden, "line")}, ${bytes(f.size)} in all …</span>${"\n"}${colored(f.tail)}`}</pre></div>
    ${(images || []).map((b) => html`<img class="shot" alt="Image in the tool's result" src=${`data:${b.source.media_type};base64,${b.source.data}`} />`)}
    ${text && html`<div class="more">${folded && html`<button type="button" class="link" onClick=${() => setAll(!all)}>${all ? "Fewer lines" : `All ${f.lines} lines`}</button>`}<${Copy} text=${() => plain(text)} /></div>`}`;
}

const SIGN = { add: "+", del: "−", same: " ", skip: " " };
const MOST = 400;

export function Diff({ hunks, limit }) {
  const [all, setAll] = useState(false);
  const lines = diffLines(hunks);
  const most = limit || MOST;
  const shown = all || lines.length <= most + 3 ? lines : lines.slice(0, most);
  const rest = lines.length - shown.length;
  const marked = (l) =>
    l.mark && l.mark[1] > l.mark[0] ? html`${l.text.slice(0, l.mark[0])}<mark>${l.text.slice(l.mark[0], l.mark[1])}</mark>${l.text.slice(l.mark[1])}` : l.text;
  return html`<div class="diff" role="table" aria-label="Changes" tabindex="0">${shown.map(
    (l) =>
      html`<div class=${`l ${l.kind}`} role="row"><span class="n" role="cell">${l.n}</span><span class="s" role="cell">${SIGN[l.kind]}</span><span class="c" role="cell">${l.kind === "skip" ? "⋯" : marked(l)}</span></div>`,
  )}</div>${rest > 0 && html`<div class="more"><button type="button" class="link" onClick=${() => setAll(true)}>${plural(rest, "more line")}</button></div>`}`;
}

const Fields = ({ fields, text }) => html`
  ${fields.length > 0 && html`<dl class="fields">${fields.map(([k, v]) => html`<div key=${k}><dt>${k}</dt><dd>${v.length > 2000 ? `${v.slice(0, 2000)}…` : v}</dd></div>`)}</dl>`}
  ${text && html`<${Output} text=${text} />`}`;

export function Body({ body }) {
  switch (body.type) {
    case "diff":
      return html`<${Diff} hunks=${body.hunks} limit=${body.limit} />`;
    case "prose":
      return html`<div class="inset"><${Prose} text=${body.text} /></div>`;
    case "fields":
      return html`<${Fields} ...${body} />`;
    default:
      return html`<${Output} ...${body} />`;
  }
}
