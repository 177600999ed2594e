// Where it all starts: sign-in, routes, keys, and the delegated buttons of code blocks.

import { Component, effect, html, render, useEffect } from "./lib.js";
import * as api from "./api.js";
import * as outbox from "./outbox.js";
import * as store from "./store.js";
import { copy } from "./actions.js";
import { nameOf } from "./catalog.js";
import { go, route, start as startRouter } from "./router.js";
import { clip } from "./format.js";
import { Dialog, ProblemNotice } from "./components/bits.js";
import { Frame, needsYou } from "./components/frame.js";
import { Home } from "./routes/home.js";
import { Image, Images } from "./routes/images.js";
import { Lost } from "./routes/lost.js";
import { New } from "./routes/new.js";
import { Sandbox } from "./routes/sandbox.js";
import { Sandboxes } from "./routes/sandboxes.js";
import { Secrets } from "./routes/secrets.js";
import { Session } from "./routes/session.js";
import { Sessions } from "./routes/sessions.js";
import { SignIn } from "./routes/signin.js";

const KEYS = [
  ["N", "New session"], ["C", "New sandbox, with options"], ["G then S", "Sessions"], ["G then B", "Sandboxes"], ["G then I", "Images"], ["[ and ]", "Question before, after"],
  ["⌘ . or Ctrl .", "To what Claude asks; then 1 once, 2 session, 3 deny"], ["Esc", "Stop Claude"], ["Enter", "Send; while Claude works: queue"], ["⇧ Enter", "New line"], ["↑ in an empty field", "Edit the queued message"], ["⌘ Enter, Ctrl Enter", "Send a form"], ["?", "This list"],
];

function title(r) {
  const name = (() => {
    switch (r.name) {
      case "session": {
        const s = (store.sessions.value || []).find((x) => x.id === r.id);
        return (s && s.title && clip(s.title, 60)) || "Session";
      }
      case "sandbox": {
        const sb = store.sandboxOf(r.id);
        return (sb && sb.name) || "Sandbox";
      }
      case "sandboxes":
        return "Sandboxes";
      case "sessions":
        return "Sessions";
      case "images":
        return "Images";
      case "image":
        return nameOf(r.id) || "Image";
      case "secrets":
        return "Secrets";
      case "new":
        return "New session";
      case "signin":
        return "Sign in";
      case "home":
        return "Welcome";
      default:
        return "Not found";
    }
  })();
  const need = (store.sessions.value || []).filter(needsYou).length;
  return `${need ? `◆ ${need} · ` : ""}${name} · Sandlot`;
}

// Start leads from "/" to the session that was used last, if there is one.
function Start() {
  const list = store.sessions.value || [];
  useEffect(() => {
    if (list.length) go(`/session/${list[0].id}`, { replace: true });
  }, [list.length > 0]);
  return list.length ? null : html`<${Home} />`;
}

function Page() {
  const r = route.value;
  switch (r.name) {
    case "home":
      return html`<${Start} />`;
    case "new":
      return html`<${New} />`;
    case "sessions":
      return html`<${Sessions} />`;
    case "session":
      return html`<${Session} key=${r.id} id=${r.id} />`;
    case "sandboxes":
      return html`<${Sandboxes} />`;
    case "sandbox":
      return html`<${Sandbox} key=${r.id} id=${r.id} />`;
    case "images":
      return html`<${Images} />`;
    case "image":
      return html`<${Image} key=${r.id} id=${r.id} />`;
    case "secrets":
      return html`<${Secrets} />`;
    default:
      return html`<${Lost} />`;
  }
}

class App extends Component {
  constructor(props) {
    super(props);
    this.state = { ready: false, problem: null, keys: false, broken: null };
    this.pending = "";
  }

  componentDidMount() {
    this.enter();
    document.addEventListener("keydown", (e) => this.key(e));
  }

  componentDidCatch(error) {
    this.setState({ broken: error });
  }

  enter = async () => {
    store.loadHealth();
    try {
      if (route.value.name === "signin" && route.value.query.get("error") !== null && !store.me.value) {
        this.setState({ ready: true });
        return;
      }
      if (!(await store.enter())) {
        this.next = route.value.name === "signin" ? "/" : location.pathname + location.search;
        go("/signin", { replace: true });
      } else if (route.value.name === "signin") {
        go(this.next || "/", { replace: true });
      }
      this.setState({ ready: true, problem: null });
    } catch (problem) {
      this.setState({ problem });
      clearTimeout(this.timer);
      this.timer = setTimeout(this.enter, 2000);
    }
  };

  key(e) {
    if (e.defaultPrevented || e.ctrlKey || e.metaKey || e.altKey || e.isComposing || !store.me.value || store.signedOut.value) return;
    if (/^(INPUT|TEXTAREA|SELECT)$/.test(e.target.tagName) || e.target.isContentEditable || document.querySelector("dialog[open]")) return;
    const act = this.pending === "g" ? { s: () => go("/sessions"), b: () => go("/sandboxes"), i: () => go("/images") }[e.key] : { n: () => go("/new"), c: () => go("/sandboxes?new"), "?": () => this.setState({ keys: true }) }[e.key];
    this.pending = this.pending === "g" ? "" : e.key === "g" ? "g" : "";
    if (!act) return;
    e.preventDefault();
    act();
  }

  render(_, { ready, problem, keys, broken }) {
    const r = route.value;
    if (broken) {
      return html`<main class="page"><div class="hello"><${ProblemNotice} title="This page has a fault of its own." problem=${{ detail: `${broken.message || broken}. What you typed is kept; reload to go on.`, code: "ui_fault" }}
        acts=${html`<button type="button" class="btn small" onClick=${() => location.reload()}>Reload the page</button>`} /></div></main>`;
    }
    if (!ready) {
      return html`<main class="page" aria-busy="true"><div class="hello">${problem && html`<${ProblemNotice} title="The server could not be read." problem=${problem} acts=${html`<button type="button" class="btn small" onClick=${this.enter}>Try again</button>`} />`}</div></main>`;
    }
    if (r.name === "signin" || !store.me.value) return html`<${SignIn} onDone=${async () => { await store.enter(); go(this.next || "/", { replace: true }); }} />`;
    return html`<${Frame}><${Page} /></${Frame}>
      ${keys && html`<${Dialog} title="Keys" onClose=${() => this.setState({ keys: false })} acts=${html`<button type="button" class="btn" onClick=${() => this.setState({ keys: false })}>Close</button>`}>
        <dl class="facts">${KEYS.map(([k, v]) => html`<div key=${k}><dt><kbd>${k}</kbd></dt><dd>${v}</dd></div>`)}</dl></${Dialog}>`}`;
  }
}

// The buttons in code blocks are made by the markdown's drawing, so they are served here for all.
document.addEventListener("click", async (e) => {
  const b = e.target.closest && e.target.closest(".codeblock button[data-act]");
  if (!b) return;
  const figure = b.closest(".codeblock");
  if (b.dataset.act === "wrap") {
    b.setAttribute("aria-pressed", String(figure.classList.toggle("wrapped")));
  } else if (await copy(figure.querySelector("pre").textContent.replace(/\n$/, ""))) {
    b.textContent = "Copied";
    setTimeout(() => { b.textContent = "Copy"; }, 1500);
  }
});

api.onSignedOut(() => {
  if (store.me.value) store.signedOut.value = true;
});

effect(() => {
  document.title = title(route.value);
});

startRouter();
outbox.start(effect);
render(html`<${App} />`, document.getElementById("app"));
