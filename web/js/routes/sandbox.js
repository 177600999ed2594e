// One sandbox: how it comes to be, what it is, and how it ended. While it is being created the first message is written
// already; it is sent the moment the sandbox runs.

import { cx, html, useEffect, useState } from "../lib.js";
import * as api from "../api.js";
import * as outbox from "../outbox.js";
import * as store from "../store.js";
import { live, newSandbox, resume, suspend, terminate } from "../actions.js";
import { duration, fullTime, mib, plural, sentence, volumeName } from "../format.js";
import { go } from "../router.js";
import { Icon } from "../components/icons.js";
import { Ago, Busy, ConfirmTerminate, Copy, Dot, Left, Notice, ProblemNotice, Scoreboard, Since, Skeleton } from "../components/bits.js";
import { sessionMark } from "../components/frame.js";
import { Composer } from "../components/composer.js";
import { Queue } from "../components/queue.js";
import { Lost } from "./lost.js";

// The steps of a creation as the event log names them, in their order, with the words for people.
const STEPS = [
  ["accepted", "Accepted", "checked and written down"],
  ["volume", "Volume", "its files outlive the sandbox"],
  ["starting", "Start the computer", "an isolated kernel of its own"],
  ["guest", "Guest answers", "the connection into the sandbox"],
  ["running", "Claude ready", "the first message can go"],
];

const NAMES = { ...Object.fromEntries(STEPS.map(([k, n]) => [k, n])), suspending: "Suspending", suspended: "Suspended", resuming: "Resuming", refused: "Refused", stopping: "Stopping", terminated: "Terminated", error: "Failed" };
const word = (kind) => NAMES[kind] || kind.charAt(0).toUpperCase() + kind.slice(1);

// steps pairs the known steps with the events that came: {kind, name, text, at, took, state}. A step takes from the event
// before it; the first that hasn't come is the one under way.
export function steps(events, sb) {
  const out = [];
  let before = Date.parse(sb.created_at);
  const seen = new Set();
  for (const e of events) {
    if (["suspending", "suspended", "resuming", "refused", "stopping", "terminated", "error"].includes(e.kind) || seen.has(e.kind)) continue;
    seen.add(e.kind);
    const at = Date.parse(e.at);
    out.push({ kind: e.kind, name: word(e.kind), text: e.text, at, took: Math.max(0, at - before), state: "done" });
    before = at;
  }
  const creating = sb.state === "creating";
  const ended = !["creating", "running", "suspending", "suspended", "resuming"].includes(sb.state);
  const rest = STEPS.filter(([k]) => !seen.has(k));
  // Engines need not tell all steps: what comes before the last that was seen is not waited for.
  const last = Math.max(-1, ...STEPS.map(([k], i) => (seen.has(k) ? i : -1)));
  if (creating || (ended && !seen.has("running"))) {
    rest
      .filter(([k]) => STEPS.findIndex(([x]) => x === k) > last)
      .forEach(([kind, name, text], i) => out.push({ kind, name, text, at: 0, took: null, from: before, state: i === 0 ? (creating ? "now" : "bad") : "later" }));
  }
  return out;
}

function Steps({ list }) {
  return html`<ol class="steps">${list.map((s) => html`<li key=${s.kind} class=${cx("step", s.state)}>
    <span class="b">${s.state === "done" ? html`<${Icon} name="check" small />` : s.state === "bad" ? html`<${Icon} name="x" small />` : ""}<span class="vh">${{ done: "done", now: "under way", bad: "did not happen", later: "to come" }[s.state]}</span></span>
    <span class="n">${s.name}</span><span class="t" title=${s.at ? fullTime(s.at) : undefined}>${s.state === "done" ? duration(s.took) : s.state === "now" ? html`<${Since} at=${s.from} />` : ""}</span>
    <span class="d">${s.text}</span></li>`)}</ol>`;
}

// useEvents keeps the sandbox's event log: what was, then what comes.
function useEvents(id) {
  const [events, setEvents] = useState([]);
  const merge = (list) =>
    setEvents((old) => {
      const known = new Set(old.map((e) => e.seq));
      const fresh = list.filter((e) => !known.has(e.seq));
      return fresh.length ? [...old, ...fresh].sort((a, b) => a.seq - b.seq) : old;
    });
  const connected = store.conn.value.state === "live";
  useEffect(() => {
    setEvents([]);
    return store.onEvent((e) => e.sandbox === id && merge([e]));
  }, [id]);
  useEffect(() => {
    let gone = false;
    api.events(id).then((r) => gone || merge(r.events || [])).catch(() => {});
    return () => { gone = true; };
  }, [id, connected]);
  return events;
}

