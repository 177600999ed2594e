// A conversation: its log, what Claude is doing, and where to write.

import { Component, createRef, html, useEffect, useMemo, useState } from "../lib.js";
import * as api from "../api.js";
import * as outbox from "../outbox.js";
import * as store from "../store.js";
import * as feeds from "../feed.js";
import { askedOf, continueSession, live, newSandbox, nextSandbox, resume } from "../actions.js";
import { money, plural, sentence, tokens, volumeName } from "../format.js";
import { totals } from "../reducer.js";
import { route } from "../router.js";
import { Icon } from "../components/icons.js";
import { Busy, Notice, ProblemNotice, Scoreboard, Skeleton } from "../components/bits.js";
import { Asks } from "../components/ask.js";
import { Activity } from "../components/activity.js";
import { Composer } from "../components/composer.js";
import { Log } from "../components/log.js";
import { Panel, PanelButton } from "../components/panel.js";
import { Queue, takeBack } from "../components/queue.js";
import { Lost } from "./lost.js";
import { boardOf } from "../components/facts.js";
import { TimeDialog } from "../components/boxacts.js";

export function Session({ id }) {
  const feed = useMemo(() => feeds.open(id), [id]);
  useEffect(() => () => feed.close(), [feed]);
  return html`<${Page} key=${id} id=${id} feed=${feed} />`;
}

const sessionOf = (id) => (store.sessions.value || []).find((s) => s.id === id) || null;

// slots of the session's scoreboard: what is known of its sandbox, and what it has used.
function slots(session, sb, log, onTime) {
  const sum = totals(log);
  const box = sb ? boardOf(sb, { onTime: sb.state === "running" && onTime }) : [{ k: "Sandbox", v: "—" }];
  return [
    ...box,
    { k: "Turns", v: log.turns.length || session.turns },
    { k: "Context", v: tokens(sum.context), of: sum.context === null ? null : sum.window ? `of ${tokens(sum.window)}` : "tokens", title: "Tokens of the conversation that the model sees" },
    { k: "This session", v: money(sum.cost), fill: true, title: "What the turns' results say they cost" },
  ];
}

class Page extends Component {
  constructor(props) {
    super(props);
    this.state = { problem: null, put: null, stopping: false, sent: "" };
    this.log = createRef();
  }

  componentDidMount() {
    this.onKey = (e) => this.key(e);
    document.addEventListener("keydown", this.onKey);
    // After signing in again the page goes on where it was.
    let out = false;
    this.unsubscribe = store.signedOut.subscribe((is) => {
      if (out && !is) this.props.feed.retry();
      out = is;
    });
  }

  componentWillUnmount() {
    document.removeEventListener("keydown", this.onKey);
    this.unsubscribe();
  }

  session() {
    return sessionOf(this.props.id);
  }

  busy() {
    const s = this.session();
    return Boolean(s && s.busy);
  }

  stop = async () => {
    if (!this.busy() || this.state.stopping) return;
    this.setState({ stopping: true, problem: null });
    try {
      await api.interrupt(this.props.id);
    } catch (problem) {
      if (problem.status !== 409) this.setState({ problem: { title: "Claude could not be stopped.", problem } });
      store.readSession(this.props.id).catch(() => {});
    }
    // The word goes when the turn's end is in the log; if that takes long, stopping may be asked again.
    setTimeout(() => this.setState({ stopping: false }), 5000);
  };

  // settings changes the session's mode or model; a living process of Claude takes it over at once.
  settings = async (what) => {
    this.setState({ problem: null });
    const before = this.session();
    store.keepSession({ id: this.props.id, ...what });
    try {
      store.keepSession(await api.change(this.props.id, what));
    } catch (problem) {
      store.keepSession({ id: this.props.id, permission_mode: before.permission_mode, model: before.model });
      this.setState({ problem: { title: "This could not be changed.", problem } });
    }
  };

