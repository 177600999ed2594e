// The terminals of a sandbox: one tab each. What runs in them belongs to the server; who comes back finds it again.

import { Component, createRef, cx, html, useEffect, useRef, useState } from "../lib.js";
import * as api from "../api.js";
import * as local from "../local.js";
import { go, route } from "../router.js";
import { screen } from "../screen.js";
import { Dialog, Notice, ProblemNotice, Skeleton } from "./bits.js";
import { Icon } from "./icons.js";
import { Menu } from "./sheet.js";

// mine remembers, for as long as the browser's tab lives, at which terminals it was the one who writes.
const mine = {
  has: (run) => read().includes(run),
  set(run, is) {
    try {
      sessionStorage.setItem("sandlot.terminals", JSON.stringify([...read().filter((r) => r !== run), ...(is ? [run] : [])].slice(-50)));
    } catch {
      // Then a reload has to take over by hand.
    }
  },
};

function read() {
  try {
    return JSON.parse(sessionStorage.getItem("sandlot.terminals")) || [];
  } catch {
    return [];
  }
}

const KEYS = [["esc", "Esc"], ["tab", "Tab"], ["ctrl", "Ctrl"], ["alt", "Alt"], ["up", "↑", "Up"], ["down", "↓", "Down"], ["left", "←", "Left"], ["right", "→", "Right"], ["intr", "⌃C", "Interrupt"], ["paste", "Paste"]];

// ended says how a program ended, as far as that was seen.
export function ended(f) {
  if (f.state === "exited" && f.exit_code !== undefined) return `exited ${f.exit_code}`;
  if (f.state === "signaled") return `ended by ${f.signal}`;
  return { timeout: "ran out of time", oom: "ran out of memory", lost: "exit not seen" }[f.state] || f.state;
}

// check tells why there is no way to a terminal, if that won't pass by itself.
const check = (sandbox) => async (run) => {
  try {
    if (run) await api.run(sandbox, run);
    const sb = await api.sandbox(sandbox);
    if (!run && sb.state !== "running") return { title: "The sandbox is not running.", detail: sb.reason || "A terminal can be opened when it runs.", code: "sandbox_not_running" };
  } catch (p) {
    if (p.fatal) return p;
  }
  return null;
};

// Term is one of them.
class Term extends Component {
  constructor(props) {
    super(props);
    this.box = createRef();
    this.state = { loading: true, writer: true, broken: false, exit: null, problem: null, said: "", sticky: {} };
  }

  async componentDidMount() {
    const { sandbox, run, onRun, onTitle, onExit, onLeave } = this.props;
    try {
      const s = await screen(this.box.current, {
        sandbox, run, take: mine.has(run), check: check(sandbox), reader: local.get("term.reader", false), onTitle, onLeave,
        onStart: (f, first) => {
          this.run = f.run;
          this.setState({ loading: false });
          if (first) onRun(f.run);
        },
        onWriter: (writer) => {
          mine.set(this.run, writer);
          this.setState({ writer });
        },
        onState: (state) => this.setState({ broken: state === "broken" }),
        onExit: (exit) => {
          this.setState({ exit, broken: false, loading: false });
          onExit(exit);
        },
        onRefused: (problem, final) => this.setState(final ? { problem, loading: false, broken: false } : { said: problem ? problem.detail : "" }),
        onSticky: (sticky) => this.setState({ sticky }),
      });
      if (this.gone) {
        s.close();
        return;
      }
      this.screen = s;
      if (matchMedia("(pointer: fine)").matches) s.focus();
    } catch (e) {
      this.setState({ loading: false, problem: { title: "The terminal could not be shown.", detail: e.message, code: "ui_fault" } });
    }
  }

  componentWillUnmount() {
    this.gone = true;
    if (this.screen) this.screen.close();
  }

  press = (name) => (e) => {
    e.preventDefault();
    if (!this.screen) return;
    if (name === "paste") {
      this.screen.paste().catch(() => this.setState({ said: "The browser doesn't let pages read what was copied. Hold on the terminal to paste." }));
    } else {
      this.screen.key(name);
    }
    this.screen.focus();
  };

  render({ label, onAgain }, { loading, writer, broken, exit, problem, said, sticky }) {
    const watching = !loading && !exit && !problem && !writer;
    return html`<div class="term-one">
      ${problem && html`<${ProblemNotice} title=${problem.title || "The terminal could not be opened."} problem=${problem} />`}
      ${watching && html`<div class="term-line"><${Icon} name="eye" small /><span class="grow">Read-only: somebody else writes here.</span><button type="button" class="btn small" onClick=${() => this.screen.take()}>Take over</button></div>`}
      <div class="term-box" ref=${this.box} role="group" aria-label=${`${label}. Ctrl Shift . leaves it`} onKeyDown=${(e) => e.stopPropagation()}></div>
      ${loading && html`<div class="term-wait"><${Skeleton} rows=${2} /></div>`}
      ${broken && html`<div class="term-line note" role="status"><${Icon} name="redo" small /><span>Reconnecting. What runs here goes on.</span></div>`}
      ${exit && html`<div class=${cx("term-line", exit.exit_code !== 0 && "bad")} role="status"><span class="grow">${ended(exit)}${exit.reason ? html`<span class="dim"> · ${exit.reason}</span>` : ""}</span><button type="button" class="btn small" onClick=${onAgain}>Restart</button></div>`}
      ${said && html`<div class="term-line" role="status"><span class="grow">${said}</span><button type="button" class="btn quiet icon small" aria-label="Dismiss" onClick=${() => this.setState({ said: "" })}><${Icon} name="x" small /></button></div>`}
      ${!exit && html`<div class="keybar" role="toolbar" aria-label="Keys">${KEYS.map(([name, words, full]) => html`<button type="button" key=${name} aria-label=${full || words} aria-pressed=${name === "ctrl" || name === "alt" ? String(Boolean(sticky[name])) : undefined} onPointerDown=${(e) => e.preventDefault()} onClick=${this.press(name)}>${words}</button>`)}</div>`}
    </div>`;
  }
}

