// What a running turn is doing, for how long, and whether it has gone silent.

import { Component, html } from "../lib.js";
import { phase } from "../reducer.js";
import { describe } from "../tools.js";
import { clip, clock, tokens } from "../format.js";
import { now } from "../store.js";
import { Icon, Pulse } from "./icons.js";

const QUIET = 120_000;

function words(turn, cwd) {
  const p = phase(turn);
  if (p.word === "retry") {
    const r = p.retry;
    return `The model's service did not answer${r.status ? ` (${r.status})` : ""}. Retry${r.attempt ? ` ${r.attempt}${r.max ? ` of ${r.max}` : ""}` : ""}`;
  }
  if (p.word === "call") {
    const row = describe(p.call, { cwd });
    return `${row.verb}${row.nested ? ":" : ""} ${row.object.split("\n")[0]}`.trim();
  }
  return p.word;
}

// Activity is shown only while a turn runs. heard is when the log last grew.
export class Activity extends Component {
  componentDidMount() {
    this.tell();
  }
  componentDidUpdate() {
    this.tell();
  }
  componentWillUnmount() {
    clearTimeout(this.later);
  }
  // A screen reader hears of a phase at most every ten seconds.
  tell() {
    const text = clip(words(this.props.turn, this.props.cwd), 100);
    if (text === this.said) return;
    const wait = 10_000 - (Date.now() - (this.saidAt || 0));
    clearTimeout(this.later);
    const say = () => {
      this.said = text;
      this.saidAt = Date.now();
      this.setState({ said: text });
    };
    if (wait <= 0) say();
    else this.later = setTimeout(say, wait);
  }
  render({ turn, cwd, heard, onStop, stopping }, { said }) {
    const t = now.value;
    // The server looks at the process itself; what this page has heard is the next best.
    const silent = turn.quiet ? turn.quiet.seconds * 1000 + Math.max(0, t - turn.quiet.at) : t - Math.max(heard || 0, turn.startedAt);
    const does = turn.quiet && { busy: ", its processes work", idle: ", nothing computes" }[turn.quiet.process];
    const plan = turn.plan && `Plan ${turn.plan.steps.filter((s) => s.status === "completed").length} of ${turn.plan.steps.length}`;
    const retry = turn.retry;
    return html`<div class="state-line">${retry ? html`<${Icon} name="redo" />` : html`<${Pulse} />`}
      <span class="ink cut">${stopping ? "Stopping" : words(turn, cwd)}</span>
      <span>${turn.startedAt ? clock(t - turn.startedAt) : ""}</span>
      ${silent > QUIET ? html`<span class="ask-t">no output for ${clock(silent)}${does}</span>` : turn.usage && html`<span class="no-phone">${tokens(turn.usage.context)} tokens in, ${tokens(turn.usage.output)} out</span>`}
      <span class="end">${plan && html`<span class="no-phone">${plan}</span>`}${silent > QUIET && html`<button type="button" class="link" onClick=${onStop}>Interrupt</button>`}</span>
      <span class="vh" role="status">${said}</span></div>`;
  }
}
