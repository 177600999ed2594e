// The log of an image that is being pulled or built. It follows its end until the reader scrolls up.

import { Component, createRef, cx, html } from "../lib.js";
import { copy } from "../actions.js";
import { plural } from "../format.js";
import { plainLog } from "../making.js";
import { Icon } from "./icons.js";
import { Dot } from "./bits.js";

const SLACK = 24;

export class BuildLog extends Component {
  constructor(props) {
    super(props);
    this.view = createRef();
    this.state = { following: true, copied: false };
  }
  componentDidMount() {
    this.toEnd();
  }
  componentDidUpdate() {
    if (this.state.following) this.toEnd();
  }
  toEnd() {
    const v = this.view.current;
    if (v) v.scrollTop = v.scrollHeight;
  }
  // Only the reader's own scrolling up ends the following; lines that come in don't.
  scrolled = () => {
    const v = this.view.current;
    const end = v.scrollHeight - v.clientHeight - v.scrollTop < SLACK;
    if (end !== this.state.following && (end || v.scrollTop < (this.top || 0))) this.setState({ following: end });
    this.top = v.scrollTop;
  };
  copy = async () => {
    if (!(await copy(plainLog(this.props.lines)))) return;
    this.setState({ copied: true });
    setTimeout(() => this.setState({ copied: false }), 1500);
  };
  save = () => {
    const a = document.createElement("a");
    a.href = URL.createObjectURL(new Blob([plainLog(this.props.lines)], { type: "text/plain" }));
    a.download = `${this.props.name || "build"}.log`;
    a.click();
    setTimeout(() => URL.revokeObjectURL(a.href), 10_000);
  };
  render({ lines, live, title = "Build log" }, { following, copied }) {
    return html`<div class="logbox"><div class="lh"><span class="strong">${title}</span><span class="faint num">${plural(lines.length, "line")}</span>
        <span class="end">${live && (following
          ? html`<span class="chip go"><${Dot} kind="run" />Following</span>`
          : html`<button type="button" class="btn small" onClick=${() => this.setState({ following: true })}>Latest <${Icon} name="down" small /></button>`)}
          <button type="button" class="btn quiet small icon" aria-label=${copied ? "Copied" : "Copy log"} title=${copied ? "Copied" : "Copy log"} onClick=${this.copy}><${Icon} name=${copied ? "check" : "copy"} small /></button>
          <button type="button" class="btn quiet small icon" aria-label="Save log" title="Save log" onClick=${this.save}><${Icon} name="dl" small /></button></span></div>
      <div class="lines" ref=${this.view} tabindex="0" role="log" aria-live="off" aria-label=${title} onScroll=${this.scrolled}>${lines.map(
        (l) => html`<div key=${l.key} class=${cx("ln", l.tone && `t-${l.tone}`)}><span class="ts">${(Math.max(0, l.at) / 1000).toFixed(1)}</span><span class="c">${l.text}</span></div>`,
      )}</div></div>`;
  }
}

// Progress is a bar of what is done; without a total it isn't shown.
export const Progress = ({ done, total, label }) =>
  total > 0 &&
  html`<svg class="prog" viewBox="0 0 100 4" preserveAspectRatio="none" role="progressbar" aria-label=${label} aria-valuemin="0" aria-valuemax="100" aria-valuenow=${Math.round((done / total) * 100)}>
    <rect class="bg" width="100" height="4" /><rect class="fg" width=${Math.min(100, (done / total) * 100)} height="4" /></svg>`;
