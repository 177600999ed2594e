// The log of a session, made into what is shown. One pure reducer serves both history and what streams in: the same
// events give the same state, however they arrived. Nothing here touches the document or the network.
//
// State: {turns, asks, init, lineSeq, partialSeq}. A turn is one prompt and all that Claude did about it:
//   {key, id, run, prompt: {text, at, seq}, order: {"": [keys], <tool use>: [keys]}, items: {key: item}, plan, retry, phase, quiet,
//    result, end, interrupted, raw, usage, startedAt, lastAt}
// An item is a block of it, in the order in which it came:
//   {kind: "text" | "thinking", key, text, final, at, endAt, cut}
//   {kind: "call", key, id, name, input, partial, final, at, endAt, result: {error, content, data}, progress, ask}
// An ask is what Claude wants from a person, by its ID:
//   {id, kind: "tool" | "question" | "plan", turn, tool, use, agent, title, description, reason, input, suggestions, state, expiresAt,
//    at, answer, by, answeredAt}
//   {kind: "note", key, tone, title, text}      {kind: "rule", key, text}
// Objects that didn't change stay the same objects, so a view can compare with ===.

export const initial = () => ({ turns: [], asks: {}, init: null, lineSeq: 0, partialSeq: 0 });

const MAIN = "";

// apply folds events in. An event is {seq, kind, data, at} with at in milliseconds; one that was seen already is ignored.
export function apply(state, events) {
  const draft = { ...state, turns: state.turns.slice(), owned: new Set() };
  for (const e of events) {
    const partial = e.kind === "partial";
    if (e.seq <= (partial ? Math.max(draft.partialSeq, draft.lineSeq) : draft.lineSeq)) continue;
    if (partial) draft.partialSeq = e.seq;
    else draft.lineSeq = e.seq;
    one(draft, e);
  }
  delete draft.owned;
  return draft;
}

// resume drops the blocks whose final form hasn't come, and returns the state to go on from after a broken stream: the
// server sends again what it still holds of them. The position to ask from is lineSeq.
export function resume(state) {
  const last = state.turns.length - 1;
  const turn = state.turns[last];
  if (!turn) return { ...state, partialSeq: state.lineSeq };
  const draft = { ...state, turns: state.turns.slice(), owned: new Set(), partialSeq: state.lineSeq };
  const t = own(draft, last);
  for (const item of Object.values(t.items)) {
    if (item.final === false) drop(t, item.key);
  }
  for (const parent of Object.keys(t.open)) t.open = { ...t.open, [parent]: { ...t.open[parent], blocks: {} } };
  delete draft.owned;
  return draft;
}

function one(draft, e) {
  const at = e.at || 0;
  if (e.kind === "prompt") {
    draft.turns.push(newTurn(e, at));
    draft.owned.add(draft.turns.length - 1);
    return;
  }
  if (e.kind === "queue") return; // what waits is asked of the server
  if (e.kind === "ask") ask(draft, e.data || {}, at);
  else if (e.kind === "answer") answer(draft, e.data || {}, at);
  if (!draft.turns.length && (e.kind === "notice" || e.kind === "ask" || e.kind === "answer")) return;
  if (!draft.turns.length) {
    // A log that doesn't begin with a prompt has lost its beginning; what is left is shown under a turn without one.
    draft.turns.push(newTurn({ seq: e.seq, data: {} }, at));
    draft.owned.add(draft.turns.length - 1);
  }
  const t = own(draft, draft.turns.length - 1);
  if (at) t.lastAt = Math.max(t.lastAt, at);
  if (e.kind === "end") {
    endTurn(t, e.data || {}, at);
    return;
  }
  if (e.kind === "gap") {
    const n = e.data && e.data.to - e.data.from;
    add(t, MAIN, { kind: "rule", key: `gap-${e.seq}`, text: `${n > 0 ? n : "Some"} events are missing here: the log was full` });
    return;
  }
  if (e.kind === "ask" || e.kind === "answer") {
    const a = draft.asks[(e.data || {}).prompt];
    if (a) change(t, a.use, { ask: a });
    if (a && e.kind === "answer") decided(t, a, e.seq);
    return;
  }
  if (e.kind === "notice") {
    notice(t, e.data || {}, at, e.seq);
    return;
  }
  if (e.kind !== "line" && e.kind !== "partial") return;
  t.quiet = null;
  const d = e.data;
  if (d === null || typeof d !== "object") {
    const text = String(d ?? "").trim();
    if (text) t.raw = [...t.raw.slice(-19), text];
    return;
  }
  line(draft, t, d, at, e.seq);
}

