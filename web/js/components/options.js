// The options of a new sandbox, folded under one line that says what they are.

import { html, useState } from "../lib.js";
import { duration, mib } from "../format.js";
import { Icon } from "./icons.js";

const UNITS = { m: 60, h: 3600, d: 86400 };

// parse makes the form's texts into what the API takes; what is empty is left to the server. It returns {options, errors}.
export function parse(f) {
  const options = {};
  const errors = {};
  const name = f.name.trim();
  if (name) options.name = name;
  const volume = f.volume.trim();
  if (volume) {
    if (/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(volume)) options.volume = volume;
    else errors.volume = "Letters, digits, and . _ - inside; at most 64.";
  }
  const workdir = f.workdir.trim();
  if (workdir) {
    if (workdir.startsWith("/") && workdir !== "/") options.workdir = workdir;
    else errors.workdir = "An absolute path, as /workspace.";
  }
  const timeout = /^(\d+(?:\.\d+)?)\s*([mhd]?)/.exec(f.timeout.trim());
  if (f.timeout.trim()) {
    if (timeout && Number(timeout[1]) > 0) options.timeout_s = Math.round(Number(timeout[1]) * UNITS[timeout[2] || "m"]);
    else errors.timeout = "A time, as 30 m, 2 h or 1 d.";
  }
  const disk = /^(\d+(?:\.\d+)?)\s*(m|g|mib|gib|mb|gb)?$/i.exec(f.disk.trim());
  if (f.disk.trim()) {
    const n = disk && Math.round(Number(disk[1]) * (/^m/i.test(disk[2] || "g") ? 1 : 1024));
    if (n > 0) options.disk_mib = n;
    else errors.disk = "A size, as 10 GiB.";
  }
  return { options, errors };
}

export const EMPTY = { name: "", volume: "", workdir: "", timeout: "", disk: "" };

// FIELD_OF says which field a name of the wire belongs to, for what the server refuses.
const FIELD_OF = { name: "name", volume: "volume", workdir: "workdir", timeout_s: "timeout", disk_mib: "disk" };

export function serverErrors(problem) {
  const errors = {};
  for (const e of (problem && problem.errors) || []) {
    const field = FIELD_OF[String(e.location).replace(/^body\.?/, "")];
    if (field) errors[field] = e.message;
  }
  return errors;
}

const summary = ({ options }) =>
  [
    options.name,
    options.volume ? `volume ${options.volume}` : "new volume",
    options.workdir || "/workspace",
    options.timeout_s ? `stops after ${duration(options.timeout_s * 1000)}` : "stops after 1 h",
    options.disk_mib ? `${mib(options.disk_mib)} disk` : "",
  ].filter(Boolean).join(" · ");

export function Options({ form, onChange, errors, startOpen }) {
  const [open, setOpen] = useState(Boolean(startOpen));
  const parsed = parse(form);
  const all = { ...errors, ...parsed.errors };
  const shown = open || Object.keys(all).length > 0;
  const field = (key, label, placeholder, hint) => html`<div class="field">
    <label class="lab" for=${`opt-${key}`}>${label}</label>
    <input id=${`opt-${key}`} class="input mono" value=${form[key]} placeholder=${placeholder} autocomplete="off" autocapitalize="off" spellcheck="false"
      aria-invalid=${all[key] ? "true" : undefined} aria-describedby=${`opt-${key}-hint`} onInput=${(e) => onChange({ ...form, [key]: e.currentTarget.value })} />
    <span class=${all[key] ? "hint bad-t" : "hint"} id=${`opt-${key}-hint`}>${all[key] || hint}</span></div>`;
  return html`<div class="folds"><div class="fold">
    <button type="button" class="fh" aria-expanded=${shown ? "true" : "false"} onClick=${() => setOpen(!shown)}><${Icon} name="box" /><span>Sandbox options</span><span class="sum cut">${summary(parsed)}</span><${Icon} name=${shown ? "down" : "chev"} small /></button>
    ${shown && html`<div class="fb">
      <div class="duo">${field("name", "Name", "two words of ours", "For people; need not be unique.")}${field("volume", "Volume", "a fresh one", "Its files outlive the sandbox. A known name mounts it again.")}</div>
      <div class="trio">${field("workdir", "Working directory", "/workspace", "Where the volume is mounted.")}${field("timeout", "Stops after", "1 h", "Whatever it does, then it ends.")}${field("disk", "Disk", "10 GiB", "Of the layer over this machine's programs.")}</div>
    </div>`}</div></div>`;
}
