// What somebody wants of a new sandbox: the form's texts, made into what the API takes, and back. Nothing here touches the
// document, so it is tested in node.

import { duration, mib, plural } from "./format.js";

// EMPTY is a form in which everything is left to the server. source: "host", "registry" or "saved".
export const EMPTY = {
  name: "", source: "host", registry: "", saved: "", secret: "", commands: "", buildSecrets: [],
  volume: "", workdir: "", timeout: "", cpu: "", memory: "", disk: "", pids: "",
  network: { mode: "egress", every: true, allow: [] }, env: "", labels: "",
};

const UNITS = { m: 60, h: 3600, d: 86400 };

// seconds reads a time as people write it: 45 m, 2 h, 1.5 d; a bare number is minutes. null: it is none.
export function seconds(text) {
  const m = /^(\d+(?:\.\d+)?)\s*(?:(m|h|d)[a-z]*)?$/i.exec(text.trim());
  const n = m && Math.round(Number(m[1]) * UNITS[(m[2] || "m").toLowerCase()]);
  return n > 0 ? n : null;
}

// mebibytes reads a size: 512 MiB, 2 GiB; a bare number is GiB. null: it is none.
export function mebibytes(text) {
  const m = /^(\d+(?:\.\d+)?)\s*(m|mb|mib|g|gb|gib|t|tb|tib)?$/i.exec(text.trim());
  const n = m && Math.round(Number(m[1]) * { m: 1, g: 1024, t: 1024 * 1024 }[(m[2] || "g")[0].toLowerCase()]);
  return n > 0 ? n : null;
}

// pairs reads lines of NAME=value. A line without a name is told in bad.
export function pairs(text) {
  const values = {};
  let bad = "";
  for (const line of text.split("\n")) {
    if (!line.trim()) continue;
    const i = line.indexOf("=");
    if (i > 0 && line.slice(0, i).trim()) values[line.slice(0, i).trim()] = line.slice(i + 1);
    else bad = bad || line.trim();
  }
  return { values, bad };
}

const lines = (text) => text.replace(/\s+$/, "").split("\n");

// imageOf is the image of a form, as POST /sandbox and POST /image take it, with what is wrong in errors.
export function imageOf(f, errors) {
  if (f.source === "host") return null;
  const image = {};
  if (f.source === "registry") {
    const ref = f.registry.trim();
    if (!ref) errors.registry = "Which image? As debian:13-slim or ghcr.io/owner/name@sha256:…";
    else if (/\s/.test(ref)) errors.registry = "A reference has no spaces.";
    image.registry = ref;
    if (f.secret) image.registry_secret = f.secret;
  } else {
    if (!f.saved) errors.saved = "Choose one of your images.";
    image.snapshot = f.saved;
  }
  if (f.commands.trim()) {
    image.dockerfile_commands = lines(f.commands);
    if (f.buildSecrets.length) image.secrets = f.buildSecrets;
  }
  return image;
}

// networkOf is the policy of a form's network.
export function networkOf(n, errors) {
  if (n.mode !== "egress") return { mode: n.mode };
  if (n.every) return { mode: "egress", allow: ["*"] };
  const allow = hosts(n.allow, n.text || "");
  if (!allow.length) errors.allow = "Add a host, or choose “Only the model”.";
  return { mode: "egress", allow };
}

