// One sandbox: how it comes to be, what it is and can, and how it ended. While it is being created the first message is written
// already; it is sent the moment the sandbox runs.

import { cx, html, useEffect, useState } from "../lib.js";
import * as api from "../api.js";
import * as catalog from "../catalog.js";
import * as outbox from "../outbox.js";
import * as store from "../store.js";
import { askedOf, live, newSandbox, resume, suspend, terminate } from "../actions.js";
import { fullTime, sentence } from "../format.js";
import { failedLine, word } from "../making.js";
import { go, route } from "../router.js";
import { formOf } from "../wish.js";
import { Icon } from "../components/icons.js";
import { Busy, ConfirmTerminate, Dot, Notice, ProblemNotice, Scoreboard, Since, Skeleton } from "../components/bits.js";
import { NetworkDialog, RenameDialog, SnapshotDialog, TimeDialog } from "../components/boxacts.js";
import { boardOf, Facts, Limits, STATES } from "../components/facts.js";
import { sessionMark } from "../components/frame.js";
import { Failure, heading, ImageLog, Steps, useLog } from "../components/making.js";
import { prefill } from "../components/newbox.js";
import { FilesBlock, TerminalBlock } from "../components/panel.js";
import { Ports } from "../components/ports.js";
import { Menu } from "../components/sheet.js";
import { Composer } from "../components/composer.js";
import { Queue } from "../components/queue.js";
import { Lost } from "./lost.js";

// useEvents keeps the sandbox's event log: what was, then what comes. The lines of a build come by the hundred, so they are taken in
// a frame at a time.
function useEvents(id) {
  const [events, setEvents] = useState([]);
  const connected = store.conn.value.state === "live";
  useEffect(() => {
    setEvents([]);
    let waiting = [];
    let timer = 0;
    const flush = () => {
      timer = 0;
      const fresh = waiting;
      waiting = [];
      setEvents((old) => merged(old, fresh));
    };
    const stop = store.onEvent((e) => {
      if (e.sandbox !== id) return;
      waiting.push(e);
      timer = timer || setTimeout(flush, 50);
    });
    return () => {
      stop();
      clearTimeout(timer);
    };
  }, [id]);
  useEffect(() => {
    let gone = false;
    api.allEvents(id).then((list) => gone || setEvents((old) => merged(old, list))).catch(() => {});
    return () => { gone = true; };
  }, [id, connected]);
  return events;
}

function merged(old, list) {
  const known = new Set(old.map((e) => e.seq));
  const fresh = list.filter((e) => !known.has(e.seq));
  return fresh.length ? [...old, ...fresh].sort((a, b) => a.seq - b.seq) : old;
}

function Sessions({ sb }) {
  const list = (store.sessions.value || []).filter((s) => s.sandbox === sb.id);
  if (!list.length) return html`<p class="faint">No session yet. Write the first message, and one begins.</p>`;
  return html`<ul class="sess boxed">${list.map((s) => {
    const m = sessionMark(s, store.now.value);
    return html`<li key=${s.id}><a href=${`/session/${s.id}`}><${Dot} kind=${m.dot} word=${m.word} /><span class="two"><span class="cut">${s.title || "Untitled"}</span><span class="sub cut">${m.sub}</span></span><${Icon} name="chev" small /></a></li>`;
  })}</ul>`;
}

function EventLog({ events: all }) {
  const events = all.filter((e) => e.kind !== "build" && e.kind !== "image"); // those are in the image's log
  if (!events.length) return null;
  return html`<div class="block"><div class="bh"><h2>Events</h2></div><ol class="lines2">${events.map((e) => html`<li key=${e.seq}><time class="w2" datetime=${e.at} title=${fullTime(e.at)}>${new Date(e.at).toLocaleTimeString([], { hour12: false })}</time>
    <span class=${cx("ev", e.kind === "error" && "bad-t")}>${word(e.kind)}</span><span class="grow dim">${sentence(e.text)}</span></li>`)}</ol></div>`;
}

const DIALOGS = { snapshot: SnapshotDialog, network: NetworkDialog, time: TimeDialog, name: RenameDialog };

