// The way to a terminal: a WebSocket that comes back by itself, without a byte of output or input missing or coming twice. It knows
// nothing of the page; what it needs of the browser can be given.

import { delay } from "./sse.js";

const WINDOW = 1 << 19; // output that may be on its way beyond what was drawn
const KEEP = 128 << 10; // input that is kept until the program's terminal has taken it
const PROBE = 20_000;

const encoder = new TextEncoder();

// link opens a terminal of a sandbox. options: sandbox, run ("" starts one), readonly, take, cols, rows, argv; and what happens:
// onStart(frame, first), onRoom(), onData(bytes, history), onGap(from, to), onWriter(is), onSize(cols, rows), onExit(frame), onState("live"|"broken"),
// onRefused(problem); and check(), which tells after a failure why there is no way: it resolves to nothing, or to a problem that stays.
export function link(options) {
  const { Socket = globalThis.WebSocket, location: at = globalThis.location, check = async () => null, random = Math.random } = options;
  const tell = (name, ...args) => options[name] && options[name](...args);
  let socket = null;
  let run = options.run || "";
  let { cols, rows } = options;
  let offset = 0; // of the next byte of output
  let live = 0; // where it ended when we came
  let acked = 0;
  let writer = Boolean(options.take);
  let base = 0; // the offset of pending
  let pending = new Uint8Array(0);
  let started = false;
  let over = false;
  let failures = 0;
  let timer = 0;
  let probe = 0;
  let heard = 0;

  const url = () => {
    const q = new URLSearchParams({ window: String(WINDOW) });
    if (cols && rows) {
      q.set("cols", cols);
      q.set("rows", rows);
    }
    if (run) q.set("run", run);
    if (started) q.set("after", offset);
    if (options.readonly) q.set("readonly", "true");
    else if (run && writer) q.set("take", "true");
    if (!run) {
      for (const a of options.argv || []) q.append("argv", a);
      q.append("env", "COLORTERM=truecolor");
    }
    return `${at.protocol === "https:" ? "wss:" : "ws:"}//${at.host}/sandbox/${encodeURIComponent(options.sandbox)}/terminal?${q}`;
  };

  const send = (v) => {
    if (socket && socket.readyState === 1) socket.send(v);
  };
  const sendFrame = (frame) => send(JSON.stringify(frame));

  function start(f) {
    const first = !started;
    started = true;
    failures = 0;
    run = f.run;
    offset = f.offset;
    live = f.live;
    acked = offset;
    // What the server does not know of is sent again, unless somebody else has written meanwhile.
    const taken = f.input - base;
    pending = f.writer && taken >= 0 && taken <= pending.length ? pending.subarray(taken) : new Uint8Array(0);
    base = f.input;
    writer = f.writer;
    if (pending.length) send(pending);
    tell("onState", "live");
    tell("onStart", f, first);
    tell("onWriter", writer);
    if (f.cols && !writer) tell("onSize", f.cols, f.rows);
  }

  function frame(f) {
    switch (f.type) {
      case "start":
        start(f);
        break;
      case "gap":
        offset = f.to;
        acked = Math.max(acked, offset);
        tell("onGap", f.from, f.to);
        break;
      case "ack": {
        const taken = f.input - base;
        if (taken > 0 && taken <= pending.length) {
          pending = pending.subarray(taken);
          base = f.input;
          tell("onRoom");
        }
        break;
      }
      case "writer":
        if (f.writer !== writer) pending = new Uint8Array(0);
        if (f.writer && !writer) base = f.input;
        writer = f.writer;
        tell("onWriter", writer);
        break;
      case "resize":
        tell("onSize", f.cols, f.rows);
        break;
      case "error":
        tell("onRefused", f.problem);
        break;
      case "exit":
        end();
        tell("onExit", f);
        break;
    }
  }

  function data(bytes) {
    // What was written before we came is told apart, so that questions in it are not answered anew.
    const old = Math.max(0, Math.min(bytes.length, live - offset));
    offset += bytes.length;
    if (old > 0) tell("onData", bytes.subarray(0, old), true);
    if (old < bytes.length) tell("onData", bytes.subarray(old), false);
  }

  function open() {
    clearTimeout(timer);
    timer = 0;
    if (over) return;
    const mine = new Socket(url());
    mine.binaryType = "arraybuffer";
    socket = mine;
    heard = Date.now();
    mine.onmessage = (e) => {
      if (socket !== mine || over) return;
      heard = Date.now();
      if (typeof e.data === "string") frame(JSON.parse(e.data));
      else data(new Uint8Array(e.data));
    };
    mine.onclose = () => socket === mine && lost();
  }

  async function lost() {
    socket = null;
    if (over) return;
    if (started) tell("onState", "broken");
    const n = failures++;
    const problem = await check(run).catch(() => null);
    if (over) return;
    if (problem) {
      end();
      tell("onRefused", problem, true);
      return;
    }
    timer = setTimeout(open, delay(n, random));
  }

  // retry tries at once: the network is back, or the page is seen again.
  function retry() {
    if (over) return;
    if (timer) open();
    else if (socket && Date.now() - heard > PROBE) cut();
  }

  function cut() {
    const old = socket;
    socket = null;
    if (old) old.close();
    lost();
  }

  function end() {
    over = true;
    clearTimeout(timer);
    clearInterval(probe);
    if (socket) socket.close();
    socket = null;
  }

  // A browser shows no pings of the protocol, so a silent connection is asked.
  probe = setInterval(() => {
    if (!socket || socket.readyState !== 1) return;
    if (Date.now() - heard > 2 * PROBE && !pending.length) cut();
    else if (Date.now() - heard > PROBE) sendFrame({ type: "ping" });
  }, PROBE / 2);
  if (probe.unref) probe.unref();

  open();
  return {
    // input sends text, or bytes. It returns false if they can't be taken: somebody else writes, or too much is waiting.
    input(what) {
      const bytes = typeof what === "string" ? encoder.encode(what) : what;
      if (over || !writer || pending.length + bytes.length > KEEP) return false;
      const all = new Uint8Array(pending.length + bytes.length);
      all.set(pending);
      all.set(bytes, pending.length);
      pending = all;
      send(bytes);
      return true;
    },
    // room is how much input can be taken now.
    room: () => (over || !writer ? 0 : KEEP - pending.length),
    // used says that n more bytes of output were drawn.
    used(n) {
      acked += n;
      if (acked - (this.told || 0) >= WINDOW / 8 || acked === offset) {
        this.told = acked;
        sendFrame({ type: "ack", offset: acked });
      }
    },
    resize(c, r) {
      if (c === cols && r === rows) return;
      cols = c;
      rows = r;
      sendFrame({ type: "resize", cols, rows });
    },
    take: () => sendFrame({ type: "take" }),
    retry,
    close: end,
    get run() {
      return run;
    },
    get writer() {
      return writer;
    },
  };
}
