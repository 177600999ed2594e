// What can be done with a live sandbox, as small dialogs: save it, change its network, give it time, rename it.

import { html, useState } from "../lib.js";
import * as api from "../api.js";
import * as catalog from "../catalog.js";
import { change } from "../actions.js";
import { bytes, duration } from "../format.js";
import { networkForm, networkOf, networkWords, seconds, serverErrors, settled } from "../wish.js";
import { Busy, Dialog, Left, ProblemNotice } from "./bits.js";
import { Field, NetworkFields } from "./fields.js";

// Act is a dialog with one field's worth of form: Enter does it.
export function Act({ title, act, words, onClose, onDone, children, failed }) {
  const [problem, setProblem] = useState(null);
  const [running, setRunning] = useState(false);
  const go = async () => {
    if (running) return;
    setRunning(true);
    setProblem(null);
    try {
      const result = await act();
      if (result !== false) {
        if (onDone) onDone(result);
        else onClose();
      }
    } catch (p) {
      setProblem(p);
    } finally {
      setRunning(false);
    }
  };
  const submit = (e) => {
    e.preventDefault();
    go();
  };
  return html`<${Dialog} title=${title} onClose=${onClose} acts=${html`<button type="button" class="btn" onClick=${onClose}>Cancel</button>
      <button type="button" class="btn go" aria-busy=${running ? "true" : undefined} onClick=${go}>${words}</button>`}>
    <form class="act" novalidate onSubmit=${submit}>${typeof children === "function" ? children(problem) : children}</form>
    <${ProblemNotice} title=${failed} problem=${problem} /></${Dialog}>`;
}

// SnapshotDialog saves the sandbox's file system as an image, then offers to start another sandbox from it.
export function SnapshotDialog({ sb, onClose }) {
  const [name, setName] = useState(sb.name);
  const [made, setMade] = useState(null);
  if (made) {
    return html`<${Dialog} title="The snapshot is saved." onClose=${onClose} acts=${html`<button type="button" class="btn" onClick=${onClose}>Close</button><a class="btn go" href=${`/sandboxes?new&image=${made.id}`} onClick=${onClose}>New sandbox from it</a>`}>
      <p class="dim"><a href=${`/image/${made.id}`} onClick=${onClose}>${made.name}</a>, ${bytes(made.size)}. It holds everything but the volume.</p></${Dialog}>`;
  }
  return html`<${Act} title=${`Save ${sb.name} as an image`} words="Make snapshot" failed="The snapshot could not be made." onClose=${onClose} onDone=${setMade}
      act=${async () => {
        const image = await api.snapshot(sb.id, name.trim());
        catalog.loadImages().catch(() => {});
        return image;
      }}>
    <${Field} id="snap-name" label="Name" value=${name} onInput=${setName} mono=${false} maxlength="100" hint="The sandbox goes on. Its volume isn’t in the snapshot; it can be mounted by the next sandbox too." /></${Act}>`;
}

export function NetworkDialog({ sb, onClose }) {
  const [value, setValue] = useState(() => networkForm(sb.network));
  const [errors, setErrors] = useState({});
  const set = (v) => {
    setValue(v);
    setErrors({});
  };
  return html`<${Act} title=${`What ${sb.name} may reach`} words="Change network" failed="The network was not changed." onClose=${onClose}
      act=${() => {
        setValue(settled(value));
        const found = {};
        const network = networkOf(value, found);
        setErrors(found);
        return Object.keys(found).length ? false : change(sb.id, { network });
      }}>${(problem) => html`<p class="dim">Now ${networkWords(sb.network)}. A change holds for every connection from then on.</p>
    <${NetworkFields} id="live-net" value=${value} onChange=${set} errors=${{ ...serverErrors(problem), ...errors }} />`}</${Act}>`;
}

const TIMES = ["30 m", "1 h", "4 h", "1 d"];

export function TimeDialog({ sb, onClose }) {
  const [time, setTime] = useState("1 h");
  const [wrong, setWrong] = useState("");
  return html`<${Act} title=${`When ${sb.name} stops`} words="Set time" failed="The time was not changed." onClose=${onClose}
      act=${() => {
        const s = seconds(time);
        setWrong(s ? "" : "A time, as 30 m, 2 h or 1 d.");
        return s ? change(sb.id, { timeout_s: s }) : false;
      }}>${(problem) => html`<p class="dim">It stops in <${Left} until=${sb.expires_at} />. Counted from now:</p>
    <div class="row">${TIMES.map((t) => html`<button type="button" class="btn small" key=${t} aria-pressed=${t === time ? "true" : "false"} onClick=${() => setTime(t)}>${t}</button>`)}</div>
    <${Field} id="more-time" label="Stops in" value=${time} onInput=${setTime} error=${wrong || serverErrors(problem).timeout} hint=${seconds(time) ? `In ${duration(seconds(time) * 1000)}, whatever it does.` : "As 30 m, 2 h or 1 d."} />`}</${Act}>`;
}

export function RenameDialog({ sb, onClose }) {
  const [name, setName] = useState(sb.name);
  return html`<${Act} title=${`Rename ${sb.name}`} words="Rename" failed="It was not renamed." onClose=${onClose} act=${() => (name.trim() ? change(sb.id, { name: name.trim() }) : false)}>
    ${(problem) => html`<${Field} id="new-name" label="Name" value=${name} mono=${false} maxlength="100" onInput=${setName} error=${name.trim() ? serverErrors(problem).name : "It needs a name."} hint="For people; need not be unique." />`}</${Act}>`;
}

// ConfirmDelete repeats what deleting means before it is done.
export function ConfirmDelete({ title, words, children, onYes, onClose }) {
  const [problem, setProblem] = useState(null);
  return html`<${Dialog} title=${title} onClose=${onClose} acts=${html`<button type="button" class="btn" onClick=${onClose}>Keep it</button>
      <${Busy} class="btn stop" onProblem=${setProblem} onClick=${async () => { await onYes(); onClose(); }}>${words}</${Busy}>`}>
    <p class="dim">${children}</p><${ProblemNotice} title="It could not be deleted." problem=${problem} /></${Dialog}>`;
}
