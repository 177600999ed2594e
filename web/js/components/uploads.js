// How files on their way are doing.

import { cx, html } from "../lib.js";
import * as uploads from "../uploads.js";
import { bytes, plural } from "../format.js";
import { Icon } from "./icons.js";

const WORDS = { waits: "waits", done: "done", exists: "already there" };

export function Uploads({ sb }) {
  const all = uploads.items.value.filter((i) => i.sb === sb.id);
  const of = (state) => all.filter((i) => i.state === state);
  const ids = (list) => list.map((i) => i.id);
  const size = all.reduce((n, i) => n + i.size, 0);
  const sent = all.reduce((n, i) => n + (i.state === "failed" || i.state === "exists" ? i.size : i.sent), 0);
  const going = all.some((i) => i.state === "waits" || i.state === "goes");
  const failed = of("failed");
  const there = of("exists");
  // The finished ones are counted, not listed, as soon as there are many.
  const shown = [...failed, ...there, ...of("goes"), ...of("waits"), ...of("done")].slice(0, 60);
  return html`<p class="vh" role="status">${uploads.spoken.value}</p>
    ${all.length > 0 && html`<section class="ups" aria-label="Uploads"><div class="ups-head">
      <span class="grow cut">${going ? `Uploading ${plural(all.length, "file")}` : failed.length || there.length ? `${of("done").length} of ${plural(all.length, "file")} uploaded` : `${plural(all.length, "file")} uploaded`}<span class="faint"> · ${bytes(size)}</span></span>
      ${failed.length > 1 && html`<button type="button" class="link" onClick=${() => uploads.retry(ids(failed))}>Retry all</button>`}
      ${there.length > 1 && html`<button type="button" class="link" onClick=${() => uploads.retry(ids(there), true)}>Replace all</button>`}
      <button type="button" class="btn quiet icon small" aria-label=${going ? "Stop uploading" : "Close the list of uploads"} title=${going ? "Stop uploading" : "Close"} onClick=${() => uploads.dismiss(ids(all))}><${Icon} name="x" small /></button></div>
    ${going && html`<progress max=${size || 1} value=${sent} aria-label="All uploads"></progress>`}
    <ul>${shown.map((i) => html`<li key=${i.id} class=${cx(i.state)}><span class="cut grow" title=${i.name}>${i.name}</span>
      ${i.state === "goes"
        ? html`<progress max=${i.size || 1} value=${i.sent} aria-label=${i.name}></progress><span class="num faint">${i.size ? `${Math.floor((100 * i.sent) / i.size)} %` : ""}</span>`
        : html`<span class=${i.state === "failed" ? "bad-t" : i.state === "exists" ? "note-t" : "faint"}>${i.state === "failed" ? "failed" : WORDS[i.state]}</span>`}
      ${i.state === "failed" && html`<button type="button" class="link" onClick=${() => uploads.retry([i.id])}>Retry<span class="vh"> ${i.name}</span></button>`}
      ${i.state === "exists" && html`<button type="button" class="link" onClick=${() => uploads.retry([i.id], true)}>Replace<span class="vh"> ${i.name}</span></button>`}
      ${(i.state === "failed" || i.state === "exists") && html`<button type="button" class="link" onClick=${() => uploads.dismiss([i.id])}>Skip<span class="vh"> ${i.name}</span></button>`}
      ${i.problem && i.state === "failed" && html`<span class="why">${i.problem.detail}</span>`}</li>`)}</ul>
    ${all.length > shown.length && html`<p class="faint">and ${all.length - shown.length} more</p>`}</section>`}`;
}
