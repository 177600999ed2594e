// An address that leads nowhere, inside the frame.

import { html } from "../lib.js";

export const Lost = ({ what, why }) => html`<div class="page"><div class="hello">
  <div class="block"><h1>${what || "There is no such page."}</h1><p class="lead">${why || html`Nothing is at <code>${location.pathname}</code>.`}</p></div>
  <div class="row"><a class="btn go" href="/new">New session</a><a class="btn" href="/sandboxes">All sandboxes</a></div></div></div>`;
