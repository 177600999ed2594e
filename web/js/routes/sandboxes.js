// All sandboxes: what each is doing, and why it ended.

import { html, cx, useEffect, useState } from "../lib.js";
import * as catalog from "../catalog.js";
import * as store from "../store.js";
import { live, newSandbox, resume, terminate } from "../actions.js";
import { plural, volumeName } from "../format.js";
import { failedLine } from "../making.js";
import { go, route } from "../router.js";
import { Icon } from "../components/icons.js";
import { Ago, Busy, ConfirmTerminate, Dot, Left, ProblemNotice, Scoreboard, Skeleton } from "../components/bits.js";
import { Progress } from "../components/buildlog.js";
import { Composer } from "../components/composer.js";
import { NewSheet } from "../components/newbox.js";

const FILTERS = [
  ["all", "All", () => true],
  ["live", "Live", live],
  ["failed", "Failed", (s) => s.state === "error"],
  ["stopped", "Stopped", (s) => s.state === "terminated"],
];

// doing says in words what a sandbox does: {dot, word, tone, sub}.
export function doing(sb, sessions) {
  const here = (sessions || []).filter((s) => s.sandbox === sb.id);
  const busy = here.find((s) => s.busy);
  switch (sb.state) {
    case "creating": {
      const m = catalog.making.value[sb.id];
      return { dot: "busy", word: m ? m.words : "Creating", tone: "note-t", sub: "", progress: m };
    }
    case "running":
      return busy
        ? { dot: "run", word: "Claude is working", sub: busy.title, session: busy }
        : { dot: "idle", word: "Idle", sub: here.length ? `${plural(here.length, "session")}, none is working` : "nothing is running", session: here[0] };
    case "suspending":
    case "resuming":
      return { dot: "busy", word: sb.state === "suspending" ? "Suspending" : "Resuming", sub: "", session: here[0] };
    case "suspended":
      return { dot: "idle", word: "Suspended", sub: "on disk, with its processes", session: here[0] };
    case "stopping":
      return { dot: "busy", word: "Stopping", sub: sb.reason || "" };
    case "error":
      return { dot: "bad", ...failure(sb), tone: "bad-t", session: here[0] };
    default:
      return { dot: "off", word: "Stopped", sub: sb.reason ? `${sb.reason.replace(/\.$/, "")}; volume kept` : "volume kept", session: here[0] };
  }
}

// failure says in one line why a sandbox failed: the output of a build is for its own page.
function failure(sb) {
  const line = sb.started_at ? null : failedLine(sb.reason);
  if (line) return { word: "Image build failed", sub: `line ${line.line}${line.instruction ? `: ${line.instruction}` : ""}, ${line.what}` };
  return { word: sb.started_at ? "Failed" : "Could not be created", sub: (sb.reason || "").split("\n")[0] };
}

const ORDER = { busy: 2, run: 1, idle: 3, bad: 0, off: 4 };

export function sorted(list, sessions, t) {
  const rank = (sb) => {
    const d = doing(sb, sessions).dot;
    // A failure is news for an hour, then history.
    return d === "bad" && t - Date.parse(sb.ended_at || sb.created_at) > 3_600_000 ? 4 : ORDER[d];
  };
  return [...list].sort((a, b) => rank(a) - rank(b) || (a.created_at < b.created_at ? 1 : -1));
}

function Row({ sb, onTerminate, onProblem }) {
  const d = doing(sb, store.sessions.value);
  return html`<tr>
    <td><div class="nm"><${Dot} kind=${d.dot} word=${d.word} /><span class="two"><a class="strong cut" href=${`/sandbox/${sb.id}`}>${sb.name}</a><span class="sub cut">${catalog.imageWords(sb.image)} · ${volumeName(sb.volume) === "unnamed" ? "unnamed volume" : sb.volume}</span></span></div></td>
    <td class="full"><span class=${cx("act", d.tone)}>${d.word}</span>${d.sub && html`<span class="sub cut" title=${d.sub}>${d.sub}</span>`}${d.progress && html`<${Progress} label="Build" done=${d.progress.step} total=${d.progress.of} />`}</td>
    <td class="r sub hide">${live(sb) ? html`${sb.suspended_until ? "kept for" : "stops in"} <${Left} until=${sb.suspended_until || sb.expires_at} />` : html`<${Ago} at=${sb.ended_at || sb.created_at} />`}</td>
    <td class="r"><span class="row-acts">${d.session && live(sb) && html`<a class="btn small" href=${`/session/${d.session.id}`}>Open</a>`}
      ${sb.state === "suspended" && html`<${Busy} class="btn small" onProblem=${onProblem} onClick=${() => resume(sb.id)}>Resume<span class="vh"> ${sb.name}</span></${Busy}>`}
      ${sb.state === "creating" && html`<a class="btn small" href=${`/sandbox/${sb.id}`}>Watch</a>`}
      ${live(sb) && sb.state !== "stopping" && html`<button type="button" class="btn small danger" onClick=${() => onTerminate(sb)}>Terminate<span class="vh"> ${sb.name}</span></button>`}
      ${!live(sb) && html`<a class="btn small" href=${d.session ? `/session/${d.session.id}` : `/sandbox/${sb.id}`}>Open</a>`}</span></td></tr>`;
}