  send = async (text, mode) => {
    const session = this.session();
    this.setState({ problem: null });
    let sb = nextSandbox(session);
    if (!live(sb) || sb.state === "stopping") {
      try {
        const old = sb || (await store.readSandbox(session.sandbox));
        sb = await continueSession(session, old);
      } catch (problem) {
        this.setState({ problem: { title: "A new sandbox could not be created. Your message is still here.", problem } });
        return false;
      }
    }
    this.setState({ sent: text });
    outbox.put({ text, sandbox: sb.id, session: session.id, mode });
    return true;
  };

  key(e) {
    if (e.key === "Escape" && !e.defaultPrevented && !document.querySelector("dialog[open]") && this.busy()) {
      this.stop();
      return;
    }
    if (e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(e.target.tagName)) return;
    if (e.key === "[" || e.key === "]") this.log.current.step(e.key === "]" ? 1 : -1);
  }

  editLast = () => {
    const waiting = outbox.forSession(this.props.id);
    const last = waiting[waiting.length - 1];
    if (last) {
      outbox.withdraw(last.id);
      this.setState({ put: { text: last.text } });
      return true;
    }
    const queue = (this.session() || {}).queue || [];
    const turn = queue[queue.length - 1];
    if (!turn) return false;
    takeBack(this.props.id, turn).then((text) => this.setState({ put: { text } }), (problem) => this.setState({ problem: { title: "The message could not be taken back.", problem } }));
    return true;
  };

  render({ id, feed }, { problem, put, stopping, sent, timing }) {
    const session = this.session();
    const trouble = feed.problem.value;
    if (trouble && trouble.status === 404) return html`<${Lost} what="There is no such session." why=${trouble.detail} />`;
    const loaded = feed.loaded.value;
    const log = feed.log.value;
    const title = (session && session.title) || "Session";
    if (!session || !loaded) {
      return html`<header class="top"><a class="btn quiet icon only-phone" href="/sessions" aria-label="Back to sessions"><${Icon} name="back" /></a><h1 class="cut">${title}</h1></header>
        <div class="page"><div class="wrap narrow">${trouble ? html`<${ProblemNotice} title="The conversation could not be read." problem=${trouble} acts=${html`<button type="button" class="btn small" onClick=${feed.retry}>Try again</button>`} />` : html`<${Skeleton} rows=${6} />`}</div></div>`;
    }
    const sb = nextSandbox(session);
    const own = store.sandboxOf(session.sandbox);
    const ended = !live(sb);
    const asleep = !ended && ["suspending", "suspended", "resuming"].includes(sb.state);
    const waiting = outbox.forSession(id);
    const queued = session.queue || [];
    const last = log.turns[log.turns.length - 1];
    // That a turn has ended is shown when its end has come: the server may know, and the page not yet.
    const busy = session.busy || Boolean(last && !last.end && session.last_seq > Math.max(log.lineSeq, log.partialSeq));
    const cwd = (log.init && log.init.cwd) || (sb && sb.workdir) || "/workspace";
    const why = ended ? "waits for a sandbox" : sb.state === "creating" ? "sent when the sandbox is ready" : asleep ? "sent when the sandbox is resumed" : "waits for the connection";
    return html`<header class="top"><a class="btn quiet icon only-phone" href="/sessions" aria-label="Back to sessions"><${Icon} name="back" /></a><h1 class="cut" title=${title}>${title}</h1><span class="grow"></span><${PanelButton} base=${`/session/${id}`} /></header>
      <${Scoreboard} label=${sb ? `Sandbox ${sb.name}` : "Session"} slots=${slots(session, sb, log, () => this.setState({ timing: true }))} />
      <div class="split"><section class="talk" aria-label="Conversation">
        <${Log} ref=${this.log} turns=${log.turns} busy=${busy} cwd=${cwd} name=${store.me.value && store.me.value.account_name} sent=${sent} onAgain=${ended ? null : (text) => this.send(text, "")}>
          ${ended && html`<${Ended} session=${session} sb=${own} onProblem=${(p) => this.setState({ problem: p })} />`}
          ${!ended && own && own.id !== sb.id && html`<${Notice} kind="note" title=${sb.state === "creating" ? "A new sandbox is being created for this session." : "This session goes on in a new sandbox."}><span>The files and the conversation are there; processes of the old one are not.</span></${Notice}>`}
        </${Log}>
        <div class="dock">
          ${asleep && html`<${Asleep} sb=${sb} busy=${busy} onProblem=${(p) => this.setState({ problem: p })} />`}
          ${busy && !asleep && last && !last.end && html`<${Activity} turn=${last} cwd=${cwd} heard=${feed.heard.value} onStop=${this.stop} stopping=${stopping} />`}
          ${problem && html`<${ProblemNotice} ...${problem} />`}
          <${Asks} session=${session} log=${log} cwd=${cwd} />
          <${Queue} session=${session} queued=${queued} entries=${waiting} why=${why} onEdit=${(text) => this.setState({ put: { text } })} onProblem=${(p) => this.setState({ problem: p })} />
          <${Composer} scope=${id} focus modes settings=${{ mode: session.permission_mode, model: session.model }} onSettings=${this.settings} put=${put} busy=${busy} onStop=${this.stop} onSend=${this.send} onUp=${this.editLast}
            hint=${busy ? "Enter queues your message" : ""} placeholder=${ended ? "Writing here starts a new sandbox and continues" : "Reply to Claude"} />
        </div>
        ${timing && sb && html`<${TimeDialog} sb=${sb} onClose=${() => this.setState({ timing: false })} />`}
      </section>${route.value.panel && html`<${Panel} base=${`/session/${id}`} sb=${sb} />`}</div>`;
  }
}