function newTurn(e, at) {
  const d = e.data || {};
  return {
    key: `t${e.seq}`,
    id: d.turn || "",
    run: d.run || e.run || "",
    prompt: { text: d.text || "", at, seq: e.seq },
    order: { [MAIN]: [] },
    items: {},
    open: {}, // by thread: the message that is being streamed
    plan: null,
    retry: null,
    phase: "",
    quiet: null,
    result: null,
    end: null,
    interrupted: false,
    raw: [],
    usage: null,
    model: "", // that answered, as its messages say
    startedAt: at,
    lastAt: at,
  };
}

function own(draft, i) {
  if (!draft.owned.has(i)) {
    const t = draft.turns[i];
    draft.turns[i] = { ...t, order: { ...t.order }, items: { ...t.items } };
    draft.owned.add(i);
  }
  return draft.turns[i];
}

function add(t, parent, item) {
  t.items[item.key] = item;
  t.order[parent] = [...(t.order[parent] || []), item.key];
}

function change(t, key, what) {
  if (t.items[key]) t.items[key] = { ...t.items[key], ...what };
}

function drop(t, key) {
  delete t.items[key];
  for (const parent of Object.keys(t.order)) {
    if (t.order[parent].includes(key)) t.order[parent] = t.order[parent].filter((k) => k !== key);
  }
}

// ---- What Claude wants from a person ----

function ask(draft, d, at) {
  if (!d.prompt) return;
  const a = {
    id: d.prompt, kind: d.kind || "tool", turn: d.turn || "", tool: d.tool || "", use: d.tool_use_id || "", agent: d.agent_id || "", title: d.title || "",
    description: d.description || "", reason: d.reason || "", input: d.input || {}, suggestions: d.suggestions || null, state: d.state || "pending",
    expiresAt: Date.parse(d.expires_at) || 0, at, answer: null, by: "", answeredAt: 0,
  };
  draft.asks = { ...draft.asks, [a.id]: a };
}

function answer(draft, d, at) {
  const a = draft.asks[d.prompt];
  if (a) draft.asks = { ...draft.asks, [a.id]: { ...a, state: d.state || "answered", answer: d.answer || null, by: d.answered_by || "", answeredAt: at } };
}

// decided leaves a line in the log of what can't be seen otherwise: tools tell it in their row.
function decided(t, a, seq) {
  if (a.kind === "tool" || !t) return;
  add(t, MAIN, { kind: "note", key: `ask-${seq}`, tone: "plain", title: verdict(a), text: "" });
}

// by says who answered an ask.
export const by = (a) => (!a.by ? "" : a.by === "web" ? " in a browser" : ` by ${a.by}`);

// verdict says in a line what became of an ask, for people.
export function verdict(a) {
  const who = by(a);
  const message = a.answer && a.answer.message ? `: ${a.answer.message}` : "";
  switch (a.state) {
    case "allowed":
      if (a.kind === "question") return `Answered${who}: ${chosen(a) || "no choice"}`;
      return a.kind === "plan" ? `Plan approved${who}` : `Allowed${who}`;
    case "denied":
      if (a.kind === "plan") return `Sent back to planning${who}${message}`;
      return a.kind === "question" ? `Not answered${who}${message}` : `Denied${who}${message}`;
    case "expired":
      return "Nobody answered in time, so it was denied";
    case "withdrawn":
      return "Withdrawn by Claude";
    case "lost":
      return "Claude's process ended before it was answered";
    default:
      return "";
  }
}

