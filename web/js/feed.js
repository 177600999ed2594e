// One session, followed: its log as state, kept up to date over broken connections. A page makes one and closes it.

import { signal } from "./lib.js";
import * as api from "./api.js";
import * as reducer from "./reducer.js";
import * as store from "./store.js";
import { follow } from "./sse.js";

const readData = (text) => {
  try {
    return JSON.parse(text);
  } catch {
    return text; // a line of the CLI that isn't JSON
  }
};

// open follows session id. It returns signals: log (the reducer's state), loaded, problem (why it can't be shown), line
// ("connecting", "live", "broken"), and heard: when the log last grew, as far as we saw.
export function open(id) {
  const feed = {
    id,
    log: signal(reducer.initial()),
    loaded: signal(false),
    problem: signal(null),
    line: signal("connecting"),
    heard: signal(0),
    brokenAt: 0,
  };
  let queue = [];
  let frame = 0;
  let timer = 0;
  let closed = false;
  let hideTimer = null;
  let stream = null;

  const flush = () => {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    frame = timer = 0;
    if (!queue.length || closed) return;
    const batch = queue;
    queue = [];
    feed.log.value = reducer.apply(feed.log.value, batch);
  };
  // Events are folded in once per frame; nobody sees a hidden tab, so there once per second does.
  const push = (e) => {
    queue.push(e);
    feed.heard.value = Date.now();
    if (["end", "queue", "ask", "answer", "notice"].includes(e.kind)) {
      if (e.kind === "end") busy(false, e.seq);
      reread();
    } else if (e.kind === "prompt") {
      busy(true);
    }
    if (frame || timer) return;
    if (document.hidden) timer = setTimeout(flush, 1000);
    else frame = requestAnimationFrame(flush);
  };
  // What the server knows beside the log, such as the queue, is read again when it may have changed.
  let rereads = 0;
  const reread = () => {
    clearTimeout(rereads);
    rereads = setTimeout(() => closed || store.readSession(id).catch(() => {}), 40);
  };
  const busy = (is, seq) => {
    const known = (store.sessions.value || []).find((s) => s.id === id);
    if (known && known.busy !== is) store.keepSession({ id, busy: is, last_seq: Math.max(known.last_seq, seq || 0) });
  };

  // catchUp reads what the log holds beyond our position as pages, which say when each event was; the stream doesn't.
  async function catchUp(signal) {
    flush();
    const first = !feed.loaded.value;
    let state = reducer.resume(feed.log.value);
    let n = 0;
    for (;;) {
      const page = await api.sessionEvents(id, state.lineSeq, signal);
      const events = (page.events || []).map((e) => ({ seq: e.seq, run: e.run, kind: e.kind, data: e.data, at: Date.parse(e.at) || 0 }));
      if (events.length) state = reducer.apply(state, events);
      n += events.length;
      if (!page.more || !events.length) break;
    }
    const session = await api.session(id);
    if (closed) return;
    store.keepSession(session);
    feed.log.value = state;
    feed.loaded.value = true;
    feed.problem.value = null;
    if (n) feed.heard.value = Math.max(feed.heard.value, lastAt(state));
    if (!first && feed.brokenAt) {
      if (Date.now() - feed.brokenAt > 2000) store.announceBack(n);
      feed.brokenAt = 0;
    }
  }

  function startStream() {
    const mine = follow({
      request: api.request,
      prepare: catchUp,
      url: () => api.sessionStream(id, feed.log.value.lineSeq),
      onState: (s, problem) => {
        if (s === "closed") {
          if (stream === mine) stream = null;
          return;
        }
        if (s === "broken" && !feed.brokenAt) feed.brokenAt = Date.now();
        if (problem && (problem.fatal || !feed.loaded.value) && problem.status !== 401) feed.problem.value = problem;
        if (s === "connecting" && feed.line.value === "broken") return;
        feed.line.value = s;
      },
      onEvent: (e) => {
        if (!["prompt", "line", "partial", "end", "gap", "ask", "answer", "queue", "notice"].includes(e.event)) return;
        push({ seq: Number(e.id) || 0, kind: e.event, data: readData(e.data), at: Date.now() });
      },
    });
    stream = mine;
  }
  startStream();

  const leave = () => {
    if (stream) stream.close();
    stream = null;
  };
  const visible = () => {
    clearTimeout(hideTimer);
    if (document.hidden) {
      // As for the page's own stream: an idle hidden tab gives its connection back.
      hideTimer = setTimeout(() => {
        const s = (store.sessions.value || []).find((x) => x.id === id);
        if (!(s && s.busy)) leave();
      }, 30_000);
      return;
    }
    if (timer) flush();
    if (!stream && !closed) startStream();
    else if (stream) stream.retry();
  };
  const online = () => stream && stream.retry();
  const offline = () => stream && stream.restart();
  document.addEventListener("visibilitychange", visible);
  addEventListener("online", online);
  addEventListener("offline", offline);
  const comeBack = (e) => e.persisted && !stream && !closed && startStream();
  addEventListener("pagehide", leave);
  addEventListener("pageshow", comeBack);

  feed.retry = () => {
    feed.problem.value = null;
    if (stream) stream.retry();
    else startStream();
  };
  feed.close = () => {
    closed = true;
    clearTimeout(rereads);
    clearTimeout(hideTimer);
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", visible);
    removeEventListener("online", online);
    removeEventListener("offline", offline);
    removeEventListener("pagehide", leave);
    removeEventListener("pageshow", comeBack);
    if (stream) stream.close();
  };
  return feed;
}

const lastAt = (state) => (state.turns.length ? state.turns[state.turns.length - 1].lastAt : 0);
