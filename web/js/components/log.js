// The scrolling log. Its rule: the page does not move under the reader. Only while the view is at the end does it follow
// what is written; the first move away from the end stops that, and reaching the end again resumes it.

import { Component, createRef, html } from "../lib.js";
import { clip, shortTime } from "../format.js";
import { Icon } from "./icons.js";
import { Turn } from "./turn.js";

const NEAR = 48; // px from the end within which the view follows
const CHUNK = 30; // turns that are put into the page at a time

export class Log extends Component {
  constructor(props) {
    super(props);
    this.box = createRef();
    this.inner = createRef();
    this.top = createRef();
    this.following = true;
    this.lastTop = 0;
    this.state = { mounted: CHUNK, away: false, fresh: 0, asked: null };
  }

  componentDidMount() {
    const box = this.box.current;
    this.toEnd();
    // Growth of what is inside, and of the dock below, both keep the end in view while following.
    this.sizes = new ResizeObserver(() => {
      box.style.setProperty("--log-h", `${box.clientHeight}px`);
      if (this.following) this.toEnd();
      this.look();
    });
    this.sizes.observe(this.inner.current);
    this.sizes.observe(box);
    this.older = new IntersectionObserver((e) => e.some((x) => x.isIntersecting) && this.mountOlder(), { root: box, rootMargin: "1500px 0px 0px" });
    this.older.observe(this.top.current);
  }

  componentWillUnmount() {
    this.sizes.disconnect();
    this.older.disconnect();
    cancelAnimationFrame(this.frame);
  }

  componentDidUpdate(before) {
    const turns = this.props.turns;
    if (turns.length > before.turns.length) {
      const last = turns[turns.length - 1];
      if (this.props.sent && last.prompt.text === this.props.sent && last.key !== this.state.mine) {
        // The user's own message: its turn is given the height of the view, and the view goes there once. The answer
        // then grows into free space.
        this.following = true;
        this.setState({ mine: last.key, away: false, fresh: 0 }, () => requestAnimationFrame(() => this.toEnd()));
        return;
      }
    }
    if (this.following) this.toEnd();
    else if (turns !== before.turns && this.state.away) this.count();
  }

  // count says how many blocks came since the reader left the end.
  count() {
    const n = this.blocks() - this.seen;
    if (n !== this.state.fresh && n >= 0) this.setState({ fresh: n });
  }

  blocks() {
    return this.props.turns.reduce((n, t) => n + Object.keys(t.items).length + 1, 0);
  }

  toEnd() {
    const box = this.box.current;
    const end = box.scrollHeight - box.clientHeight;
    if (Math.abs(box.scrollTop - end) > 0.5) box.scrollTop = end;
    this.lastTop = box.scrollTop;
  }

  leave() {
    if (!this.following) return;
    this.following = false;
    this.seen = this.blocks();
    this.setState({ away: true, fresh: 0 });
  }

  arrive() {
    if (this.following && !this.state.away) return;
    this.following = true;
    this.setState({ away: false, fresh: 0 });
  }

  onScroll = () => {
    const box = this.box.current;
    const rest = box.scrollHeight - box.clientHeight - box.scrollTop;
    if (rest <= 2) this.arrive();
    else if (box.scrollTop < this.lastTop - 1) {
      if (rest > NEAR) this.leave();
    } else if (rest <= NEAR && box.scrollTop > this.lastTop) this.arrive();
    else if (rest > NEAR && Math.abs(box.scrollTop - this.lastTop) > 1) this.leave();
    this.lastTop = box.scrollTop;
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.look());
  };

  onWheel = (e) => {
    if (e.deltaY < 0 && this.box.current.scrollHeight > this.box.current.clientHeight + 2) this.leave();
  };

  onKey = (e) => {
    if (["PageUp", "Home", "ArrowUp"].includes(e.key) && e.target === this.box.current) this.leave();
  };

  // Selecting text is reading: the text must not move.
  onSelect = () => {
    const s = document.getSelection();
    if (s && !s.isCollapsed && this.box.current.contains(s.anchorNode)) this.leave();
  };

  // look finds the question whose answer is in view while the question itself isn't, to show it as one line above.
  look() {
    const box = this.box.current;
    if (!box) return;
    const edge = box.getBoundingClientRect().top;
    let asked = null;
    for (const el of this.inner.current.querySelectorAll(":scope > .turn")) {
      const r = el.getBoundingClientRect();
      if (r.bottom < edge + 40) continue;
      if (r.top < edge) {
        const you = el.querySelector(".said.you");
        if (you && you.getBoundingClientRect().bottom < edge + 4) asked = el.dataset.turn;
      }
      break;
    }
    if (asked !== this.state.asked) this.setState({ asked });
  }

  mountOlder() {
    if (this.state.mounted >= this.props.turns.length) return;
    const box = this.box.current;
    // At the very top a browser has nothing to anchor to, so there the place is kept by hand.
    const before = box.scrollTop < 1 ? box.scrollHeight : 0;
    this.setState({ mounted: this.state.mounted + CHUNK }, () => {
      if (before && !this.following) box.scrollTop += box.scrollHeight - before;
      this.lastTop = box.scrollTop;
      // The observer tells changes only; if the top is still near, ask again.
      this.older.unobserve(this.top.current);
      this.older.observe(this.top.current);
    });
  }

  // step moves to the next or previous question.
  step(way) {
    const box = this.box.current;
    const edge = box.getBoundingClientRect().top;
    const all = [...this.inner.current.querySelectorAll(":scope > .turn")].map((el) => el.getBoundingClientRect().top - edge);
    const target = way > 0 ? all.find((y) => y > 24) : all.filter((y) => y < 8).pop();
    if (target === undefined) return;
    this.leave();
    box.scrollTop += target - 12;
  }

  jump = (e) => {
    e.preventDefault();
    const el = this.inner.current.querySelector(`[data-turn="${this.state.asked}"]`);
    if (!el) return;
    this.leave();
    this.box.current.scrollTop += el.getBoundingClientRect().top - this.box.current.getBoundingClientRect().top - 12;
  };

  latest = () => {
    this.arrive();
    this.toEnd();
  };

  render({ turns, busy, cwd, name, children, onAgain }, { mounted, away, fresh, asked, mine }) {
    const from = Math.max(0, turns.length - mounted);
    const shown = turns.slice(from);
    const question = asked && turns.find((t) => t.key === asked);
    return html`<div class="logbox-outer">
      ${question && html`<a class="asked" href="#" onClick=${this.jump}><span class="strong">You</span><span class="cut">${clip(question.prompt.text, 300)}</span><span class="vh">Jump to your message</span><span class="t">${shortTime(question.prompt.at)}</span></a>`}
      <div class="log" ref=${this.box} role="log" aria-live="off" tabindex="0" aria-label="Messages" onScroll=${this.onScroll} onWheel=${this.onWheel} onKeyDown=${this.onKey} onPointerUp=${this.onSelect}>
        <div class="turns" ref=${this.inner}><div class="older-mark" ref=${this.top} aria-hidden="true"></div>
          ${shown.map((t, i) => html`<${Turn} key=${t.key} turn=${t} busy=${busy && from + i === turns.length - 1} cwd=${cwd} name=${name} fresh=${t.key === mine} last=${from + i === turns.length - 1} onAgain=${onAgain} />`)}
          ${children}</div></div>
      ${away && html`<button type="button" class="btn small latest" onClick=${this.latest}>Latest<${Icon} name="down" small />${fresh > 0 && html`<span class="num">${fresh} new</span>`}</button>`}
    </div>`;
  }
}
