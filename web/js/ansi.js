// Terminal output as lines of coloured runs, without a document.

const NAMES = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];

// runs splits text at its colour codes: [{text, cls}]. Other escape sequences are dropped; what a carriage return
// overwrote is dropped too, as a terminal would.
export function runs(text) {
  if (text.includes("\r")) {
    text = text
      .replace(/\r+\n/g, "\n")
      .split("\n")
      .map((l) => l.slice(l.lastIndexOf("\r", l.length - 2) + 1).replace(/\r$/, ""))
      .join("\n");
  }
  if (!text.includes("\x1b")) return text ? [{ text, cls: "" }] : [];
  const out = [];
  let color = "";
  let bold = false;
  let dim = false;
  const push = (s) => {
    if (s) out.push({ text: s, cls: [color && `a-${color}`, bold && "a-bold", dim && "a-dim"].filter(Boolean).join(" ") });
  };
  // CSI … letter, OSC … BEL or ST, or a two-byte escape.
  const escape = /\x1b(?:\[([0-9;:?<=>]*)[ -/]*([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_=>()].?)/g;
  let at = 0;
  for (let m = escape.exec(text); m; m = escape.exec(text)) {
    push(text.slice(at, m.index));
    at = m.index + m[0].length;
    if (m[2] !== "m") continue;
    const codes = (m[1] || "0").split(/[;:]/).map(Number);
    for (let i = 0; i < codes.length; i++) {
      const c = codes[i];
      if (c === 0) [color, bold, dim] = ["", false, false];
      else if (c === 1) bold = true;
      else if (c === 2) dim = true;
      else if (c === 22) [bold, dim] = [false, false];
      else if (c >= 30 && c <= 37) color = NAMES[c - 30];
      else if (c >= 90 && c <= 97) color = NAMES[c - 90];
      else if (c === 39) color = "";
      else if (c === 38 || c === 48) i += codes[i + 1] === 5 ? 2 : 4;
    }
  }
  push(text.slice(at));
  return out;
}

// plain is text without escape sequences.
export const plain = (text) => runs(text).map((r) => r.text).join("");

const HEAD = 4;
const TAIL = 12;
const LONGEST = 2000;

// fold shortens long output to its first and last lines. It returns {head, tail, hidden, lines, bytes}; tail is "" and
// hidden 0 when all of it is in head. One giant line is cut, so that it can't freeze the page.
export function fold(text, all = false) {
  const lines = text.replace(/\n+$/, "").split("\n");
  const cut = (l) => (l.length > LONGEST ? `${l.slice(0, LONGEST)} … ${l.length - LONGEST} more characters` : l);
  if (all || lines.length <= HEAD + TAIL + 1) {
    // Even opened, a page holds at most this much; the rest is had by Copy.
    const most = 4000;
    const shown = lines.length > most ? lines.slice(lines.length - most) : lines;
    return { head: shown.map(cut).join("\n"), tail: "", hidden: lines.length - shown.length, lines: lines.length, size: text.length };
  }
  return {
    head: lines.slice(0, HEAD).map(cut).join("\n"),
    tail: lines.slice(-TAIL).map(cut).join("\n"),
    hidden: lines.length - HEAD - TAIL,
    lines: lines.length,
    size: text.length,
  };
}
