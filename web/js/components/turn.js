// One turn: the question, all that Claude did about it, and how it ended.

import { Component, html, useState } from "../lib.js";
import { cost, outcome } from "../reducer.js";
import { layout } from "../tools.js";
import { clip, clock, duration, fullTime, initials, money, plural, sentence, shortTime, tokens } from "../format.js";
import { ClaudeFace, Icon, Pulse } from "./icons.js";
import { Copy, Notice } from "./bits.js";
import { Ledger } from "./ledger.js";
import { Prose } from "./prose.js";

function Thinking({ item }) {
  const [open, setOpen] = useState(false);
  const live = !item.final;
  const took = item.endAt > item.at ? item.endAt - item.at : 0;
  const last = item.text.trim().split(/(?<=[.!?])\s+|\n+/).pop() || "";
  return html`<div class="thought"><button type="button" class="think" aria-expanded=${open ? "true" : "false"} onClick=${() => setOpen(!open)}>
    ${live ? html`<${Pulse} />` : html`<${Icon} name=${open ? "down" : "chev"} small />`}
    <span class="cut">${live ? `Thinking${last ? `: ${clip(last, 120)}` : ""}` : took >= 1000 ? `Thought for ${duration(Math.round(took / 1000) * 1000)}` : "Thought"}</span></button>
    ${open && html`<div class="thoughts">${item.text}</div>`}</div>`;
}

function Note({ item }) {
  if (item.tone === "plain") return html`<p class="think"><${Icon} name="info" small /><span>${item.title}</span></p>`;
  const text = item.resetsAt ? `It allows more at ${shortTime(item.resetsAt)}. Your message is kept.` : item.text;
  return html`<${Notice} kind=${item.tone} icon=${item.tone === "ask" ? "clock" : undefined} title=${item.title}>${text && html`<span>${text}</span>`}</${Notice}>`;
}

const Group = ({ group, turn, cwd, ended }) => {
  switch (group.type) {
    case "text":
      return html`<${Prose} text=${group.item.text} streaming=${!group.item.final} cut=${group.item.cut} />`;
    case "thinking":
      return html`<${Thinking} item=${group.item} />`;
    case "ledger":
      return html`<${Ledger} group=${group} turn=${turn} cwd=${cwd} ended=${ended} />`;
    case "rule":
      return html`<div class="rule">${group.item.text}</div>`;
    default:
      return html`<${Note} item=${group.item} />`;
  }
};

const answer = (turn) =>
  turn.order[""].map((k) => turn.items[k]).filter((i) => i.kind === "text").map((i) => i.text).join("\n\n");

// Fin is the line of facts after a turn.
function Fin({ turn, state }) {
  const r = turn.result || {};
  const u = r.usage || {};
  const took = r.duration_ms ?? (turn.end && turn.end.at && turn.startedAt ? turn.end.at - turn.startedAt : null);
  const calls = Object.values(turn.items).filter((i) => i.kind === "call").length;
  const into = (u.input_tokens || 0) + (u.cache_read_input_tokens || 0) + (u.cache_creation_input_tokens || 0);
  const text = answer(turn);
  return html`<div class="fin">${state === "done" ? html`<${Icon} name="check" />` : html`<${Icon} name="stop" />`}
    <span class="vh">${state === "done" ? "Finished" : "Ended"}</span>
    ${state === "interrupted" && html`<span>${`Stopped by you${took ? ` after ${clock(took)}` : ""}`}</span>`}
    ${state !== "interrupted" && took !== null && html`<span title=${turn.end && turn.end.at ? fullTime(turn.end.at) : undefined}>${duration(took)}</span>`}
    ${calls > 0 && html`<span>${plural(calls, "call")}</span>`}
    ${into + (u.output_tokens || 0) > 0 && html`<span class="no-phone">${tokens(into)} in, ${tokens(u.output_tokens || 0)} out</span>`}
    ${cost(turn) !== null && html`<span>${money(cost(turn))}</span>`}
    <span class="end">${text && html`<${Copy} text=${text} words="Copy answer" />`}</span></div>`;
}

