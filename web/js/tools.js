// What a tool call looks like as one line, and what is behind it. Pure: from the call's item to plain data.

import { by, isPlanTool, resultText } from "./reducer.js";
import { bytes, clip, duration, plural, tokens } from "./format.js";

// partialInput reads what can be read of an input whose JSON is still coming: the string fields that are complete, and
// the beginning of the last one.
export function partialInput(json) {
  const input = {};
  const field = /"((?:[^"\\]|\\.)*)"\s*:\s*"((?:[^"\\]|\\.)*)("?)/g;
  for (let m = field.exec(json); m; m = field.exec(json)) {
    try {
      input[JSON.parse(`"${m[1]}"`)] = JSON.parse(`"${m[2].replace(/\\(u[0-9a-fA-F]{0,3})?$/, "")}"`);
    } catch {
      // A broken escape at the very end: the next delta completes it.
    }
  }
  return input;
}

export const inputOf = (call) => (call.final || !call.partial ? call.input : partialInput(call.partial));

const EXIT = /^(?:Error: )?Exit code (\d+)\n?/;
const base = (p) => String(p || "").split("/").filter(Boolean).pop() || String(p || "");

// short leaves the working directory out of a path.
export function short(path, cwd) {
  const p = String(path || "");
  return cwd && p.startsWith(`${cwd}/`) ? p.slice(cwd.length + 1) : p;
}

// describe returns {icon, verb, object, code, title, state, meta: [{text, tone}], body, open}.
// state is running, ok, failed, stopped; ended tells how the turn ended if the call has no result: "interrupted" or a word.
// body is {type: "output" | "diff" | "file" | "prose" | "fields" | "none", …}, null when there is nothing to open.
export function describe(call, { cwd = "", ended = null } = {}) {
  const input = inputOf(call) || {};
  const r = call.result;
  const state = r ? (r.error ? "failed" : "ok") : ended ? "stopped" : "running";
  const row = { icon: "more", verb: call.name, object: "", code: true, title: "", state, meta: [], body: null, open: false };
  (TOOLS[call.name] || (call.name.startsWith("mcp__") ? mcp : generic))(row, call, input, r, cwd);
  const asked = call.ask && state !== "ok" ? call.ask : null;
  if (asked && asked.state === "pending") row.waits = true;
  if (asked && ["denied", "expired"].includes(asked.state) && state === "failed") {
    row.meta.unshift({ text: `denied${by(asked)}`, tone: "no" });
    row.denied = asked.answer && asked.answer.message;
  }
  if (state === "failed" && !row.meta.some((m) => m.tone === "no")) row.meta.unshift({ text: denied(r) ? "denied" : "failed", tone: "no" });
  if (state === "ok" && row.tick) row.meta.unshift({ icon: "check", text: "", tone: "ok", label: "done" });
  if (state === "stopped") row.meta.unshift({ text: ended === "interrupted" ? "stopped by you" : "its end was not seen" });
  const took = r && call.endAt && call.at ? call.endAt - call.at : null;
  if (took !== null && took >= 100 && row.timed) row.meta.push({ text: duration(took), took: true });
  if (state === "failed") {
    row.open = true;
    const text = row.denied ? `“${row.denied}”` : resultText(r).replace(/^<tool_use_error>|<\/tool_use_error>$/g, "");
    if (!row.body || row.body.type === "none" || (row.body.type !== "output" && text)) row.body = { type: "output", text, tone: "no" };
  }
  return row;
}

const denied = (r) => /requested permissions|permission to use|denied|hasn't been granted/i.test(resultText(r));

function output(r) {
  if (!r) return null;
  const text = resultText(r);
  const images = Array.isArray(r.content) ? r.content.filter((b) => b && b.type === "image" && b.source && b.source.type === "base64") : [];
  return text || images.length ? { type: "output", text, images } : null;
}

function bash(row, call, input, r) {
  const background = input.run_in_background && r && !r.error;
  row.icon = "term";
  row.verb = background ? "Started" : row.state === "running" ? "Running" : "Ran";
  row.object = input.command || "";
  row.title = input.description || "";
  row.timed = !background;
  if (background) {
    row.meta.push({ text: "in background", tone: "go-t" });
  } else if (r) {
    const text = resultText(r);
    const exit = EXIT.exec(text);
    const d = r.data && typeof r.data === "object" ? r.data : null;
    if (exit) row.meta.push({ text: `exit ${exit[1]}`, tone: "no" });
    else if (d && d.interrupted) row.meta.push({ text: "interrupted", tone: "no" });
    row.tick = !r.error && !(d && d.interrupted);
    const shown = exit ? text.slice(exit[0].length) : text;
    row.body = { ...(output(r) || { type: "output" }), text: shown, tone: "", empty: "No output.", command: input.command };
    return;
  }
  row.body = r ? output(r) : input.command && (input.command.length > 60 || input.command.includes("\n")) ? { type: "output", text: input.command } : null;
}

function read(row, call, input, r, cwd) {
  row.icon = "eye";
  row.verb = row.state === "running" ? "Reading" : "Read";
  row.object = short(input.file_path || input.path || input.notebook_path, cwd);
  const f = r && r.data && r.data.file;
  if (f && f.numLines) {
    const from = f.startLine || 1;
    row.meta.push({ text: f.totalLines && f.numLines < f.totalLines ? `lines ${from}–${from + f.numLines - 1}` : plural(f.numLines, "line") });
  } else if (input.offset || input.limit) {
    row.meta.push({ text: `lines ${input.offset || 1}–${input.limit ? (input.offset || 1) + input.limit - 1 : ""}` });
  }
  row.body = output(r);
  row.size = r ? resultText(r).length : 0;
}

function grep(row, call, input, r) {
  row.icon = "search";
  row.verb = row.state === "running" ? "Searching" : "Searched";
  row.object = input.pattern || "";
  row.title = input.path || "";
  const d = r && r.data;
  if (d && typeof d === "object") {
    const files = d.numFiles ?? (d.filenames ? d.filenames.length : null);
    const hits = d.numMatches ?? (d.mode === "content" ? d.numLines : null);
    if (hits !== null && hits !== undefined) row.meta.push({ text: `${plural(hits, "match", "matches")}${files ? ` in ${plural(files, "file")}` : ""}` });
    else if (files !== null && files !== undefined) row.meta.push({ text: plural(files, "file") });
  }
  row.body = output(r);
}

function list(row, call, input, r, cwd) {
  row.icon = "folder";
  row.verb = row.state === "running" ? "Listing" : "Listed";
  row.object = short(input.path, cwd) || ".";
  row.body = output(r);
}

function edit(row, call, input, r, cwd) {
  row.icon = "pencil";
  row.verb = row.state === "running" ? "Editing" : "Edited";
  row.object = short(input.file_path || input.notebook_path, cwd);
  const patch = r && r.data && r.data.structuredPatch;
  if (Array.isArray(patch) && patch.length) {
    counts(row, patch);
    row.body = { type: "diff", hunks: patch };
  } else if (input.old_string !== undefined || input.new_string !== undefined) {
    row.body = { type: "diff", hunks: [hunk(input.old_string || "", input.new_string || "")] };
    if (r && !r.error) counts(row, row.body.hunks);
  }
}

function write(row, call, input, r, cwd) {
  const patch = r && r.data && r.data.structuredPatch;
  if (Array.isArray(patch) && patch.length) return edit(row, call, input, r, cwd);
  row.icon = "file";
  row.verb = row.state === "running" ? "Writing" : "Wrote";
  row.object = short(input.file_path, cwd);
  const content = input.content || "";
  if (content) {
    const n = content.replace(/\n$/, "").split("\n").length;
    row.meta.push({ text: `+${n}`, tone: "ok" });
    row.body = { type: "diff", hunks: [hunk("", content)], limit: 20 };
  }
  return undefined;
}

function counts(row, patch) {
  let plus = 0;
  let minus = 0;
  for (const h of patch) for (const l of h.lines) l[0] === "+" ? plus++ : l[0] === "-" && minus++;
  if (plus) row.meta.push({ text: `+${plus}`, tone: "ok" });
  if (minus) row.meta.push({ text: `−${minus}`, tone: "no" });
}

const linesOf = (s) => (s === "" ? [] : s.replace(/\n$/, "").split("\n"));
const hunk = (before, after) => ({ oldStart: 1, newStart: 1, lines: [...linesOf(before).map((l) => `-${l}`), ...linesOf(after).map((l) => `+${l}`)] });

function task(row, call, input, r) {
  row.icon = "fork";
  row.verb = "Subagent";
  row.object = input.description || clip(input.prompt || "", 80);
  row.code = false;
  row.nested = true;
  const d = r && r.data;
  if (d && typeof d === "object") {
    if (d.totalTokens) row.meta.push({ text: `${tokens(d.totalTokens)} tokens` });
    if (d.totalDurationMs) row.meta.push({ text: duration(d.totalDurationMs), took: true });
  }
  if (!row.meta.length) row.timed = true;
  row.body = r ? { type: "prose", text: resultText(r) } : null;
}

function fetched(row, call, input, r) {
  row.icon = "globe";
  row.verb = row.state === "running" ? "Fetching" : "Fetched";
  row.object = String(input.url || "").replace(/^https?:\/\//, "");
  row.title = input.url || "";
  row.timed = true;
  const d = r && r.data;
  if (d && d.bytes) row.meta.push({ text: bytes(d.bytes) });
  if (d && d.code && d.code >= 400) row.meta.push({ text: String(d.code), tone: "no" });
  row.body = output(r);
}

function websearch(row, call, input, r) {
  row.icon = "globe";
  row.verb = row.state === "running" ? "Searching the web for" : "Searched the web for";
  row.object = input.query || "";
  row.code = false;
  row.timed = true;
  row.body = output(r);
}

function plan(row) {
  row.icon = "list";
  row.verb = "Plan of work";
  row.plan = true;
}

function exitPlan(row, call, input, r) {
  row.icon = "list";
  row.verb = "Plan";
  row.body = { type: "prose", text: input.plan || resultText(r) };
  row.open = Boolean(input.plan);
}

function question(row, call, input, r) {
  row.icon = "chat";
  row.verb = "Asked";
  row.code = false;
  const q = Array.isArray(input.questions) ? input.questions : [];
  row.object = q.map((x) => x.question).filter(Boolean).join(" · ");
  row.body = output(r);
}

function fields(input) {
  return Object.entries(input || {}).map(([k, v]) => [k, typeof v === "string" ? v : JSON.stringify(v)]);
}

function generic(row, call, input, r) {
  row.verb = call.name || "Tool";
  const f = fields(input);
  row.object = f.length ? clip(f[0][1].replace(/\s+/g, " "), 120) : "";
  row.timed = true;
  row.body = f.length || r ? { type: "fields", fields: f, text: resultText(r) } : null;
}

function mcp(row, call, input, r) {
  generic(row, call, input, r);
  const [, server, ...rest] = call.name.split("__");
  row.verb = `${server}: ${rest.join("__")}`;
}

const TOOLS = {
  Bash: bash, Read: read, NotebookRead: read, Grep: grep, Glob: grep, LS: list, Edit: edit, MultiEdit: edit, NotebookEdit: edit,
  Write: write, Task: task, Agent: task, WebFetch: fetched, WebSearch: websearch, TodoWrite: plan, TaskCreate: plan,
  TaskUpdate: plan, TaskList: plan, TaskGet: plan, ExitPlanMode: exitPlan, AskUserQuestion: question,
};

const MERGE = { Read: "files", Grep: "searches", Glob: "searches" };

// layout groups a thread's items for the page: {type: "text" | "thinking" | "note" | "rule", item} or {type: "ledger",
// rows: [{type: "call", item} | {type: "merged", items} | {type: "plan"}]}. Calls in a row share a ledger; three or more
// finished reads in a row share a line; of the plan's calls only the first has a row, which shows the plan as it is now.
export function layout(turn, parent = "") {
  const groups = [];
  let ledger = null;
  let planned = false;
  for (const key of turn.order[parent] || []) {
    const item = turn.items[key];
    if (!item) continue;
    if (item.kind !== "call") {
      if (item.kind === "text" && item.final && !item.text.trim()) continue;
      if (item.kind === "thinking" && item.final && !item.text.trim()) continue;
      groups.push({ type: item.kind, key, item });
      ledger = null;
      continue;
    }
    if (!ledger) {
      ledger = { type: "ledger", key: `l-${key}`, rows: [] };
      groups.push(ledger);
    }
    if (isPlanTool(item.name) && turn.plan) {
      if (!planned) ledger.rows.push({ type: "plan", key });
      planned = true;
      continue;
    }
    ledger.rows.push({ type: "call", key, item });
  }
  for (const g of groups) if (g.type === "ledger") g.rows = merge(g.rows);
  return groups.filter((g) => g.type !== "ledger" || g.rows.length);
}

function merge(rows) {
  const out = [];
  const sort = (row) => (row.type === "call" && row.item.result && !row.item.result.error && MERGE[row.item.name]) || null;
  for (let i = 0; i < rows.length; ) {
    const kind = sort(rows[i]);
    let j = i + 1;
    while (kind && j < rows.length && sort(rows[j]) === kind) j++;
    if (kind && j - i >= 3) out.push({ type: "merged", kind, key: `g-${rows[i].key}`, items: rows.slice(i, j).map((r) => r.item) });
    else out.push(...rows.slice(i, j));
    i = j;
  }
  return out;
}

// marks finds the changed middle of a line pair: [start, endOld, endNew], or null when too little is alike to help.
export function marks(before, after) {
  let start = 0;
  const least = Math.min(before.length, after.length);
  while (start < least && before[start] === after[start]) start++;
  let end = 0;
  while (end < least - start && before[before.length - 1 - end] === after[after.length - 1 - end]) end++;
  if (start + end < 0.3 * Math.max(before.length, after.length) || start + end === 0) return null;
  return [start, before.length - end, after.length - end];
}

// diffLines makes hunks into numbered lines: {kind: "add" | "del" | "same" | "skip", n, text, mark: [from, to] | null}.
export function diffLines(hunks) {
  const out = [];
  hunks.forEach((h, i) => {
    if (i) out.push({ kind: "skip", n: "", text: "", mark: null });
    let o = h.oldStart || 1;
    let n = h.newStart || 1;
    const lines = h.lines || [];
    for (let k = 0; k < lines.length; ) {
      if (lines[k][0] !== "-" && lines[k][0] !== "+") {
        if (lines[k][0] !== "\\") out.push({ kind: "same", n: n++, text: lines[k].slice(1), mark: null }), o++;
        k++;
        continue;
      }
      let d = k;
      while (d < lines.length && lines[d][0] === "-") d++;
      let a = d;
      while (a < lines.length && lines[a][0] === "+") a++;
      const dels = lines.slice(k, d);
      const adds = lines.slice(d, a);
      const pairs = dels.map((l, x) => (dels.length === adds.length ? marks(l.slice(1), adds[x].slice(1)) : null));
      dels.forEach((l, x) => out.push({ kind: "del", n: o++, text: l.slice(1), mark: pairs[x] && [pairs[x][0], pairs[x][1]] }));
      adds.forEach((l, x) => out.push({ kind: "add", n: n++, text: l.slice(1), mark: pairs[x] && [pairs[x][0], pairs[x][2]] }));
      k = a > k ? a : k + 1;
    }
  });
  return out;
}

export { base };
