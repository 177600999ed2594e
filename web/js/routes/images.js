// The account's images: pulled, built, imported, and snapshots of sandboxes.

import { cx, html, useEffect, useMemo, useRef, useState } from "../lib.js";
import * as api from "../api.js";
import * as catalog from "../catalog.js";
import * as store from "../store.js";
import { live } from "../actions.js";
import { bytes, clip, plural } from "../format.js";
import { failedLine, progressLog, withFailure } from "../making.js";
import { go } from "../router.js";
import { EMPTY, imageOf, serverErrors } from "../wish.js";
import { Icon, Pulse } from "../components/icons.js";
import { Ago, Copy, Notice, ProblemNotice, Since, Skeleton } from "../components/bits.js";
import { ConfirmDelete } from "../components/boxacts.js";
import { BuildLog, Progress } from "../components/buildlog.js";
import { Field, SecretChoice } from "../components/fields.js";
import { Failure } from "../components/making.js";
import { Commands } from "../components/newbox.js";
import { Menu, Sheet } from "../components/sheet.js";
import { Lost } from "./lost.js";

const KINDS = { registry: "Pulled", build: "Built", import: "Imported", snapshot: "Snapshot" };
const FILTERS = [["all", "All"], ["snapshot", "Snapshots"], ["build", "Built"], ["registry", "Pulled"], ["import", "Imported"]];

// usersOf are the live sandboxes that were made of an image.
const usersOf = (image) => (store.sandboxes.value || []).filter((sb) => live(sb) && sb.image && (sb.image.snapshot === image.id || (sb.image.digest && sb.image.digest === image.digest)));

function names(image) {
  if (!image.name.startsWith("img_")) return image.name;
  return catalog.nameOf(image.name) || image.name; // built on a saved image
}

function acts(image, onDelete) {
  return [
    { words: "New sandbox from it", icon: "box", href: `/sandboxes?new&image=${image.id}`, phone: true },
    { words: "Export for docker load", icon: "dl", href: api.exportPath(image.id, "docker"), download: "" },
    { words: "Export as OCI layout", icon: "dl", href: api.exportPath(image.id, "oci"), download: "" },
    { rule: true },
    { words: "Delete", icon: "trash", danger: true, act: () => onDelete(image) },
  ];
}

// Job is one piece of work on images: how it goes, and how it ended.
function Job({ job, onAgain }) {
  const log = useMemo(() => progressLog(job.events || []), [job.events]);
  const reason = job.problem ? (job.problem.errors[0] && failedLine(job.problem.errors[0].message) ? job.problem.errors[0].message : job.problem.detail) : "";
  const lines = useMemo(() => (job.problem ? withFailure(log.lines, reason) : log.lines), [log, job.problem]);
  const name = clip(job.name, 60);
  if (job.problem) {
    const line = failedLine(reason);
    return html`<${Notice} kind="bad" title=${line ? `${name} could not be built.` : job.file ? `${name} could not be imported.` : `${name} could not be pulled.`} code=${job.problem.code} requestID=${job.problem.requestID} acts=${html`
        <button type="button" class="btn small go" onClick=${() => onAgain(job)}>Try again</button>${!job.file && html`<button type="button" class="btn small" onClick=${() => onAgain(job, true)}>Change it</button>`}<button type="button" class="btn small" onClick=${() => catalog.dismiss(job.id)}>Dismiss</button>`}>
      ${line ? html`<${Failure} reason=${reason} />` : html`<span class="pre">${job.problem.detail}</span>`}</${Notice}>
      ${lines.length > 1 && html`<${BuildLog} lines=${lines} name=${name} title="Log" />`}`;
  }
  if (job.endAt) {
    const notices = (job.image && job.image.notices) || [];
    const what = job.images && job.images.length > 1 ? `${job.images.length} images are` : `${name} is`;
    return html`<${Notice} kind="note" icon="check" title=${`${what} ready.`} acts=${html`${job.image && html`<a class="btn small go" href=${`/sandboxes?new&image=${job.image.id}`}>New sandbox from it</a>`}<button type="button" class="btn small" onClick=${() => catalog.dismiss(job.id)}>Dismiss</button>`}>
      ${notices.map((n) => html`<span key=${n}>${n}</span>`)}</${Notice}>`;
  }
  const what = job.file ? (job.sent < job.total ? `${bytes(job.sent)} of ${bytes(job.total)} sent` : "Checking and unpacking") : log.build ? `Step ${log.build.step} of ${log.build.of}` : log.pull ? `${bytes(log.pull.done)} of ${bytes(log.pull.total)}` : "Asking the registry";
  const bar = job.file ? { done: job.sent, total: job.total } : log.build ? { done: log.build.step - 1, total: log.build.of } : log.pull || { done: 0, total: 0 };
  return html`<div class="job" aria-busy="true"><div class="jh"><${Pulse} /><span class="strong cut">${name}</span><span class="dim">${what}</span><span class="faint end"><${Since} at=${job.at} /></span></div>
    <${Progress} label=${`Progress of ${name}`} done=${bar.done} total=${bar.total} />
    ${lines.length > 0 && html`<${BuildLog} lines=${lines} live name=${name} title=${log.build ? "Build log" : "Log"} />`}</div>`;
}

