// How an image and a sandbox come to be, read from their events: steps, progress and the log. Nothing here touches the
// document, so it is tested in node.

// The steps of a creation as the event log names them, in their order, with the words for people.
export const STEPS = [
  ["accepted", "Accepted", "checked and written down"],
  ["image", "Image", "its layers are fetched and checked"],
  ["build", "Build commands", "each line on top of the image, cached"],
  ["volume", "Volume", "its files outlive the sandbox"],
  ["starting", "Start the computer", "an isolated kernel of its own"],
  ["guest", "Guest answers", "the connection into the sandbox"],
  ["running", "Claude ready", "the first message can go"],
];

const NAMES = {
  ...Object.fromEntries(STEPS.map(([k, n]) => [k, n])), network: "Network", snapshot: "Snapshot", timeout: "More time",
  suspending: "Suspending", suspended: "Suspended", resuming: "Resuming", refused: "Refused", stopping: "Stopping", terminated: "Terminated", error: "Failed",
};
export const word = (kind) => NAMES[kind] || kind.charAt(0).toUpperCase() + kind.slice(1);

const MAKING = new Set(STEPS.map(([k]) => k));

// usual says which steps a sandbox will go through: one on this machine's programs needs no image.
function usual(sb) {
  const image = sb.image || {};
  const own = Boolean(image.snapshot) || Boolean(image.registry && image.registry !== "host");
  const commands = (image.dockerfile_commands || []).length > 0;
  return STEPS.filter(([k]) => (k !== "image" || own) && (k !== "build" || commands));
}

// steps pairs the known steps with the events that came: {kind, name, text, at, took, state}. A step takes from the event
// before it; the first that hasn't come is the one under way. Image and build say at their beginning that they are on.
export function steps(events, sb) {
  const out = [];
  const first = new Map();
  for (const e of events) if (MAKING.has(e.kind) && !first.has(e.kind)) first.set(e.kind, e);
  const creating = sb.state === "creating";
  const stopped = !["creating", "running", "suspending", "suspended", "resuming"].includes(sb.state);
  const failed = stopped && !first.has("running");
  const known = [...usual(sb)];
  for (const [kind] of first) if (!known.some(([k]) => k === kind)) known.push(STEPS.find(([k]) => k === kind));
  known.sort((a, b) => STEPS.findIndex(([k]) => k === a[0]) - STEPS.findIndex(([k]) => k === b[0]));
  // Engines need not tell all steps: what comes before the last that was seen is not waited for.
  const last = Math.max(-1, ...known.map(([k], i) => (first.has(k) ? i : -1)));
  let before = Date.parse(sb.created_at);
  let under = false;
  known.forEach(([kind, name, text], i) => {
    const e = first.get(kind);
    if (!e && i < last) return;
    const long = kind === "image" || kind === "build";
    // A long step is over when the next one has begun.
    if (e && !(long && i === last && (creating || failed))) {
      const next = long ? Date.parse((first.get((known.slice(i + 1).find(([k]) => first.has(k)) || [])[0]) || e).at) : Date.parse(e.at);
      out.push({ kind, name, text: long ? text : e.text, at: Date.parse(e.at), took: Math.max(0, next - (long ? Date.parse(e.at) : before)), state: "done" });
      before = next;
      return;
    }
    if (!creating && !failed) return;
    const state = under ? "later" : creating ? "now" : "bad";
    under = true;
    out.push({ kind, name, text: e ? "" : text, at: e ? Date.parse(e.at) : 0, took: null, from: e ? Date.parse(e.at) : before, state });
  });
  return out;
}

const UNITS = { bytes: 1, KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3 };

function sizeOf(text) {
  const m = /^([\d.]+) (bytes|KiB|MiB|GiB)$/.exec(text);
  return m ? Number(m[1]) * UNITS[m[2]] : 0;
}

// progressLog folds what was told of an image into {lines, pull, build}. A line: {key, at, text, tone}, with tone "step", "ok", "bad" or "".
// What is told of one layer stays one line. pull: {done, total} in bytes; build: {step, of}; null while nothing is known.
export function progressLog(events) {
  const lines = [];
  const layers = new Map();
  let pull = null;
  let build = null;
  let begun = 0;
  for (const e of events) {
    if (e.kind !== "image" && e.kind !== "build") continue;
    const at = typeof e.at === "number" ? e.at : Date.parse(e.at);
    begun = begun || at;
    const put = (tone, text = e.text) => lines.push({ key: lines.length, at: at - begun, text, tone });
    if (e.kind === "build") {
      const m = e.output ? null : /^Step (\d+) of (\d+)(: | is cached)/.exec(e.text);
      if (m) build = { step: Number(m[1]), of: Number(m[2]) };
      put(m ? (m[3] === ": " ? "step" : "ok") : "");
      continue;
    }
    const layer = /^Layer (\S+) (.+): (.+) of (.+)\.$/.exec(e.text);
    if (layer) {
      const there = layers.get(layer[1]);
      if (there) there.line.text = e.text;
      else put(layer[2] === "is here already" ? "ok" : "");
      const line = there ? there.line : lines[lines.length - 1];
      layers.set(layer[1], { line, done: sizeOf(layer[3]) });
      continue;
    }
    const all = /^Fetching .*, ([\d.]+ \w+)\.$/.exec(e.text);
    if (all) pull = { done: 0, total: sizeOf(all[1]) };
    put(/^(Preparing|Looking up|Fetching) /.test(e.text) ? "step" : / is ready\.$/.test(e.text) ? "ok" : "");
  }
  if (pull) pull.done = Math.min(pull.total, [...layers.values()].reduce((n, l) => n + l.done, 0));
  return { lines, pull, build };
}

// fromProgress is a progress event of POST /image in the form of a sandbox's event.
export const fromProgress = (p, at) => ({ kind: p.phase === "build" ? "build" : "image", text: p.text || "", at, output: Boolean(p.output) });

// failedLine reads which line of the commands failed out of a reason: {line, instruction, what, output}, or null.
export function failedLine(reason) {
  const text = String(reason || "");
  const at = /(?:^|: )line (\d+): /.exec(text);
  if (!at) return null;
  const rest = text.slice(at.index + at[0].length);
  const ran = /^([\s\S]*): (ended with exit code \d+|was killed[^.]*?|was ended by [^.]*?)(?: and printed nothing|\. Its last output:\n([\s\S]*))?$/.exec(rest);
  if (ran) return { line: Number(at[1]), instruction: ran[1], what: ran[2], output: ran[3] || "" };
  const i = rest.indexOf(": ");
  return { line: Number(at[1]), instruction: i > 0 ? rest.slice(0, i) : "", what: i > 0 ? rest.slice(i + 2) : rest, output: "" };
}

// withFailure marks in the log what failed: the line of the step that was under way, and at the end why.
export function withFailure(lines, reason) {
  const out = lines.slice();
  const failed = failedLine(reason);
  if (failed) {
    for (let i = out.length - 1; i >= 0; i--) {
      if (out[i].tone !== "step") continue;
      out[i] = { ...out[i], tone: "bad" };
      break;
    }
  }
  const last = out.length ? out[out.length - 1].at : 0;
  const text = failed ? `Line ${failed.line} ${failed.what}.` : String(reason || "").split("\n")[0];
  if (text) out.push({ key: "end", at: last, text: text.replace(/\.\.$/, "."), tone: "bad" });
  return out;
}

// plainLog is the log as text, for the clipboard and for a file.
export const plainLog = (lines) => lines.map((l) => `${(Math.max(0, l.at) / 1000).toFixed(1).padStart(7)}  ${l.text}`).join("\n") + "\n";
