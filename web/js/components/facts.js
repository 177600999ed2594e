// What a sandbox is: its facts, its limits and by what they are kept, and the words for its states.

import { html } from "../lib.js";
import * as catalog from "../catalog.js";
import { live } from "../actions.js";
import { bytes, duration, mib, plural, volumeName } from "../format.js";
import { networkWords } from "../wish.js";
import { Ago, Copy, Left } from "./bits.js";

// STATES: the chip's colour, the mark's shape, and the word.
export const STATES = {
  creating: ["note", "busy", "Creating"], running: ["go", "run", "Running"], suspending: ["note", "busy", "Suspending"], suspended: ["", "idle", "Suspended"],
  resuming: ["note", "busy", "Resuming"], stopping: ["note", "busy", "Stopping"], error: ["bad", "bad", "Failed"], terminated: ["", "off", "Stopped"],
};

// BY says what keeps a limit, for people.
const BY = {
  "cgroup v1": "kept by cgroup v1", "cgroup v2": "kept by cgroup v2", gvisor: "kept by gVisor", rlimit: "kept by the kernel’s rlimit", guest: "kept by Sandlot inside",
  watchdog: "watched by the server; a burst may go over it for a moment", affinity: "whole cores, by affinity; a fraction is a lower priority", none: "",
};

const LIMITS = [
  ["cpu", "CPU", (n) => plural(n, "core")], ["memory", "Memory", mib], ["disk", "Disk", mib], ["pids", "Processes", String], ["open_files", "Open files", String], ["output", "Output", (n) => `${bytes(n * 1024)}/s`],
];

export const Limits = ({ limits }) => html`<dl class="facts">${LIMITS.map(([key, name, words]) => {
  const l = (limits || {})[key] || {};
  const set = l.value !== null && l.value !== undefined;
  return html`<div key=${key}><dt>${name}</dt><dd>${set ? words(l.value) : html`<span class="faint">not limited</span>`}${set && BY[l.by] && html`<span class="sub">${BY[l.by]}</span>`}</dd></div>`;
})}</dl>`;

function Image({ image }) {
  const i = image || {};
  if (i.snapshot) return html`<a href=${`/image/${i.snapshot}`}>${catalog.nameOf(i.snapshot) || i.snapshot}</a>`;
  return i.registry && i.registry !== "host" ? html`<code>${i.registry}</code>` : "this machine’s programs, read-only";
}

const short = (digest) => digest.replace(/^(\w+:)?(.{12}).*$/, "$1$2…");

export function Network({ network, onChange }) {
  const n = network || {};
  const listed = n.mode === "egress" && !(n.allow || []).includes("*") && (n.allow || []).length > 0;
  return html`${networkWords(n)}${onChange && html` <button type="button" class="link" onClick=${onChange}>Change<span class="vh"> network</span></button>`}
    ${listed && html`<span class="sub">${n.allow.map((h) => html`<code key=${h}>${h}</code> `)}</span>`}`;
}

export function Facts({ sb, onNetwork, onTime, onName }) {
  const commands = (sb.image && sb.image.dockerfile_commands) || [];
  const link = (act, words, of) => act && html` <button type="button" class="link" onClick=${act}>${words}<span class="vh"> ${of}</span></button>`;
  return html`<dl class="facts">${[
    ["Name", html`${sb.name}${link(onName, "Rename", "the sandbox")}`],
    ["ID", html`<code>${sb.id}</code> <${Copy} text=${sb.id} />`],
    ["Engine", sb.engine],
    ["Image", html`<${Image} image=${sb.image} />`],
    commands.length ? ["Commands", html`<details><summary>${plural(commands.length, "build line")}</summary><pre class="out">${commands.join("\n")}</pre></details>`] : null,
    sb.image && sb.image.digest ? ["Digest", html`<code title=${sb.image.digest}>${short(sb.image.digest)}</code> <${Copy} text=${sb.image.digest} />`] : null,
    sb.image && sb.image.user ? ["User", html`<code>${sb.image.user}</code>`] : null,
    ["Volume", html`<code>${sb.volume}</code> <${Copy} text=${sb.volume} />`],
    ["Working directory", html`<code>${sb.workdir}</code>`],
    ["Network", html`<${Network} network=${sb.network} onChange=${onNetwork} />`],
    sb.gpu ? ["GPU", sb.gpu] : null,
    ...Object.entries(sb.labels || {}).map(([k, v]) => [`Label ${k}`, v]),
    ["Created", html`<${Ago} at=${sb.created_at} />`],
    ["Ends", live(sb) ? html`in <${Left} until=${sb.suspended_until || sb.expires_at} />, ${sb.suspended_until ? "unless it is resumed" : "at the latest"}${link(sb.suspended_until ? null : onTime, "Extend", "its time")}` : sb.ended_at ? html`ended <${Ago} at=${sb.ended_at} />` : "—"],
  ].filter(Boolean).map(([k, v]) => html`<div key=${k}><dt>${k}</dt><dd>${v}</dd></div>`)}</dl>`;
}

// boardOf tells a sandbox's facts as slots; the session's page uses them too. onTime offers more time.
export function boardOf(sb, { here = false, onTime } = {}) {
  const ended = !live(sb);
  const [, dot, state] = STATES[sb.state] || ["", "", sb.state];
  const ran = sb.started_at && sb.ended_at ? Date.parse(sb.ended_at) - Date.parse(sb.started_at) : null;
  const until = sb.suspended_until || sb.expires_at;
  return [
    { k: "Sandbox", v: here ? sb.name : html`<a href=${`/sandbox/${sb.id}`}>${sb.name}</a>`, dot },
    { k: "State", v: state, of: ended && sb.ended_at ? html`<${Ago} at=${sb.ended_at} />` : sb.state === "suspended" && sb.suspended_at ? html`<${Ago} at=${sb.suspended_at} />` : null },
    ended
      ? { k: "Ran for", v: ran === null ? "—" : duration(ran) }
      : { k: sb.suspended_until ? "Kept for" : "Stops in", v: html`<${Left} until=${until} />${onTime && !sb.suspended_until && html` <button type="button" class="link" onClick=${onTime}>Extend</button>`}` },
    here && sb.cpu ? { k: "CPU", v: sb.cpu, of: sb.cpu === 1 ? "core" : "cores", title: BY[((sb.limits || {}).cpu || {}).by] } : null,
    here && sb.memory_mib ? { k: "Memory", v: mib(sb.memory_mib), of: "at most", title: BY[((sb.limits || {}).memory || {}).by] } : null,
    { k: "Network", v: networkWords(sb.network), title: ((sb.network && sb.network.allow) || []).join(", ") || undefined },
    { k: "Volume", v: volumeName(sb.volume), title: sb.volume },
  ];
}
