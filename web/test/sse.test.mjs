import assert from "node:assert/strict";
import { test } from "node:test";
import { delay, follow, parser } from "../js/sse.js";

const STREAM = "retry: 1000\n\n: hello\n\nid: 1\nevent: line\ndata: {\"a\":1}\n\nid: 2\r\ndata: two\r\ndata: lines\r\n\r\nevent:error\rdata:x\r\r";
const WANT = [
  { id: "1", event: "line", data: '{"a":1}' },
  { id: "2", event: "message", data: "two\nlines" },
  { id: "2", event: "error", data: "x" },
];

test("a stream gives the same events wherever it is cut", () => {
  for (let size = 1; size <= STREAM.length; size++) {
    const got = [];
    const feed = parser((e) => got.push(e));
    for (let i = 0; i < STREAM.length; i += size) feed(STREAM.slice(i, i + size));
    assert.deepEqual(got, WANT, `in pieces of ${size}`);
  }
});

test("an event without data is none, and comments are heard", () => {
  const got = [];
  let beats = 0;
  const feed = parser((e) => got.push(e), () => beats++);
  feed("event: ping\n\n:\n\ndata\n\n");
  assert.deepEqual(got, [{ id: null, event: "message", data: "" }]);
  assert.equal(beats, 1);
});

test("pauses grow to 15 s, with jitter", () => {
  assert.equal(delay(0, () => 0.5), 500);
  assert.equal(delay(3, () => 0.5), 4000);
  assert.equal(delay(30, () => 0.5), 15_000);
  assert.ok(delay(2, () => 0) < delay(2, () => 1));
});

const answer = (text) => new Response(new Blob([text]).stream());

test("a stream that ends is taken up again from its last event", async () => {
  const urls = [];
  const states = [];
  let last = 0;
  await new Promise((resolve) => {
    const s = follow({
      url: () => `/x?after=${last}`,
      request: async (url) => {
        urls.push(url);
        return answer(`id: ${last + 1}\ndata: x\n\n`);
      },
      onState: (state) => states.push(state),
      onEvent: (e) => {
        last = Number(e.id);
        if (last === 2) {
          s.close();
          resolve();
        } else {
          setTimeout(() => s.retry(), 5); // the network came back: no need to wait out the pause
        }
      },
    });
  });
  assert.deepEqual(urls, ["/x?after=0", "/x?after=1"]);
  assert.deepEqual(states.slice(0, 4), ["connecting", "live", "broken", "connecting"]);
});

test("what can't get better is not tried again", async () => {
  let tries = 0;
  const states = [];
  await new Promise((resolve) => {
    follow({
      url: () => "/x",
      request: async () => {
        tries++;
        throw Object.assign(new Error("gone"), { fatal: true });
      },
      onEvent: () => {},
      onState: (s) => {
        states.push(s);
        if (s === "closed") resolve();
      },
    });
  });
  assert.equal(tries, 1);
  assert.deepEqual(states, ["connecting", "broken", "closed"]);
});

test("catching up happens before each connection", async () => {
  const order = [];
  await new Promise((resolve) => {
    const s = follow({
      prepare: async () => order.push("prepare"),
      url: () => "/x",
      request: async () => {
        order.push("connect");
        return answer("data: 1\n\n");
      },
      onEvent: () => {
        s.close();
        resolve();
      },
    });
  });
  assert.deepEqual(order, ["prepare", "connect"]);
});
