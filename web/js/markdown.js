// Markdown, cut into blocks that can be drawn once and left alone. DOM-free: the document's side is in prose.js.

import { Marked } from "../vendor/marked.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const LIST = /^ {0,3}(?:[-*+]|\d{1,9}[.)])(?:\s|$)/;
const DEFINITION = /^ {0,3}\[[^\]]+\]:\s+\S+.*$/gm;

// split cuts text at the ends of its stable blocks: a blank line outside a fence, the end of a fence, the end of a list.
// All blocks but the last are done: more text can't change them. A list goes on over blank lines, as long as items or
// indented lines follow, or its numbers would start again.
export function split(text) {
  const lines = text.split("\n");
  const blocks = [];
  let block = [];
  let fence = null;
  let list = false;
  const close = () => {
    while (block.length && block[block.length - 1].trim() === "") block.pop();
    if (block.length) blocks.push(block.join("\n"));
    block = [];
    list = false;
  };
  for (let i = 0; i < lines.length; i++) {
    const l = lines[i];
    const open = FENCE.exec(l);
    if (fence) {
      block.push(l);
      if (open && open[1][0] === fence[0] && open[1].length >= fence.length && open[2].trim() === "") {
        fence = null;
        if (!list) close();
      }
      continue;
    }
    // An indented fence in a list belongs to its item; there the end of the fence ends no block.
    const inner = list && /^\s*(`{3,}|~{3,})/.exec(l);
    if (open || inner) {
      const indented = /^\s/.test(l);
      if (!(list && indented)) close();
      fence = (open || inner)[1];
      block.push(l);
      continue;
    }
    if (l.trim() === "") {
      if (!list) {
        close();
        continue;
      }
      let next = i + 1;
      while (next < lines.length && lines[next].trim() === "") next++;
      if (next >= lines.length || LIST.test(lines[next]) || /^\s/.test(lines[next])) block.push(l);
      else close();
      continue;
    }
    if (!block.length) list = LIST.test(l);
    block.push(l);
  }
  const wasOpen = block.length > 0;
  close();
  return { blocks, open: wasOpen || fence !== null };
}

// definitions collects link references, which a block may use though another holds them.
export const definitions = (text) => (text.includes("]:") ? (text.match(DEFINITION) || []).join("\n") : "");

const escape = (s) => s.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

// HTML in the text is shown as it was written, but for plain tags without attributes: so it can't do anything, and what the
// sanitiser gets is our own.
const PLAIN = /^<\/?(?:b|br|code|del|details|em|hr|i|ins|kbd|mark|p|s|strong|sub|summary|sup|u)\s*\/?>$/i;
const tame = (text) => text.replace(/<!--[\s\S]*?(?:-->|$)/g, "").replace(/<[^<>]*>?/g, (tag) => (PLAIN.test(tag) ? tag : escape(tag)));

const marked = new Marked({
  gfm: true,
  renderer: {
    // The box of a task list is a sign here, not an input that looks as if it could be pressed.
    checkbox({ checked }) {
      return checked ? "☑ " : "☐ ";
    },
    html({ text }) {
      return tame(text);
    },
    code({ text, lang }) {
      const name = (lang || "").trim().split(/\s+/)[0].replace(/[^\w+#.-]/g, "");
      return `<pre><code${name ? ` class="language-${name}"` : ""}>${escape(text)}</code></pre>\n`;
    },
  },
});

// toHTML gives a block's HTML, not yet sanitised.
export function toHTML(block, defs = "") {
  return marked.parse(defs && !block.startsWith(defs) ? `${block}\n\n${defs}` : block, { async: false });
}
