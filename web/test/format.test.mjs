import assert from "node:assert/strict";
import { test } from "node:test";
import * as f from "../js/format.js";

test("durations are written as people say them", () => {
  for (const [ms, want] of [[85, "85 ms"], [3200, "3.2 s"], [48_000, "48 s"], [59_990, "1 m 00 s"], [72_000, "1 m 12 s"], [7_500_000, "2 h 05 m"], [273_600_000, "3 d 4 h"], [undefined, "—"], [-5, "0 ms"]]) {
    assert.equal(f.duration(ms), want);
  }
});

test("a running clock has no fractions", () => {
  assert.equal(f.clock(4_900), "4 s");
  assert.equal(f.clock(72_900), "1 m 12 s");
});

test("bytes are 1024-based with two or three digits", () => {
  for (const [n, want] of [[0, "0 B"], [512, "512 B"], [6246, "6.1 KiB"], [1024 * 1024 - 1, "1.0 MiB"], [256901120, "245 MiB"], [null, "—"]]) assert.equal(f.bytes(n), want);
  assert.equal(f.mib(10240), "10 GiB");
});

test("tokens and money", () => {
  for (const [n, want] of [[842, "842"], [18_400, "18.4k"], [148_000, "148k"], [1_200_000, "1.2M"], [undefined, "—"]]) assert.equal(f.tokens(n), want);
  for (const [n, want] of [[0.84, "$0.84"], [0.001, "< $0.01"], [0, "$0.00"], [null, "—"]]) assert.equal(f.money(n), want);
});

test("ago and left", () => {
  const now = Date.parse("2026-01-02T12:00:00Z");
  for (const [s, want] of [[2, "just now"], [40, "40 s ago"], [720, "12 min ago"], [7200, "2 h ago"], [100_000, "yesterday"], [400_000, "4 days ago"]]) assert.equal(f.ago(now - s * 1000, now), want);
  assert.equal(f.ago("nonsense", now), "—");
  for (const [ms, want] of [[-1, "now"], [12_300, "13 s"], [51 * 60_000, "51 m"], [6_120_000, "1 h 42 m"]]) assert.equal(f.left(ms), want);
});

test("initials", () => {
  for (const [name, want] of [["Mira Kessler", "MK"], ["admin", "AD"], ["", "?"], ["x", "X"]]) assert.equal(f.initials(name), want);
});
