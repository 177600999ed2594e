import assert from "node:assert/strict";
import { test } from "node:test";
import { link } from "../js/termlink.js";

// A server that the test plays.
function world() {
  const sockets = [];
  class Socket {
    constructor(url) {
      this.url = new URL(url);
      this.sent = [];
      this.readyState = 1;
      sockets.push(this);
    }
    send(v) {
      this.sent.push(typeof v === "string" ? JSON.parse(v) : Buffer.from(v).toString());
    }
    close() {
      this.readyState = 3;
    }
    frame(f) {
      this.onmessage({ data: JSON.stringify(f) });
    }
    bytes(s) {
      this.onmessage({ data: new Uint8Array(Buffer.from(s)).buffer });
    }
    drop() {
      this.readyState = 3;
      this.onclose();
    }
  }
  const told = [];
  const note = (name) => (...args) => told.push([name, ...args.map((a) => (a instanceof Uint8Array ? Buffer.from(a).toString() : a))]);
  const l = link({
    sandbox: "sbx_1", cols: 80, rows: 24, Socket, location: { protocol: "http:", host: "here" }, random: () => 0,
    onData: note("data"), onGap: note("gap"), onWriter: note("writer"), onExit: note("exit"), onState: note("state"), onRefused: note("refused"), onSize: note("size"),
    check: async () => null,
  });
  const next = async (n) => {
    while (sockets.length < n) await new Promise((r) => setTimeout(r, 5));
    return sockets[n - 1];
  };
  return { l, told, next };
}

const START = { type: "start", run: "run_1", writer: true, offset: 0, live: 0, input: 0 };

test("a connection that is cut goes on where it was, in both directions", async () => {
  const { l, told, next } = world();
  const a = await next(1);
  assert.equal(a.url.searchParams.get("run"), null);
  a.frame(START);
  a.bytes("hello");
  assert.ok(l.input("abc"));
  assert.ok(l.input("def"));
  assert.deepEqual(a.sent, ["abc", "def"]);
  a.frame({ type: "ack", input: 2 });
  a.drop();
  assert.ok(l.input("ghi")); // typed while it is away
  const b = await next(2);
  assert.equal(b.url.searchParams.get("after"), "5");
  assert.equal(b.url.searchParams.get("run"), "run_1");
  assert.equal(b.url.searchParams.get("take"), "true");
  b.frame({ ...START, offset: 5, live: 7, input: 4 });
  assert.deepEqual(b.sent, ["efghi"]);
  b.bytes("xyz");
  assert.deepEqual(told.filter((t) => t[0] === "data"), [["data", "hello", false], ["data", "xy", true], ["data", "z", false]]);
  b.frame({ type: "exit", state: "exited", exit_code: 7 });
  assert.equal(told.at(-1)[0], "exit");
  assert.equal(l.input("late"), false);
});

test("input is dropped when somebody else has written meanwhile, or writes", async () => {
  const { l, told, next } = world();
  const a = await next(1);
  a.frame(START);
  l.input("abc");
  a.drop();
  const b = await next(2);
  b.frame({ ...START, input: 50 });
  assert.deepEqual(b.sent, []);
  b.frame({ type: "writer", writer: false });
  assert.equal(l.input("x"), false);
  assert.deepEqual(told.at(-1), ["writer", false]);
  b.frame({ type: "writer", writer: true, input: 60 });
  assert.ok(l.input("y"));
  b.drop();
  const c = await next(3);
  c.frame({ ...START, input: 60 });
  assert.deepEqual(c.sent, ["y"]);
  l.close();
});

test("input that nobody takes is bounded, and output is acknowledged", async () => {
  const { l, next } = world();
  const a = await next(1);
  a.frame(START);
  assert.ok(l.input("x".repeat(128 << 10)));
  assert.equal(l.room(), 0);
  assert.equal(l.input("y"), false);
  a.sent.length = 0;
  a.bytes("some output");
  l.used(11);
  assert.deepEqual(a.sent, [{ type: "ack", offset: 11 }]);
  a.frame({ type: "gap", from: 11, to: 1000 });
  a.bytes("more");
  l.used(4);
  assert.deepEqual(a.sent.at(-1), { type: "ack", offset: 1004 });
  l.close();
});