function chosen(a) {
  const answers = a.answer && ((a.answer.updatedInput && a.answer.updatedInput.answers) || a.answer.answers);
  return answers ? Object.values(answers).map((v) => (Array.isArray(v) ? v.join(", ") : String(v))).join(" · ") : "";
}

// pending lists what waits for a person, the oldest first.
export const pending = (state) => Object.values(state.asks).filter((a) => a.state === "pending").sort((x, y) => x.at - y.at || (x.id < y.id ? -1 : 1));

// notice is something of Sandlot's own.
function notice(t, d, at, seq) {
  if (d.subtype === "quiet") t.quiet = { seconds: d.seconds || 0, process: d.process || "", at };
  else if (d.text) add(t, MAIN, { kind: "note", key: `n-${seq}`, tone: "plain", title: d.text, text: "" });
}

function line(draft, t, d, at, seq) {
  const parent = d.parent_tool_use_id || MAIN;
  if (t.retry && !(d.type === "system" && d.subtype === "api_retry")) t.retry = null;
  switch (d.type) {
    case "stream_event":
      return partialEvent(t, parent, d.event || {}, at, seq);
    case "assistant":
      return assistant(t, parent, d, at, seq);
    case "user":
      return user(t, parent, d, at);
    case "result":
      t.result = { ...d, at };
      if (String(d.terminal_reason || "").startsWith("aborted")) t.interrupted = true;
      if (parent === MAIN) settle(t, at);
      return undefined;
    case "system":
      return system(draft, t, d, at, seq);
    case "rate_limit_event":
      return rateLimit(t, d.rate_limit_info || {}, seq);
    default:
      return undefined; // kinds that we don't know are only in the raw log
  }
}

// ---- Streaming: provisional blocks ----

function partialEvent(t, parent, ev, at, seq) {
  const open = t.open[parent];
  switch (ev.type) {
    case "message_start":
      dropProvisional(t, parent);
      t.open = { ...t.open, [parent]: { id: ev.message && ev.message.id, finals: 0, blocks: {} } };
      if (parent === MAIN) {
        t.phase = "";
        takeUsage(t, ev.message && ev.message.usage);
      }
      return;
    case "content_block_start":
      startBlock(t, parent, ev.index, ev.content_block || {}, at, seq, false);
      return;
    case "content_block_delta": {
      if (!open || !open.blocks[ev.index]) {
        // We came in the middle: what was before isn't known, and the block says so until its final form arrives.
        if (alreadyFinal(open, ev.index)) return;
        const type = { text_delta: "text", thinking_delta: "thinking" }[ev.delta && ev.delta.type];
        if (!type) return;
        startBlock(t, parent, ev.index, { type }, at, seq, true);
      }
      grow(t, t.open[parent].blocks[ev.index], ev.delta || {});
      return;
    }
    case "content_block_stop":
      if (open && open.blocks[ev.index]) change(t, open.blocks[ev.index], { stopped: true, endAt: at });
      return;
    case "message_delta":
      if (parent === MAIN && ev.usage && t.usage) t.usage = { ...t.usage, output: ev.usage.output_tokens ?? t.usage.output };
      return;
    default:
  }
}

const alreadyFinal = (open, index) => Boolean(open) && index < open.finals;

function startBlock(t, parent, index, block, at, seq, cut) {
  const open = t.open[parent] || { id: null, finals: 0, blocks: {} };
  if (alreadyFinal(open, index) || open.blocks[index]) return;
  let item = null;
  if (block.type === "text") item = { kind: "text", text: block.text || "" };
  else if (block.type === "thinking") item = { kind: "thinking", text: block.thinking || "" };
  else if (block.type === "redacted_thinking") item = { kind: "thinking", text: "" };
  else if (block.type === "tool_use" || block.type === "server_tool_use") {
    if (t.items[block.id]) return;
    item = { kind: "call", id: block.id, name: block.name || "", input: block.input || {}, partial: "", result: null };
  }
  if (!item) return;
  item = { ...item, key: item.id || `b${seq}-${index}`, final: false, cut, at, endAt: 0 };
  add(t, parent, item);
  t.open = { ...t.open, [parent]: { ...open, blocks: { ...open.blocks, [index]: item.key } } };
}

