import assert from "node:assert/strict";
import { test } from "node:test";
import { apply, initial } from "../js/reducer.js";
import { describe, diffLines, layout, marks, partialInput, short } from "../js/tools.js";

const call = (name, input, result = null, more = {}) => ({ kind: "call", key: "k", id: "k", name, input, partial: "", final: true, at: 1000, endAt: result ? 4200 : 0, result, ...more });
const ok = (content, data = null) => ({ error: false, content, data });
const bad = (content, data = null) => ({ error: true, content, data });
const texts = (row) => row.meta.map((m) => m.text || m.label);

test("a command: running, done, failed, stopped, in the background", () => {
  const running = describe(call("Bash", { command: "npm run build", description: "Build" }));
  assert.deepEqual([running.verb, running.object, running.state, running.title], ["Running", "npm run build", "running", "Build"]);
  const done = describe(call("Bash", { command: "ls" }, ok("a\nb", { stdout: "a\nb" })));
  assert.deepEqual([done.verb, texts(done), done.open], ["Ran", ["done", "3.2 s"], false]);
  const failed = describe(call("Bash", { command: "make x" }, bad("Exit code 2\nmake: *** No rule", "Error: Exit code 2")));
  assert.deepEqual([texts(failed), failed.open, failed.body.text], [["exit 2", "3.2 s"], true, "make: *** No rule"]);
  const stopped = describe(call("Bash", { command: "sleep 9" }), { ended: "interrupted" });
  assert.deepEqual([stopped.state, texts(stopped), stopped.open], ["stopped", ["stopped by you"], false]);
  assert.deepEqual(texts(describe(call("Bash", { command: "sleep 9" }), { ended: "lost" })), ["its end was not seen"]);
  const back = describe(call("Bash", { command: "serve", run_in_background: true }, ok("started")));
  assert.deepEqual([back.verb, texts(back)], ["Started", ["in background"]]);
});

test("files: read, searched, edited, written", () => {
  const read = describe(call("Read", { file_path: "/workspace/a/b.go" }, ok("x", { file: { numLines: 51, startLine: 40, totalLines: 200 } })), { cwd: "/workspace" });
  assert.deepEqual([read.verb, read.object, texts(read)], ["Read", "a/b.go", ["lines 40–90"]]);
  const grep = describe(call("Grep", { pattern: "x+" }, ok("…", { mode: "content", numLines: 12, numFiles: 5 })));
  assert.deepEqual([grep.object, texts(grep)], ["x+", ["12 matches in 5 files"]]);
  const edit = describe(call("Edit", { file_path: "/w/a" }, ok("ok", { structuredPatch: [{ oldStart: 1, newStart: 1, lines: ["-a", "-b", "+c"] }] })), { cwd: "/w" });
  assert.deepEqual([edit.verb, edit.object, texts(edit), edit.body.type], ["Edited", "a", ["+1", "−2"], "diff"]);
  const write = describe(call("Write", { file_path: "/w/a", content: "1\n2\n3\n" }, ok("ok", { type: "create", structuredPatch: [] })));
  assert.deepEqual([write.verb, texts(write), write.body.limit], ["Wrote", ["+3"], 20]);
  const failed = describe(call("Edit", { file_path: "/w/a", old_string: "x", new_string: "y" }, bad("<tool_use_error>String not found</tool_use_error>")));
  assert.deepEqual([texts(failed), failed.open, failed.body.type, failed.body.text], [["failed"], true, "output", "String not found"]);
});

test("other tools", () => {
  assert.equal(describe(call("WebFetch", { url: "https://a.example/b" }, ok("x", { bytes: 18432, code: 200 }))).object, "a.example/b");
  const mcp = describe(call("mcp__tides__lookup", { port: "Brest", year: 2025 }, ok("{}")));
  assert.deepEqual([mcp.verb, mcp.object, mcp.body.fields], ["tides: lookup", "Brest", [["port", "Brest"], ["year", "2025"]]]);
  assert.equal(describe(call("Brandnew", {}, ok(""))).verb, "Brandnew");
  assert.deepEqual(texts(describe(call("Write", { file_path: "/x" }, bad("Claude requested permissions to write to /x, but you haven't granted it yet.")))), ["denied"]);
  const sub = describe(call("Task", { description: "Check" }, ok([{ type: "text", text: "fine" }], { totalTokens: 9200, totalDurationMs: 38_000 })));
  assert.deepEqual([sub.nested, texts(sub), sub.body.text], [true, ["9.2k tokens", "38 s"], "fine"]);
});

test("an input that is still coming can be read", () => {
  assert.deepEqual(partialInput('{"command":"go te'), { command: "go te" });
  assert.deepEqual(partialInput('{"file_path":"/a","content":"x\\n\\u00e4 \\'), { file_path: "/a", content: "x\nä " });
  assert.deepEqual(partialInput(""), {});
  assert.equal(describe({ ...call("Bash", {}), final: false, partial: '{"command":"ls -l' }).object, "ls -l");
});

test("a thread is laid out in ledgers; reads in a row merge; the plan has one row", () => {
  const events = [{ kind: "prompt", data: { text: "x" } }];
  const tool = (id, name, input, content) => {
    events.push({ kind: "line", data: { type: "assistant", message: { id: `m${id}`, content: [{ type: "tool_use", id, name, input }] } } });
    if (content !== undefined) events.push({ kind: "line", data: { type: "user", message: { content: [{ type: "tool_result", tool_use_id: id, content }] } } });
  };
  tool("p1", "TodoWrite", { todos: [{ content: "a", status: "pending" }] }, "ok");
  for (const n of [1, 2, 3]) tool(`r${n}`, "Read", { file_path: `/f${n}` }, "x");
  tool("b", "Bash", { command: "ls" }, "x");
  tool("p2", "TodoWrite", { todos: [{ content: "a", status: "completed" }] }, "ok");
  events.push({ kind: "line", data: { type: "assistant", message: { id: "t", content: [{ type: "text", text: "Done" }] } } });
  tool("r4", "Read", { file_path: "/f" }, "x");
  const state = apply(initial(), events.map((e, i) => ({ ...e, seq: i + 1, at: i })));
  const got = layout(state.turns[0]).map((g) => (g.type === "ledger" ? g.rows.map((r) => r.type) : g.type));
  assert.deepEqual(got, [["plan", "merged", "call"], "text", ["call"]]);
});

test("a diff is numbered, and changed words are found", () => {
  const got = diffLines([{ oldStart: 52, newStart: 52, lines: [" a", "-    now := time.Now()", "+    now := l.clock.Now()", " b", "\\ No newline at end of file"] }]);
  assert.deepEqual(got.map((l) => [l.kind, l.n]), [["same", 52], ["del", 53], ["add", 53], ["same", 54]]);
  const cut = (l) => l.text.slice(...l.mark);
  assert.deepEqual([cut(got[1]), cut(got[2])], ["time", "l.clock"]);
  assert.equal(marks("abc", "xyz"), null);
  assert.equal(diffLines([{ lines: ["+a"] }, { oldStart: 9, newStart: 9, lines: ["+b"] }])[1].kind, "skip");
});

test("paths are short inside the working directory", () => {
  assert.equal(short("/workspace/a", "/workspace"), "a");
  assert.equal(short("/workspace2/a", "/workspace"), "/workspace2/a");
});
