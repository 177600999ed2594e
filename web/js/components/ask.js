// What Claude wants from a person, above the composer: may it do this, a question, a plan. It takes no focus and can't be answered
// in its first half second, so that nothing that was typed for something else answers it.

import { Component, createRef, cx, html } from "../lib.js";
import * as api from "../api.js";
import * as local from "../local.js";
import * as store from "../store.js";
import { clock, plural } from "../format.js";
import { pending, verdict } from "../reducer.js";
import { describe } from "../tools.js";
import { Body } from "./output.js";
import { Icon } from "./icons.js";
import { ProblemNotice } from "./bits.js";
import { Prose } from "./prose.js";

const INERT = 500; // ms
const TOLD = 6000; // ms for which an answer of somebody else is shown

// Asks shows the oldest ask that waits, and what became of the last one. props: session, log, cwd.
export class Asks extends Component {
  constructor(props) {
    super(props);
    this.state = { told: null };
    this.mine = new Set(); // answered on this page: nobody need be told
  }

  componentDidUpdate(before) {
    if (before.log.asks === this.props.log.asks) return;
    for (const a of Object.values(this.props.log.asks)) {
      const old = before.log.asks[a.id];
      if (!old || old.state !== "pending" || a.state === "pending" || this.mine.has(a.id)) continue;
      this.setState({ told: a });
      clearTimeout(this.later);
      this.later = setTimeout(() => this.setState({ told: null }), TOLD);
    }
  }

  componentWillUnmount() {
    clearTimeout(this.later);
  }

  render({ session, log, cwd }, { told }) {
    const all = pending(log);
    const a = all[0];
    return html`${told && html`<p class="told" role="status"><${Icon} name=${told.state === "allowed" ? "check" : "info"} small />${verdict(told)}</p>`}
      ${a && html`<${Card} key=${a.id} ask=${a} more=${all.length - 1} session=${session} log=${log} cwd=${cwd} onMine=${() => this.mine.add(a.id)} />`}`;
  }
}

// asker says who asks: a subagent by what it was told to do.
function asker(a, log) {
  if (!a.agent) return "";
  for (let i = log.turns.length - 1; i >= 0; i--) {
    for (const item of Object.values(log.turns[i].items)) {
      if (item.kind !== "call" || !(log.turns[i].order[item.id] || []).includes(a.use)) continue;
      return `Subagent “${(item.input && item.input.description) || "without a name"}” asks`;
    }
  }
  return "A subagent asks";
}

const Deadline = ({ at }) => {
  const rest = at - store.now.value;
  return html`<span class="until" title="Then it is denied by itself">${rest > 0 ? `denied in ${clock(rest)}` : "about to be denied"}</span>`;
};

// Card is one ask. What is typed into it is kept on this device until it was sent.
class Card extends Component {
  constructor(props) {
    super(props);
    this.box = createRef();
    this.state = { fresh: true, sending: false, problem: null, waits: null, text: local.get(this.key()) || "" };
  }

  key() {
    return `ask.${this.props.ask.id}`;
  }

  componentDidMount() {
    this.ripe = setTimeout(() => this.setState({ fresh: false }), INERT);
    this.onKey = (e) => this.press(e);
    document.addEventListener("keydown", this.onKey);
    // An answer that could not be sent goes as soon as we are back; if somebody was quicker, theirs stands.
    this.unsubscribe = store.conn.subscribe((c) => c.state === "live" && this.state && this.state.waits && this.send(this.state.waits));
  }

  componentWillUnmount() {
    clearTimeout(this.ripe);
    document.removeEventListener("keydown", this.onKey);
    this.unsubscribe();
  }

  inert() {
    return this.state.fresh || this.state.sending;
  }

  write(text) {
    local.set(this.key(), text);
    this.setState({ text });
  }

  // press takes keys that are meant for the card: ⌘. goes to it, and in it digits choose.
  press(e) {
    if ((e.metaKey || e.ctrlKey) && e.key === ".") {
      e.preventDefault();
      this.box.current.focus();
      return;
    }
    if (e.metaKey || e.ctrlKey || e.altKey || !this.box.current.contains(e.target) || /^(INPUT|TEXTAREA)$/.test(e.target.tagName)) return;
    const button = /^[1-9]$/.test(e.key) && this.box.current.querySelector(`[data-key="${e.key}"]`);
    if (button) {
      e.preventDefault();
      button.click();
    }
  }

