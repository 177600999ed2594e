// One terminal on the page: xterm.js, loaded when it is first needed, over the way that termlink.js makes.

import { link } from "./termlink.js";
import { openTerminal } from "./xterm-csp.js";

const COLORS = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];
const NARROW = { cols: 20, rows: 4 };

let library = null;

// load fetches the library, once.
function load() {
  library ||= (async () => {
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.href = "/vendor/xterm/xterm.css";
    const styled = new Promise((done, failed) => {
      sheet.onload = done;
      sheet.onerror = () => failed(new Error("the terminal's style sheet could not be loaded"));
    });
    document.head.append(sheet);
    const [xterm, fit] = await Promise.all([import("../vendor/xterm/xterm.js"), import("../vendor/xterm/addon-fit.js"), styled]);
    return { Terminal: xterm.Terminal, FitAddon: fit.FitAddon };
  })().catch((e) => {
    library = null; // the next try may do better
    throw e;
  });
  return library;
}

// theme reads the terminal's colours as the page's theme has them now.
function theme(box) {
  const probe = document.createElement("span");
  probe.hidden = true;
  box.append(probe);
  const value = (name) => {
    probe.style.color = `var(--${name})`;
    const [r, g, b] = getComputedStyle(probe).color.match(/[\d.]+/g).map(Number);
    return `#${[r, g, b].map((n) => Math.round(n).toString(16).padStart(2, "0")).join("")}`;
  };
  const t = { background: value("term-bg"), foreground: value("term-fg"), cursor: value("term-fg"), cursorAccent: value("term-bg"), selectionBackground: value("term-sel"),
    overviewRulerBorder: value("term-bg"), scrollbarSliderBackground: value("term-sel"), scrollbarSliderHoverBackground: value("ink-off"), scrollbarSliderActiveBackground: value("ink-3") };
  for (const c of COLORS) {
    t[c] = value(`term-${c}`);
    t[`bright${c[0].toUpperCase()}${c.slice(1)}`] = c === "black" ? value("ink-3") : c === "white" ? value("ink") : t[c];
  }
  probe.remove();
  return t;
}

// answering keeps a terminal from answering questions that it meets in what was written before it came.
function answering(term, isOld) {
  const p = term.parser;
  for (const id of [{ final: "c" }, { prefix: ">", final: "c" }, { prefix: "=", final: "c" }, { final: "n" }, { prefix: "?", final: "n" }, { prefix: ">", final: "q" },
    { intermediates: "$", final: "p" }, { prefix: "?", intermediates: "$", final: "p" }, { final: "t" }, { prefix: "?", final: "u" }]) p.registerCsiHandler(id, isOld);
  for (const id of [4, 10, 11, 12]) p.registerOscHandler(id, (data) => isOld() && data.endsWith("?"));
  p.registerDcsHandler({ intermediates: "$", final: "q" }, isOld);
}

