import assert from "node:assert/strict";
import { test } from "node:test";
import { apply, initial, outcome, pending, phase, resultText, resume, totals, verdict } from "../js/reducer.js";

// log numbers events as the server does.
function log() {
  let seq = 0;
  const events = [];
  const put = (kind, data, at = 1_000_000 + seq * 100) => events.push({ seq: ++seq, kind, data, at });
  return {
    events,
    prompt: (text) => put("prompt", { type: "prompt", text, run: "run_1" }),
    line: (data) => put("line", data),
    partial: (event, parent = null) => put("partial", { type: "stream_event", event, parent_tool_use_id: parent }),
    end: (data = {}) => put("end", { type: "end", state: "exited", exit_code: 0, ...data }),
    assistant(id, ...content) {
      this.line({ type: "assistant", message: { id, content }, parent_tool_use_id: null });
    },
    result(id, content, data, is_error = false, parent = null) {
      this.line({ type: "user", message: { content: [{ type: "tool_result", tool_use_id: id, content, is_error }] }, tool_use_result: data, parent_tool_use_id: parent });
    },
    stream(id, ...pieces) {
      this.partial({ type: "message_start", message: { id } });
      pieces.forEach((p, index) => {
        this.partial({ type: "content_block_start", index, content_block: p.block });
        for (const delta of p.deltas) this.partial({ type: "content_block_delta", index, delta });
      });
    },
  };
}

const text = (...parts) => ({ block: { type: "text", text: "" }, deltas: parts.map((t) => ({ type: "text_delta", text: t })) });
const fold = (events) => apply(initial(), events);
const items = (state, parent = "") => {
  const t = state.turns[state.turns.length - 1];
  return (t.order[parent] || []).map((k) => t.items[k]);
};

test("a streamed block keeps its item when its final form arrives", () => {
  const l = log();
  l.prompt("hi");
  l.stream("m1", text("Hel", "lo"));
  const before = fold(l.events);
  assert.equal(items(before)[0].text, "Hello");
  assert.equal(items(before)[0].final, false);
  l.assistant("m1", { type: "text", text: "Hello" });
  const after = apply(before, l.events.slice(-1));
  assert.equal(items(after).length, 1);
  assert.equal(items(after)[0].key, items(before)[0].key);
  assert.equal(items(after)[0].final, true);
});

test("one line per block of a message, paired with what was streamed", () => {
  const l = log();
  l.prompt("hi");
  l.stream("m1", { block: { type: "thinking", thinking: "" }, deltas: [{ type: "thinking_delta", thinking: "hm" }] }, text("A"), {
    block: { type: "tool_use", id: "toolu_1", name: "Bash", input: {} },
    deltas: [{ type: "input_json_delta", partial_json: '{"command":"l' }],
  });
  assert.equal(items(fold(l.events))[2].partial, '{"command":"l');
  l.assistant("m1", { type: "thinking", thinking: "hm!" });
  l.assistant("m1", { type: "text", text: "A." });
  l.assistant("m1", { type: "tool_use", id: "toolu_1", name: "Bash", input: { command: "ls" } });
  const got = items(fold(l.events));
  assert.deepEqual(got.map((i) => [i.kind, i.text ?? i.input.command, i.final]), [["thinking", "hm!", true], ["text", "A.", true], ["call", "ls", true]]);
});

test("history and live give the same, but for the partials' times", () => {
  const l = log();
  l.prompt("hi");
  l.stream("m1", text("One", " two"));
  l.assistant("m1", { type: "text", text: "One two" }, { type: "tool_use", id: "t1", name: "Read", input: { file_path: "/workspace/a" } });
  l.result("t1", "body", { file: { numLines: 3 } });
  l.stream("m2", text("Done"));
  l.assistant("m2", { type: "text", text: "Done" });
  l.line({ type: "result", subtype: "success", is_error: false, total_cost_usd: 0.5, usage: { output_tokens: 7 } });
  l.end();
  const shape = (s) => items(s).map((i) => [i.kind, i.text ?? i.name, i.final, resultText(i.result)]);
  const live = fold(l.events);
  const replay = fold(l.events.filter((e) => e.kind !== "partial"));
  assert.deepEqual(shape(live), shape(replay));
  assert.deepEqual(totals(live), totals(replay));
  let oneByOne = initial();
  for (const e of l.events) oneByOne = apply(oneByOne, [e]);
  assert.deepEqual(oneByOne, live);
});

