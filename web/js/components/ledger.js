// Consecutive tool calls in one bordered list, one line each until opened.

import { Component, cx, html, useState } from "../lib.js";
import { describe, layout, short } from "../tools.js";
import { bytes, plural } from "../format.js";
import { Icon, Pulse } from "./icons.js";
import { Since } from "./bits.js";
import { Body } from "./output.js";
import { Prose } from "./prose.js";

const Meta = ({ m }) =>
  m.icon
    ? html`<span class=${cx("tag", m.tone)}><${Icon} name=${m.icon} small /><span class="vh">${m.label}</span></span>`
    : html`<span class=${m.tone}>${m.text}</span>`;

// Row is one line; its body is in the document only while it is open.
function Row({ icon, verb, object, code, title, meta, open, can, onToggle, running, children }) {
  const inside = html`<${Icon} name=${icon} /><span class="verb">${verb}</span>${object && (code ? html`<code class="cut">${object}</code>` : html`<span class="cut">${object}</span>`)}
    <span class="meta">${running}${meta.map((m) => html`<${Meta} m=${m} />`)}${can && html`<${Icon} name=${open ? "down" : "chev"} small />`}</span>`;
  return html`<div class="call">
    ${can ? html`<button type="button" class="head" aria-expanded=${open ? "true" : "false"} title=${title || undefined} onClick=${onToggle}>${inside}</button>` : html`<div class="head" title=${title || undefined}>${inside}</div>`}
    ${can && open && children}</div>`;
}

const running = (at) => html`<span class="tag"><${Pulse} /><span class="vh">running</span><${Since} at=${at} /></span>`;

// Call is one tool call. It is drawn again only when its item, or a call inside it, changed.
export class Call extends Component {
  shouldComponentUpdate(next, state) {
    const p = this.props;
    if (state !== this.state || next.item !== p.item || next.ended !== p.ended || next.cwd !== p.cwd) return true;
    const inner = next.turn.order[next.item.id];
    return Boolean(inner) && next.turn !== p.turn;
  }
  render({ item, turn, cwd, ended }, { open }) {
    const row = describe(item, { cwd, ended });
    const inner = row.nested && turn.order[item.id] ? layout(turn, item.id) : [];
    const calls = inner.flatMap((g) => (g.type === "ledger" ? g.rows : []));
    const can = Boolean(row.body || inner.length);
    const isOpen = open ?? row.open;
    const meta = calls.length ? [{ text: plural(calls.length, "call") }, ...row.meta] : row.meta;
    return html`<${Row} icon=${row.icon} verb=${row.verb} object=${row.object.split("\n")[0]} code=${row.code} title=${row.title} meta=${meta} can=${can}
      open=${isOpen} onToggle=${() => this.setState({ open: !isOpen })} running=${row.waits ? html`<span class="wait"><i class="dot ask" aria-hidden="true"></i>waits for you</span>` : row.state === "running" && running(item.at)}>
      ${inner.length > 0 && html`<div class="nest">${inner.map((g) => html`<${Inner} key=${g.key} group=${g} turn=${turn} cwd=${cwd} ended=${ended} />`)}</div>`}
      ${row.body && html`<${Body} body=${row.body} />`}
    </${Row}>${row.nested && !isOpen && row.state === "running" && item.progress && html`<div class="call nest-line cut">${item.progress}</div>`}`;
  }
}

const Inner = ({ group, turn, cwd, ended }) =>
  group.type === "ledger" ? html`<${Ledger} group=${group} turn=${turn} cwd=${cwd} ended=${ended} /> ` : group.type === "text" ? html`<${Prose} text=${group.item.text} />` : null;

function Merged({ row, cwd }) {
  const [open, setOpen] = useState(false);
  const reads = row.kind === "files";
  const size = row.items.reduce((n, i) => n + (describe(i).size || 0), 0);
  const names = row.items.map((i) => short(i.input.file_path || i.input.pattern || "", cwd));
  return html`<${Row} icon=${reads ? "eye" : "search"} verb=${reads ? "Read" : "Searched"} object=${reads ? plural(new Set(names).size, "file") : `${row.items.length} times`} code=${false}
    meta=${size ? [{ text: bytes(size) }] : []} can open=${open} onToggle=${() => setOpen(!open)} title=${names.join("\n")}>
    <div class="nest">${row.items.map((i) => html`<div class="ledger inner" key=${i.key}><${Call} item=${i} turn=${{ order: {} }} cwd=${cwd} /></div>`)}</div></${Row}>`;
}

// Plan is the turn's list of steps, always as it is now.
function Plan({ plan, ended }) {
  const done = plan.steps.filter((s) => s.status === "completed").length;
  return html`<div class="call"><div class="head"><${Icon} name="list" /><span class="verb">Plan of work</span><span class="meta">${done} of ${plan.steps.length}</span></div>
    <ul class="todo">${plan.steps.map((s) => {
      const now = s.status === "in_progress";
      const sign = s.status === "completed" ? "check" : now ? "half" : "more";
      return html`<li key=${s.id} class=${cx(s.status === "completed" && "done", now && !ended && "now")}>${s.status === "pending" ? html`<span class="ico dot-ring" aria-hidden="true"></span>` : html`<${Icon} name=${sign} />`}<span><span class="vh">${s.status.replace("_", " ")}: </span>${now && !ended && s.active ? s.active : s.text}</span></li>`;
    })}</ul></div>`;
}

export const Ledger = ({ group, turn, cwd, ended }) => html`<div class="ledger">${group.rows.map((r) => {
  if (r.type === "plan") return html`<${Plan} key="plan" plan=${turn.plan} ended=${ended} />`;
  if (r.type === "merged") return html`<${Merged} key=${r.key} row=${r} cwd=${cwd} />`;
  return html`<${Call} key=${r.key} item=${r.item} turn=${turn} cwd=${cwd} ended=${ended} />`;
})}</div>`;
