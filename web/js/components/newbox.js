// The form of a new sandbox: on the page of a new session, folded, and as a sheet.

import { html, useEffect, useRef, useState } from "../lib.js";
import * as catalog from "../catalog.js";
import * as local from "../local.js";
import * as store from "../store.js";
import { newSandbox } from "../actions.js";
import { ago, bytes, volumeName } from "../format.js";
import { EMPTY, parse, serverErrors, settled, summaries } from "../wish.js";
import { Icon } from "./icons.js";
import { ProblemNotice } from "./bits.js";
import { Field, NetworkFields, Picks, SecretChoice, Select } from "./fields.js";
import { Sheet } from "./sheet.js";

// The form is kept while nothing came of it: over navigation and reloads. Its variables aren't written down, for they may be secret.
let kept = null;
const draft = () => kept || { ...EMPTY, ...local.get("form") };

function keep(form) {
  kept = form;
  local.set("form", { ...form, env: "" });
}

function forget() {
  kept = null;
  local.set("form", null);
}

// prefill sets what the form begins with, and what is known to be wrong with it.
let wrong = {};
export function prefill(form, errors = {}) {
  wrong = errors;
  keep(form);
}

// useForm is the form's state: {form, set, problem, errors, submit(extra)}. submit creates, and returns whether it did.
export function useForm(start) {
  const [form, setForm] = useState(() => start || draft());
  const [problem, setProblem] = useState(null);
  const [tried, setTried] = useState(false);
  const [old, setOld] = useState(wrong);
  useEffect(() => {
    wrong = {};
    catalog.need();
  }, []);
  const parsed = parse(form);
  // What is empty is told only once it was asked for; what is wrong, at once.
  const shown = Object.fromEntries(Object.entries(parsed.errors).filter(([k]) => tried || !["registry", "saved", "allow"].includes(k)));
  const errors = { ...old, ...serverErrors(problem), ...shown };
  const set = (what) => {
    const next = { ...form, ...what };
    setForm(next);
    keep(next);
    if (Object.keys(what).some((k) => old[k])) setOld({});
  };
  const submit = async (extra) => {
    setTried(true);
    setOld({});
    set({ network: settled(form.network) });
    if (Object.keys(parsed.errors).length) return false;
    setProblem(null);
    try {
      await newSandbox(parsed.options, extra);
    } catch (p) {
      setProblem(p);
      return false;
    }
    forget();
    return true;
  };
  return { form, set, problem, errors, options: parsed.options, submit };
}

const KIND = { snapshot: "Snapshots", import: "Imported", build: "Built", registry: "Pulled" };

function Saved({ form, set, errors }) {
  const all = catalog.images.value;
  const groups = Object.keys(KIND).map((kind) => [kind, (all || []).filter((i) => i.kind === kind)]).filter(([, list]) => list.length);
  const chosen = (all || []).find((i) => i.id === form.saved);
  return html`<div class="field"><${Select} id="opt-saved" label="Your image" value=${form.saved} error=${errors.saved} onChange=${(saved) => set({ saved })}>
      <option value="">${!all ? "Reading your images …" : all.length ? "Choose …" : "You have none yet"}</option>
      ${form.saved && all && !chosen && html`<option value=${form.saved}>${form.saved} (deleted)</option>`}
      ${groups.map(([kind, list]) => html`<optgroup key=${kind} label=${KIND[kind]}>${list.map((i) => html`<option key=${i.id} value=${i.id}>${i.name}, ${bytes(i.size)}, ${ago(i.created_at)}</option>`)}</optgroup>`)}</${Select}>
    <span class=${errors.saved ? "hint bad-t" : "hint"} id="opt-saved-hint">${errors.saved || "Snapshots of sandboxes, imports, and what was pulled or built before."}</span></div>`;
}