const FEW = 12;

export function Sandboxes() {
  const [filter, setFilter] = useState("all");
  const [all, setAll] = useState(false);
  const [problem, setProblem] = useState(null);
  const [ending, setEnding] = useState(null);
  const [stuck, setStuck] = useState(null);
  useEffect(() => catalog.need(), []);
  const query = route.value.query;
  const list = store.sandboxes.value;
  const count = (f) => (list || []).filter(f).length;
  const chosen = FILTERS.find((f) => f[0] === filter)[2];
  const rows = list ? sorted(list.filter(chosen), store.sessions.value, Math.floor(store.now.value / 60_000) * 60_000) : [];
  const most = Math.max(FEW, rows.filter(live).length);
  const shown = all ? rows : rows.slice(0, most);
  const start = async (text, mode) => {
    setProblem(null);
    try {
      await newSandbox({}, { text, mode });
    } catch (p) {
      setProblem(p);
      return false;
    }
    return true;
  };
  return html`<div class="page"><div class="wrap">
    <div class="ph"><h1>Sandboxes</h1><div class="end"><a class="btn" href="/sandboxes?new" aria-label="Create with options"><${Icon} name="plus" /><span class="no-phone">Create with options</span><kbd aria-hidden="true">C</kbd></a><${Busy} class="btn go" onProblem=${setProblem} onClick=${() => newSandbox()}>New sandbox</${Busy}></div></div>
    <${ProblemNotice} title="The sandbox could not be created." problem=${problem} />
    <${ProblemNotice} title="The sandbox could not be resumed." problem=${stuck} />
    <${Composer} scope="quick" modes action="Start" label="Describe a task" placeholder="Describe a task. A sandbox starts, and Claude begins." onSend=${start} />
    <${Scoreboard} card label="Summary" slots=${[
      { k: "Running", v: list ? count((s) => s.state === "running") : "—" },
      { k: "Creating", v: list ? count((s) => s.state === "creating") : "—" },
      { k: "Suspended", v: list ? count((s) => s.state === "suspended") : "—" },
      { k: "Claude at work", v: store.sessions.value ? store.sessions.value.filter((s) => s.busy).length : "—" },
      { k: "Sessions", v: store.sessions.value ? store.sessions.value.length : "—" },
    ]} />
    ${list && list.length > 0 && html`<div class="filters"><div class="seg" role="group" aria-label="Filter by state">${FILTERS.map(
      ([key, word, f]) => html`<button type="button" key=${key} class=${filter === key ? "on" : ""} aria-pressed=${filter === key ? "true" : "false"} onClick=${() => setFilter(key)}>${word} <span class="num">${count(f)}</span></button>`,
    )}</div></div>`}
    ${!list && html`<${Skeleton} rows=${6} />`}
    ${list && list.length === 0 && html`<div class="empty"><span class="strong">No sandbox yet</span><span>Each is a computer of its own, ready in about a second.</span></div>`}
    ${list && list.length > 0 && rows.length === 0 && html`<div class="empty"><span>None is in this state.</span></div>`}
    ${rows.length > 0 && html`<table class="table"><colgroup><col class="w-name" /><col /><col class="w-when" /><col class="w-acts" /></colgroup>
      <thead><tr><th scope="col">Name</th><th scope="col">What it is doing</th><th scope="col" class="r">When</th><th scope="col" class="r"><span class="vh">Actions</span></th></tr></thead>
      <tbody>${shown.map((sb) => html`<${Row} key=${sb.id} sb=${sb} onTerminate=${setEnding} onProblem=${setStuck} />`)}</tbody></table>`}
    ${rows.length > shown.length && html`<p class="faint foot-note">${rows.length - shown.length} more. <button type="button" class="link" onClick=${() => setAll(true)}>Show them</button></p>`}
    ${query.has("new") && html`<${NewSheet} image=${query.get("image")} onClose=${() => location.search && go("/sandboxes", { replace: true })} />`}
    ${ending && html`<${ConfirmTerminate} sandbox=${ending} onYes=${() => terminate(ending.id)} onClose=${() => setEnding(null)} />`}
  </div></div>`;
}