function grow(t, key, delta) {
  const item = t.items[key];
  if (!item) return;
  if (delta.type === "text_delta") change(t, key, { text: item.text + (delta.text || "") });
  else if (delta.type === "thinking_delta") change(t, key, { text: item.text + (delta.thinking || "") });
  else if (delta.type === "input_json_delta") change(t, key, { partial: item.partial + (delta.partial_json || "") });
}

function dropProvisional(t, parent) {
  const open = t.open[parent];
  if (!open) return;
  for (const key of Object.values(open.blocks)) {
    if (t.items[key] && t.items[key].final === false) drop(t, key);
  }
}

// ---- Final messages ----

// assistant takes the final form of blocks. The CLI sends one line per block, all with the message's id; the block that
// was being streamed at that place is replaced in its own item, so the view keeps its node.
function assistant(t, parent, d, at, seq) {
  const message = d.message || {};
  const content = Array.isArray(message.content) ? message.content : [];
  let open = t.open[parent];
  if (!open || (open.id && message.id && open.id !== message.id)) {
    dropProvisional(t, parent);
    open = { id: message.id, finals: 0, blocks: {} };
  } else {
    open = { ...open, id: open.id || message.id, blocks: { ...open.blocks } };
  }
  for (const block of content) {
    finish(t, parent, open, block, at, `m${seq}-${open.finals}`);
    open.finals++;
  }
  t.open = { ...t.open, [parent]: open };
  if (parent === MAIN) {
    t.phase = "";
    takeUsage(t, message.usage);
    t.model = message.model || t.model;
    if (d.error && typeof d.error === "string") t.apiError = d.error;
  }
}

function finish(t, parent, open, block, at, fresh) {
  const isCall = block.type === "tool_use" || block.type === "server_tool_use";
  const kind = isCall ? "call" : { text: "text", thinking: "thinking", redacted_thinking: "thinking" }[block.type];
  if (!kind) return;
  let key = isCall && t.items[block.id] ? block.id : null;
  for (const [index, k] of Object.entries(open.blocks)) {
    const there = t.items[k];
    if (!there || there.final) continue;
    if (key === k || (!key && !isCall && there.kind === kind)) {
      key = k;
      delete open.blocks[index];
      // A block's place may be past our count when its message began before we looked.
      open.finals = Math.max(open.finals, Number(index));
      break;
    }
  }
  const value =
    kind === "call"
      ? { kind, id: block.id, name: block.name || "", input: block.input || {}, partial: "" }
      : { kind, text: (kind === "text" ? block.text : block.thinking) || "" };
  if (key && t.items[key]) {
    const there = t.items[key];
    change(t, key, { ...value, final: true, cut: false, endAt: kind === "call" ? there.endAt && there.result ? there.endAt : 0 : there.endAt || at });
  } else {
    const item = { ...value, key: block.id || fresh, final: true, cut: false, at, endAt: kind === "call" ? 0 : at };
    if (kind === "call") item.result = null;
    add(t, parent, item);
  }
  if (kind === "call" && parent === MAIN) planFromCall(t, block);
}

function takeUsage(t, u) {
  if (!u) return;
  const n = (v) => (typeof v === "number" ? v : 0);
  const context = n(u.input_tokens) + n(u.cache_read_input_tokens) + n(u.cache_creation_input_tokens);
  // A message that the CLI made up itself, as for a failure, has used nothing; what was known before still holds.
  if (context > 0) t.usage = { context, output: n(u.output_tokens) };
}

