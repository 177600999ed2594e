// The frame around every page: sidebar, bands, tab bar on phones, and the sheet that asks to sign in again.

import { cx, html, useEffect, useState } from "../lib.js";
import * as store from "../store.js";
import * as outbox from "../outbox.js";
import { live, nextSandbox, signOut } from "../actions.js";
import { ago, clock, initials, plural } from "../format.js";
import { route } from "../router.js";
import { Icon, Mark, Pulse } from "./icons.js";
import { Dot } from "./bits.js";
import { KeyForm } from "./keyform.js";

const WANTS = { tool: "Needs your OK", question: "Has a question", plan: "Plan ready to read" };

// needsYou says whether a session waits for a person.
export const needsYou = (s) => s.state === "waiting";

// sessionMark says how a session stands: {dot, word, sub}.
export function sessionMark(s, t) {
  const sb = nextSandbox(s);
  const where = sb ? sb.name : "";
  const asleep = sb && ["suspending", "suspended", "resuming"].includes(sb.state);
  if (needsYou(s)) return { dot: "ask", word: "Needs you", sub: `${WANTS[(s.prompts && s.prompts[0] && s.prompts[0].kind) || "tool"] || WANTS.tool} · ${where || "sandbox"}`, need: true };
  if (s.busy && !asleep) return { dot: "run", word: "Working", sub: `Working · ${where || "sandbox"}` };
  if (outbox.forSession(s.id).some((e) => !e.problem)) return { dot: "busy", word: "Waiting to be sent", sub: `Message waits · ${where}` };
  if (sb && sb.state === "creating") return { dot: "busy", word: "Its sandbox is being created", sub: `Creating ${where}` };
  if (sb && sb.state === "suspended") return { dot: "idle", word: "Its sandbox is suspended", sub: `Suspended · ${where}` };
  if (live(sb)) return { dot: "idle", word: "Idle", sub: `Done ${ago(s.updated_at, t)} · ${where}` };
  if (sb && sb.state === "error") return { dot: "bad", word: "Its sandbox failed", sub: `Sandbox failed · ${where}` };
  return { dot: "off", word: "Ended", sub: `Ended · ${plural(s.turns, "turn")}` };
}

export function SessionList() {
  const list = store.sessions.value;
  const t = store.now.value;
  const here = route.value.name === "session" ? route.value.id : "";
  if (!list) return html`<div class="cap">Sessions</div><div class="sk side-sk" aria-hidden="true"><i class="b"></i><i class="c"></i><i class="b"></i></div>`;
  const keys = (e) => {
    if (e.key !== "ArrowDown" && e.key !== "ArrowUp") return;
    const links = [...e.currentTarget.querySelectorAll("a")];
    const i = links.indexOf(document.activeElement);
    const next = links[i + (e.key === "ArrowDown" ? 1 : -1)];
    if (i >= 0 && next) {
      e.preventDefault();
      next.focus();
    }
  };
  const need = list.filter(needsYou);
  const rest = list.filter((s) => !needsYou(s));
  const row = (s) => {
    const m = sessionMark(s, t);
    return html`<li key=${s.id}><a href=${`/session/${s.id}`} class=${s.id === here ? "on" : ""} aria-current=${s.id === here ? "page" : undefined} title=${s.title}>
        <${Dot} kind=${m.dot} word=${m.word} /><span class="two"><span class="cut">${s.title || "Untitled"}</span><span class=${cx("sub cut", m.dot === "bad" && "bad-t", m.need && "ask-t")}>${m.sub}</span></span></a></li>`;
  };
  return html`${need.length > 0 && html`<div class="cap">Needs you<span class="num">${need.length}</span></div>
    <ul class="sess need" aria-label="Sessions that need you" onKeyDown=${keys}>${need.map(row)}</ul>`}
    <div class="cap">Sessions</div>
    ${list.length === 0 && html`<p class="faint empty-line">Your conversations will be listed here.</p>`}
    <ul class="sess" aria-label="Sessions" onKeyDown=${keys}>${rest.map(row)}</ul>`;
}

const THEMES = { "": ["half", "Theme: as the system"], light: ["sun", "Theme: light"], dark: ["moon", "Theme: dark"] };
const NEXT = { "": "light", light: "dark", dark: "" };

function Theme() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme || "");
  const turn = () => {
    const next = NEXT[theme];
    if (next) document.documentElement.dataset.theme = next;
    else delete document.documentElement.dataset.theme;
    try {
      // Plain text, not JSON: theme.js reads it before anything else is loaded.
      if (next) localStorage.setItem("sandlot.theme", next);
      else localStorage.removeItem("sandlot.theme");
    } catch {
      // It lasts as long as the page.
    }
    setTheme(next);
  };
  return html`<button type="button" class="btn quiet small icon" aria-label=${`${THEMES[theme][1]}. Change`} title=${THEMES[theme][1]} onClick=${turn}><${Icon} name=${THEMES[theme][0]} /></button>`;
}