// MakeSheet pulls or builds an image ahead of any sandbox.
function MakeSheet({ start, problem, onClose }) {
  const [form, setForm] = useState({ ...EMPTY, source: "registry", ...start });
  const [tried, setTried] = useState(false);
  const [fresh, setFresh] = useState(false);
  useEffect(() => catalog.need(), []);
  const found = {};
  const image = imageOf(form, found);
  const errors = { ...(tried ? {} : serverErrors(problem)), ...(tried ? found : {}) };
  const set = (what) => setForm({ ...form, ...what });
  const submit = () => {
    setTried(true);
    if (Object.keys(found).length) return;
    const name = form.source === "registry" ? image.registry : catalog.nameOf(image.snapshot) || image.snapshot;
    catalog.make(image.dockerfile_commands ? `${name} with ${plural(image.dockerfile_commands.length, "line")}` : name, { image, ...(fresh ? { fresh: true } : {}) });
    onClose();
  };
  return html`<${Sheet} title="Pull or build an image" onClose=${onClose} onSubmit=${submit} foot=${html`<span class="dim no-phone">It goes on if you leave.</span>
      <div class="end"><button type="button" class="btn" onClick=${onClose}>Cancel</button><button type="submit" class="btn go">${form.commands.trim() ? "Build" : "Pull"} <kbd aria-hidden="true">⌘⏎</kbd></button></div>`}>
    <div class="sheet-body">
    ${form.source === "registry"
      ? html`<${Field} id="opt-registry" label="Image" data-first="" placeholder="debian:13-slim" inputmode="url" value=${form.registry} error=${errors.registry} hint="A reference to any registry, by tag or digest." onInput=${(registry) => set({ registry })} />
        <${SecretChoice} id="opt-secret" value=${form.secret} error=${errors.secret} onChange=${(secret) => set({ secret })} />`
      : html`<p class="dim">On top of <span class="strong">${catalog.nameOf(form.saved) || form.saved}</span>.</p>`}
    <${Commands} form=${form} set=${set} errors=${errors} />
    <label class="check"><input type="checkbox" checked=${fresh} onChange=${() => setFresh(!fresh)} />Ask the registry anew, though the tag is known</label></div></${Sheet}>`;
}

// useDrop takes files that are dropped anywhere on the page.
function useDrop(take) {
  const [over, setOver] = useState(false);
  const depth = useRef(0);
  const has = (e) => [...((e.dataTransfer && e.dataTransfer.types) || [])].includes("Files");
  return {
    over,
    onDragEnter: (e) => has(e) && (e.preventDefault(), depth.current++, setOver(true)),
    onDragLeave: (e) => has(e) && (depth.current = Math.max(0, depth.current - 1)) === 0 && setOver(false),
    onDragOver: (e) => has(e) && e.preventDefault(),
    onDrop: (e) => {
      if (!has(e)) return;
      e.preventDefault();
      depth.current = 0;
      setOver(false);
      take([...e.dataTransfer.files]);
    },
  };
}

