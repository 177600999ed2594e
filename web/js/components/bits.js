// Small parts that every page uses.

import { Component, createRef, cx, html, useEffect, useRef, useState } from "../lib.js";
import { Icon } from "./icons.js";
import { ago, fullTime, left, clock } from "../format.js";
import { now } from "../store.js";
import { copy } from "../actions.js";

// Dot is a state mark: a shape and, for those who can't see it, a word.
export const Dot = ({ kind, word }) => html`<span class=${cx("dot", kind)}></span>${word && html`<span class="vh">${word}. </span>`}`;

// The clocks below are the only parts that are drawn again each second.
export const Ago = ({ at }) => html`<time datetime=${at} title=${fullTime(at)}>${ago(at, now.value)}</time>`;
export const Left = ({ until }) => html`<time datetime=${until} title=${fullTime(until)}>${left(Date.parse(until) - now.value)}</time>`;
export const Since = ({ at }) => html`<span class="num">${at ? clock(now.value - at) : "—"}</span>`;

// Notice says in place what happened, why, and what to do.
export function Notice({ kind = "", icon, title, children, acts, code, requestID, role }) {
  const sign = icon || { bad: "alert", ask: "alert", note: "info" }[kind] || "clock";
  return html`<div class=${cx("notice", kind)} role=${role || (kind === "bad" ? "alert" : "status")}>
    <${Icon} name=${sign} /><div class="txt"><span class="strong">${title}</span>${children}
    ${acts && html`<div class="acts">${acts}</div>`}
    ${(code || requestID) && html`<span class="reqid">${[code, requestID].filter(Boolean).join(" · ")}</span>`}</div></div>`;
}

// ProblemNotice tells a failed request: what was tried, the server's reason, fields at fault, and a way on.
export function ProblemNotice({ title, problem, acts }) {
  if (!problem) return null;
  return html`<${Notice} kind="bad" title=${title} code=${problem.code} requestID=${problem.requestID} acts=${acts}>
    <span>${problem.detail || problem.message || problem.title}</span>
    ${(problem.errors || []).filter((e) => !String(problem.detail).includes(e.message)).map((e) => html`<span key=${e.location}><code>${String(e.location).replace(/^body\./, "")}</code> ${e.message}</span>`)}
  </${Notice}>`;
}

// Busy is a button that runs an action: while it runs it can't be pressed twice, and what fails is handed to onProblem.
export function Busy({ class: cls, onClick, onProblem, children, ...rest }) {
  const [running, setRunning] = useState(false);
  const gone = useRef(false);
  useEffect(() => () => { gone.current = true; }, []);
  const press = async (e) => {
    if (running) return;
    setRunning(true);
    try {
      await onClick(e);
    } catch (problem) {
      if (onProblem) onProblem(problem);
      else throw problem;
    } finally {
      if (!gone.current) setRunning(false);
    }
  };
  return html`<button type="button" class=${cls} aria-busy=${running ? "true" : undefined} aria-disabled=${running ? "true" : undefined} onClick=${press} ...${rest}>${children}</button>`;
}

export function Copy({ text, words = "Copy" }) {
  const [done, setDone] = useState(false);
  const press = async () => {
    if (!(await copy(typeof text === "function" ? text() : text))) return;
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<button type="button" class="link" onClick=${press}>${done ? "Copied" : words}</button>`;
}

// Scoreboard is the strip of facts. A slot: {k, v, of, dot, fill}; a fact that isn't known is a dash.
export const Scoreboard = ({ label, slots, card }) => html`<div class=${cx("score", card && "card")} role="group" tabindex="0" aria-label=${label}>
  ${slots.filter(Boolean).map((s) => html`<div class=${cx("slot", s.fill && "fill")} key=${s.k} title=${s.title}>
    <span class="k">${s.k}</span><span class="v">${s.dot && html`<${Dot} kind=${s.dot} />`}${s.v ?? "—"}${s.of && html` <span class="of">${s.of}</span>`}</span></div>`)}
</div>`;

// Dialog is a native modal dialog: focus is kept inside, Escape closes it, and focus returns to where it was.
export class Dialog extends Component {
  constructor(props) {
    super(props);
    this.box = createRef();
  }
  componentDidMount() {
    this.from = document.activeElement;
    this.box.current.showModal();
  }
  componentWillUnmount() {
    if (this.from && this.from.isConnected) this.from.focus();
  }
  render({ title, children, acts, onClose }) {
    const cancel = (e) => {
      e.preventDefault();
      onClose();
    };
    return html`<dialog class="ask-box" ref=${this.box} aria-labelledby="dialog-title" onCancel=${cancel} onClick=${(e) => e.target === this.box.current && onClose()}>
      <div class="inside"><h2 id="dialog-title">${title}</h2>${children}<div class="acts">${acts}</div></div></dialog>`;
  }
}

// ConfirmTerminate repeats what ending a sandbox means before it is done.
export function ConfirmTerminate({ sandbox, onYes, onClose }) {
  const [problem, setProblem] = useState(null);
  return html`<${Dialog} title=${`Terminate ${sandbox.name}?`} onClose=${onClose} acts=${html`
      <button type="button" class="btn" onClick=${onClose}>Keep it</button>
      <${Busy} class="btn stop" onProblem=${setProblem} onClick=${async () => { await onYes(); onClose(); }}>Terminate sandbox</${Busy}>`}>
    <p class="dim">Everything that runs in it is stopped now. The files on its volume and its conversations are kept.</p>
    <${ProblemNotice} title="It could not be terminated." problem=${problem} />
  </${Dialog}>`;
}

// Skeleton holds the place of rows that are being read.
export const Skeleton = ({ rows = 3 }) => html`<div class="sk" aria-hidden="true">${Array.from({ length: rows }, (_, i) => html`<i class=${"abc"[i % 3]}></i>`)}</div>`;
