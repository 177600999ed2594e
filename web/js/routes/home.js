// The first page: what Claude should do. With sessions, "/" leads to the last one instead (see app.js).

import { html, useState } from "../lib.js";
import * as store from "../store.js";
import { newSandbox } from "../actions.js";
import { Busy, ProblemNotice, Scoreboard } from "../components/bits.js";
import { Composer } from "../components/composer.js";

const STARTS = [
  ["Write and run a program", "a shell script that draws a tree", "Write a small shell script that draws a tree out of characters, run it, and show me the result."],
  ["Look around", "what is installed in there", "Look around in this sandbox: which programming languages and tools are installed? Make a short table."],
  ["Explain by example", "how a bank account races", "Write a small program with a data race, show what goes wrong when it runs, then fix it and explain the fix."],
];

export const FIRST = "Write a tiny program that tells the time in three cities, run it, and show me what it prints.";

export function Home() {
  const [problem, setProblem] = useState(null);
  const [put, setPut] = useState(null);
  const h = store.health.value;
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
  return html`<div class="page"><div class="hello">
    <div class="block"><h1>You’re in. What should Claude do?</h1>
      <p class="lead">Each task gets a sandbox: an isolated computer with this machine’s tools and an empty <code>/workspace</code>. Nothing to set up.</p></div>
    <${Composer} scope="first" big focus modes action="Start" label="What should Claude do?" placeholder="Describe a task. A sandbox starts, and Claude begins." start=${FIRST} put=${put}
      onSend=${start} left=${html`<${Busy} class="btn small" onProblem=${setProblem} onClick=${() => newSandbox()} title="An empty sandbox; the task can follow">New sandbox</${Busy}>`} />
    <${ProblemNotice} title="The sandbox could not be created." problem=${problem} />
    <div class="starts">${STARTS.map(([t, d, text]) => html`<button type="button" class="start" key=${t} onClick=${() => setPut({ text, replace: true })}><span class="t">${t}</span>${d}</button>`)}</div>
    <${ServerBoard} h=${h} /></div></div>`;
}

const STATUS = { ok: ["run", "Ready"], starting: ["busy", "Starting"], failing: ["bad", "Failing"] };

// ServerBoard tells the facts of the server.
export function ServerBoard({ h }) {
  const [dot, word] = (h && STATUS[h.status]) || ["off", "—"];
  return html`<${Scoreboard} card label="Server" slots=${[
    { k: "Server", v: word, dot },
    { k: "Isolation", v: (h && h.isolation.split(/[ (,]/)[0]) || "—", title: h && h.isolation },
    { k: "Claude Code", v: (h && h.claude) || "—" },
    { k: "Model", v: h ? (h.model === "demo" ? "demo" : h.model || "—") : "—" },
  ]} />`;
}
