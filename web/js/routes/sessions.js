// All conversations. On a phone, where there is no sidebar, this is the way to them.

import { html } from "../lib.js";
import { Account, SessionList } from "../components/frame.js";

export const Sessions = () => html`<div class="page"><div class="wrap narrow"><div class="ph"><h1>Sessions</h1>
  <div class="end"><a class="btn go" href="/new">New session</a></div></div><div class="session-page"><${SessionList} /></div><div class="account-phone"><${Account} /></div></div></div>`;