// faults says what is known of an end that wasn't a good one, and no more than that.
function fault(turn, state) {
  const e = turn.end || {};
  const why = e.reason ? `${sentence(e.reason)} ` : "";
  const raw = turn.raw.slice(-4).join("\n");
  switch (state) {
    case "failed": {
      const r = turn.result;
      const subtype = r && r.subtype !== "success" ? r.subtype : "";
      const what = { error_max_turns: "Claude stopped at its limit of turns.", error_max_budget_usd: "Claude stopped at its budget." }[subtype];
      const errors = r && Array.isArray(r.errors) ? r.errors.map((x) => (typeof x === "string" ? x : x.message || "")).filter(Boolean).join("\n") : "";
      const said = (r && typeof r.result === "string" && r.result) || errors || why || raw || "It gave no reason.";
      const exit = e.code !== null && e.code !== undefined && e.code !== 0 ? `exit ${e.code}` : "";
      return { title: what || "Claude could not finish this turn.", text: said, code: [r && r.api_error_status ? `api_${r.api_error_status}` : subtype || turn.apiError || (r ? "is_error" : "no_result"), exit].filter(Boolean).join(" · ") };
    }
    case "lost":
      return { title: "The run was lost.", text: `${why}How the turn ended was not seen; what Claude did until ${shortTime(turn.lastAt) || "then"} is above. The files on the volume are kept.`, code: "exit not seen" };
    case "unseen":
      return { title: "This turn is not running any more.", text: `Its end was not seen; what Claude did until ${shortTime(turn.lastAt) || "then"} is above.`, code: "exit not seen" };
    case "timeout":
      return { title: "The turn reached its time limit and was stopped.", text: `${why}What it did until then is above.`, code: "timeout" };
    case "oom":
      return { title: "The sandbox ran out of memory.", text: `${why}What Claude did until then is above. A sandbox with more memory can go on from here.`, code: "oom" };
    case "signaled":
      return { title: "Claude was stopped from outside.", text: `${why}It was ended by ${e.signal || "a signal"} before it finished.`, code: e.signal || "signaled" };
    default:
      return null;
  }
}

const LONG = 60; // groups of a finished turn beyond which its middle is folded

export class Turn extends Component {
  shouldComponentUpdate(next, state) {
    const p = this.props;
    return state !== this.state || next.turn !== p.turn || next.busy !== p.busy || next.cwd !== p.cwd || next.fresh !== p.fresh || next.last !== p.last;
  }
  render({ turn, busy, cwd, name, fresh, last, onAgain }, { whole }) {
    const state = outcome(turn, busy);
    const ended = state === "running" ? null : state;
    let groups = layout(turn);
    let folded = 0;
    if (groups.length > LONG && ended && !last && !whole) {
      folded = groups.length - 12;
      groups = groups.slice(-12);
    }
    const bad = fault(turn, state);
    // The CLI tells a failure of the model's service as an answer too; it is said once.
    const end = groups[groups.length - 1];
    if (bad && end && end.type === "text" && end.item.text.trim() === bad.text.trim()) groups = groups.slice(0, -1);
    const denials = turn.result && Array.isArray(turn.result.permission_denials) ? turn.result.permission_denials : [];
    const said = groups.length > 0 || folded;
    return html`<section class=${`turn${fresh ? " fresh" : ""}${last ? " last" : ""}`} data-turn=${turn.key} aria-label="Turn">
      ${turn.prompt.text && html`<article class="said you" aria-label="You"><span class="face" aria-hidden="true">${initials(name)}</span><div class="body"><div class="prose asked-text" title=${fullTime(turn.prompt.at)}>${turn.prompt.text}</div></div></article>`}
      ${(said || !bad) && html`<article class="said claude" aria-label="Claude" aria-busy=${state === "running" ? "true" : undefined}>${said || ended ? html`<${ClaudeFace} />` : html`<span></span>`}<div class="body">
        ${folded > 0 && html`<div class="older"><button type="button" class="btn small" onClick=${() => this.setState({ whole: true })}>Show ${folded} earlier steps</button></div>`}
        ${groups.map((g) => html`<${Group} key=${g.key} group=${g} turn=${turn} cwd=${cwd} ended=${ended} />`)}
        ${denials.length > 0 && html`<${Notice} kind="note" title=${`${plural(denials.length, "action")} ${denials.length === 1 ? "was" : "were"} not allowed in this mode.`}><span>${[...new Set(denials.map((d) => d.tool_name))].join(", ")}</span></${Notice}>`}
        ${(state === "done" || state === "interrupted" || (bad && turn.result)) && html`<${Fin} turn=${turn} state=${state} />`}
      </div></article>`}
      ${bad && html`<${Notice} kind="bad" title=${bad.title} code=${bad.code} acts=${last && turn.prompt.text && onAgain && html`<button type="button" class="btn small" onClick=${() => onAgain(turn.prompt.text)}>Send it again</button>`}><span class="pre">${bad.text}</span></${Notice}>`}
    </section>`;
  }
}