// Asleep says that the sandbox is suspended, and wakes it.
function Asleep({ sb, busy, onProblem }) {
  const title = { suspending: "The sandbox is being suspended.", suspended: "The sandbox is suspended.", resuming: "The sandbox is being resumed." }[sb.state];
  return html`<${Notice} kind="note" icon="clock" title=${title} acts=${sb.state === "suspended" && html`<${Busy} class="btn small go" onProblem=${(problem) => onProblem({ title: "The sandbox could not be resumed.", problem })} onClick=${() => resume(sb.id)}>Resume</${Busy}>`}>
    <span>${busy ? "Claude goes on with this turn when it is resumed." : "What you write is sent when it is resumed."}</span></${Notice}>`;
}

// Ended says that the session's sandbox is no more, why, what is kept, and how to go on.
function Ended({ session, sb, onProblem }) {
  const [making, setMaking] = useState(false);
  useEffect(() => {
    if (!sb && session.sandbox) store.readSandbox(session.sandbox).catch(() => {});
  }, [session.sandbox]);
  const fail = (title) => (problem) => onProblem({ title, problem });
  const go = async () => {
    setMaking(true);
    onProblem(null);
    try {
      await continueSession(session, sb);
    } finally {
      setMaking(false);
    }
  };
  const kept = (sign, name, text) => html`<div><b><${Icon} name=${sign} small />${name}</b><span>${text}</span></div>`;
  if (!sb) {
    return html`<${Notice} title="This session's sandbox is not known any more." acts=${html`<${Busy} class="btn go" onProblem=${fail("The sandbox could not be created.")} onClick=${() => newSandbox()}>New sandbox</${Busy}>`}>
      <span>The conversation can be read, but not continued.</span></${Notice}>`;
  }
  return html`<${Notice} kind=${sb.state === "error" ? "bad" : ""} role="status" title=${sb.state === "error" ? "This session’s sandbox failed." : "This session’s sandbox has stopped."} acts=${html`
      <${Busy} class="btn go" onProblem=${fail("A new sandbox could not be created.")} onClick=${go}>${making ? "Starting …" : "Continue here"}</${Busy}>
      <${Busy} class="btn" onProblem=${fail("The sandbox could not be created.")} onClick=${() => newSandbox(askedOf(sb))} title="A new session on the same files">New sandbox</${Busy}>`}>
    <span>${sentence(sb.reason) || "No reason is known."}${" "}A new one takes about a second:</span>
    <div class="restore">${kept("check", "Files", volumeName(sb.volume) === "unnamed" ? "its volume" : `volume ${sb.volume}`)}${kept("check", "Conversation", plural(session.turns, "turn"))}${kept("x", "Processes", "ended with the sandbox")}</div></${Notice}>`;
}