export function Sandbox({ id }) {
  const known = store.sandboxOf(id);
  const [problem, setProblem] = useState(null);
  const [dialog, setDialog] = useState("");
  const [refusal, setRefusal] = useState(null);
  const [put, setPut] = useState(null);
  const events = useEvents(id);
  const log = useLog(events);
  useEffect(() => {
    setProblem(null);
    store.readSandbox(id).catch((p) => setProblem(p));
    catalog.need();
  }, [id]);
  // A message that began a session leads there, wherever it was written; but only from this page.
  const waiting = outbox.forSandbox(id);
  const names = waiting.map((e) => e.id).join();
  useEffect(() => {
    const stop = waiting.map((e) => outbox.listen(e.id, (session) => session && route.value.name === "sandbox" && route.value.id === id && go(`/session/${session}`, { replace: true })));
    return () => stop.forEach((f) => f());
  }, [names]);

  const sb = known;
  if (!sb) {
    if (problem && problem.status === 404) return html`<${Lost} what="There is no such sandbox." why=${problem.detail} />`;
    return html`<div class="page"><div class="wrap">${problem ? html`<${ProblemNotice} title="The sandbox could not be read." problem=${problem} />` : html`<${Skeleton} rows=${5} />`}</div></div>`;
  }
  const [chip, dot, state] = STATES[sb.state] || ["", "", sb.state];
  const creating = sb.state === "creating";
  const running = sb.state === "running";
  const suspended = sb.state === "suspended";
  const sleeping = suspended || sb.state === "suspending" || sb.state === "resuming";
  const send = (text, mode) => {
    outbox.put({ text, sandbox: id, mode });
    return true;
  };
  const ask = (what) => () => setDialog(what);
  const turn = (act, title) => async () => {
    setRefusal(null);
    try {
      await act(id);
    } catch (p) {
      setRefusal({ title, problem: p });
    }
  };
  const sleep = turn(suspend, "The sandbox could not be suspended. It goes on.");
  const wake = turn(resume, "The sandbox could not be resumed.");
  const alter = running || suspended;
  const items = [
    running && { words: "Suspend", icon: "pause", act: sleep },
    suspended && { words: "Resume", icon: "play", act: wake },
    running && { words: "Make a snapshot", icon: "camera", act: ask("snapshot") },
    alter && { words: "Change network", icon: "globe", act: ask("network") },
    running && { words: "Extend its time", icon: "clock", act: ask("time") },
    alter && { words: "Rename", icon: "pencil", act: ask("name") },
    alter && { rule: true },
    (alter || creating) && { words: creating ? "Cancel" : "Terminate", icon: "x", danger: true, act: ask("end") },
  ].filter(Boolean);
  const Dialog = DIALOGS[dialog];
  const why = creating ? "sent when the sandbox is ready" : sleeping ? "sent when the sandbox is resumed" : "waits for the connection";
  const composer = html`<${Composer} scope=${`box.${id}`} focus modes big=${!log.lines.length || !creating} put=${put} onSend=${send} action=${creating ? "Send when ready" : undefined}
    label="First message to Claude" placeholder=${creating ? "Write the first message now" : "What should Claude do here?"} hint=${creating ? "It is sent the moment the sandbox is ready." : ""} />
    <${Queue} entries=${waiting} why=${why} onEdit=${(text) => setPut({ text })} />`;
  const facts = html`<div class="block"><div class="bh"><h2>Facts</h2></div><${Facts} sb=${sb} onNetwork=${alter && ask("network")} onTime=${running && ask("time")} onName=${alter && ask("name")} />
    <div class="bh"><h2>Limits</h2></div><${Limits} limits=${sb.limits} /></div>`;
  const sessions = html`<div class="bh"><h2>Sessions</h2></div><${Sessions} sb=${sb} />`;
  const failed = sb.state === "error" && !sb.started_at;
  return html`<header class="top"><a class="btn quiet icon only-phone" href="/sandboxes" aria-label="Back to sandboxes"><${Icon} name="back" /></a>
      <h1 class="cut">${sb.name}</h1><span class=${cx("chip", chip)} data-state=${sb.state}><${Dot} kind=${dot} />${state}</span><span class="grow"></span>
      ${running && html`<${Busy} class="btn small no-phone" onClick=${sleep}>Suspend</${Busy}>`}
      ${suspended && html`<${Busy} class="btn small go" onClick=${wake}>Resume</${Busy}>`}
      ${creating && html`<button type="button" class="btn small danger" onClick=${ask("end")}>Cancel</button>`}
      ${alter && html`<button type="button" class="btn small danger no-phone" onClick=${ask("end")}>Terminate</button><${Menu} label="More about this sandbox" items=${items} />`}</header>
    ${!creating && html`<${Scoreboard} label=${`Sandbox ${sb.name}`} slots=${boardOf(sb, { here: true, onTime: running && ask("time") })} />`}
    <div class="page"><div class="wrap">
      <${ProblemNotice} title="The sandbox's state could not be read anew." problem=${problem} />
      ${refusal && html`<${ProblemNotice} ...${refusal} />`}
      ${sleeping && html`<${Notice} kind="note" icon="clock" title=${{ suspending: "This sandbox is being suspended.", suspended: "This sandbox is suspended.", resuming: "This sandbox is being resumed." }[sb.state]}
        acts=${suspended && html`<${Busy} class="btn go" onClick=${wake}>Resume</${Busy}>`}><span>Its processes are kept on disk, and go on where they were when it is resumed. It uses no CPU and no memory until then.</span></${Notice}>`}
      ${creating && html`<div class="make"><div class="block"><div class="ph"><h1>${heading(log, sb)}</h1></div>
          <p class="dim"><${Since} at=${Date.parse(sb.created_at)} /> so far. You can leave; it goes on.</p><${Steps} events=${events} sb=${sb} log=${log} /></div>
        <div class="block"><${ImageLog} log=${log} sb=${sb} />${composer}${!log.lines.length && html`<${Facts} sb=${sb} />`}</div></div>`}
      ${running && html`<div class="make flip"><div class="block">${composer}${sessions}<${Ports} sb=${sb} /><${TerminalBlock} sb=${sb} /><${FilesBlock} sb=${sb} /><${EventLog} events=${events} />
          ${log.lines.length > 0 && html`<details class="made"><summary>How its image was made</summary><${ImageLog} log=${log} sb=${sb} /></details>`}</div>${facts}</div>`}
      ${sb.state === "stopping" && html`<${Notice} kind="note" icon="clock" title="This sandbox is being stopped."><span>${sb.reason && !sb.started_at ? html`<${Failure} reason=${sb.reason} />` : html`${sentence(sb.reason) || "What runs in it is ended, then it is taken apart."} Its volume is kept.`}</span></${Notice}>`}
      ${!live(sb) && html`<${Ended} sb=${sb} waiting=${waiting} setPut=${setPut} />`}
      ${!creating && !running && html`<div class=${failed && log.lines.length ? "make" : "make flip"}>
        ${failed && log.lines.length
          ? html`<div class="block"><div class="bh"><h2>${heading(log, sb)}</h2></div><${Steps} events=${events} sb=${sb} log=${log} />${facts}</div><div class="block"><${ImageLog} log=${log} sb=${sb} /><${EventLog} events=${events} /></div>`
          : html`<div class="block">${!failed && sessions}${failed && html`<div class="bh"><h2>${heading(log, sb)}</h2></div><${Steps} events=${events} sb=${sb} log=${log} />`}<${EventLog} events=${events} /></div>${facts}`}</div>`}
      ${dialog === "end" && html`<${ConfirmTerminate} sandbox=${sb} onYes=${() => terminate(id)} onClose=${() => setDialog("")} />`}
      ${Dialog && html`<${Dialog} sb=${sb} onClose=${() => setDialog("")} />`}
    </div></div>`;
}