// parse makes the form into what POST /sandbox takes; what is empty is left to the server. It returns {options, errors}.
export function parse(f) {
  const options = {};
  const errors = {};
  const take = (field, text, read, wrong) => {
    if (!text.trim()) return;
    const value = read(text);
    if (value === null) errors[wrong.field] = wrong.text;
    else options[field] = value;
  };
  if (f.name.trim()) options.name = f.name.trim();
  const image = imageOf(f, errors);
  if (image) options.image = image;
  take("volume", f.volume, (t) => (/^[a-z0-9][a-z0-9._-]{0,63}$/.test(t.trim()) ? t.trim() : null), { field: "volume", text: "Small letters, digits, and . _ - inside; at most 64." });
  take("workdir", f.workdir, (t) => (/^\/./.test(t.trim()) ? t.trim() : null), { field: "workdir", text: "An absolute path, as /workspace." });
  take("timeout_s", f.timeout, seconds, { field: "timeout", text: "A time, as 30 m, 2 h or 1 d." });
  take("cpu", f.cpu, (t) => (/^\d*\.?\d+$/.test(t.trim()) && Number(t) > 0 ? Number(t) : null), { field: "cpu", text: "A number of cores, as 2 or 0.5." });
  take("memory_mib", f.memory, mebibytes, { field: "memory", text: "A size, as 512 MiB or 4 GiB." });
  take("disk_mib", f.disk, mebibytes, { field: "disk", text: "A size, as 10 GiB." });
  take("pids", f.pids, (t) => (/^[1-9]\d*$/.test(t.trim()) ? Number(t) : null), { field: "pids", text: "A whole number, as 512." });
  const network = networkOf(f.network, errors);
  if (!(network.mode === "egress" && f.network.every)) options.network = network;
  for (const [field, what] of [["env", "NAME=value"], ["labels", "key=value"]]) {
    const { values, bad } = pairs(f[field]);
    if (bad) errors[field] = `Each line is ${what}; “${bad.slice(0, 60)}” isn't.`;
    else if (Object.keys(values).length) options[field] = values;
  }
  return { options, errors };
}

// FIELD_OF says which field of the form a name of the wire belongs to, for what the server refuses.
const FIELD_OF = {
  name: "name", volume: "volume", workdir: "workdir", timeout_s: "timeout", disk_mib: "disk", cpu: "cpu", memory_mib: "memory", pids: "pids", env: "env", labels: "labels",
  "image.registry": "registry", "image.snapshot": "saved", "image.registry_secret": "secret", "image.dockerfile_commands": "commands", "image.secrets": "buildSecrets",
  "network.mode": "mode", "network.allow": "allow", network: "mode", image: "registry",
};

// serverErrors are the fields at fault, by the names of the form.
export function serverErrors(problem) {
  const errors = {};
  for (const e of (problem && problem.errors) || []) {
    const name = String(e.location).replace(/^body\.?/, "").replace(/\[\d+\].*$/, "");
    const field = FIELD_OF[name] || FIELD_OF[name.split(".")[0]];
    if (field) errors[field] = e.message;
  }
  return errors;
}

// networkForm is a policy as the form has it.
export const networkForm = (n) => {
  const allow = (n && n.allow) || [];
  const mode = (n && n.mode) || "egress";
  return { mode, every: !n || mode !== "egress" || allow.includes("*"), allow: allow.filter((h) => h !== "*") };
};

// optionsOf is what makes another sandbox like sb. Its environment is not told by the server, so it isn't among them.
export function optionsOf(sb) {
  const options = { workdir: sb.workdir, timeout_s: sb.timeout_s, disk_mib: sb.disk_mib };
  if (sb.volume) options.volume = sb.volume;
  if (sb.name) options.name = sb.name;
  if (sb.engine) options.engine = sb.engine;
  for (const field of ["cpu", "memory_mib", "gpu"]) if (sb[field]) options[field] = sb[field];
  const limits = sb.limits || {};
  for (const [field, limit] of [["pids", limits.pids], ["open_files", limits.open_files], ["output_kib_s", limits.output]]) {
    if (limit && limit.value) options[field] = limit.value;
  }
  if (sb.labels && Object.keys(sb.labels).length) options.labels = sb.labels;
  if (sb.network && sb.network.mode) options.network = sb.network.mode === "egress" ? { mode: "egress", allow: sb.network.allow || [] } : { mode: sb.network.mode };
  const image = {};
  for (const field of ["registry", "snapshot", "dockerfile_commands", "registry_secret", "secrets"]) {
    const v = sb.image && sb.image[field];
    if (v && v.length) image[field] = v;
  }
  if (image.snapshot || (image.registry && image.registry !== "host")) options.image = image;
  return options;
}

