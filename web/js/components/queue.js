// Messages that wait, above the composer: what each waits for, and Edit and Remove until Claude takes it.

import { html } from "../lib.js";
import * as outbox from "../outbox.js";
import { Icon, Pulse } from "./icons.js";
import { Notice } from "./bits.js";

// Queue's props: entries, why (what they wait for), onEdit(text) puts a text back into the composer.
export function Queue({ entries, why, onEdit }) {
  if (!entries.length) return null;
  return html`<ul class="queue" aria-label="Messages that wait">${entries.map((e) => {
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