  send = async (body) => {
    if (this.inert()) return;
    const { ask, session, onMine } = this.props;
    this.setState({ sending: true, problem: null });
    onMine();
    try {
      await api.answer(session.id, ask.id, body);
      local.set(this.key(), null);
      this.setState({ waits: null });
    } catch (problem) {
      if (problem.code === "network" || problem.status >= 502) this.setState({ waits: body });
      // Somebody else was quicker, or it has expired: the log tells.
      else if (problem.status !== 409) this.setState({ problem, waits: null });
    } finally {
      this.setState({ sending: false });
    }
  };

  allow = (more) => this.send({ behavior: "allow", ...more });
  deny = () => this.send({ behavior: "deny", message: this.state.text.trim() || undefined });

  render({ ask, more, log, cwd }, { problem, waits, text, sending, fresh }) {
    const Inside = { question: Question, plan: Plan }[ask.kind] || Tool;
    const shared = { ask, log, cwd, text, onText: (t) => this.write(t), onAllow: this.allow, onDeny: this.deny, onSend: this.send };
    return html`<section class=${cx("ask-card", fresh && "fresh")} ref=${this.box} role="alertdialog" aria-modal="false" aria-label="Claude needs you" tabindex="-1" aria-busy=${sending ? "true" : undefined}>
      <${Inside} ...${shared} head=${(title, side) => html`<div class="ask-head"><i class="dot ask" aria-hidden="true"></i><b class="grow">${title}</b>
        ${more > 0 && html`<span class="faint">${more} more after this</span>`}${side}${ask.expiresAt > 0 && html`<${Deadline} at=${ask.expiresAt} />`}</div>`} />
      ${waits && html`<p class="faint" role="status">No connection. Your answer is sent when it is back; if somebody answers before, theirs stands.</p>`}
      ${problem && html`<${ProblemNotice} title="Your answer could not be given." problem=${problem} />`}
    </section>`;
  }
}

const TITLES = {
  Bash: "Run this command?", Edit: "Change this file?", MultiEdit: "Change this file?", NotebookEdit: "Change this notebook?", Write: "Write this file?",
  WebFetch: "Fetch this address?", WebSearch: "Search the web?", Read: "Read this file?",
};

function Tool({ ask, log, cwd, text, onText, onAllow, onDeny, head }) {
  const row = describe({ name: ask.tool, input: ask.input, final: true, result: null }, { cwd });
  const command = ask.tool === "Bash" && ask.input.command;
  const edits = row.body && row.body.type === "diff";
  const facts = [asker(ask, log), ask.description || ask.input.description, ask.reason].filter(Boolean);
  const enter = (e) => {
    if (e.key !== "Enter" || e.isComposing || e.keyCode === 229) return;
    e.preventDefault();
    if (text.trim()) onDeny();
  };
  return html`${head(TITLES[ask.tool] || `Use ${ask.tool}?`, !command && row.object && html`<code class="cut">${row.object}</code>`)}
    ${command ? html`<pre class="ask-what" tabindex="0" aria-label="Command">${command}</pre>` : row.body && html`<div class=${cx("ask-what", edits && "edit")}><${Body} body=${row.body} /></div>`}
    ${facts.length > 0 && html`<p class="dim">${facts.map((f) => (/[.!?]$/.test(f) ? f : `${f}.`)).join(" ")}</p>`}
    <div class="ask-acts">
      <button type="button" class="btn go" data-key="1" onClick=${() => onAllow({ scope: "once" })}>Allow once <kbd aria-hidden="true">1</kbd></button>
      <button type="button" class="btn" data-key="2" title="Claude does not ask again for the like until its process ends" onClick=${() => onAllow({ scope: "session" })}>${edits ? "All edits this session" : "For this session"} <kbd aria-hidden="true">2</kbd></button>
      <button type="button" class="btn danger" data-key="3" onClick=${onDeny}>Deny <kbd aria-hidden="true">3</kbd></button>
      <label class="grow"><span class="vh">Say what to do instead</span><input class="input" type="text" value=${text} placeholder="Say what to do instead" onInput=${(e) => onText(e.currentTarget.value)} onKeyDown=${enter} /></label>
    </div>`;
}

// Question goes through Claude's questions one by one, with its options and words of one's own.
class Question extends Component {
  constructor(props) {
    super(props);
    this.state = { at: 0, chosen: {}, other: {} };
  }

  questions() {
    return Array.isArray(this.props.ask.input.questions) ? this.props.ask.input.questions : [];
  }

