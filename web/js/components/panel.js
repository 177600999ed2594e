// The panel at the right of a conversation, over it where there is less room. What it shows stands in the address.

import { cx, html, useEffect, useRef, useState } from "../lib.js";
import * as local from "../local.js";
import { go, route } from "../router.js";
import { Files } from "./files.js";
import { Terminals } from "./terminals.js";
import { Icon } from "./icons.js";
import { Notice } from "./bits.js";

const LEAST = 320;
const WIDE = 468;

// openFile puts the open file into the address; "" = none.
export function openFile(at, replace = false) {
  const q = new URLSearchParams(location.search);
  if (at) q.set("file", at);
  else q.delete("file");
  go(`${location.pathname}${q.size ? `?${q}` : ""}`, { replace });
}

const PANELS = { files: { words: "Files", icon: "folder" }, terminal: { words: "Terminal", icon: "term" } };

export const PanelButton = ({ base }) => Object.entries(PANELS).map(([name, { words, icon }]) => {
  const on = route.value.panel === name;
  return html`<a key=${name} class="btn quiet small" href=${on ? base : `${base}/${name}`} aria-pressed=${String(on)} title=${on ? "Close the panel" : `${words} of the sandbox`}><${Icon} name=${icon} small />${words}</a>`;
});

export function Panel({ base, sb }) {
  const [width, setWidth] = useState(() => local.get("panel", WIDE));
  const box = useRef();
  const fit = (w) => Math.round(Math.max(LEAST, Math.min(w, innerWidth * 0.6)));
  const set = (w) => {
    setWidth(fit(w));
    local.set("panel", fit(w));
  };
  useEffect(() => {
    if (box.current) box.current.style.setProperty("--panel", `${width}px`);
  }, [width]);
  const drag = (e) => {
    e.preventDefault();
    const bar = e.currentTarget;
    const right = box.current.getBoundingClientRect().right;
    const to = (m) => set(right - m.clientX);
    bar.setPointerCapture(e.pointerId);
    bar.addEventListener("pointermove", to);
    bar.addEventListener("lostpointercapture", () => bar.removeEventListener("pointermove", to), { once: true });
  };
  const keys = (e) => {
    const step = { ArrowLeft: 24, ArrowRight: -24 }[e.key];
    if (!step) return;
    e.preventDefault();
    set(width + step);
  };
  const escape = (e) => {
    if (e.key !== "Escape" || e.defaultPrevented) return;
    e.preventDefault(); // which would stop Claude
    go(base);
  };
  const runs = sb && sb.state === "running";
  const what = PANELS[route.value.panel] ? route.value.panel : "files";
  const kept = what === "files"
    ? { suspended: "Its files can be seen when it is resumed.", creating: "Its files can be seen in a moment." }[sb && sb.state] || "Its files are kept on its volume; a new sandbox shows them again."
    : { suspended: "Its terminals go on when it is resumed.", creating: "A terminal can be opened in a moment." }[sb && sb.state] || "Its terminals have ended with it; a new sandbox has its own.";
  return html`<aside class="panel" ref=${box} aria-label=${PANELS[what].words} onKeyDown=${escape}>
    <div class="sizer" role="separator" aria-orientation="vertical" aria-label="Width of the panel" aria-valuemin=${LEAST} aria-valuenow=${width} tabindex="0" onPointerDown=${drag} onKeyDown=${keys}></div>
    <div class="panel-head"><a class="btn quiet icon only-phone" href=${base} aria-label="Back to the conversation"><${Icon} name="back" /></a><nav class="panel-tabs" aria-label="Panel">${Object.entries(PANELS).map(([name, { words }]) => html`<a key=${name} href=${`${base}/${name}`} aria-current=${name === what ? "page" : undefined}>${words}</a>`)}</nav><span class="grow"></span>
      <a class="btn quiet icon small no-phone" href=${base} aria-label="Close the panel" title="Close the panel"><${Icon} name="x" /></a></div>
    ${!runs && html`<div class="panel-body"><${Notice} title=${sb ? "The sandbox is not running." : "There is no sandbox."}><span>${kept}</span></${Notice}></div>`}
    ${runs && what === "files" && html`<${Files} key=${sb.id} sb=${sb} open=${route.value.query.get("file") || ""} onOpen=${openFile} />`}
    ${runs && what === "terminal" && html`<${Terminals} key=${sb.id} sb=${sb} />`}
  </aside>`;
}

// FilesBlock shows the files on the page of a sandbox, once they are asked for.
export function FilesBlock({ sb }) {
  const q = route.value.query;
  const on = q.get("files") !== null;
  const turn = () => go(on ? `/sandbox/${sb.id}` : `/sandbox/${sb.id}?files`);
  return html`<div class="block"><div class="bh"><h2>Files</h2><span class="end"><button type="button" class="link" aria-expanded=${String(on)} onClick=${turn}>${on ? "Hide" : "Show"}<span class="vh"> the files</span></button></span></div>
    ${on && html`<div class=${cx("files-box", q.get("file") && "tall")}><${Files} key=${sb.id} sb=${sb} open=${q.get("file") || ""} onOpen=${openFile} /></div>`}</div>`;
}

// TerminalBlock shows the terminals on the page of a sandbox, once they are asked for.
export function TerminalBlock({ sb }) {
  const on = route.value.panel === "terminal";
  return html`<div class="block"><div class="bh"><h2>Terminal</h2><span class="end"><button type="button" class="link" aria-expanded=${String(on)} onClick=${() => go(`/sandbox/${sb.id}${on ? "" : "/terminal"}`)}>${on ? "Hide" : "Show"}<span class="vh"> the terminal</span></button></span></div>
    ${on && html`<div class="term-block"><${Terminals} key=${sb.id} sb=${sb} /></div>`}</div>`;
}