test("events that were seen are ignored, and old state isn't touched", () => {
  const l = log();
  l.prompt("hi");
  l.assistant("m1", { type: "text", text: "a" });
  const state = fold(l.events);
  const copy = structuredClone(state);
  assert.equal(apply(state, l.events).turns[0], state.turns[0]);
  l.assistant("m2", { type: "text", text: "b" });
  const next = apply(state, l.events);
  assert.deepEqual(state, copy);
  assert.equal(items(next).length, 2);
  assert.equal(items(next)[0], items(state)[0], "what didn't change is the same object");
});

test("after a broken stream the unfinished is dropped and comes again", () => {
  const l = log();
  l.prompt("hi");
  l.stream("m1", text("Hel"));
  const broken = fold(l.events);
  const back = resume(broken);
  assert.equal(items(back).length, 0);
  assert.equal(back.lineSeq, 1);
  // The server sends the same partials again, with the same numbers, and goes on.
  l.partial({ type: "content_block_delta", index: 0, delta: { type: "text_delta", text: "lo" } });
  const again = apply(back, l.events);
  assert.equal(items(again)[0].text, "Hello");
});

test("coming in the middle of a block shows that its beginning is missing, until it is final", () => {
  const l = log();
  l.prompt("hi");
  l.partial({ type: "content_block_delta", index: 0, delta: { type: "text_delta", text: "rest" } });
  const mid = fold(l.events);
  assert.equal(items(mid)[0].cut, true);
  l.assistant("m1", { type: "text", text: "the rest" });
  const done = apply(mid, l.events);
  assert.deepEqual(items(done).map((i) => [i.text, i.cut]), [["the rest", false]]);
});

test("deltas of a block whose final form is there already change nothing", () => {
  const l = log();
  l.prompt("hi");
  l.assistant("m1", { type: "text", text: "all" });
  l.partial({ type: "content_block_delta", index: 0, delta: { type: "text_delta", text: "late" } });
  assert.deepEqual(items(fold(l.events)).map((i) => i.text), ["all"]);
});

test("calls of a subagent are under its row", () => {
  const l = log();
  l.prompt("hi");
  l.assistant("m1", { type: "tool_use", id: "task", name: "Task", input: { description: "look" } });
  l.line({ type: "assistant", message: { id: "s1", content: [{ type: "tool_use", id: "in", name: "Bash", input: { command: "ls" } }] }, parent_tool_use_id: "task" });
  l.result("in", "ok", {}, false, "task");
  const s = fold(l.events);
  assert.deepEqual(items(s).map((i) => i.id), ["task"]);
  assert.deepEqual(items(s, "task").map((i) => [i.id, resultText(i.result)]), [["in", "ok"]]);
});

test("the plan is one, and is as it was last told", () => {
  const l = log();
  l.prompt("hi");
  const todos = (a, b) => [{ content: "one", status: a }, { content: "two", status: b }];
  l.assistant("m1", { type: "tool_use", id: "p1", name: "TodoWrite", input: { todos: todos("in_progress", "pending") } });
  l.assistant("m2", { type: "tool_use", id: "p2", name: "TodoWrite", input: { todos: todos("completed", "completed") } });
  const { plan } = fold(l.events).turns[0];
  assert.equal(plan.key, "p1");
  assert.deepEqual(plan.steps.map((s) => s.status), ["completed", "completed"]);
});

test("tasks are named by the number that the CLI gave them", () => {
  const l = log();
  l.prompt("hi");
  l.assistant("m1", { type: "tool_use", id: "c1", name: "TaskCreate", input: { subject: "one" } });
  l.result("c1", "Task #1 created successfully: one", { task: { id: "1", subject: "one" } });
  l.assistant("m2", { type: "tool_use", id: "u1", name: "TaskUpdate", input: { taskId: "1", status: "completed" } });
  assert.deepEqual(fold(l.events).turns[0].plan.steps.map((s) => [s.text, s.status]), [["one", "completed"]]);
});