const Facts = ({ sb }) => html`<dl class="facts">${[
  ["Name", sb.name],
  ["ID", html`<code>${sb.id}</code> <${Copy} text=${sb.id} />`],
  ["Engine", sb.engine],
  ["Image", sb.image && sb.image.registry && sb.image.registry !== "host" ? sb.image.registry : "this machine’s programs, read-only"],
  ["Volume", html`<code>${sb.volume}</code> <${Copy} text=${sb.volume} />`],
  ["Working directory", html`<code>${sb.workdir}</code>`],
  ["Network", sb.network && sb.network.mode === "none" ? "only the model" : (sb.network && sb.network.mode) || "—"],
  ["Disk", mib(sb.disk_mib)],
  sb.cpu ? ["CPU", plural(sb.cpu, "core")] : null,
  sb.memory_mib ? ["Memory", mib(sb.memory_mib)] : null,
  ...Object.entries(sb.labels || {}).map(([k, v]) => [`Label ${k}`, v]),
  ["Created", html`<${Ago} at=${sb.created_at} />`],
  ["Ends", live(sb) ? html`in <${Left} until=${sb.suspended_until || sb.expires_at} />, ${sb.suspended_until ? "unless it is resumed" : "at the latest"}` : sb.ended_at ? html`ended <${Ago} at=${sb.ended_at} />` : "—"],
].filter(Boolean).map(([k, v]) => html`<div key=${k}><dt>${k}</dt><dd>${v}</dd></div>`)}</dl>`;

function Sessions({ sb }) {
  const list = (store.sessions.value || []).filter((s) => s.sandbox === sb.id);
  if (!list.length) return html`<p class="faint">No session yet. Write the first message, and one begins.</p>`;
  return html`<ul class="sess boxed">${list.map((s) => {
    const m = sessionMark(s, store.now.value);
    return html`<li key=${s.id}><a href=${`/session/${s.id}`}><${Dot} kind=${m.dot} word=${m.word} /><span class="two"><span class="cut">${s.title || "Untitled"}</span><span class="sub cut">${m.sub}</span></span><${Icon} name="chev" small /></a></li>`;
  })}</ul>`;
}

function EventLog({ events }) {
  if (!events.length) return null;
  return html`<div class="block"><div class="bh"><h2>Events</h2></div><ol class="lines2">${events.map((e) => html`<li key=${e.seq}><time class="w2" datetime=${e.at} title=${fullTime(e.at)}>${new Date(e.at).toLocaleTimeString([], { hour12: false })}</time>
    <span class=${cx("ev", e.kind === "error" && "bad-t")}>${word(e.kind)}</span><span class="grow dim">${sentence(e.text)}</span></li>`)}</ol></div>`;
}

const CHIPS = { creating: ["note", "busy", "Creating"], running: ["go", "run", "Running"], suspending: ["note", "busy", "Suspending"], suspended: ["", "idle", "Suspended"], resuming: ["note", "busy", "Resuming"], stopping: ["note", "busy", "Stopping"], error: ["bad", "bad", "Failed"], terminated: ["", "off", "Stopped"] };

