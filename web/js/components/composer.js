// Where the user writes. It is never disabled, and what is typed is kept on this device until it was sent.

import { Component, createRef, cx, html } from "../lib.js";
import * as local from "../local.js";
import { Icon } from "./icons.js";
import { plural } from "../format.js";

const MODES = [
  ["", "Free in its sandbox", "Claude does everything without asking; the sandbox is the wall"],
  ["default", "Ask before edits", "Claude asks you before it changes a file or runs a command"],
  ["acceptEdits", "Accept edits", "Claude changes files freely, and asks before anything else"],
  ["plan", "Plan first", "Claude reads and plans; it starts when you approve its plan"],
];
const FREE = "bypassPermissions";

const MODELS = [["", "Default model"], ["opus", "Opus"], ["sonnet", "Sonnet"], ["haiku", "Haiku"]];

// withOwn adds a choice that was made elsewhere and is none of ours.
const withOwn = (all, own) => (all.some((x) => x[0] === own[0]) ? all : [...all, own]);

// Composer's props: scope (names the draft), placeholder, label, onSend(text, mode), onStop, busy, hint, start (text to begin
// with), focus, action (words on the button; without, an arrow), empty (may an empty text be sent), left (more controls), modes.
// settings ({mode, model} of a session that is there) and onSettings({permission_mode} or {model}) change them at once, also while
// Claude works; without, the mode is the next message's.
export class Composer extends Component {
  constructor(props) {
    super(props);
    this.area = createRef();
    this.state = { text: local.get(`draft.${props.scope}`) ?? props.start ?? "", mode: local.get("mode") || "" };
  }

  componentDidMount() {
    this.grow();
    // Focus opens the keyboard of a phone, so there it is the user's to ask for.
    if (this.props.focus && matchMedia("(pointer: fine)").matches) {
      const a = this.area.current;
      a.focus({ preventScroll: true });
      a.setSelectionRange(a.value.length, a.value.length);
    }
    this.unwatch = local.watch(`draft.${this.props.scope}`, (text) => {
      // Another tab typed; here it is taken over only while nobody types here.
      if (document.activeElement !== this.area.current) this.setState({ text: text || "" }, () => this.grow());
    });
  }

  componentWillUnmount() {
    if (this.unwatch) this.unwatch();
  }

  componentDidUpdate(before) {
    if (before.scope !== this.props.scope) {
      this.setState({ text: local.get(`draft.${this.props.scope}`) ?? this.props.start ?? "" }, () => this.grow());
    }
    if (this.props.put && this.props.put !== before.put) this.fill(this.props.put.text);
  }

  // fill replaces what is there, keeping the user's own words: they are put in front.
  fill(text) {
    const mine = this.props.put && this.props.put.replace ? "" : this.state.text.trim();
    this.change(mine && mine !== text ? `${mine}\n\n${text}` : text);
    const a = this.area.current;
    a.focus();
    requestAnimationFrame(() => a.setSelectionRange(a.value.length, a.value.length));
  }

  change(text) {
    local.set(`draft.${this.props.scope}`, text);
    this.setState({ text }, () => this.grow());
  }

  grow() {
    const a = this.area.current;
    if (!a || CSS.supports("field-sizing", "content")) return;
    a.style.height = "auto";
    a.style.height = `${a.scrollHeight}px`;
  }

  async send() {
    const text = this.state.text.trim();
    if (!text && !this.props.empty) {
      this.area.current.focus();
      return;
    }
    if (this.sending) return;
    this.sending = true;
    try {
      // Only when it was taken does the text go: a failed send leaves it where it was.
      const ok = await this.props.onSend(text, this.props.settings ? "" : this.state.mode);
      if (ok !== false) this.change("");
    } finally {
      this.sending = false;
    }
  }

  key(e) {
    // While a word is being composed (Japanese, Chinese, …), Enter belongs to the input method.
    if (e.isComposing || e.keyCode === 229) return;
    if (e.key === "Enter" && !e.shiftKey && !e.altKey) {
      e.preventDefault();
      this.send();
    } else if (e.key === "Escape" && this.props.busy && this.props.onStop) {
      e.preventDefault();
      this.props.onStop();
    } else if (e.key === "ArrowUp" && !this.state.text && this.props.onUp) {
      if (this.props.onUp()) e.preventDefault();
    }
  }

  pick(value) {
    if (this.props.settings) {
      this.props.onSettings({ permission_mode: value || FREE });
      return;
    }
    local.set("mode", value);
    this.setState({ mode: value });
  }

  render({ placeholder, label, busy, onStop, hint, action, left, modes, scope, big, settings, onSettings }, state) {
    const text = state.text;
    const mode = settings ? (settings.mode === FREE ? "" : settings.mode || "") : state.mode;
    const known = MODES.find((m) => m[0] === mode) || [mode, mode, ""];
    const model = settings ? settings.model || "" : "";
    const size = text.length > 32 * 1024;
    return html`<div class=${cx("composer", big && "big")}>
      <label class="vh" for=${`type-${scope}`}>${label || "Message to Claude"}</label>
      <textarea id=${`type-${scope}`} ref=${this.area} class="type" rows="1" placeholder=${placeholder} value=${text} enterkeyhint="send"
        autocomplete="off" spellcheck="true" onInput=${(e) => this.change(e.currentTarget.value)} onKeyDown=${(e) => this.key(e)}></textarea>
      <div class="bar">${left}
        ${modes && html`<label class="pickbox" title=${known[2]}><span class="vh">What Claude may do</span>
          <select value=${mode} onChange=${(e) => this.pick(e.currentTarget.value)}>
            ${withOwn(MODES, known).map(([value, words, why]) => html`<option key=${value} value=${value} title=${why}>${words}</option>`)}</select><${Icon} name="down" small /></label>`}
        ${settings && html`<label class="pickbox" title="The model that answers from the next request on"><span class="vh">Model</span>
          <select value=${model} onChange=${(e) => onSettings({ model: e.currentTarget.value })}>
            ${withOwn(MODELS, [model, model]).map(([value, words]) => html`<option key=${value} value=${value}>${words}</option>`)}</select><${Icon} name="down" small /></label>`}
        <div class="end">${size ? html`<span class="faint">${plural(Math.round(text.length / 1024), "KiB", "KiB")} of text</span>` : hint && html`<span class="faint no-phone">${hint}</span>`}
          ${busy && onStop && html`<button type="button" class="btn send" aria-label="Stop Claude (Esc)" title="Stop Claude (Esc)" onClick=${onStop}><${Icon} name="stop" /></button>`}
          ${action
            ? html`<button type="button" class="btn go" onClick=${() => this.send()}>${action} <kbd aria-hidden="true">⏎</kbd></button>`
            : html`<button type="button" class="btn go send" aria-label="Send" title=${busy ? "Queue this message (Enter)" : "Send (Enter)"} onClick=${() => this.send()}><${Icon} name="send" /></button>`}
        </div></div></div>`;
  }
}
