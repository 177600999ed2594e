// Messages that wait, above the composer: those that Claude takes up after its present turn, which the server keeps, and those that
// are not with the server yet. Each says what it waits for, and can be edited and removed until Claude takes it.

import { html } from "../lib.js";
import * as api from "../api.js";
import * as outbox from "../outbox.js";
import * as store from "../store.js";
import { Icon, Pulse } from "./icons.js";
import { Busy, Notice } from "./bits.js";

// takeBack removes a queued turn and returns its text. If Claude has taken it up meanwhile, that is a Problem.
export async function takeBack(session, turn) {
  const whole = turn.truncated ? await api.turn(session, turn.id) : turn;
  await api.cancelTurn(session, turn.id);
  store.readSession(session).catch(() => {});
  return whole.text;
}

// Queue's props: session, queued (turns of the server), entries (of the outbox), why (what these wait for), onEdit(text) puts a text
// back into the composer, onProblem.
export function Queue({ session, queued = [], entries, why, onEdit, onProblem }) {
  if (!entries.length && !queued.length) return null;
  const fail = (problem) => onProblem({ title: "The message could not be taken back.", problem });
  return html`<ul class="queue" aria-label="Messages that wait">
    ${queued.map((t) => html`<li key=${t.id} class="queued"><span class="sign"><${Icon} name="clock" /></span>
      <span class="cut" title=${t.text}>${t.text}</span>
      <span class="end"><span class="faint no-phone">next, when Claude is done</span>
      <${Busy} class="link" onProblem=${fail} onClick=${async () => onEdit(await takeBack(session.id, t))}>Edit</${Busy}>
      <${Busy} class="link" onProblem=${fail} onClick=${() => takeBack(session.id, t)}>Remove</${Busy}></span></li>`)}
    ${entries.map((e) => {
    if (e.problem) {
      return html`<li key=${e.id}><${Notice} kind="bad" title="Your message could not be sent." code=${e.problem.code} requestID=${e.problem.requestID} acts=${html`
        <button type="button" class="btn small" onClick=${() => outbox.retry(e.id)}>Send it again</button>
        <button type="button" class="btn small quiet" onClick=${() => { outbox.withdraw(e.id); onEdit(e.text); }}>Edit message</button>
        <button type="button" class="btn small quiet" onClick=${() => outbox.withdraw(e.id)}>Remove</button>`}>
        <span>${e.problem.detail || e.problem.title}</span><span class="cut faint">${e.text}</span></${Notice}></li>`;
    }
    const going = outbox.sending.value === e.id;
    return html`<li key=${e.id} class="queued"><span class="sign">${going ? html`<${Pulse} />` : html`<${Icon} name="clock" />`}</span>
      <span class="cut" title=${e.text}>${e.text}</span>
      <span class="end"><span class="faint no-phone">${going ? "sending" : e.unsure ? "not confirmed yet" : why}</span>
      ${!going && html`<button type="button" class="link" onClick=${() => { outbox.withdraw(e.id); onEdit(e.text); }}>Edit</button>
      <button type="button" class="link" onClick=${() => outbox.withdraw(e.id)}>Remove</button>`}</span></li>`;
  })}</ul>`;
}
