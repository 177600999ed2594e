// One file: read with colours, changed in a field of text, saved as the version that it was read as.

import { Component, createRef, cx, html } from "../lib.js";
import * as files from "../fileapi.js";
import * as local from "../local.js";
import { bytes, fullTime, ago } from "../format.js";
import { highlight } from "../highlight.js";
import { now } from "../store.js";
import { addressOf, addressOfPath, differences, languageOf, pathOf, pictureOf, textOf, within } from "../tree.js";
import { Busy, Notice, ProblemNotice, Skeleton } from "./bits.js";
import { Icon } from "./icons.js";

const MOST = 512 * 1024; // of a file that is shown as text

// ends says how a text's lines end: a field of text knows one way only.
const ends = (text) => (!text.includes("\r") ? "\n" : /\r(?!\n)|(^|[^\r])\n/.test(text) ? "" : "\r\n");

export class FileView extends Component {
  constructor(props) {
    super(props);
    const draft = local.get(this.draftKey(props), null);
    this.state = { loading: true, draft, changedAt: 0, gone: false, conflict: null, problem: null, saved: false };
    this.code = createRef();
    this.area = createRef();
    this.nums = createRef();
  }

  draftKey = ({ sb, at }) => `file.${sb.id}.${at}`;

  componentDidMount() {
    this.props.events.add(this.heard);
    this.read();
  }

  componentWillUnmount() {
    this.left = true;
    this.props.events.delete(this.heard);
    if (this.picture) URL.revokeObjectURL(this.picture);
  }

  componentDidUpdate() {
    if (this.code.current) highlight(this.code.current);
  }

  heard = (event, change) => {
    const { at } = this.props;
    const from = change.from && (change.from_escaped || addressOfPath(change.from));
    if (event === "moved" && within(at, from)) this.props.onMoved(addressOf(change.file) + at.slice(from.length));
    else if (event === "resync" || event === "ready") this.check();
    else if (change.file && (event === "removed" ? within(at, addressOf(change.file)) : addressOf(change.file) === at)) {
      if (event === "removed") this.setState({ gone: true });
      else if (change.file.etag !== this.state.etag) this.changed();
    }
  };

  async check() {
    try {
      const file = await files.stat(this.props.sb.id, this.props.at);
      if (!this.left && file.etag && this.state.etag && file.etag !== this.state.etag) this.changed();
    } catch (p) {
      if (!this.left && p.status === 404) this.setState({ gone: true });
    }
  }

  // changed is what happens when the file is another: it is read anew, unless somebody writes here.
  changed() {
    if (this.saving) return;
    if (this.state.draft) this.setState({ changedAt: Date.now(), gone: false });
    else this.read(true);
  }

  async read(again = false) {
    const { sb, at } = this.props;
    const mine = (this.reading = {});
    try {
      const { bytes: b, etag, size } = await files.read(sb.id, at, MOST);
      if (this.left || this.reading !== mine) return;
      const kind = pictureOf(at);
      if (this.picture) URL.revokeObjectURL(this.picture);
      this.picture = kind && size === b.length ? URL.createObjectURL(new Blob([b], { type: kind })) : null;
      const cut = size > b.length;
      const text = textOf(cut ? whole(b) : b);
      this.setState({ loading: false, text, etag, size, cut, ends: text === null ? "" : ends(text), gone: false, problem: null, changedAt: again ? Date.now() : 0 });
    } catch (problem) {
      if (this.left || this.reading !== mine) return;
      this.setState({ loading: false, gone: problem.status === 404, problem: problem.status === 404 ? null : { title: "The file could not be read.", problem } });
    }
  }

  keep(text) {
    const draft = { text, etag: this.state.draft ? this.state.draft.etag : this.state.etag };
    this.setState({ draft, saved: false });
    local.set(this.draftKey(this.props), draft);
  }

  edit = () => {
    this.setState({ draft: { text: this.state.text.replaceAll("\r\n", "\n"), etag: this.state.etag }, saved: false }, () => this.area.current && this.area.current.focus({ preventScroll: true }));
  };