// ImageFields choose the image; without host the machine's own programs aren't offered.
export function ImageFields({ form, set, errors }) {
  const known = [...new Set((catalog.images.value || []).filter((i) => i.kind === "registry" || i.kind === "build").map((i) => i.name))].filter((n) => !n.startsWith("img_"));
  return html`<div class="group"><div class="lab">Image</div>
    <${Picks} name="source" label="Image" value=${form.source} onChange=${(source) => set({ source })} options=${[
      ["host", "This machine", "Its tools, read-only. Starts at once."], ["registry", "Registry", "Any image, plus your commands."], ["saved", "Saved", "A snapshot, or an image of yours."]]} />
    ${form.source === "registry" && html`<${Field} id="opt-registry" label=${html`<span class="vh">Reference</span>`} placeholder="debian:13-slim" list="known-images" value=${form.registry} onInput=${(registry) => set({ registry })} error=${errors.registry} inputmode="url" />
      <datalist id="known-images">${known.map((n) => html`<option key=${n} value=${n} />`)}</datalist>
      <${SecretChoice} id="opt-secret" value=${form.secret} onChange=${(secret) => set({ secret })} error=${errors.secret} />`}
    ${form.source === "saved" && html`<${Saved} form=${form} set=${set} errors=${errors} />`}</div>`;
}

// Commands are the Dockerfile lines on top of the image, and the secrets that they get.
export function Commands({ form, set, errors }) {
  const all = catalog.secrets.value || [];
  const toggle = (name) => set({ buildSecrets: form.buildSecrets.includes(name) ? form.buildSecrets.filter((n) => n !== name) : [...form.buildSecrets, name] });
  return html`<${Field} id="opt-commands" label="Build commands" more="Dockerfile lines, cached" area rows="5" wrap="off" value=${form.commands} onInput=${(commands) => set({ commands })} error=${errors.commands}
      placeholder=${"RUN apt-get update && apt-get install -y git\nENV GOFLAGS=-trimpath"} />
    ${all.length > 0 && form.commands.trim() && html`<div class="field" role="group" aria-label="Secrets for the commands"><span class="lab">Secrets for RUN <span class="faint">as environment, not kept in the image</span></span>
      <div class="checks">${all.map((s) => html`<label class="check" key=${s.name}><input type="checkbox" checked=${form.buildSecrets.includes(s.name)} onChange=${() => toggle(s.name)} />${s.name}</label>`)}</div>
      ${errors.buildSecrets && html`<span class="hint bad-t">${errors.buildSecrets}</span>`}</div>`}`;
}

function Fold({ name, summary, fields, errors, children }) {
  const [open, setOpen] = useState(false);
  const wrong = fields.some((f) => errors[f]);
  const shown = open || wrong;
  // What an error opened doesn't close under the user's hands when it is mended.
  useEffect(() => {
    if (wrong) setOpen(true);
  }, [wrong]);
  return html`<div class="fold"><button type="button" class="fh" aria-expanded=${shown ? "true" : "false"} onClick=${() => setOpen(!shown)}><${Icon} name=${shown ? "down" : "chev"} small /><span class="strong">${name}</span><span class="sum cut">${summary}</span></button>
    ${shown && html`<div class="fb">${children}</div>`}</div>`;
}