test("how a turn ended is never more than what was seen", () => {
  const end = (result, e, busy = false) => {
    const l = log();
    l.prompt("hi");
    if (result) l.line({ type: "result", subtype: "success", is_error: false, ...result });
    if (e) l.end(e);
    const s = fold(l.events);
    return outcome(s.turns[0], busy);
  };
  assert.equal(end({}, {}), "done");
  assert.equal(end({ is_error: true }, { exit_code: 1 }), "failed", "is_error counts though subtype is success");
  assert.equal(end(null, { exit_code: 0 }), "done");
  assert.equal(end(null, { exit_code: 3 }), "failed");
  assert.equal(end(null, { state: "lost", exit_code: null }), "lost");
  assert.equal(end(null, { state: "timeout", exit_code: null }), "timeout");
  assert.equal(end(null, { state: "oom", signal: "SIGKILL", exit_code: null }), "oom");
  assert.equal(end(null, { state: "signaled", signal: "SIGTERM", exit_code: null }), "signaled");
  assert.equal(end(null, { state: "signaled", signal: "SIGINT", exit_code: null }), "interrupted");
  assert.equal(end({ terminal_reason: "aborted_tools" }, {}), "interrupted");
  assert.equal(end({}, { state: "signaled", signal: "SIGKILL", exit_code: null }), "done", "it had said its result");
  assert.equal(end(null, null, true), "running");
  assert.equal(end(null, null, false), "unseen");
});

test("the phase says what is under way", () => {
  const l = log();
  l.prompt("hi");
  assert.equal(phase(fold(l.events).turns[0]).word, "Starting Claude");
  l.stream("m1", text("x"));
  assert.equal(phase(fold(l.events).turns[0]).word, "Writing");
  l.assistant("m1", { type: "tool_use", id: "t", name: "Bash", input: { command: "ls" } });
  assert.equal(phase(fold(l.events).turns[0]).call.id, "t");
  l.result("t", "x");
  assert.equal(phase(fold(l.events).turns[0]).word, "Waiting for the model");
  l.line({ type: "system", subtype: "api_retry", attempt: 3, max_retries: 10, error_status: 529 });
  assert.deepEqual([phase(fold(l.events).turns[0]).retry.attempt, phase(fold(l.events).turns[0]).retry.max], [3, 10]);
  l.line({ type: "result", subtype: "success" });
  assert.equal(phase(fold(l.events).turns[0]).word, "Finishing");
});

test("at the end of a turn nothing waits any more", () => {
  const l = log();
  l.prompt("hi");
  l.stream("m1", text("half an ans"), { block: { type: "tool_use", id: "t", name: "Bash", input: {} }, deltas: [] });
  l.end({ state: "lost", exit_code: null, reason: "the sandbox is gone" });
  assert.deepEqual(items(fold(l.events)).map((i) => [i.kind, i.final]), [["text", true]]);
});

test("lines that aren't JSON, unknown kinds, gaps and notices", () => {
  const l = log();
  l.prompt("hi");
  l.line("warning: something");
  l.line({ type: "brand_new" });
  l.line({ type: "system", subtype: "init", cwd: "/w", mcp_servers: [{ name: "x", status: "failed" }] });
  l.line({ type: "system", subtype: "compact_boundary", compact_metadata: { pre_tokens: 148_000, post_tokens: 31_000 } });
  l.line({ type: "rate_limit_event", rate_limit_info: { status: "rejected", resetsAt: 100 } });
  l.line({ type: "user", message: { content: "[Request interrupted by user]" } });
  const s = fold(l.events);
  assert.deepEqual(s.turns[0].raw, ["warning: something"]);
  assert.equal(s.init.cwd, "/w");
  assert.equal(s.turns[0].interrupted, true);
  assert.deepEqual(items(s).map((i) => i.kind), ["note", "rule", "note"]);
  assert.equal(items(s)[1].text, "Conversation compacted: 148k → 31k tokens");
  const gap = apply(s, [{ seq: 99, kind: "gap", data: { from: 10, to: 48 }, at: 0 }]);
  assert.match(items(gap).at(-1).text, /^38 events are missing/);
});

test("a log that has lost its beginning is shown all the same", () => {
  const s = apply(initial(), [{ seq: 40, kind: "line", data: { type: "assistant", message: { id: "m", content: [{ type: "text", text: "x" }] } }, at: 1 }]);
  assert.equal(s.turns.length, 1);
  assert.equal(items(s)[0].text, "x");
});