  // drop leaves without saving.
  drop = () => {
    local.set(this.draftKey(this.props), null);
    this.setState({ draft: null, conflict: null, problem: null });
    this.read();
  };

  leave = () => {
    const { draft, text } = this.state;
    if (draft && text !== null && draft.text === (text || "").replaceAll("\r\n", "\n")) this.drop();
    else if (draft) this.setState({ asking: true });
    else this.props.onClose();
  };

  // save replaces the version that was read, or with force whatever is there.
  save = async (force = false) => {
    const { sb, at } = this.props;
    const { draft } = this.state;
    if (!draft || this.saving) return;
    this.saving = true;
    this.setState({ problem: null, conflict: null });
    const text = this.state.ends === "\r\n" ? draft.text.replaceAll("\n", "\r\n") : draft.text;
    try {
      const file = await files.write(sb.id, at, new Blob([text]), force ? null : draft.etag);
      local.set(this.draftKey(this.props), null);
      this.setState({ text, etag: file.etag, size: file.size, draft: null, changedAt: 0, gone: false, saved: true });
    } catch (problem) {
      if (problem.status === 412) await this.conflict();
      else this.setState({ problem: { title: "The file was not saved. Your text is still here.", problem } });
    } finally {
      this.saving = false;
    }
  };

  async conflict() {
    const { sb, at } = this.props;
    try {
      const { bytes: b, etag } = await files.read(sb.id, at, MOST);
      this.setState({ conflict: { text: textOf(b), etag } });
    } catch (p) {
      this.setState({ conflict: { text: null, gone: p.status === 404 } });
    }
  }

  key = (e) => {
    if ((e.metaKey || e.ctrlKey) && e.key === "s") {
      e.preventDefault();
      this.save();
    } else if (e.key === "Escape") {
      e.preventDefault();
      e.stopPropagation();
      this.leave();
    }
  };

  scroll = () => {
    if (this.nums.current) this.nums.current.scrollTop = this.area.current.scrollTop;
  };