function Row({ image, onDelete }) {
  const users = usersOf(image);
  return html`<tr><td><div class="nm"><${Icon} name=${image.kind === "snapshot" ? "camera" : "layers"} /><span class="two"><a class="strong cut" href=${`/image/${image.id}`} title=${names(image)}>${names(image)}</a>
      <span class="sub cut">${KINDS[image.kind] || image.kind} <${Ago} at=${image.created_at} />${users.length > 0 && ` · used by ${plural(users.length, "sandbox", "sandboxes")}`}</span></span></div></td>
    <td class="r mono hide-phone">${bytes(image.size)}</td><td class="r sub hide"><${Ago} at=${image.used_at} /></td>
    <td class="r"><span class="row-acts"><a class="btn small no-phone" href=${`/sandboxes?new&image=${image.id}`}>New sandbox<span class="vh"> from ${names(image)}</span></a><${Menu} label=${`More about ${names(image)}`} items=${acts(image, onDelete)} /></span></td></tr>`;
}

export function Images() {
  const [problem, setProblem] = useState(null);
  const [filter, setFilter] = useState("all");
  const [making, setMaking] = useState(null);
  const [deleting, setDeleting] = useState(null);
  const file = useRef();
  const list = catalog.images.value;
  const jobs = catalog.jobs.value;
  const read = () => {
    setProblem(null);
    catalog.refresh().catch(setProblem);
  };
  useEffect(read, []);
  const take = (files) => files.forEach((f) => catalog.takeIn(f));
  const { over, ...drop } = useDrop(take);
  const again = (job, change) => {
    catalog.dismiss(job.id);
    if (job.file) catalog.takeIn(job.file);
    else if (!change) catalog.make(job.name, job.body);
    else {
      const i = job.body.image;
      setMaking({ problem: job.problem, start: { source: i.snapshot ? "saved" : "registry", registry: i.registry || "", saved: i.snapshot || "", secret: i.registry_secret || "", commands: (i.dockerfile_commands || []).join("\n"), buildSecrets: i.secrets || [] } });
    }
  };
  const rows = (list || []).filter((i) => filter === "all" || i.kind === filter);
  const total = (kind) => (list || []).filter((i) => kind === "all" || i.kind === kind).length;
  return html`<div class=${cx("page", over && "dropping")} ...${drop}><div class="wrap">
    <div class="ph"><h1>Images</h1><div class="end"><input ref=${file} class="vh" type="file" id="archive" tabindex="-1" aria-label="Archive to import" accept=".tar,.gz,.tgz,.zst,.tar.gz,application/x-tar,application/gzip" multiple onChange=${(e) => { take([...e.currentTarget.files]); e.currentTarget.value = ""; }} />
      <button type="button" class="btn" onClick=${() => file.current.click()}><${Icon} name="up" />Import<span class="no-phone">${" "}an archive</span></button>
      <button type="button" class="btn go" onClick=${() => setMaking({})}><${Icon} name="plus" />Pull or build</button></div></div>
    <p class="dim">What sandboxes start from. Drop an OCI layout or a <code>docker save</code> archive anywhere here to import it. Private registries need a <a href="/secrets">secret</a>.</p>
    ${jobs.map((j) => html`<${Job} key=${j.id} job=${j} onAgain=${again} />`)}
    <${ProblemNotice} title="The images could not be read." problem=${problem} acts=${html`<button type="button" class="btn small" onClick=${read}>Try again</button>`} />
    ${list && list.length > 0 && html`<div class="filters"><div class="seg" role="group" aria-label="Filter by kind">${FILTERS.filter(([k]) => k === "all" || total(k) > 0).map(
      ([key, word]) => html`<button type="button" key=${key} class=${filter === key ? "on" : ""} aria-pressed=${filter === key ? "true" : "false"} onClick=${() => setFilter(key)}>${word} <span class="num">${total(key)}</span></button>`)}</div></div>`}
    ${!list && !problem && html`<${Skeleton} rows=${6} />`}
    ${list && !list.length && html`<div class="empty"><span class="strong">No image yet</span><span>Sandboxes run on this machine’s own programs. Pull an image to have others.</span></div>`}
    ${rows.length > 0 && html`<table class="table"><colgroup><col /><col class="w-size" /><col class="w-when" /><col class="w-acts" /></colgroup>
      <thead><tr><th scope="col">Name</th><th scope="col" class="r">Size</th><th scope="col" class="r">Used</th><th scope="col" class="r"><span class="vh">Actions</span></th></tr></thead>
      <tbody>${rows.map((i) => html`<${Row} key=${i.id} image=${i} onDelete=${setDeleting} />`)}</tbody></table>`}
    ${making && html`<${MakeSheet} ...${making} onClose=${() => setMaking(null)} />`}
    ${deleting && html`<${Deleting} image=${deleting} onClose=${() => setDeleting(null)} />`}
  </div></div>`;
}