function user(t, parent, d, at) {
  const content = d.message && d.message.content;
  const blocks = Array.isArray(content) ? content : [{ type: "text", text: String(content || "") }];
  for (const b of blocks) {
    if (b.type === "tool_result") {
      toolResult(t, parent, b, d.tool_use_result, at);
    } else if (b.type === "text" && /^\[Request interrupted by user/.test(b.text || "")) {
      t.interrupted = true;
    }
  }
}

function toolResult(t, parent, b, data, at) {
  if (!t.items[b.tool_use_id]) {
    add(t, parent, { kind: "call", key: b.tool_use_id, id: b.tool_use_id, name: "", input: {}, partial: "", final: true, at, endAt: 0, result: null });
  }
  change(t, b.tool_use_id, {
    final: true,
    endAt: at,
    progress: null,
    result: { error: Boolean(b.is_error), content: b.content ?? "", data: data ?? null },
  });
  planFromResult(t, t.items[b.tool_use_id]);
}

// ---- The plan: one card per turn, updated in place ----

const PLAN_TOOLS = new Set(["TodoWrite", "TaskCreate", "TaskUpdate", "TaskList", "TaskGet"]);
export const isPlanTool = (name) => PLAN_TOOLS.has(name);

function planFromCall(t, block) {
  const input = block.input || {};
  if (block.name === "TodoWrite" && Array.isArray(input.todos)) {
    t.plan = {
      key: t.plan ? t.plan.key : block.id,
      steps: input.todos.map((s, i) => ({ id: String(s.id ?? i), text: s.content || s.subject || "", active: s.activeForm || "", status: s.status || "pending" })),
    };
  } else if (block.name === "TaskCreate" && input.subject) {
    const steps = t.plan ? t.plan.steps : [];
    const step = { id: block.id, text: input.subject, active: input.activeForm || "", status: "pending" };
    t.plan = { key: t.plan ? t.plan.key : block.id, steps: [...steps, step] };
  } else if (block.name === "TaskUpdate" && t.plan) {
    const id = String(input.taskId ?? "");
    const steps = t.plan.steps
      .map((s) => (s.id === id ? { ...s, status: input.status || s.status, text: input.subject || s.text } : s))
      .filter((s) => s.status !== "deleted");
    t.plan = { ...t.plan, steps };
  }
}

// planFromResult learns the number that the CLI gave a task, by which later updates name it.
function planFromResult(t, call) {
  if (!call || call.name !== "TaskCreate" || !t.plan || !call.result) return;
  const task = call.result.data && call.result.data.task;
  const id = task && task.id !== undefined ? task.id : (/#(\d+)/.exec(resultText(call.result)) || [])[1];
  if (id === undefined) return;
  t.plan = { ...t.plan, steps: t.plan.steps.map((s) => (s.id === call.id ? { ...s, id: String(id) } : s)) };
}

// ---- The rest ----

function system(draft, t, d, at, seq) {
  switch (d.subtype) {
    case "init": {
      draft.init = { model: d.model, mode: d.permissionMode, tools: d.tools || [], mcp: d.mcp_servers || [], cwd: d.cwd, version: d.claude_code_version };
      t.phase = "";
      for (const s of draft.init.mcp) {
        if (s.status !== "failed") continue;
        const key = `mcp-${s.name}`;
        if (!t.items[key]) add(t, MAIN, { kind: "note", key, tone: "note", title: `The tool server “${s.name}” did not start.`, text: "Claude works without its tools." });
      }
      return;
    }
    case "status":
      t.phase = d.status === "compacting" ? "Compacting the conversation" : "";
      return;
    case "compact_boundary": {
      const m = d.compact_metadata || {};
      const k = (n) => (typeof n === "number" ? `${Math.round(n / 1000)}k` : "");
      const sizes = m.pre_tokens ? `: ${k(m.pre_tokens)}${m.post_tokens ? ` → ${k(m.post_tokens)}` : ""} tokens` : "";
      add(t, MAIN, { kind: "rule", key: `compact-${seq}`, text: `Conversation compacted${sizes}` });
      return;
    }
    case "api_retry":
      t.retry = { attempt: d.attempt, max: d.max_retries ?? d.max_attempts, delay: d.retry_delay_ms ?? d.delay_ms, status: d.error_status ?? d.status, error: d.error, at };
      return;
    case "task_progress":
    case "task_started":
      if (d.tool_use_id) change(t, d.tool_use_id, { progress: d.description || d.summary || null });
      return;
    case "task_notification":
      if (d.summary) add(t, MAIN, { kind: "note", key: `task-${seq}`, tone: "plain", title: d.summary, text: "" });
      return;
    default:
  }
}

function rateLimit(t, info, seq) {
  if (info.status !== "rejected" && info.status !== "allowed_warning") return;
  const rejected = info.status === "rejected";
  add(t, MAIN, { kind: "note", key: `limit-${seq}`, tone: rejected ? "ask" : "note", title: rejected ? "The model limit is reached." : "The model limit is close.", text: "", resetsAt: info.resetsAt ? info.resetsAt * 1000 : 0 });
}

// settle closes what is still open when the turn has its result: no block waits for anything any more.
function settle(t, at) {
  for (const item of Object.values(t.items)) {
    if (item.final === false) {
      if (item.kind === "call" || item.text === "") drop(t, item.key);
      else change(t, item.key, { final: true, endAt: item.endAt || at });
    }
  }
  t.open = {};
}

function endTurn(t, d, at) {
  settle(t, at);
  t.quiet = null;
  t.end = { state: d.state || "lost", outcome: d.outcome || "", code: d.exit_code ?? null, signal: d.signal || "", reason: d.reason || "", at };
  t.retry = null;
  t.phase = "";
  if (t.end.outcome === "interrupted" || t.end.signal === "SIGINT" || /interrupt/i.test(t.end.reason)) t.interrupted = true;
}

// resultText is a tool result's text: the content is a string or a list of blocks.
export function resultText(result) {
  if (!result) return "";
  const c = result.content;
  if (typeof c === "string") return c;
  if (!Array.isArray(c)) return "";
  return c.map((b) => (b && b.type === "text" ? b.text : "")).filter(Boolean).join("\n");
}

// ---- What a turn is ----

// outcome says how a turn stands: running, done, failed, interrupted, lost, timeout, oom, signaled. `busy` is the server's
// word on whether the session's last turn still runs; without an end seen, only the server may say that it ended.
export function outcome(turn, busy) {
  if (!turn.end) return busy ? "running" : turn.result ? (turn.result.is_error ? "failed" : "done") : "unseen";
  if (turn.interrupted) return "interrupted";
  if (turn.end.outcome === "lost" || turn.end.outcome === "done") return turn.end.outcome;
  if (turn.end.state !== "exited") return turn.result && turn.end.state === "signaled" ? (turn.result.is_error ? "failed" : "done") : turn.end.state;
  if (turn.result) return turn.result.is_error ? "failed" : "done";
  return turn.end.code === 0 ? "done" : "failed";
}

// phase says in one line what a running turn is doing.
export function phase(turn) {
  if (turn.retry) return { word: "retry", retry: turn.retry };
  if (turn.phase) return { word: turn.phase };
  const keys = turn.order[MAIN];
  for (let i = keys.length - 1; i >= 0; i--) {
    const item = turn.items[keys[i]];
    if (item.kind === "call") {
      if (item.ask && item.ask.state === "pending") return { word: "Waiting for you" };
      if (!item.result) return { word: "call", call: item };
      break;
    }
    if (item.kind === "text" && !item.final) return { word: "Writing" };
    if (item.kind === "thinking" && !item.final) return { word: "Thinking" };
    if (item.kind === "text" || item.kind === "thinking") break;
  }
  return { word: keys.length || turn.result ? (turn.result ? "Finishing" : "Waiting for the model") : "Starting Claude" };
}

// cost is what a turn's result says it cost, in dollars. The CLI reckons with a real model's prices also where a script answered,
// which costs nothing.
export function cost(turn) {
  const usd = turn.result && turn.result.total_cost_usd;
  return typeof usd === "number" && turn.model !== "sandlot-demo" ? usd : null;
}

// totals adds up what the turns' results tell.
export function totals(state) {
  let sum = null;
  let context = null;
  let window = null;
  let output = null;
  for (const t of state.turns) {
    if (t.usage) context = t.usage.context + t.usage.output;
    const r = t.result;
    if (!r) continue;
    if (cost(t) !== null) sum = (sum || 0) + cost(t);
    if (r.usage) output = (output || 0) + (r.usage.output_tokens || 0);
    for (const m of Object.values(r.modelUsage || {})) if (m && m.contextWindow) window = m.contextWindow;
  }
  return { cost: sum, context, window, output };
}