// Ended says how a sandbox ended, and offers another one: with the same settings, or with others.
function Ended({ sb, waiting, setPut }) {
  const [problem, setProblem] = useState(null);
  const failed = sb.state === "error";
  const unmade = failed && !sb.started_at;
  const line = unmade && failedLine(sb.reason);
  // A message that waits for a sandbox that has ended goes nowhere by itself; its text isn't lost.
  const again = () => {
    const text = waiting.map((e) => e.text).join("\n\n");
    return newSandbox(askedOf(sb), { text }).then(() => waiting.forEach((e) => outbox.withdraw(e.id)));
  };
  const edit = () => {
    prefill(formOf(askedOf(sb)), line ? { commands: `Line ${line.line} ${line.what}${/[.!?]$/.test(line.what) ? "" : "."}` } : {});
    go("/sandboxes?new");
  };
  const title = line ? "The image could not be built." : unmade ? "This sandbox could not be created." : failed ? "This sandbox failed." : "This sandbox has stopped.";
  return html`<${Notice} kind=${failed ? "bad" : ""} title=${title}
    acts=${html`<${Busy} class="btn go" onProblem=${setProblem} onClick=${again}>${unmade ? "Try again" : "New sandbox"}</${Busy}><button type="button" class="btn" onClick=${edit}>${line ? "Edit commands" : "Change settings"}</button>`}>
    ${unmade ? html`<${Failure} reason=${sb.reason} />` : html`<span>${sentence(sb.reason) || "No reason is known."}${" "}The volume <code>${sb.volume}</code> is kept; a new sandbox can mount it again.</span>`}</${Notice}>
    <${Queue} entries=${waiting} why="the sandbox has ended" onEdit=${(text) => setPut({ text })} />
    <${ProblemNotice} title="The sandbox could not be created." problem=${problem} />`;
}
