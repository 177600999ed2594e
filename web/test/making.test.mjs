import assert from "node:assert/strict";
import { test } from "node:test";
import * as m from "../js/making.js";

const T = Date.parse("2026-01-01T00:00:00Z");
const at = (ms) => new Date(T + ms).toISOString();
const events = (...list) => list.map(([kind, ms, text = kind], i) => ({ seq: i + 1, kind, text, at: at(ms) }));
const sandbox = (state, image = {}) => ({ state, created_at: at(0), image });
const brief = (list) => list.map((s) => `${s.kind} ${s.state}${s.took === null ? "" : ` ${s.took}`}`);
const BUILD = { registry: "x:1", dockerfile_commands: ["RUN a", "RUN b"] };

test("a sandbox on the machine's programs has no step of an image", () => {
  assert.deepEqual(brief(m.steps(events(["accepted", 1]), sandbox("creating", { registry: "host" }))), ["accepted done 1", "volume now", "starting later", "guest later", "running later"]);
});

test("image and build are under way from their first word to the next step", () => {
  const list = [["accepted", 1], ["image", 2], ["image", 50], ["build", 100, "Step 1 of 2: RUN a"]];
  assert.deepEqual(brief(m.steps(events(...list.slice(0, 3)), sandbox("creating", BUILD))).slice(0, 4), ["accepted done 1", "image now", "build later", "volume later"]);
  const during = m.steps(events(...list), sandbox("creating", BUILD));
  assert.deepEqual(brief(during).slice(0, 4), ["accepted done 1", "image done 98", "build now", "volume later"]);
  assert.equal(during[2].from, T + 100);
  const after = m.steps(events(...list, ["volume", 400], ["starting", 401], ["guest", 700], ["running", 900]), sandbox("running", BUILD));
  assert.deepEqual(brief(after), ["accepted done 1", "image done 98", "build done 300", "volume done 0", "starting done 1", "guest done 299", "running done 200"]);
});

test("the step that failed is marked, and those after it never come", () => {
  const list = m.steps(events(["accepted", 1], ["image", 2], ["build", 10], ["stopping", 20], ["error", 21]), sandbox("error", BUILD));
  assert.deepEqual(brief(list), ["accepted done 1", "image done 8", "build bad", "volume later", "starting later", "guest later", "running later"]);
});

test("a sandbox that ran shows what it went through, and no more", () => {
  assert.deepEqual(brief(m.steps(events(["accepted", 1], ["running", 5], ["suspending", 9], ["stopping", 20], ["terminated", 21]), sandbox("terminated"))), ["accepted done 1", "running done 4"]);
});

test("what is told of a layer stays one line, and adds up", () => {
  const log = m.progressLog(events(["image", 0, "Preparing the image x:1."], ["image", 5, "Fetching x:1: 2 layers, 3 MiB."], ["image", 6, "Layer sha256:aa is fetched: 512 KiB of 1 MiB."], ["image", 7, "Layer sha256:bb is here already: 2 MiB of 2 MiB."],
    ["image", 8, "Layer sha256:aa is fetched: 1 MiB of 1 MiB."], ["image", 9, "x:1 is ready."], ["volume", 10]));
  assert.deepEqual(log.lines.map((l) => [l.at, l.tone, l.text.slice(0, 40)]), [
    [0, "step", "Preparing the image x:1."], [5, "step", "Fetching x:1: 2 layers, 3 MiB."], [6, "", "Layer sha256:aa is fetched: 1 MiB of 1 M"], [7, "ok", "Layer sha256:bb is here already: 2 MiB o"], [9, "ok", "x:1 is ready."]]);
  assert.deepEqual(log.pull, { done: 3 * 1024 * 1024, total: 3 * 1024 * 1024 });
  assert.equal(log.build, null);
});

test("steps of a build are told from what its commands write", () => {
  const list = events(["build", 0, "Step 1 of 3: RUN a"], ["build", 1, "hello"], ["build", 2, "Step 2 of 3 is cached."]);
  list.push({ kind: "build", text: "Step 9 of 9: not a step", output: true, at: T + 3 });
  const log = m.progressLog(list);
  assert.deepEqual(log.build, { step: 2, of: 3 });
  assert.deepEqual(log.lines.map((l) => l.tone), ["step", "", "ok", ""]);
  assert.deepEqual(m.fromProgress({ phase: "unpack", text: "x" }, 5), { kind: "image", text: "x", at: 5, output: false });
  assert.deepEqual(m.fromProgress({ phase: "build", text: "x", output: true }, 5), { kind: "build", text: "x", at: 5, output: true });
});

test("the line that failed is read out of the reason", () => {
  for (const [reason, want] of [
    ["line 4: RUN apt-get install foo: ended with exit code 100. Its last output:\nE: no\nE: foo", { line: 4, instruction: "RUN apt-get install foo", what: "ended with exit code 100", output: "E: no\nE: foo" }],
    ["image.dockerfile_commands: line 2: RUN echo a: b: ended with exit code 3 and printed nothing", { line: 2, instruction: "RUN echo a: b", what: "ended with exit code 3", output: "" }],
    ["line 1: RUN x: was ended by SIGKILL. Its last output:\nbye", { line: 1, instruction: "RUN x", what: "was ended by SIGKILL", output: "bye" }],
    ["line 3: COPY a b: there is no context to copy from.", { line: 3, instruction: "COPY a b", what: "there is no context to copy from.", output: "" }],
    ["Starting it failed.", null],
    ["", null],
  ]) assert.deepEqual(m.failedLine(reason), want);
});

test("a failure is marked where it happened and told at the end", () => {
  const { lines } = m.progressLog(events(["build", 0, "Step 1 of 2: RUN a"], ["build", 10, "Step 2 of 2: RUN b"], ["build", 30, "oops"]));
  const marked = m.withFailure(lines, "line 2: RUN b: ended with exit code 1. Its last output:\noops");
  assert.deepEqual(marked.map((l) => [l.tone, l.text]), [["step", "Step 1 of 2: RUN a"], ["bad", "Step 2 of 2: RUN b"], ["", "oops"], ["bad", "Line 2 ended with exit code 1."]]);
  assert.equal(lines[1].tone, "step");
  assert.equal(m.plainLog(marked), "    0.0  Step 1 of 2: RUN a\n    0.0  Step 2 of 2: RUN b\n    0.0  oops\n    0.0  Line 2 ended with exit code 1.\n");
  assert.deepEqual(m.withFailure([], "The registry does not answer.\nmore").map((l) => l.text), ["The registry does not answer."]);
});
