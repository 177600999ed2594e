import assert from "node:assert/strict";
import { test } from "node:test";
import { fold, plain, runs } from "../js/ansi.js";
import { definitions, split, toHTML } from "../js/markdown.js";
import { match } from "../js/router.js";

const blocks = (s) => split(s).blocks;

test("markdown is cut where more text can't change what was before", () => {
  assert.deepEqual(blocks("a\nb\n\nc"), ["a\nb", "c"]);
  assert.deepEqual(blocks("x\n```go\na\n\nb\n```\ny"), ["x", "```go\na\n\nb\n```", "y"]);
  assert.deepEqual(blocks("1. a\n\n2. b\n\n   more\n\nc"), ["1. a\n\n2. b\n\n   more", "c"]);
  assert.deepEqual(blocks("- a\n  ```\n  x\n\n  y\n  ```\n- b"), ["- a\n  ```\n  x\n\n  y\n  ```\n- b"]);
  assert.deepEqual(blocks("````\n```\nx\n````\nz"), ["````\n```\nx\n````", "z"]);
  assert.deepEqual(blocks(""), []);
});

test("only the last block is open, and text that grows changes no block before", () => {
  const text = "# Title\n\nSome *words*.\n\n1. one\n2. two\n\n```js\nlet a = 1;\n\nlet b;\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nEnd.";
  let before = [];
  for (let i = 1; i <= text.length; i++) {
    const now = split(text.slice(0, i)).blocks;
    assert.deepEqual(now.slice(0, before.length - 1), before.slice(0, -1));
    before = now;
  }
  assert.equal(split("```js\nlet a").open, true);
  assert.equal(split("```js\nlet a\n```").open, false);
});

test("code is escaped and named by its language; an unclosed fence is code already", () => {
  assert.equal(toHTML("```go\na < b"), '<pre><code class="language-go">a &lt; b</code></pre>\n');
  assert.equal(toHTML('```"><x\nq\n```'), '<pre><code class="language-x">q</code></pre>\n');
  assert.match(toHTML("- [x] done"), /☑ done/);
});

test("HTML is shown, not done, but for plain tags", () => {
  assert.equal(toHTML("a<br>b <kbd>x</kbd>").trim(), "<p>a<br>b <kbd>x</kbd></p>");
  for (const bad of ["<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "<style>*{}</style>", "text <a href='javascript:x' onclick=y>z</a>", "<b onclick=x>", "<div\nonclick=x>y"]) {
    assert.doesNotMatch(toHTML(bad), /<(?!\/?p>)/, bad);
  }
});

test("links may be defined in another block", () => {
  const text = "See [it].\n\n[it]: https://example.org";
  assert.match(toHTML(blocks(text)[0], definitions(text)), /href="https:\/\/example\.org"/);
});

test("colours of a terminal become classes, everything else goes", () => {
  assert.deepEqual(runs("a\x1b[31mb\x1b[1mc\x1b[0md"), [{ text: "a", cls: "" }, { text: "b", cls: "a-red" }, { text: "c", cls: "a-red a-bold" }, { text: "d", cls: "" }]);
  assert.equal(plain("\x1b]0;title\x07x\x1b[2K\x1b[38;5;208my\x1b[mz"), "xyz");
  assert.equal(plain("10%\r20%\r100%\nnext\r\n"), "100%\nnext\n");
});

test("long output shows its first and last lines", () => {
  const text = Array.from({ length: 212 }, (_, i) => `line ${i + 1}`).join("\n");
  const f = fold(text);
  assert.deepEqual([f.head.split("\n").length, f.tail.split("\n").length, f.hidden, f.lines], [4, 12, 196, 212]);
  assert.equal(fold(text, true).hidden, 0);
  assert.equal(fold("a\nb\n").tail, "");
  assert.ok(fold("x".repeat(1 << 20)).head.length < 3000, "a giant line is cut");
});

test("addresses", () => {
  assert.deepEqual([match("/").name, match("/session/ses_1").id, match("/sandbox/sbx_2").name, match("/signin", "?error=expired").query.get("error"), match("/docs").name], ["home", "ses_1", "sandbox", "expired", "lost"]);
});
