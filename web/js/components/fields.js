// Parts of forms: a field with its label, hint and error; a choice of cards; the list of hosts; and secrets.

import { cx, html, useRef, useState } from "../lib.js";
import * as catalog from "../catalog.js";
import { hosts, opensRegistry } from "../wish.js";
import { Icon } from "./icons.js";
import { Busy, ProblemNotice } from "./bits.js";

// Field is one input. What is wrong with it stands in the hint's place.
export function Field({ id, label, more, hint, error, value, onInput, area, mono = true, children, ...rest }) {
  const common = {
    id, class: cx("input", mono && "mono"), value, autocomplete: "off", autocapitalize: "off", spellcheck: "false",
    "aria-invalid": error ? "true" : undefined, "aria-describedby": hint || error ? `${id}-hint` : undefined, onInput: (e) => onInput(e.currentTarget.value), ...rest,
  };
  return html`<div class="field"><label class="lab" for=${id}>${label}${more && html` <span class="faint">${more}</span>`}</label>
    ${children || (area ? html`<textarea ...${common}></textarea>` : html`<input ...${common} />`)}
    ${(hint || error) && html`<span class=${cx("hint", error && "bad-t")} id=${`${id}-hint`}>${error || hint}</span>`}</div>`;
}

// Select is a native list in the clothes of an input.
export const Select = ({ id, value, onChange, error, children, label, first }) => html`<span class="input pick-list"><select id=${id} value=${value} aria-label=${label} data-first=${first ? "" : undefined}
  aria-invalid=${error ? "true" : undefined} aria-describedby=${error ? `${id}-hint` : undefined} onChange=${(e) => onChange(e.currentTarget.value)}>${children}</select><${Icon} name="down" small /></span>`;

// Picks is a choice of one among few, as cards: [value, title, words].
export const Picks = ({ name, label, value, options, onChange, error }) => html`<div class="field"><div role="radiogroup" aria-label=${label} class="picks">${options.map(
  ([v, title, words]) => html`<label key=${v} class=${cx("pick", v === value && "on")}><span class="t"><input type="radio" class="radio" name=${name} value=${v} checked=${v === value} onChange=${() => onChange(v)} />${title}</span><span class="d">${words}</span></label>`,
)}</div>${error && html`<span class="hint bad-t">${error}</span>`}</div>`;

const MODES = [
  ["none", "Only the model", "Nothing else is reached."],
  ["egress", "Chosen hosts", "By name, through the server’s proxy."],
  ["open", "Open", "Every public address, any protocol."],
];

// NetworkFields edits a policy: {mode, every, allow}.
export function NetworkFields({ id, value, onChange, errors }) {
  // What is typed and not yet taken counts too, so it is part of the value.
  const text = value.text || "";
  const setText = (t) => onChange({ ...value, text: t });
  const input = useRef();
  const add = (more) => onChange({ ...value, allow: hosts(value.allow, more), text: "" });
  const remove = (host) => {
    onChange({ ...value, allow: value.allow.filter((h) => h !== host) });
    input.current.focus();
  };
  const keys = (e) => {
    if (e.isComposing) return;
    if ((e.key === "Enter" && !e.metaKey && !e.ctrlKey) || e.key === "," || e.key === " ") {
      if (e.key === "Enter" && !text.trim()) return;
      e.preventDefault();
      e.stopPropagation();
      add(text);
    } else if (e.key === "Backspace" && !text && value.allow.length) {
      onChange({ ...value, allow: value.allow.slice(0, -1) });
    }
  };
  const paste = (e) => {
    const t = e.clipboardData.getData("text");
    if (!/[\s,;]/.test(t.trim())) return;
    e.preventDefault();
    add(`${text} ${t}`);
  };
  return html`<${Picks} name=${`${id}-mode`} label="Network" value=${value.mode} options=${MODES} error=${errors.mode} onChange=${(mode) => onChange({ ...value, mode })} />
    ${value.mode === "egress" && html`<div class="field"><div class="checks" role="radiogroup" aria-label="Which hosts">
        <label class="check"><input type="radio" class="radio" name=${`${id}-every`} checked=${value.every} onChange=${() => onChange({ ...value, every: true })} />Every public host</label>
        <label class="check"><input type="radio" class="radio" name=${`${id}-every`} checked=${!value.every} onChange=${() => onChange({ ...value, every: false })} />Only these</label></div>
      ${!value.every && html`<div class=${cx("hosts", errors.allow && "bad")} onClick=${(e) => e.target === e.currentTarget && input.current.focus()}>
          ${value.allow.map((h) => html`<span class="host" key=${h}><code>${h}</code><button type="button" aria-label=${`Remove ${h}`} onClick=${() => remove(h)}><${Icon} name="x" small /></button></span>`)}
          <input ref=${input} id=${`${id}-host`} aria-label="Add a host" aria-invalid=${errors.allow ? "true" : undefined} aria-describedby=${`${id}-host-hint`} value=${text} autocomplete="off" autocapitalize="off" spellcheck="false" inputmode="url"
            placeholder=${value.allow.length ? "" : "pypi.org, *.pythonhosted.org"} onInput=${(e) => setText(e.currentTarget.value)} onKeyDown=${keys} onPaste=${paste} onBlur=${() => text.trim() && add(text)} /></div>
        <span class=${cx("hint", errors.allow && "bad-t")} id=${`${id}-host-hint`}>${errors.allow || "Enter adds a host; *.name stands for all below it. Ports 80 and 443, or name:PORT."}</span>`}
      ${value.every && html`<span class="hint">Private addresses, this server and its network are never reached.</span>`}</div>`}
    ${value.mode === "open" && html`<span class="hint faint">Through a network device of its own. Private addresses are still refused. Needs a server that runs as root.</span>`}`;
}

