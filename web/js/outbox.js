// Messages that the user has sent and the server hasn't taken yet: because the sandbox isn't ready, or the connection is away.
// What is sent while Claude works waits on the server. They are kept on this device until the server has them, shown above the composer, and can be
// changed or withdrawn until then.
//
// An entry: {id, text, sandbox, session, mode, at, problem, unsure}. `unsure` means that it was sent, but no answer came.

import { signal } from "./lib.js";
import * as api from "./api.js";
import * as local from "./local.js";
import * as store from "./store.js";

export const entries = signal(local.get("outbox", []));
export const sending = signal(null); // ID of the entry that is on its way

const taken = new Map(); // who wants to know which session an entry began
const KEY = "outbox";

function save(list) {
  entries.value = list;
  local.set(KEY, list.length ? list : null);
}

local.watch(KEY, (list) => {
  entries.value = list || [];
});

export const forSession = (id) => entries.value.filter((e) => e.session === id);
export const forSandbox = (id) => entries.value.filter((e) => e.sandbox === id && !e.session);

let count = 0;

// put adds a message and tries to send it. onTaken(session) is called when the server has it.
export function put({ text, sandbox, session = null, mode = "" }, onTaken) {
  const id = `${Date.now().toString(36)}-${(count++).toString(36)}-${Math.random().toString(36).slice(2, 8)}`;
  save([...entries.value, { id, text, sandbox, session, mode, at: Date.now(), problem: null, unsure: false }]);
  if (onTaken) taken.set(id, onTaken);
  pump();
  return id;
}

export function withdraw(id) {
  save(entries.value.filter((e) => e.id !== id));
  taken.delete(id);
}

const change = (id, what) => save(entries.value.map((e) => (e.id === id ? { ...e, ...what } : e)));

// retry tries an entry again that failed.
export function retry(id) {
  change(id, { problem: null });
  pump();
}

// redirect moves a session's waiting messages to another sandbox, because it goes on there.
export function redirect(session, sandbox) {
  save(entries.value.map((e) => (e.session === session ? { ...e, sandbox, problem: null } : e)));
  pump();
}

// listen hears from now on what becomes of a waiting entry; used by a page that is opened while it waits.
export function listen(id, onTaken) {
  taken.set(id, onTaken);
  return () => taken.get(id) === onTaken && taken.delete(id);
}

// ready says whether an entry may be sent now, from what is known.
function ready(e) {
  if (e.problem || e.id === sending.value) return false;
  const sb = store.sandboxOf(e.sandbox);
  if (!sb || sb.state !== "running") return false;
  return !e.session || (store.sessions.value || []).some((x) => x.id === e.session);
}

let running = false;

// pump sends what can be sent, one at a time. With several tabs open only one does it.
export async function pump() {
  if (running || store.signedOut.value) return;
  if (!entries.value.some(ready)) return;
  running = true;
  try {
    if (navigator.locks) {
      await navigator.locks.request("sandlot.outbox", { ifAvailable: true }, async (lock) => {
        if (!lock) return;
        // Another tab may have sent some since we last looked.
        entries.value = local.get(KEY, []);
        await drain();
      });
    } else {
      await drain();
    }
  } finally {
    running = false;
  }
}

async function drain() {
  const blocked = new Set();
  for (;;) {
    const e = entries.value.find((x) => ready(x) && !blocked.has(x.session || x.id));
    if (!e) return;
    sending.value = e.id;
    try {
      if (e.unsure && (await arrived(e))) continue;
      await send(e);
    } catch (problem) {
      if (!failed(e, problem)) blocked.add(e.session || e.id);
    } finally {
      sending.value = null;
    }
  }
}

async function send(e) {
  // What was there before is noted, so that arrived can tell this message from an equal older one without trusting clocks.
  const all = store.sessions.value || [];
  const there = all.find((s) => s.id === e.session);
  change(e.id, { unsure: true, seq: there ? there.last_seq : 0, known: all.filter((s) => s.sandbox === e.sandbox).map((s) => s.id) });
  const session = await api.prompt(e.sandbox, { text: e.text, session: e.session, mode: e.mode });
  done(e, session);
}

function done(e, session) {
  const tell = taken.get(e.id);
  withdraw(e.id);
  if (session) {
    const known = (store.sessions.value || []).find((s) => s.id === session);
    if (known) store.keepSession({ id: session, busy: true, sandbox: e.sandbox });
    store.readSession(session).catch(() => {});
  }
  if (tell) tell(session);
}

// failed decides what to do with a message that wasn't taken. It returns whether to go on with other messages for
// the same session at once.
function failed(e, problem) {
  if (problem.status === 409) {
    // Not running after all, or its queue is full: what we knew was old. It waits.
    change(e.id, { unsure: false });
    if (e.session) store.readSession(e.session).catch(() => {});
    store.readSandbox(e.sandbox).catch(() => {});
    return false;
  }
  if (problem.code === "network" || problem.status === 502 || problem.status === 503 || problem.status === 504) return false; // stays unsure; tried again when we are back
  if (problem.status === 401) {
    change(e.id, { unsure: false });
    return false;
  }
  change(e.id, { unsure: false, problem: { title: problem.title, detail: problem.detail, code: problem.code, requestID: problem.requestID } });
  return true;
}

// arrived looks whether a message of which no answer came was taken all the same, so that it isn't sent twice.
async function arrived(e) {
  if (e.session) {
    for (let after = e.seq || 0; ; ) {
      const page = await api.sessionEvents(e.session, after);
      const events = page.events || [];
      if (events.some((ev) => ev.kind === "prompt" && ev.data && ev.data.text === e.text) || (await waits(e))) {
        done(e, e.session);
        return true;
      }
      if (!page.more || !events.length) return false;
      after = events[events.length - 1].seq;
    }
  }
  const list = await api.sessions();
  const s = (list.sessions || []).find((x) => x.sandbox === e.sandbox && x.turns === 1 && !(e.known || []).includes(x.id));
  if (!s) return false;
  done(e, s.id);
  return true;
}

// waits says whether a message is in its session's queue.
async function waits(e) {
  const s = store.keepSession(await api.session(e.session));
  return (s.queue || []).some((t) => (t.truncated ? e.text.startsWith(t.text) : t.text === e.text));
}

// start sends whenever something changed that a message may have waited for.
export function start(effect) {
  effect(() => {
    // Reading the signals subscribes to them.
    const waits = entries.value.length && (store.sandboxes.value, store.sessions.value, store.conn.value.state === "live");
    if (waits) queueMicrotask(pump);
  });
  // While something waits, what it waits for is asked now and then, whatever the streams say.
  setInterval(() => {
    if (!entries.value.length || document.hidden || store.signedOut.value) return;
    for (const id of new Set(entries.value.map((e) => e.sandbox))) store.readSandbox(id).catch(() => {});
    for (const id of new Set(entries.value.map((e) => e.session).filter(Boolean))) store.readSession(id).catch(() => {});
    pump();
  }, 4000);
}