  answers() {
    const out = {};
    this.questions().forEach((q, i) => {
      const other = (this.state.other[i] || "").trim();
      const picked = [...(this.state.chosen[i] || []).filter((x) => x !== OTHER), ...((this.state.chosen[i] || []).includes(OTHER) && other ? [other] : [])];
      if (picked.length) out[q.question] = picked.join(", ");
    });
    return out;
  }

  choose(label, many) {
    const i = this.state.at;
    const had = this.state.chosen[i] || [];
    const next = many ? (had.includes(label) ? had.filter((x) => x !== label) : [...had, label]) : [label];
    this.setState({ chosen: { ...this.state.chosen, [i]: next } });
  }

  next = () => {
    const all = this.questions();
    if (this.state.at < all.length - 1) this.setState({ at: this.state.at + 1 });
    else this.props.onAllow({ answers: this.answers() });
  };

  render({ ask, head, onSend }, { at, chosen, other }) {
    const all = this.questions();
    const q = all[at] || { question: ask.title || "Claude has a question.", options: [] };
    const picked = chosen[at] || [];
    const many = Boolean(q.multiSelect);
    const type = many ? "checkbox" : "radio";
    const said = picked.some((x) => x !== OTHER || (other[at] || "").trim());
    const enter = (e) => e.key === "Enter" && !e.isComposing && e.keyCode !== 229 && said && (e.preventDefault(), this.next());
    return html`${head(q.question, all.length > 1 && html`<span class="faint">${at + 1} of ${all.length}</span>`)}
      <div class="opts" role=${many ? "group" : "radiogroup"} aria-label=${q.question}>${(q.options || []).map((o, i) => html`<label key=${o.label} class=${cx("opt", picked.includes(o.label) && "on")}>
        <input type=${type} name=${`q-${ask.id}-${at}`} data-key=${i + 1} checked=${picked.includes(o.label)} onChange=${() => this.choose(o.label, many)} onKeyDown=${enter} />
        <span class="grow">${o.label}</span>${o.description && html`<span class="faint">${o.description}</span>`}</label>`)}
        <label class=${cx("opt", picked.includes(OTHER) && "on")}><input type=${type} name=${`q-${ask.id}-${at}`} checked=${picked.includes(OTHER)} onChange=${() => this.choose(OTHER, many)} aria-label="Something else" />
          <input class="bare grow" type="text" placeholder="Something else: write it here" value=${other[at] || ""} onFocus=${() => !picked.includes(OTHER) && this.choose(OTHER, many)}
            onInput=${(e) => this.setState({ other: { ...other, [at]: e.currentTarget.value } })} onKeyDown=${enter} /></label></div>
      <div class="ask-acts"><button type="button" class="btn go" aria-disabled=${said ? undefined : "true"} onClick=${() => said && this.next()}>${at < all.length - 1 ? "Next" : "Answer"}</button>
        ${at > 0 && html`<button type="button" class="btn quiet" onClick=${() => this.setState({ at: at - 1 })}>Back</button>`}
        <button type="button" class="btn quiet" onClick=${() => onSend({ behavior: "deny", message: "The user would rather not answer; decide yourself." })}>Skip, let Claude decide</button></div>`;
  }
}

const OTHER = "\u0000other";

const mode = (m) => ({ updated_permissions: [{ type: "setMode", mode: m, destination: "session" }] });

// Plan shows a plan as the document it is. Only a button approves it.
function Plan({ ask, text, onText, onAllow, onDeny, head }) {
  const plan = ask.input.plan || "";
  const steps = (plan.match(/^\s*(?:\d+[.)]|[-*])\s/gm) || []).length;
  return html`${head("Plan ready", steps > 0 && html`<span class="faint">${plural(steps, "step")}</span>`)}
    <div class="ask-what doc" tabindex="0" role="document" aria-label="Plan"><${Prose} text=${plan || "The plan is empty."} /></div>
    <div class="ask-acts">
      <button type="button" class="btn go" onClick=${() => onAllow(mode("default"))}>Start, ask before edits</button>
      <button type="button" class="btn" onClick=${() => onAllow(mode("acceptEdits"))}>Start, accept edits</button>
      <button type="button" class="btn" onClick=${onDeny}>Keep planning</button>
      <label class="grow"><span class="vh">What should be different</span><input class="input" type="text" value=${text} placeholder="What should be different?" onInput=${(e) => onText(e.currentTarget.value)} /></label>
    </div>`;
}