  render({ sb, at, onClose }, { loading, text, size, cut, ends: lineEnd, draft, changedAt, gone, conflict, problem, saved, asking, diff }) {
    const name = pathOf(at.slice(at.lastIndexOf("/") + 1));
    const editable = text !== null && text !== undefined && !cut && lineEnd !== "" && !gone;
    const lang = languageOf(name);
    const lines = (draft ? draft.text : text || "").split("\n").length;
    const numbers = Array.from({ length: lines }, (_, i) => i + 1).join("\n");
    const changes = conflict && diff && conflict.text !== null ? differences(conflict.text.replaceAll("\r\n", "\n"), draft ? draft.text : "") : null;
    return html`<section class="fview" aria-label=${`File ${name}`} onKeyDown=${this.key}>
      <div class="fhead"><button type="button" class="btn quiet icon small only-phone" aria-label="Back to the files" onClick=${onClose}><${Icon} name="back" /></button><code class="cut" title=${pathOf(at)}>${name}</code>
        ${draft ? html`<span class="chip ask"><span class="dot ask"></span>Not saved</span>` : gone ? html`<span class="chip bad">Deleted</span>` : changedAt ? html`<span class="chip note" title=${fullTime(changedAt)}>Changed ${ago(changedAt, now.value)}</span>` : saved ? html`<span class="chip go" role="status">Saved</span>` : null}
        <span class="grow"></span>${typeof size === "number" && html`<span class="num faint no-phone">${bytes(size)}</span>`}
        ${draft
          ? html`<button type="button" class="btn small" onClick=${this.leave}>Cancel</button><${Busy} class="btn small go" onClick=${() => this.save()}>Save</${Busy}>`
          : html`${editable && html`<button type="button" class="btn quiet icon small" aria-label="Edit" title="Edit" onClick=${this.edit}><${Icon} name="pencil" /></button>`}
            ${!gone && html`<a class="btn quiet icon small" href=${files.fileURL(sb.id, at)} download=${name} aria-label="Download" title="Download"><${Icon} name="dl" /></a>`}
            <button type="button" class="btn quiet icon small no-phone" aria-label="Close the file" title="Close" onClick=${onClose}><${Icon} name="x" /></button>`}</div>
      ${problem && html`<${ProblemNotice} ...${problem} />`}
      ${asking && html`<${Notice} kind="ask" title="Your changes are not saved." acts=${html`<${Busy} class="btn small go" onClick=${() => { this.setState({ asking: false }); return this.save(); }}>Save</${Busy}>
        <button type="button" class="btn small danger" onClick=${() => { this.setState({ asking: false }); this.drop(); }}>Discard changes</button><button type="button" class="btn small" onClick=${() => this.setState({ asking: false })}>Go on writing</button>`} />`}
      ${draft && !conflict && changedAt > 0 && html`<${Notice} kind="note" title=${`This file changed ${ago(changedAt, now.value)}.`}><span>Saving will ask what to do.</span></${Notice}>`}
      ${conflict && html`<${Notice} kind="ask" title=${conflict.gone ? "This file was deleted while you wrote." : "This file has changed while you wrote."} acts=${html`
          ${!conflict.gone && conflict.text !== null && html`<button type="button" class="btn small" aria-pressed=${String(Boolean(diff))} onClick=${() => this.setState({ diff: !diff })}>Show differences</button>`}
          <${Busy} class="btn small" onClick=${() => this.save(true)}>${conflict.gone ? "Write it again" : "Overwrite it"}</${Busy}><button type="button" class="btn small danger" onClick=${this.drop}>${conflict.gone ? "Discard mine" : "Discard mine and reload"}</button>`}>
        <span>Nothing was saved. Your text is still here.</span>
        ${diff && changes && html`<div class="diff" tabindex="0" role="region" aria-label="From what is there to your text">${changes.map((l, i) => (l.skip
          ? html`<div class="l skip" key=${i}><span class="n"></span><span class="s"></span><span class="c">${l.skip} lines the same</span></div>`
          : html`<div class=${cx("l", l.sign === "+" && "add", l.sign === "-" && "del")} key=${i}><span class="n"></span><span class="s">${l.sign}</span><span class="c">${l.text}</span></div>`))}</div>`}
        ${diff && !changes && html`<span>The two are too different to be shown side by side.</span>`}</${Notice}>`}
      ${loading && html`<${Skeleton} rows=${4} />`}
      ${!loading && gone && !draft && html`<p class="files-empty faint">This file is not there any more.</p>`}
      ${draft
        ? html`<div class="code edit"><pre class="nums" ref=${this.nums} aria-hidden="true">${numbers}</pre><textarea ref=${this.area} aria-label=${`Text of ${name}`} spellcheck="false" autocapitalize="off" autocomplete="off" wrap="off"
            value=${draft.text} onInput=${(e) => this.keep(e.currentTarget.value)} onScroll=${this.scroll}></textarea></div>`
        : !loading && !gone && !problem && (this.picture
          ? html`<div class="picture"><img src=${this.picture} alt=${name} /></div>`
          : text === null
            ? html`<p class="files-empty faint">No text: ${bytes(size)} of bytes. <a href=${files.fileURL(sb.id, at)} download=${name}>Download</a></p>`
            : html`${cut && html`<p class="files-note">The first ${bytes(MOST)} of ${bytes(size)}. <a href=${files.fileURL(sb.id, at)} download=${name}>Download all</a></p>`}
              ${!cut && lineEnd === "" && html`<p class="files-note">Its lines end in different ways, which editing here would change.</p>`}
              <div class="code" ref=${this.code} tabindex="0" role="region" aria-label=${`Text of ${name}`}><pre class="nums" aria-hidden="true">${numbers}</pre><pre class="text" key=${`${this.state.etag}`}><code class=${lang && `language-${lang}`}>${text}</code></pre></div>`)}
    </section>`;
  }
}

// whole cuts a text's bytes where the last whole character ends.
function whole(b) {
  let n = b.length;
  while (n > 0 && b.length - n < 3 && (b[n - 1] & 0xc0) === 0x80) n--;
  return n > 0 && b[n - 1] >= 0xc0 ? b.subarray(0, n - 1) : b;
}