const KINDS = [["password", "Username and password"], ["docker", "Docker config.json"], ["token", "Token"], ["values", "Names and values"]];

// SecretForm keeps a new secret. Its values go to the server and are never shown again, nor kept here.
export function SecretForm({ id, onDone, onCancel, registry }) {
  const [kind, setKind] = useState("password");
  const [name, setName] = useState("");
  const [problem, setProblem] = useState(null);
  const [missing, setMissing] = useState("");
  const box = useRef();
  const read = (field) => box.current.querySelector(`#${id}-${field}`).value;
  const save = async () => {
    const values = {};
    if (kind === "password") Object.assign(values, { USERNAME: read("user"), PASSWORD: read("pass") });
    else if (kind === "docker") values.DOCKER_CONFIG_JSON = read("docker");
    else if (kind === "token") values.REGISTRY_TOKEN = read("token");
    else {
      for (const line of read("values").split("\n")) {
        const i = line.indexOf("=");
        if (i > 0) values[line.slice(0, i).trim()] = line.slice(i + 1);
      }
    }
    const empty = Object.entries(values).find(([, v]) => !v.trim());
    setMissing(!name.trim() ? "name" : empty || !Object.keys(values).length ? "values" : "");
    if (!name.trim() || empty || !Object.keys(values).length) return;
    setProblem(null);
    const kept = await catalog.keepSecret(name.trim(), values);
    onDone(kept);
  };
  const keys = (e) => {
    // A form around this one must not take the key for its own.
    if (e.key !== "Enter" || e.target.tagName !== "INPUT" || e.isComposing) return;
    e.preventDefault();
    e.stopPropagation();
    save().catch(setProblem);
  };
  const secret = (field, label, type = "password") => html`<div class="field"><label class="lab" for=${`${id}-${field}`}>${label}</label>
    <input id=${`${id}-${field}`} class="input mono" type=${type} autocomplete=${type === "password" ? "new-password" : "off"} autocapitalize="off" spellcheck="false" /></div>`;
  const area = (field, label, placeholder) => html`<div class="field"><label class="lab" for=${`${id}-${field}`}>${label}</label>
    <textarea id=${`${id}-${field}`} class="input mono" rows="4" autocomplete="off" autocapitalize="off" spellcheck="false" placeholder=${placeholder}></textarea></div>`;
  return html`<div class="inner" ref=${box} onKeyDown=${keys} role="group" aria-label="New secret">
    <div class="duo"><${Field} id=${`${id}-name`} label="Name of the secret" placeholder="ghcr" value=${name} onInput=${setName} error=${missing === "name" ? "It needs a name." : ""} />
      <div class="field"><label class="lab" for=${`${id}-kind`}>What it holds</label><${Select} id=${`${id}-kind`} value=${kind} onChange=${setKind}>${KINDS.filter(([k]) => !registry || k !== "values").map(([k, words]) => html`<option value=${k}>${words}</option>`)}</${Select}></div></div>
    ${kind === "password" && html`<div class="duo">${secret("user", "Username", "text")}${secret("pass", "Password")}</div>`}
    ${kind === "docker" && area("docker", "Content of config.json", '{"auths": {"ghcr.io": {"auth": "…"}}}')}
    ${kind === "token" && secret("token", "Token")}
    ${kind === "values" && area("values", "One per line", "NAME=value")}
    ${missing === "values" && html`<span class="hint bad-t">Nothing to keep: fill in every value.</span>`}
    <${ProblemNotice} title="The secret was not kept." problem=${problem} />
    <div class="row"><${Busy} class="btn small go" onProblem=${setProblem} onClick=${save}>Save secret</${Busy}>${onCancel && html`<button type="button" class="btn small" onClick=${onCancel}>Cancel</button>`}
      <span class="hint faint">Kept encrypted. Its values are never shown again.</span></div></div>`;
}

// SecretChoice chooses the secret that opens a registry, or makes it.
export function SecretChoice({ id, value, onChange, error }) {
  const [adding, setAdding] = useState(false);
  const all = catalog.secrets.value;
  const fit = (all || []).filter((s) => opensRegistry(s) || s.name === value);
  const gone = value && all && !all.some((s) => s.name === value);
  return html`<div class="field"><label class="lab" for=${id}>Sign in with <span class="faint">only for private images</span></label>
    <${Select} id=${id} value=${adding ? "+" : value} error=${error} onChange=${(v) => { setAdding(v === "+"); if (v !== "+") onChange(v); }}>
      <option value="">nothing, it is public</option>${fit.map((s) => html`<option key=${s.name} value=${s.name}>${s.name}</option>`)}
      ${gone && html`<option value=${value}>${value} (deleted)</option>`}<option value="+">Add a secret …</option></${Select}>
    ${error && html`<span class="hint bad-t" id=${`${id}-hint`}>${error}</span>`}
    ${adding && html`<${SecretForm} id=${`${id}-new`} registry onCancel=${() => setAdding(false)} onDone=${(s) => { setAdding(false); onChange(s.name); }} />`}</div>`;
}
