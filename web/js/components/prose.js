// Markdown in the document. What Claude writes is never trusted: it is sanitised, its images don't load from elsewhere, its
// links open apart. A finished block is drawn once and its node is never touched again.

import "../../vendor/purify.js";
import { Component, createRef, html } from "../lib.js";
import { definitions, split, toHTML } from "../markdown.js";
import { highlight } from "../highlight.js";

const purify = globalThis.DOMPurify;

const RULES = {
  ALLOWED_TAGS: [
    "a", "abbr", "b", "blockquote", "br", "code", "dd", "del", "details", "div", "dl", "dt", "em", "h1", "h2", "h3", "h4", "h5", "h6",
    "hr", "i", "img", "ins", "kbd", "li", "mark", "ol", "p", "pre", "q", "s", "samp", "small", "span", "strong", "sub", "summary",
    "sup", "table", "tbody", "td", "th", "thead", "tr", "u", "ul", "var",
  ],
  ALLOWED_ATTR: ["align", "alt", "class", "colspan", "href", "open", "rowspan", "src", "start", "title"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  FORBID_TAGS: ["style", "form", "iframe"],
  RETURN_DOM_FRAGMENT: true,
};

const cache = new Map(); // HTML source → template
const KEEP = 600;

function template(block, defs) {
  const key = defs ? `${defs}\0${block}` : block;
  let made = cache.get(key);
  if (made) {
    cache.delete(key); // the newest stay
  } else {
    made = decorate(purify.sanitize(toHTML(block, defs), RULES));
  }
  cache.set(key, made);
  if (cache.size > KEEP) cache.delete(cache.keys().next().value);
  return made;
}

const el = (name, cls, ...children) => {
  const e = document.createElement(name);
  if (cls) e.className = cls;
  e.append(...children);
  return e;
};

// decorate adds what is ours, after the sanitiser, so that nothing in the text can look like it by accident.
function decorate(fragment) {
  for (const e of fragment.querySelectorAll("[class]")) {
    if (e.localName !== "code" || !/^language-[\w+#.-]+$/.test(e.className)) e.removeAttribute("class");
  }
  for (const img of fragment.querySelectorAll("img")) {
    if (/^(data:image\/(png|jpeg|gif|webp);|blob:)/.test(img.getAttribute("src") || "")) continue;
    const a = el("a", "", img.alt || "image");
    a.setAttribute("href", img.getAttribute("src") || "");
    img.replaceWith(a);
  }
  for (const a of fragment.querySelectorAll("a")) link(a);
  for (const t of fragment.querySelectorAll("table")) {
    const box = el("div", "scroll");
    box.tabIndex = 0;
    t.replaceWith(box);
    box.append(t);
  }
  for (const pre of fragment.querySelectorAll("pre")) {
    const code = pre.querySelector("code");
    const lang = code ? (/language-([\w+#.-]+)/.exec(code.className) || [])[1] || "" : "";
    const button = (act, words) => {
      const b = el("button", "", words);
      b.type = "button";
      b.dataset.act = act;
      return b;
    };
    const head = el("figcaption", "", el("span", "lang", lang || "text"), el("span", "acts", button("wrap", "Wrap"), button("copy", "Copy")));
    const figure = el("figure", "codeblock");
    pre.tabIndex = 0;
    pre.replaceWith(figure);
    figure.append(head, pre);
  }
  return fragment;
}

function link(a) {
  let url = null;
  try {
    url = new URL(a.getAttribute("href") || "", "sandbox:///");
  } catch {
    url = null;
  }
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) {
    // A path of the sandbox, or nonsense: there is nothing that it could open here.
    a.replaceWith(...a.childNodes);
    return;
  }
  a.target = "_blank";
  a.rel = "noopener noreferrer";
  if (url.host && !a.textContent.includes(url.host)) {
    a.append(" ", el("span", "host", url.host));
  }
}

// Block draws one block. Its children aren't the view library's: equal text leaves them as they are.
class Block extends Component {
  constructor(props) {
    super(props);
    this.box = createRef();
  }
  shouldComponentUpdate(next) {
    return next.text !== this.props.text || next.defs !== this.props.defs || next.done !== this.props.done;
  }
  componentDidMount() {
    this.draw();
  }
  componentDidUpdate(before) {
    if (before.text !== this.props.text || before.defs !== this.props.defs) this.draw();
    else if (this.props.done) highlight(this.box.current);
  }
  draw() {
    this.box.current.replaceChildren(template(this.props.text, this.props.defs).cloneNode(true));
    if (this.props.done) highlight(this.box.current);
  }
  render() {
    return html`<div class="md" ref=${this.box}></div>`;
  }
}

// Prose draws markdown text; while it streams, only its last block is drawn again.
export class Prose extends Component {
  shouldComponentUpdate(next) {
    return next.text !== this.props.text || next.streaming !== this.props.streaming;
  }
  render({ text, streaming, cut }) {
    const { blocks, open } = split(text);
    const defs = definitions(text);
    const last = blocks.length - 1;
    return html`<div class=${streaming ? "prose live" : "prose"}>
      ${cut && html`<p class="faint">… the beginning follows when this part is finished</p>`}
      ${blocks.map((b, i) => html`<${Block} key=${i} text=${b} defs=${defs} done=${!(streaming && open && i === last)} />`)}
    </div>`;
  }
}