// formOf fills a form with options, to change them.
export function formOf(o) {
  const image = o.image || {};
  const text = (values) => Object.entries(values || {}).map(([k, v]) => `${k}=${v}`).join("\n");
  return {
    ...EMPTY,
    name: o.name || "",
    source: image.snapshot ? "saved" : image.registry && image.registry !== "host" ? "registry" : "host",
    registry: image.registry && image.registry !== "host" ? image.registry : "",
    saved: image.snapshot || "",
    secret: image.registry_secret || "",
    commands: (image.dockerfile_commands || []).join("\n"),
    buildSecrets: image.secrets || [],
    volume: o.volume || "",
    workdir: o.workdir && o.workdir !== "/workspace" ? o.workdir : "",
    timeout: o.timeout_s ? timeText(o.timeout_s) : "",
    cpu: o.cpu ? String(o.cpu) : "",
    memory: o.memory_mib ? sizeText(o.memory_mib) : "",
    disk: o.disk_mib ? sizeText(o.disk_mib) : "",
    pids: o.pids ? String(o.pids) : "",
    network: o.network ? networkForm(o.network) : EMPTY.network,
    env: text(o.env),
    labels: text(o.labels),
  };
}

// Exact, so that reading them gives the same number again.
const timeText = (s) => (s % 86400 === 0 ? `${s / 86400} d` : s % 3600 === 0 ? `${s / 3600} h` : `${Number((s / 60).toFixed(2))} m`);
const sizeText = (n) => (n % 1024 === 0 ? `${n / 1024} GiB` : `${n} MiB`);

// hosts adds what was typed or pasted to an allow-list: addresses lose what isn't the host.
export function hosts(list, text) {
  const out = [...list];
  for (const word of text.split(/[\s,;]+/)) {
    const bare = word.replace(/^[a-z]+:\/\//i, "");
    const host = (/\/\d{1,3}$/.test(bare) ? bare : bare.replace(/[/?#].*$/, "")).toLowerCase(); // 192.0.2.0/24 is a range, not a path
    if (host && host !== "*" && !out.includes(host)) out.push(host);
  }
  return out;
}

// settled takes what is typed in the field of hosts into the list.
export const settled = (n) => (n.text ? { ...n, allow: hosts(n.allow, n.text), text: "" } : n);

// networkWords says in a few words what a policy lets through.
export function networkWords(n) {
  if (!n || !n.mode) return "—";
  if (n.mode === "none") return "only the model";
  if (n.mode === "open") return "every public address";
  const allow = n.allow || [];
  if (allow.includes("*")) return "every public host";
  return allow.length ? plural(allow.length, "host") : "only the model";
}

// The lines by which a folded part of the form says what is in it.
export const summaries = {
  image: (o, name) => (o.image ? (o.image.snapshot ? name || "saved image" : o.image.registry || "a registry’s image") : "this machine"),
  limits: (o) => [o.cpu ? plural(o.cpu, "core") : "", o.memory_mib ? `${mib(o.memory_mib)} memory` : "", `${mib(o.disk_mib || 10240)} disk`, o.pids ? `${o.pids} processes` : ""].filter(Boolean).join(", "),
  network: (o) => networkWords(o.network || { mode: "egress", allow: ["*"] }),
  advanced: (o) =>
    [
      o.image && o.image.dockerfile_commands ? plural(o.image.dockerfile_commands.length, "build line") : "",
      o.workdir || "",
      o.env ? plural(Object.keys(o.env).length, "variable") : "",
      o.labels ? plural(Object.keys(o.labels).length, "label") : "",
    ].filter(Boolean).join(", ") || "nothing special",
  time: (o) => `stops after ${o.timeout_s ? duration(o.timeout_s * 1000) : "1 h"}`,
};

// REGISTRY_KEYS are the sets of values by which a secret opens a registry.
const REGISTRY_KEYS = [["USERNAME", "PASSWORD"], ["REGISTRY_USERNAME", "REGISTRY_PASSWORD"], ["DOCKER_CONFIG_JSON"], ["REGISTRY_TOKEN"], ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], ["SERVICE_ACCOUNT_JSON"]];

// opensRegistry says whether a secret can be a registry's, by the names of its values.
export const opensRegistry = (secret) => REGISTRY_KEYS.some((set) => set.every((k) => (secret.keys || []).includes(k)));