function Deleting({ image, onClose, onDone }) {
  const users = usersOf(image);
  return html`<${ConfirmDelete} title=${`Delete ${names(image)}?`} words="Delete image" onClose=${onClose} onYes=${async () => { await catalog.forgetImage(image.id); if (onDone) onDone(); }}>
    ${users.length ? `${users.map((u) => u.name).join(", ")} ${users.length === 1 ? "was" : "were"} made of it and ${users.length === 1 ? "goes" : "go"} on. ` : ""}${image.kind === "registry" || image.kind === "build" ? "It can be made again from its registry." : "It can’t be had back."} Its ${bytes(image.size)} are freed when nothing needs them.</${ConfirmDelete}>`;
}

export function Image({ id }) {
  const [problem, setProblem] = useState(null);
  const [deleting, setDeleting] = useState(false);
  const [read, setRead] = useState(null);
  useEffect(() => {
    catalog.need();
    api.image(id).then(setRead).catch(setProblem);
  }, [id]);
  const image = read || (catalog.images.value || []).find((i) => i.id === id);
  if (problem && problem.status === 404) return html`<${Lost} what="There is no such image." why=${problem.detail} />`;
  if (!image) return html`<div class="page"><div class="wrap narrow">${problem ? html`<${ProblemNotice} title="The image could not be read." problem=${problem} />` : html`<${Skeleton} rows=${5} />`}</div></div>`;
  const users = usersOf(image);
  const line = (words) => words && words.length > 0 && html`<code>${words.map((w) => (/[\s"']/.test(w) ? JSON.stringify(w) : w)).join(" ")}</code>`;
  const env = Object.entries(image.env || {});
  const facts = [
    ["Kind", `${KINDS[image.kind] || image.kind}`],
    ["Size", html`${bytes(image.size)}<span class="sub">with what it shares with other images</span>`],
    ["ID", html`<code>${image.id}</code> <${Copy} text=${image.id} />`],
    ["Digest", html`<code>${image.digest}</code> <${Copy} text=${image.digest} />`],
    image.reference ? ["Reference", html`<code>${image.reference}</code> <${Copy} text=${image.reference} />`] : null,
    image.platform ? ["Platform", image.platform] : null,
    ["Engine", image.engine],
    image.sandbox ? ["Made of", html`<a href=${`/sandbox/${image.sandbox}`}>${(store.sandboxOf(image.sandbox) || {}).name || image.sandbox}</a>`] : null,
    image.user ? ["User", html`<code>${image.user}</code>`] : null,
    image.workdir ? ["Working directory", html`<code>${image.workdir}</code>`] : null,
    line(image.entrypoint) ? ["Entrypoint", line(image.entrypoint)] : null,
    line(image.cmd) ? ["Command", line(image.cmd)] : null,
    env.length ? ["Environment", html`<pre class="out">${env.map(([k, v]) => `${k}=${v}`).join("\n")}</pre>`] : null,
    ["Used by", users.length ? users.map((u) => html`<a key=${u.id} href=${`/sandbox/${u.id}`}>${u.name}</a> `) : "no live sandbox"],
    ["Made", html`<${Ago} at=${image.created_at} />`],
    ["Used", html`<${Ago} at=${image.used_at} />`],
  ].filter(Boolean);
  return html`<header class="top"><a class="btn quiet icon only-phone" href="/images" aria-label="Back to images"><${Icon} name="back" /></a><h1 class="cut" title=${names(image)}>${names(image)}</h1><span class="grow"></span>
      <a class="btn small go" href=${`/sandboxes?new&image=${image.id}`}>New sandbox</a><${Menu} label="More about this image" items=${acts(image, () => setDeleting(true)).slice(1)} /></header>
    <div class="page"><div class="wrap narrow"><dl class="facts">${facts.map(([k, v]) => html`<div key=${k}><dt>${k}</dt><dd>${v}</dd></div>`)}</dl>
      ${deleting && html`<${Deleting} image=${image} onClose=${() => setDeleting(false)} onDone=${() => go("/images", { replace: true })} />`}</div></div>`;
}
