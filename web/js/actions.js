// What the user's buttons do, where it takes more than one call.

import * as api from "./api.js";
import * as local from "./local.js";
import * as outbox from "./outbox.js";
import * as store from "./store.js";
import { go } from "./router.js";
import { optionsOf } from "./wish.js";

// asked remembers while this page lives what each sandbox was made from: the server doesn't give environments back.
const asked = new Map();

// askedOf is what makes another sandbox with the same settings as sb.
export const askedOf = (sb) => asked.get(sb.id) || optionsOf(sb);

// newSandbox creates a sandbox and shows how it comes to be. With a text, that becomes its first message, sent once it runs.
export async function newSandbox(options = {}, { text = "", mode = "" } = {}) {
  const sb = store.keepSandbox(await api.createSandbox(options));
  asked.set(sb.id, options);
  if (text) outbox.put({ text, sandbox: sb.id, mode });
  go(`/sandbox/${sb.id}`);
  return sb;
}

// nextSandbox is the sandbox in which a session goes on: the one chosen for it after its own ended, else its own.
export function nextSandbox(session) {
  const chosen = local.get(`next.${session.id}`);
  const next = chosen && store.sandboxOf(chosen);
  return next && live(next) ? next : store.sandboxOf(session.sandbox);
}

export const live = (sb) => Boolean(sb) && ["creating", "running", "suspending", "suspended", "resuming", "stopping"].includes(sb.state);

// continueSession makes a new sandbox like the old one, on the same volume, and lets the session go on in it.
export async function continueSession(session, old) {
  const options = optionsOf(old);
  const sb = store.keepSandbox(await api.createSandbox(options));
  local.set(`next.${session.id}`, sb.id);
  outbox.redirect(session.id, sb.id);
  return sb;
}

// terminate ends a sandbox; one that has ended already is as good.
export async function terminate(id) {
  try {
    store.keepSandbox(await api.terminate(id));
  } catch (e) {
    if (e.status !== 409 && e.status !== 404) throw e;
  }
  await store.readSandbox(id).catch(() => {});
}

// suspend and resume answer when it is done; meanwhile the event stream tells the state.
export const suspend = async (id) => store.keepSandbox(await api.suspend(id));
export const resume = async (id) => store.keepSandbox(await api.resume(id));

// change alters a live sandbox: {name, network, timeout_s}.
export const change = async (id, what) => store.keepSandbox(await api.update(id, what));

export async function signOut() {
  try {
    await api.signOut();
  } finally {
    location.assign("/signin");
  }
}

// copy puts text on the clipboard; where the browser has no clipboard (plain http), through a selection.
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "vh";
    document.body.append(area);
    area.select();
    let ok = false;
    try {
      ok = document.execCommand("copy");
    } catch {
      ok = false;
    }
    area.remove();
    return ok;
  }
}
