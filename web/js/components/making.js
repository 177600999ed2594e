// How a sandbox comes to be: the steps on one side, the log of its image on the other.

import { cx, html, useMemo } from "../lib.js";
import { bytes, duration, fullTime, sentence } from "../format.js";
import { failedLine, progressLog, steps, withFailure } from "../making.js";
import { Icon } from "./icons.js";
import { Since } from "./bits.js";
import { BuildLog, Progress } from "./buildlog.js";

const SIGNS = { done: "done", now: "under way", bad: "did not happen", later: "to come" };

// detail says more of a step that is under way than its words.
function detail(s, log) {
  if (s.kind === "build" && log.build && s.state !== "done") {
    const { step, of } = log.build;
    return html`Step ${step} of ${of}${s.state === "now" && html`<${Progress} label="Build" done=${step - 1} total=${of} />`}`;
  }
  if (s.kind === "image" && log.pull && s.state !== "later") {
    const { done, total } = log.pull;
    return s.state === "now" ? html`${bytes(done)} of ${bytes(total)}<${Progress} label="Download" done=${done} total=${total} />` : bytes(total);
  }
  return s.text;
}

export function Steps({ events, sb, log }) {
  const list = useMemo(() => steps(events, sb), [events, sb]);
  return html`<ol class="steps">${list.map((s) => html`<li key=${s.kind} class=${cx("step", s.state)}>
    <span class="b">${s.state === "done" ? html`<${Icon} name="check" small />` : s.state === "bad" ? html`<${Icon} name="x" small />` : ""}<span class="vh">${SIGNS[s.state]}</span></span>
    <span class="n">${s.name}</span><span class="t" title=${s.at ? fullTime(s.at) : undefined}>${s.state === "done" ? duration(s.took) : s.state === "now" ? html`<${Since} at=${s.from} />` : ""}</span>
    <span class="d">${detail(s, log)}</span></li>`)}</ol>`;
}

// heading says what the creation is at.
export function heading(log, sb) {
  if (sb.state !== "creating") return "How far it came";
  const now = log.build ? "Building your image" : log.lines.length ? "Fetching your image" : "Starting your sandbox";
  return now;
}

export const useLog = (events) => useMemo(() => progressLog(events), [events]);

// ImageLog is what was told while the image was made, with the failure marked.
export function ImageLog({ log, sb }) {
  const bad = sb.state === "error" || (sb.state === "stopping" && sb.reason);
  const lines = useMemo(() => (bad && !sb.started_at ? withFailure(log.lines, sb.reason) : log.lines), [log, bad, sb.reason]);
  if (!log.lines.length) return null;
  return html`<${BuildLog} lines=${lines} live=${sb.state === "creating"} name=${sb.name} title=${log.build ? "Build log" : "Image log"} />`;
}

// Failure says what is known of a line that failed.
export function Failure({ reason }) {
  const f = failedLine(reason);
  if (!f) return html`<span class="pre">${sentence(reason) || "No reason is known."}</span>`;
  return html`<span>Line ${f.line}${f.instruction && html`, <code>${f.instruction}</code>`}${/^(ended|was )/.test(f.what) ? `, ${f.what}` : `: ${f.what}`}${/[.!?]$/.test(f.what) ? "" : "."}${f.output && " Its last output:"}</span>
    ${f.output && html`<pre class="out tail" tabindex="0" role="region" aria-label="Last output">${f.output}</pre>`}`;
}