// Fields is the whole form.
export function Fields({ state }) {
  const { form, set, errors, options } = state;
  const volumes = [...new Set((store.sandboxes.value || []).map((s) => s.volume))].filter((v) => volumeName(v) !== "unnamed");
  const field = (key, label, placeholder, hint, more) => html`<${Field} id=${`opt-${key}`} label=${label} placeholder=${placeholder} hint=${hint} value=${form[key]} error=${errors[key]} onInput=${(v) => set({ [key]: v })} ...${more} />`;
  return html`<div class="duo">${field("name", "Name", "two words of ours", "", { "data-first": "", mono: false })}${field("timeout", "Stops after", "1 h", "")}</div>
    <${ImageFields} ...${state} />
    ${field("volume", "Volume", "a fresh one", html`Mounted at <code>${options.workdir || "/workspace"}</code>. It outlives the sandbox.`, { list: "known-volumes" })}
    <datalist id="known-volumes">${volumes.map((v) => html`<option key=${v} value=${v} />`)}</datalist>
    <div class="folds">
      <${Fold} name="Limits" summary=${summaries.limits(options)} fields=${["cpu", "memory", "disk", "pids"]} errors=${errors}>
        <div class="duo">${field("cpu", "CPU", "not limited", "Cores; fractions too.")}${field("memory", "Memory", "not limited", "As 512 MiB or 4 GiB.")}</div>
        <div class="duo">${field("disk", "Disk", "10 GiB", "Of the layer over the image.")}${field("pids", "Processes", "4096", "And threads, of one user.")}</div></${Fold}>
      <${Fold} name="Network" summary=${summaries.network(options)} fields=${["mode", "allow"]} errors=${errors}>
        <${NetworkFields} id="opt-net" value=${form.network} onChange=${(network) => set({ network })} errors=${errors} /></${Fold}>
      <${Fold} name="Advanced" summary=${summaries.advanced(options)} fields=${["commands", "buildSecrets", "workdir", "env", "labels"]} errors=${errors}>
        ${form.source === "host" ? html`<p class="faint">Build commands need an image from a registry, or a saved one.</p>` : html`<${Commands} ...${state} />`}
        ${field("workdir", "Working directory", "/workspace", "Where the volume is mounted and Claude starts.")}
        <div class="duo">${field("env", "Environment", "NAME=value", "One per line.", { area: true, rows: 3, wrap: "off" })}${field("labels", "Labels", "team=harbor", "One per line.", { area: true, rows: 3, wrap: "off" })}</div></${Fold}>
    </div>`;
}

// Options are the form under a line that says what it will be.
export function Options({ state, startOpen }) {
  const [open, setOpen] = useState(Boolean(startOpen));
  const { options, errors } = state;
  const wrong = Object.keys(errors).length > 0;
  const shown = open || wrong;
  useEffect(() => {
    if (wrong) setOpen(true);
  }, [wrong]);
  const words = [options.name, summaries.image(options, catalog.nameOf(options.image && options.image.snapshot)), options.volume ? `volume ${options.volume}` : "new volume", summaries.time(options)].filter(Boolean).join(" · ");
  return html`<div class="folds outer"><div class="fold"><button type="button" class="fh" aria-expanded=${shown ? "true" : "false"} onClick=${() => setOpen(!shown)}><${Icon} name="box" /><span>Sandbox options</span><span class="sum cut">${words}</span><${Icon} name=${shown ? "down" : "chev"} small /></button>
    ${shown && html`<div class="fb wide-fb"><${Fields} state=${state} /></div>`}</div></div>`;
}

// NewSheet is the sheet of a new sandbox. image is the ID of one to begin with.
export function NewSheet({ image, onClose }) {
  const state = useForm(image ? { ...draft(), source: "saved", saved: image } : null);
  const [running, setRunning] = useState(false);
  const box = useRef();
  const create = async () => {
    if (running) return;
    setRunning(true);
    const done = await state.submit();
    setRunning(false);
    if (done) return;
    requestAnimationFrame(() => {
      const bad = box.current && box.current.querySelector("[aria-invalid=true], .notice.bad");
      if (bad) bad.scrollIntoView({ block: "center" });
      if (bad && bad.focus) bad.focus();
    });
  };
  const { options } = state;
  return html`<${Sheet} title="New sandbox" onClose=${onClose} onSubmit=${create} foot=${html`<span class="dim cut no-phone">${summaries.image(options, catalog.nameOf(options.image && options.image.snapshot))} · ${summaries.time(options)}</span>
      <div class="end"><button type="button" class="btn" onClick=${onClose}>Cancel</button><button type="submit" class="btn go" aria-busy=${running ? "true" : undefined}>Create <kbd aria-hidden="true">⌘⏎</kbd></button></div>`}>
    <div class="sheet-body" ref=${box}>${state.problem && html`<${ProblemNotice} title="The sandbox could not be created." problem=${state.problem} />`}<${Fields} state=${state} /></div></${Sheet}>`;
}