test("5,000 events fold quickly", () => {
  const l = log();
  for (let i = 0; i < 500; i++) {
    l.prompt(`p${i}`);
    for (let k = 0; k < 4; k++) {
      l.assistant(`m${i}-${k}`, { type: "tool_use", id: `t${i}-${k}`, name: "Bash", input: { command: "ls" } });
      l.result(`t${i}-${k}`, "ok");
    }
    l.end();
  }
  const start = performance.now();
  assert.equal(fold(l.events).turns.length, 500);
  assert.ok(performance.now() - start < 2000);
});

test("what a script answered cost nothing, whatever the CLI reckons", () => {
  for (const [model, want] of [["sandlot-demo", null], ["claude-opus-4-8", 0.5]]) {
    const l = log();
    l.prompt("hi");
    l.line({ type: "assistant", message: { id: "m1", model, role: "assistant", content: [{ type: "text", text: "Hello" }] }, parent_tool_use_id: null });
    l.line({ type: "result", subtype: "success", is_error: false, total_cost_usd: 0.5 });
    l.end();
    assert.equal(totals(fold(l.events)).cost, want);
  }
});

// asked is a turn in which Claude wants to run a command and asks for it.
function asked(kind = "tool", tool = "Bash", input = { command: "rm -r build" }) {
  const l = log();
  l.put = (k, data) => l.events.push({ seq: l.events.length + 1, kind: k, data, at: 2_000_000 });
  l.prompt("go");
  l.assistant("m1", { type: "tool_use", id: "tool1", name: tool, input });
  l.put("ask", { type: "ask", prompt: "prm_1", kind, tool, tool_use_id: "tool1", input, state: "pending", expires_at: "2026-01-01T00:00:00Z" });
  return l;
}

test("what Claude asks for waits until it is answered", () => {
  const l = asked();
  let s = fold(l.events);
  assert.equal(pending(s).length, 1);
  assert.equal(pending(s)[0].input.command, "rm -r build");
  assert.equal(pending(s)[0].expiresAt, Date.parse("2026-01-01T00:00:00Z"));
  assert.equal(phase(s.turns[0]).word, "Waiting for you");
  l.put("answer", { type: "answer", prompt: "prm_1", kind: "tool", tool_use_id: "tool1", state: "denied", answered_by: "Mira", answer: { behavior: "deny", message: "use git clean" } });
  s = apply(s, l.events);
  assert.equal(pending(s).length, 0);
  assert.equal(verdict(s.asks.prm_1), "Denied by Mira: use git clean");
  assert.equal(items(s)[0].ask.state, "denied");
  assert.equal(items(s).length, 1, "a tool's answer stands in its row");
});

test("the answer to a question leaves a line in the log", () => {
  const l = asked("question", "AskUserQuestion", { questions: [{ question: "Which?", options: [{ label: "A" }] }] });
  l.put("answer", { type: "answer", prompt: "prm_1", kind: "question", tool_use_id: "tool1", state: "allowed", answered_by: "web", answer: { behavior: "allow", updatedInput: { answers: { "Which?": "A" } } } });
  const s = fold(l.events);
  assert.equal(items(s)[1].title, "Answered in a browser: A");
});

for (const [state, words] of [["expired", /^Nobody answered/], ["withdrawn", /^Withdrawn/], ["lost", /process ended/]]) {
  test(`an ask that is ${state} is over, and says so`, () => {
    const l = asked("plan", "ExitPlanMode", { plan: "1. go" });
    l.put("answer", { type: "answer", prompt: "prm_1", kind: "plan", tool_use_id: "tool1", state });
    const s = fold(l.events);
    assert.equal(pending(s).length, 0);
    assert.match(verdict(s.asks.prm_1), words);
  });
}

test("a notice about silence is live, and goes with the next line", () => {
  const l = log();
  l.prompt("go");
  l.events.push({ seq: 2, kind: "notice", data: { type: "sandlot", subtype: "quiet", seconds: 60, process: "busy" }, at: 5 });
  let s = fold(l.events);
  assert.deepEqual(s.turns[0].quiet, { seconds: 60, process: "busy", at: 5 });
  s = apply(s, [{ seq: 3, kind: "line", data: { type: "system", subtype: "status" }, at: 6 }]);
  assert.equal(s.turns[0].quiet, null);
});

test("a turn's outcome is the server's word where it has one", () => {
  const l = log();
  l.prompt("go");
  l.end({ outcome: "interrupted", exit_code: null });
  assert.equal(outcome(fold(l.events).turns[0], false), "interrupted");
});
