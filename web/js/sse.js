// Server-sent events over fetch. The browser's own EventSource won't do: it can't tell a 401 from a broken line, keeps
// no count of what it replays, and gives the name "error" to its own troubles, which is also the name of one of our events.

// parser returns a function that takes text as it comes and calls emit with each whole event: {id, event, data}.
// Lines may end with \n, \r\n or \r, and may be cut anywhere.
export function parser(emit, onComment = () => {}) {
  let buffer = "";
  let data = [];
  let event = "";
  let id = null;
  let skipLF = false;
  const line = (l) => {
    if (l === "") {
      if (data.length) emit({ id, event: event || "message", data: data.join("\n") });
      data = [];
      event = "";
      return;
    }
    if (l[0] === ":") {
      onComment(l.slice(1));
      return;
    }
    const colon = l.indexOf(":");
    const field = colon < 0 ? l : l.slice(0, colon);
    let value = colon < 0 ? "" : l.slice(colon + 1);
    if (value[0] === " ") value = value.slice(1);
    if (field === "data") data.push(value);
    else if (field === "event") event = value;
    else if (field === "id" && !value.includes("\0")) id = value;
  };
  return (text) => {
    if (skipLF && text[0] === "\n") text = text.slice(1);
    skipLF = false;
    // Only what is new can hold a line's end, so a long line in many pieces isn't scanned again and again.
    let from = buffer.length;
    buffer += text;
    let start = 0;
    for (let i = from; i < buffer.length; i++) {
      const c = buffer.charCodeAt(i);
      if (c !== 10 && c !== 13) continue;
      line(buffer.slice(start, i));
      if (c === 13) {
        if (i + 1 === buffer.length) skipLF = true;
        else if (buffer.charCodeAt(i + 1) === 10) i++;
      }
      start = i + 1;
    }
    buffer = start ? buffer.slice(start) : buffer;
  };
}

// delay is the pause before attempt n (from 0): half a second, doubling up to 15 s, with jitter so that a restarted
// server isn't met by everybody at once.
export function delay(n, random = Math.random) {
  return Math.min(15_000, 500 * 2 ** Math.min(n, 10)) * (0.75 + random() * 0.5);
}

// follow keeps a stream open until it is closed. options:
//   url()      the address to connect to now; it holds the position to go on from
//   prepare()  optional, awaited before each connection (catches up on what a stream needs first)
//   onEvent(e), onState("connecting" | "live" | "broken" | "closed", problem)
//   onAlive()  called for every byte that comes, heartbeats too
//   request    fetch-like; resolves to an ok Response, or throws an error whose `fatal` says that trying again is no use
// A stream that is silent for longer than `silence` is taken for broken: the server sends a heartbeat every 15 s.
export function follow(options) {
  const { url, prepare, onEvent, onState = () => {}, onAlive = () => {}, request, silence = 40_000 } = options;
  let closed = false;
  let attempt = 0;
  let abort = null;
  let wake = null;

  const sleep = (ms) =>
    new Promise((resolve) => {
      const t = setTimeout(resolve, ms);
      wake = () => {
        clearTimeout(t);
        resolve();
      };
    });

  async function once() {
    abort = new AbortController();
    const mine = abort;
    let watchdog = null;
    const feedDog = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => mine.abort(), silence);
      onAlive();
    };
    try {
      if (prepare) await prepare(mine.signal);
      if (closed) return;
      const response = await request(url(), { signal: mine.signal, headers: { Accept: "text/event-stream" }, cache: "no-store" });
      feedDog();
      attempt = 0;
      onState("live");
      const feed = parser((e) => closed || onEvent(e));
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        feedDog();
        feed(decoder.decode(value, { stream: true }));
      }
    } finally {
      clearTimeout(watchdog);
      mine.abort();
    }
  }

  async function loop() {
    while (!closed) {
      let problem = null;
      onState("connecting");
      try {
        await once();
      } catch (e) {
        problem = e;
      }
      if (closed) break;
      onState("broken", problem);
      if (problem && problem.fatal) {
        closed = true;
        break;
      }
      await sleep(delay(attempt++));
    }
    onState("closed");
  }
  loop();

  return {
    // close ends the stream for good.
    close() {
      closed = true;
      if (abort) abort.abort();
      if (wake) wake();
    },
    // retry connects at once if it is waiting, because the network or the page came back.
    retry() {
      attempt = 0;
      if (wake) wake();
    },
    // restart drops a connection that may be dead without knowing it.
    restart() {
      attempt = 0;
      if (abort) abort.abort();
      if (wake) wake();
    },
  };
}