const LINE = { live: ["run", "Live"], connecting: ["busy", "Connecting"], broken: ["off", "Offline"] };

// Account tells who is signed in and how the connection is, with the theme and the way out.
export function Account() {
  const me = store.me.value;
  const [dot, word] = LINE[store.conn.value.state] || LINE.connecting;
  return html`<div class="me"><span class="face" aria-hidden="true">${initials(me && me.account_name)}</span><span class="cut who">${(me && me.account_name) || "—"}</span>
      <span class="live" role="status"><${Dot} kind=${dot} />${word}</span></div>
    <div class="me acts"><${Theme} /><button type="button" class="btn quiet small" onClick=${signOut}><${Icon} name="out" small /><span class="lab">Sign out</span></button></div>`;
}

function Sidebar() {
  const here = route.value.name;
  const alive = (store.sandboxes.value || []).filter(live).length;
  const link = (href, icon, words, on, n) => html`<a href=${href} class=${on ? "on" : ""} aria-current=${here === href.slice(1) ? "page" : undefined} title=${words}><${Icon} name=${icon} /><span class="lab">${words}</span>${n > 0 && html`<span class="num">${n}</span>`}</a>`;
  return html`<nav class="side" aria-label="Main">
    <a class="brand" href="/sandboxes" title="Sandlot"><${Mark} />Sandlot</a>
    <a class="btn new" href="/new" aria-current=${here === "new" ? "page" : undefined}><${Icon} name="plus" /><span class="lab">New session</span><kbd>N</kbd></a>
    <${SessionList} />
    <div class="foot"><div class="nav">${link("/sandboxes", "box", "Sandboxes", here === "sandboxes" || here === "sandbox", alive)}${link("/images", "layers", "Images", here === "images" || here === "image")}${link("/secrets", "key", "Secrets", here === "secrets")}</div>
      <${Account} /></div>
  </nav>`;
}

// Bands tell what is wrong with the connection, and that the model is a stand-in.
function Bands() {
  const h = store.health.value;
  const c = store.conn.value;
  const t = store.now.value;
  const back = store.back.value;
  const gone = c.state === "broken" || (c.state === "connecting" && c.ever);
  const long = gone && t - c.since > 2000;
  const last = store.lastAlive();
  return html`
    ${h && h.model === "demo" && html`<div class="band demo" role="note"><${Icon} name="info" /><span>Demo model: answers come from a script, not from Claude.</span></div>`}
    ${h && h.status === "failing" && html`<div class="band bad" role="alert"><${Icon} name="alert" /><span>The server can't work: ${h.problem || "it gave no reason."}</span></div>`}
    ${h && h.status === "starting" && html`<div class="band" role="status"><${Pulse} /><span>The server is starting. ${h.problem || ""}</span></div>`}
    ${long && html`<div class="band" role="status"><${Pulse} /><span>Reconnecting. ${last ? `Last update ${clock(t - last)} ago; ` : ""}Claude goes on.</span><button type="button" class="btn small" onClick=${store.reconnect}>Retry now</button></div>`}
    ${!long && back && html`<div class="band back" role="status"><${Icon} name="check" /><span>Back. ${plural(back.n, "event")} replayed.</span></div>`}`;
}

function Tabs() {
  const here = route.value.name;
  const tab = (href, icon, words, on) => html`<a href=${href} class=${on ? "on" : ""} aria-current=${on ? "page" : undefined}><${Icon} name=${icon} />${words}</a>`;
  return html`<nav class="tabbar" aria-label="Sections">
    ${tab("/sessions", "chat", "Sessions", ["session", "sessions", "home"].includes(here))}${tab("/new", "plus", "New", here === "new")}
    ${tab("/sandboxes", "box", "Sandboxes", here === "sandboxes" || here === "sandbox")}${tab("/images", "layers", "Images", ["images", "image", "secrets"].includes(here))}</nav>`;
}

// Again is the sheet over the kept page when the sign-in has run out. The page, its drafts and its place stay.
function Again() {
  return html`<div class="over" role="dialog" aria-modal="true" aria-labelledby="again"><div class="again"><div class="form">
    <h2 id="again">Your session ended. Sign in to go on.</h2><p class="dim">What you typed is kept. You come back to this very place.</p>
    <${KeyForm} focus onDone=${() => store.enter()} /></div></div></div>`;
}

export function Frame({ children }) {
  // iOS doesn't shrink the page for its keyboard; the part that can be seen is told to the style sheet.
  useEffect(() => {
    const v = window.visualViewport;
    if (!v) return undefined;
    const fit = () => document.documentElement.style.setProperty("--vvh", `${Math.round(v.height)}px`);
    fit();
    v.addEventListener("resize", fit);
    return () => v.removeEventListener("resize", fit);
  }, []);
  return html`<div class="app" inert=${store.signedOut.value}><a class="skip-link" href="#main">Skip to the page</a><${Sidebar} />
    <main class="main" id="main"><${Bands} />${children}</main><${Tabs} /></div>
    ${store.signedOut.value && html`<${Again} />`}`;
}