// screen opens a terminal in box. options: what link takes, and onTitle(text), onLeave() (Ctrl Shift .), reader (for screen readers).
// It resolves to what can be done with it.
export async function screen(box, options) {
  const { Terminal, FitAddon } = await load();
  const css = getComputedStyle(document.documentElement);
  const term = new Terminal({
    fontFamily: css.getPropertyValue("--mono").trim(), fontSize: 12.5, lineHeight: 1.25, scrollback: 10_000, cursorBlink: !matchMedia("(prefers-reduced-motion: reduce)").matches,
    theme: theme(box), minimumContrastRatio: 4.5, screenReaderMode: Boolean(options.reader), macOptionIsMeta: true, overviewRuler: { width: 8 },
  });
  const fit = new FitAddon();
  term.loadAddon(fit);
  openTerminal(term, box);
  let old = false; // what is being drawn was written before we came
  let foreign = null; // the size that somebody else has given it
  let way = null;
  let gone = false;
  answering(term, () => old);

  const refit = () => {
    if (gone || !box.clientWidth || !box.clientHeight) return;
    const want = fit.proposeDimensions();
    if (!want || !want.cols) return;
    const cols = Math.max(NARROW.cols, want.cols);
    const rows = Math.max(NARROW.rows, want.rows);
    if (way) way.resize(cols, rows); // as a wish, when somebody else writes
    const size = foreign || { cols, rows };
    if (size.cols !== term.cols || size.rows !== term.rows) term.resize(size.cols, size.rows);
  };
  refit();

  // A paste goes in as fast as the program takes it.
  const queue = [];
  const encoder = new TextEncoder();
  const pump = () => {
    while (queue.length) {
      const n = Math.min(queue[0].length, way.room());
      if (n <= 0) return;
      if (!way.input(queue[0].subarray(0, n))) return;
      queue[0] = queue[0].subarray(n);
      if (!queue[0].length) queue.shift();
    }
  };
  const type = (bytes) => {
    if (!way || !way.writer || !bytes.length) return;
    queue.push(bytes);
    pump();
  };

  let ctrl = false;
  let alt = false;
  const onSticky = () => options.onSticky && options.onSticky({ ctrl, alt });
  term.onData((text) => {
    let s = text;
    if (ctrl && s.length === 1) s = String.fromCharCode(s.toUpperCase().charCodeAt(0) & 31);
    if (alt) s = `\x1b${s}`;
    if (ctrl || alt) {
      ctrl = alt = false;
      onSticky();
    }
    type(encoder.encode(s));
  });
  term.onBinary((s) => type(Uint8Array.from(s, (c) => c.charCodeAt(0))));
  term.onTitleChange((t) => options.onTitle && options.onTitle(t));
  term.attachCustomKeyEventHandler((e) => {
    if (e.ctrlKey && e.shiftKey && e.code === "Period") {
      e.preventDefault();
      if (e.type === "keydown" && options.onLeave) {
        term.textarea.dispatchEvent(new KeyboardEvent("keyup", { key: e.key, code: e.code })); // the real one comes when the focus is elsewhere
        options.onLeave();
      }
      return false;
    }
    if (e.ctrlKey && e.shiftKey && e.code === "KeyC" && term.hasSelection()) {
      e.preventDefault();
      if (e.type === "keydown") navigator.clipboard.writeText(term.getSelection()).catch(() => {}); // the browser's menu copies too
      return false;
    }
    return true;
  });

  way = link({
    ...options, cols: term.cols, rows: term.rows,
    onData: (bytes, history) => {
      term.write("", () => {
        old = history; // once all that came before is drawn
      });
      term.write(bytes, () => way.used(bytes.length));
    },
    onRoom: pump,
    onGap: (from, to) => term.write(`\r\n\x1b[2m── ${(to - from).toLocaleString("en")} bytes are missing here: the log was full ──\x1b[0m\r\n`),
    onWriter: (is) => {
      foreign = is ? null : foreign;
      term.options.disableStdin = !is;
      if (!is) queue.length = 0;
      refit();
      if (options.onWriter) options.onWriter(is);
    },
    onSize: (cols, rows) => {
      foreign = cols && rows ? { cols, rows } : null;
      refit();
    },
    onExit: (f) => {
      term.options.disableStdin = true;
      term.options.cursorBlink = false;
      if (options.onExit) options.onExit(f);
    },
  });

  const observer = new ResizeObserver(() => requestAnimationFrame(refit));
  observer.observe(box);
  const repaint = () => {
    term.options.theme = theme(box);
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", repaint);
  const themes = new MutationObserver(repaint);
  themes.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  const retry = () => !document.hidden && way.retry();
  for (const name of ["online", "pageshow"]) addEventListener(name, retry);
  document.addEventListener("visibilitychange", retry);

  return {
    focus: () => term.focus(),
    take: () => way.take(),
    // key sends what a key would, as the phone's key bar has it; Ctrl and Alt hold for the next one.
    key(name) {
      const app = term.modes.applicationCursorKeysMode;
      const arrow = (c) => `\x1b${app ? "O" : "["}${c}`;
      const keys = { esc: "\x1b", tab: "\t", up: arrow("A"), down: arrow("B"), right: arrow("C"), left: arrow("D"), intr: "\x03" };
      if (name === "ctrl") ctrl = !ctrl;
      else if (name === "alt") alt = !alt;
      else type(encoder.encode(alt ? `\x1b${keys[name]}` : keys[name]));
      if (name !== "ctrl" && name !== "alt") ctrl = alt = false;
      onSticky();
    },
    async paste() {
      term.paste(await navigator.clipboard.readText());
    },
    reader(on) {
      term.options.screenReaderMode = on;
    },
    close() {
      gone = true;
      way.close();
      observer.disconnect();
      themes.disconnect();
      dark.removeEventListener("change", repaint);
      for (const name of ["online", "pageshow"]) removeEventListener(name, retry);
      document.removeEventListener("visibilitychange", retry);
      term.dispose();
    },
  };
}