let made = 0;

// Terminals shows all of a sandbox, one at a time. The one that is open stands in the address.
export function Terminals({ sb }) {
  const [tabs, setTabs] = useState(null); // {key, run, title, argv, exit}
  const [open, setOpen] = useState("");
  const [problem, setProblem] = useState(null);
  const [ending, setEnding] = useState(null);
  const bar = useRef();
  const change = (key, with_) => setTabs((old) => old && old.map((t) => (t.key === key ? { ...t, ...with_ } : t)));
  const address = (run) => {
    const q = new URLSearchParams(location.search);
    if (run) q.set("term", run);
    else q.delete("term");
    go(`${location.pathname}${q.size ? `?${q}` : ""}`, { replace: true });
  };
  const add = () => {
    const key = `new${++made}`;
    setTabs((old) => [...(old || []), { key, run: "", title: "", argv: [] }]);
    setOpen(key);
  };
  const load = async () => {
    setProblem(null);
    try {
      const list = ((await api.runs(sb.id)).runs || []).filter((r) => r.kind === "terminal");
      const wish = route.value.query.get("term");
      const there = list.filter((r) => r.state === "running" || r.id === wish).reverse().map((r) => ({ key: r.id, run: r.id, title: "", argv: r.argv || [] }));
      setTabs(there);
      if (there.length) setOpen((there.find((t) => t.run === wish) || there[there.length - 1]).key);
      else add();
    } catch (p) {
      setProblem(p);
    }
  };
  useEffect(() => {
    load();
  }, [sb.id]);
  const show = (t) => {
    setOpen(t.key);
    address(t.run);
  };
  const drop = (t) => {
    const rest = tabs.filter((o) => o.key !== t.key);
    setTabs(rest);
    const next = rest[rest.length - 1];
    if (t.key === open) {
      setOpen(next ? next.key : "");
      address(next ? next.run : "");
    }
  };
  const finish = async (t) => {
    setEnding(null);
    try {
      await api.endRun(sb.id, t.run);
      drop(t);
    } catch (p) {
      setProblem(p);
    }
  };
  const again = (t) => {
    const key = `new${++made}`;
    setTabs((old) => old.map((o) => (o.key === t.key ? { key, run: "", title: "", argv: [] } : o)));
    setOpen(key);
  };
  const arrows = (e) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (!step || !tabs.length) return;
    e.preventDefault();
    const i = tabs.findIndex((t) => t.key === open);
    show(tabs[(i + step + tabs.length) % tabs.length]);
    requestAnimationFrame(() => bar.current && bar.current.querySelector("[aria-selected=true]").focus());
  };
  const leave = () => bar.current && bar.current.querySelector("[aria-selected=true]").focus();
  const reader = local.get("term.reader", false);
  const name = (t) => t.title || (t.argv.length ? t.argv[0].split("/").pop() : "shell");
  const now = (tabs || []).find((t) => t.key === open);
  return html`<div class="terms">
    <div class="tabs"><div class="tl" role="tablist" aria-label="Terminals" ref=${bar} onKeyDown=${arrows}>${(tabs || []).map((t) => html`<button type="button" key=${t.key} role="tab" class=${cx(t.key === open && "on")} aria-selected=${String(t.key === open)} tabindex=${t.key === open ? 0 : -1} title=${name(t)} onClick=${() => show(t)}><${Icon} name="term" small /><span class="cut">${name(t)}</span>${t.exit && html`<span class="n">${ended(t.exit)}</span>`}</button>`)}</div>
      <span class="end"><button type="button" class="btn quiet icon small" aria-label="New terminal" title="New terminal" onClick=${add}><${Icon} name="plus" small /></button>
        ${now && html`<${Menu} label="More about this terminal" items=${[
          { words: reader ? "Leave screen reader mode" : "Screen reader mode", icon: "eye", act: () => { local.set("term.reader", !reader); setOpen(""); requestAnimationFrame(() => setOpen(open)); } },
          now.exit || !now.run ? { words: "Close", icon: "x", act: () => drop(now) } : { words: "End this terminal", icon: "x", danger: true, act: () => setEnding(now) },
        ]} />`}</span></div>
    ${problem && html`<${ProblemNotice} title="The terminals could not be read." problem=${problem} acts=${html`<button type="button" class="btn small" onClick=${load}>Try again</button>`} />`}
    ${!tabs && !problem && html`<div class="term-wait"><${Skeleton} rows=${3} /></div>`}
    ${tabs && !tabs.length && html`<div class="term-wait"><${Notice} title="No terminal is open." acts=${html`<button type="button" class="btn small" onClick=${add}>New terminal</button>`} /></div>`}
    ${now && html`<${Term} key=${now.key} sandbox=${sb.id} run=${now.run} label=${`Terminal ${name(now)}`} onLeave=${leave} onAgain=${() => again(now)}
      onRun=${(run) => { change(now.key, { run }); address(run); }} onTitle=${(title) => change(now.key, { title })} onExit=${(exit) => change(now.key, { exit })} />`}
    ${ending && html`<${Dialog} title="End this terminal?" onClose=${() => setEnding(null)} acts=${html`<button type="button" class="btn" onClick=${() => setEnding(null)}>Keep it</button><button type="button" class="btn danger" onClick=${() => finish(ending)}>End terminal</button>`}>
      <p>What runs in it ends too.</p></${Dialog}>`}
  </div>`;
}