export function Sandbox({ id }) {
  const known = store.sandboxOf(id);
  const [problem, setProblem] = useState(null);
  const [ending, setEnding] = useState(false);
  const [refusal, setRefusal] = useState(null);
  const [put, setPut] = useState(null);
  const events = useEvents(id);
  useEffect(() => {
    setProblem(null);
    store.readSandbox(id).catch((p) => setProblem(p));
  }, [id]);
  // A message that began a session leads there, wherever it was written; but only from this page.
  const waiting = outbox.forSandbox(id);
  const names = waiting.map((e) => e.id).join();
  useEffect(() => {
    const stop = waiting.map((e) => outbox.listen(e.id, (session) => session && location.pathname === `/sandbox/${id}` && go(`/session/${session}`, { replace: true })));
    return () => stop.forEach((f) => f());
  }, [names]);

  const sb = known;
  if (!sb) {
    if (problem && problem.status === 404) return html`<${Lost} what="There is no such sandbox." why=${problem.detail} />`;
    return html`<div class="page"><div class="wrap">${problem ? html`<${ProblemNotice} title="The sandbox could not be read." problem=${problem} />` : html`<${Skeleton} rows=${5} />`}</div></div>`;
  }
  const [chip, dot, state] = CHIPS[sb.state] || ["", "", sb.state];
  const creating = sb.state === "creating";
  const running = sb.state === "running";
  const list = steps(events, sb);
  const send = (text, mode) => {
    outbox.put({ text, sandbox: id, mode });
    return true;
  };
  const composer = html`<${Composer} scope=${`box.${id}`} focus modes big put=${put} onSend=${send} action=${creating ? "Send when ready" : undefined}
    label="First message to Claude" placeholder=${creating ? "Write the first message now" : "What should Claude do here?"} hint=${creating ? "It is sent the moment the sandbox is ready." : ""} />
    <${Queue} entries=${waiting} why=${creating ? "sent when the sandbox is ready" : "waits for the connection"} onEdit=${(text) => setPut({ text })} />`;
  return html`<header class="top"><a class="btn quiet icon only-phone" href="/sandboxes" aria-label="Back to sandboxes"><${Icon} name="back" /></a>
      <h1 class="cut">${sb.name}</h1><span class=${cx("chip", chip)} data-state=${sb.state}><${Dot} kind=${dot} />${state}</span><span class="grow"></span>
      ${running && html`<${Busy} class="btn small" onProblem=${setRefusal} onClick=${() => suspend(id)}>Suspend</${Busy}>`}
      ${sb.state === "suspended" && html`<${Busy} class="btn small go" onProblem=${setRefusal} onClick=${() => resume(id)}>Resume</${Busy}>`}
      ${(creating || running || sb.state === "suspended") && html`<button type="button" class="btn small danger" onClick=${() => setEnding(true)}>${creating ? "Cancel" : "Terminate"}</button>`}</header>
    ${!creating && html`<${Scoreboard} label=${`Sandbox ${sb.name}`} slots=${boardOf(sb, true)} />`}
    <div class="page"><div class="wrap">
      <${ProblemNotice} title="The sandbox's state could not be read anew." problem=${problem} />
      <${ProblemNotice} title=${sb.state === "suspended" ? "The sandbox could not be resumed." : "The sandbox could not be suspended."} problem=${refusal} />
      ${["suspending", "suspended", "resuming"].includes(sb.state) && html`<${Notice} kind="note" icon="clock" title=${{ suspending: "This sandbox is being suspended.", suspended: "This sandbox is suspended.", resuming: "This sandbox is being resumed." }[sb.state]}><span>Its processes are kept on disk, and go on where they were when it is resumed.</span></${Notice}>`}
      ${creating && html`<div class="make"><div class="block"><div class="ph"><h1>Starting your sandbox</h1></div>
          <p class="dim"><${Since} at=${Date.parse(sb.created_at)} /> so far. You can leave; it goes on.</p><${Steps} list=${list} /></div>
        <div class="block">${composer}<${Facts} sb=${sb} /></div></div>`}
      ${running && html`<div class="make flip"><div class="block">${composer}<div class="bh"><h2>Sessions</h2></div><${Sessions} sb=${sb} /><${EventLog} events=${events} /></div>
        <div class="block"><div class="bh"><h2>Facts</h2></div><${Facts} sb=${sb} /></div></div>`}
      ${sb.state === "stopping" && html`<${Notice} kind="note" icon="clock" title="This sandbox is being stopped."><span>${sentence(sb.reason) || "What runs in it is ended, then it is taken apart."} Its volume is kept.</span></${Notice}>`}
      ${!live(sb) && html`<${Ended} sb=${sb} waiting=${waiting} setPut=${setPut} />`}
      ${!creating && !running && html`<div class="make flip"><div class="block"><div class="bh"><h2>Sessions</h2></div><${Sessions} sb=${sb} />
          ${sb.state === "error" && !events.some((e) => e.kind === "running") && html`<div class="bh"><h2>How far it came</h2></div><${Steps} list=${list} />`}<${EventLog} events=${events} /></div>
        <div class="block"><div class="bh"><h2>Facts</h2></div><${Facts} sb=${sb} /></div></div>`}
      ${ending && html`<${ConfirmTerminate} sandbox=${sb} onYes=${() => terminate(id)} onClose=${() => setEnding(false)} />`}
    </div></div>`;
}

// boardOf tells a sandbox's facts as slots; the session's page uses them too.
export function boardOf(sb, here = false) {
  const ended = !live(sb);
  const [, dot] = CHIPS[sb.state] || [];
  const ran = sb.started_at && sb.ended_at ? Date.parse(sb.ended_at) - Date.parse(sb.started_at) : null;
  return [
    { k: "Sandbox", v: here ? sb.name : html`<a href=${`/sandbox/${sb.id}`}>${sb.name}</a>`, dot },
    { k: "State", v: (CHIPS[sb.state] || [])[2] || sb.state, of: ended && sb.ended_at ? html`<${Ago} at=${sb.ended_at} />` : null },
    ended ? { k: "Ran for", v: ran === null ? "—" : duration(ran) } : { k: "Stops in", v: html`<${Left} until=${sb.suspended_until || sb.expires_at} />` },
    { k: "Volume", v: volumeName(sb.volume), title: sb.volume },
  ];
}

function Ended({ sb, waiting, setPut }) {
  const [problem, setProblem] = useState(null);
  const failed = sb.state === "error";
  // A message that waits for a sandbox that has ended goes nowhere by itself; its text isn't lost.
  const again = () => {
    const text = waiting.map((e) => e.text).join("\n\n");
    return newSandbox({ volume: sb.volume, workdir: sb.workdir }, { text }).then(() => waiting.forEach((e) => outbox.withdraw(e.id)));
  };
  return html`<${Notice} kind=${failed ? "bad" : ""} title=${failed ? "This sandbox failed." : "This sandbox has stopped."}
    acts=${html`<${Busy} class="btn go" onProblem=${setProblem} onClick=${again}>New sandbox</${Busy}>`}>
    <span>${sentence(sb.reason) || "No reason is known."}${" "}The volume <code>${sb.volume}</code> is kept; a new sandbox can mount it again.</span></${Notice}>
    <${Queue} entries=${waiting} why="the sandbox has ended" onEdit=${(text) => setPut({ text })} />
    <${ProblemNotice} title="The sandbox could not be created." problem=${problem} />`;
}
