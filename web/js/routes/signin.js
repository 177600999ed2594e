// Signing in, for whoever has no link or whose link no longer works.

import { html } from "../lib.js";
import { route } from "../router.js";
import * as store from "../store.js";
import { Mark } from "../components/icons.js";
import { Notice } from "../components/bits.js";
import { KeyForm } from "../components/keyform.js";

const Field = () => html`<svg viewBox="0 0 520 500" aria-hidden="true"><path class="art-grass" d="M260 440 52 212A294 294 0 0 1 468 212z"/><path class="art-soft" d="M104 269A210 210 0 0 1 416 269"/>
  <path class="art-dirt" d="M260 440 139 307A172 172 0 0 1 381 307z"/><path class="art-grass" d="m260 392 76-84-76-84-76 84z"/><path class="art-line" d="M260 440 52 212M260 440 468 212"/>
  <path class="art-chalk" d="m260 420 101-112-101-112-101 112z"/><circle class="art-off" cx="260" cy="308" r="9"/><circle class="art-go" cx="361" cy="308" r="8"/><circle class="art-go" cx="260" cy="196" r="8"/>
  <path class="art-ask" d="m159 298 10 10-10 10-10-10z"/><path class="art-home" d="M249 410h22v12l-11 11-11-11z"/>
  <text class="art-t s" x="260" y="466" text-anchor="middle">your server</text><text class="art-t" x="260" y="482" text-anchor="middle">one binary, a field for everyone</text></svg>`;

export function SignIn({ onDone }) {
  const expired = route.value.query.get("error");
  const h = store.health.value;
  return html`<main class="door"><div class="form"><div>
    <div class="brand"><${Mark} />Sandlot</div>
    <div class="block"><h1>Sign in</h1><p class="dim">Each of your sandboxes is a computer of its own. Sign in to see them.</p></div>
    ${expired && html`<${Notice} kind="bad" title="That link no longer works."><span>Sign-in links work once, and for a quarter of an hour. Run <code>sandlot signin</code> on the server for a new one, or use a key.</span></${Notice}>`}
    <${KeyForm} focus=${matchMedia("(pointer: fine)").matches} onDone=${onDone} />
    <p class="faint">${location.host}${h && h.version ? ` · ${h.version}` : ""}</p></div></div>
    <div class="field-art"><${Field} /></div></main>`;
}
