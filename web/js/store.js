// What the whole page knows: who we are, the server, sandboxes, sessions, and how the connection is. The server is the
// truth; everything here is its last known answer.

import { batch, signal } from "./lib.js";
import * as api from "./api.js";
import { follow } from "./sse.js";

export const me = signal(null);
export const health = signal(null);
export const sandboxes = signal(null); // null until first read
export const sessions = signal(null);
export const signedOut = signal(false);
export const now = signal(Date.now());

// conn: state is "connecting", "live" or "broken"; since when; when anything came last; how many events a
// reconnection replayed ("back" is shown for two seconds).
export const conn = signal({ state: "connecting", since: Date.now(), lastAt: 0, ever: false });
export const back = signal(null);

setInterval(() => {
  if (!document.hidden) now.value = Date.now();
}, 1000);

// ---- Reading ----

const byNewest = (a, b) => (a.created_at < b.created_at ? 1 : a.created_at > b.created_at ? -1 : 0);

export async function loadSandboxes() {
  const list = await api.sandboxes();
  sandboxes.value = list.sandboxes || [];
}

export async function loadSessions() {
  const list = await api.sessions();
  sessions.value = list.sessions || [];
}

export const sandboxOf = (id) => (sandboxes.value || []).find((s) => s.id === id) || null;

// keepSandbox takes a fresh answer about one sandbox.
export function keepSandbox(sb) {
  const rest = (sandboxes.value || []).filter((s) => s.id !== sb.id);
  sandboxes.value = [...rest, sb].sort(byNewest);
  return sb;
}

export function keepSession(s) {
  const list = sessions.value || [];
  const there = list.some((x) => x.id === s.id);
  sessions.value = there ? list.map((x) => (x.id === s.id ? { ...x, ...s } : x)) : [s, ...list];
  return s;
}

export const readSandbox = async (id) => keepSandbox(await api.sandbox(id));
export const readSession = async (id) => keepSession(await api.session(id));

// ---- What happens to sandboxes: one stream for the page ----

const listeners = new Set();
let stream = null;
let lastSeq = 0;
const stale = new Set();
let staleTimer = null;

// onEvent hears each event of each sandbox as it comes.
export function onEvent(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function refresh(id) {
  stale.add(id);
  if (staleTimer) return;
  staleTimer = setTimeout(async () => {
    staleTimer = null;
    const ids = [...stale];
    stale.clear();
    // A burst, as after a reconnection, is cheaper read as one list.
    const read = ids.length > 3 ? [loadSandboxes()] : ids.map(readSandbox);
    await Promise.allSettled(read);
  }, 60);
}

function setConn(state) {
  const c = conn.value;
  if (c.state === state) return;
  // Between attempts the state flips; for people it is broken until it is live again.
  if (state === "connecting" && c.ever && c.state === "broken") return;
  conn.value = { ...c, state, since: Date.now(), ever: c.ever || state === "live" };
}

let aliveAt = 0;
function alive() {
  aliveAt = Date.now();
}
export const lastAlive = () => aliveAt;

export function startEvents() {
  if (stream) return;
  const mine = follow({
    request: api.request,
    url: () => api.eventStream(lastSeq),
    prepare: async () => {
      if (conn.value.ever) await Promise.all([loadSandboxes(), loadSessions(), loadHealth()]);
      else if (!lastSeq) lastSeq = await beginning();
    },
    onAlive: alive,
    onState: (s) => {
      if (s !== "closed") setConn(s);
      else if (stream === mine) stream = null;
    },
    onEvent: (e) => {
      let data;
      try {
        data = JSON.parse(e.data);
      } catch {
        return;
      }
      if (!data || !data.sandbox) return;
      const seq = Number(e.id ?? data.seq) || 0;
      if (seq && seq <= lastSeq) return;
      if (seq) lastSeq = seq;
      // The lines of a build are many, and change nothing of the sandbox.
      if (data.kind !== "image" && data.kind !== "build") refresh(data.sandbox);
      for (const l of listeners) l({ ...data, seq });
    },
  });
  stream = mine;
}

// beginning finds where to start: what is older than the newest sandbox is in the lists already, and may be a lot.
async function beginning() {
  const newest = (sandboxes.value || [])[0];
  if (!newest) return 0;
  const { events } = await api.events(newest.id);
  return events && events.length ? events[0].seq - 1 : 0;
}

export function stopEvents() {
  if (stream) stream.close();
  stream = null;
}

export const reconnect = () => stream && stream.retry();

// announceBack tells for two seconds that a broken connection is back, and what it missed.
export function announceBack(n) {
  back.value = { n, at: Date.now() };
  const mine = back.value;
  setTimeout(() => {
    if (back.value === mine) back.value = null;
  }, 2500);
}

// ---- Start ----

export async function loadHealth() {
  try {
    health.value = await api.health();
  } catch {
    // Unknown stays unknown; the band about the connection says enough.
  }
}

// enter reads who we are and all lists. It returns false when nobody is signed in.
export async function enter() {
  try {
    const who = await api.me();
    const [sb, ses] = await Promise.all([api.sandboxes(), api.sessions()]);
    batch(() => {
      me.value = who;
      sandboxes.value = sb.sandboxes || [];
      sessions.value = ses.sessions || [];
      signedOut.value = false;
    });
  } catch (e) {
    if (e.status === 401) return false;
    throw e;
  }
  startEvents();
  return true;
}

// A hidden tab keeps its stream for half a minute, then lets it go: browsers allow an origin only six connections, over
// all tabs. Coming back, it catches up.
let hideTimer = null;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hideTimer);
  if (document.hidden) {
    hideTimer = setTimeout(stopEvents, 30_000);
    return;
  }
  now.value = Date.now();
  if (!me.value || signedOut.value) return;
  if (stream) stream.retry();
  else startEvents();
  loadSessions().catch(() => {});
});
addEventListener("online", reconnect);
// A page that is left may be kept alive for Back, with its connections, of which there are only six; so they are closed.
addEventListener("pagehide", stopEvents);
addEventListener("pageshow", (e) => {
  if (e.persisted && me.value && !signedOut.value) startEvents();
});
addEventListener("offline", () => {
  setConn("broken");
  if (stream) stream.restart();
});

// Sessions have no stream of their own yet; while one works, the list is read more often.
setInterval(() => {
  if (document.hidden || !me.value || signedOut.value || conn.value.state !== "live") return;
  const busy = (sessions.value || []).some((s) => s.busy);
  if (busy || Date.now() - lastList > 25_000) {
    lastList = Date.now();
    loadSessions().catch(() => {});
  }
}, 5000);
let lastList = Date.now();
