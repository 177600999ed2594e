import assert from "node:assert/strict";
import { test } from "node:test";
import { addressOf, childOf, differences, languageOf, parentOf, pathOf, textOf, Tree, typed, within, wrongName } from "../js/tree.js";

const file = (path, more = {}) => ({ name: path.slice(path.lastIndexOf("/") + 1), path, type: "file", size: 1, ...more });
const dir = (path) => file(path, { type: "directory" });
const names = (t) => t.rows().map((r) => `${"  ".repeat(r.level - 1)}${r.more ? "…" : r.node.file.name}`);

// tree is /w with a folder that is open and one that was never read.
function tree() {
  const t = new Tree("/w");
  t.fill("/w", { entries: [file("/w/b10"), file("/w/b9"), dir("/w/open"), dir("/w/closed"), file("/w/A")] });
  t.get("/w/open").open = true;
  t.fill("/w/open", { entries: [file("/w/open/x"), dir("/w/open/deep")] });
  return t;
}

test("folders come first, names as people sort them", () => {
  assert.deepEqual(names(tree()), ["closed", "open", "  deep", "  x", "A", "b9", "b10"]);
  const row = tree().rows()[3];
  assert.deepEqual([row.level, row.pos, row.size], [2, 2, 2]);
});

test("what happens is shown where it was read, and nowhere else", () => {
  const t = tree();
  t.apply("created", { file: file("/w/open/new") });
  t.apply("created", { file: file("/w/closed/unseen") });
  t.apply("modified", { file: file("/w/A", { size: 7 }) });
  t.apply("removed", { file: file("/w/b9") });
  assert.deepEqual(names(t), ["closed", "open", "  deep", "  new", "  x", "A", "b10"]);
  assert.equal(t.get("/w/A").file.size, 7);
  assert.equal(t.get("/w/closed").kids, null);
  t.apply("removed", { file: dir("/w/open") });
  assert.deepEqual(names(t), ["closed", "A", "b10"]);
  assert.equal(t.get("/w/open/x"), undefined);
});

test("a folder that is moved stays open, with what is in it", () => {
  const t = tree();
  t.apply("moved", { from: "/w/open", file: dir("/w/renamed") });
  assert.deepEqual(names(t), ["closed", "renamed", "  deep", "  x", "A", "b9", "b10"]);
  assert.equal(t.get("/w/renamed/x").file.path, "/w/renamed/x");
  t.apply("moved", { from: "/w/A", file: file("/w/renamed/A") });
  assert.deepEqual(names(t), ["closed", "renamed", "  deep", "  A", "  x", "b9", "b10"]);
  t.apply("moved", { from: "/elsewhere", file: file("/w/in") });
  t.apply("moved", { from: "/w/b9", file: file("/w/closed/b9") });
  t.apply("moved", { from: "/w/renamed/x", file: file("/w/b10", { size: 5 }) });
  assert.deepEqual(names(t), ["closed", "renamed", "  deep", "  A", "b10", "in"]);
  assert.equal(t.get("/w/b10").file.size, 5);
});

test("a file in a folder's place closes it, and what is read anew keeps what is open", () => {
  const t = tree();
  t.fill("/w", { entries: [dir("/w/open"), file("/w/closed")] });
  assert.deepEqual(names(t), ["open", "  deep", "  x", "closed"]);
  t.apply("created", { file: file("/w/open") });
  assert.deepEqual(names(t), ["closed", "open"]);
  assert.deepEqual(t.apply("resync", {}), ["/w"]);
});

test("pages of a large folder", () => {
  const t = new Tree("/");
  t.fill("/", { entries: [file("/b")], next_cursor: "c" });
  assert.deepEqual(names(t), ["b", "…"]);
  assert.equal(t.rows()[0].size, -1);
  t.fill("/", { entries: [file("/a"), file("/b")] }, false);
  assert.deepEqual(names(t), ["a", "b"]);
});

test("addresses hold every name", () => {
  assert.equal(addressOf(file("/w/a b#?%/ü")), "/w/a%20b%23%3F%25/%C3%BC");
  assert.equal(addressOf(file("/w/caf\ufffd", { escaped: "/w/caf%E9" })), "/w/caf%E9");
  assert.equal(pathOf("/w/caf%E9/a%20b"), "/w/caf%E9/a b");
  assert.equal(childOf("/", "x/y"), "/x%2Fy");
  assert.equal(childOf("/w", "100%"), "/w/100%25");
  assert.equal(parentOf("/w"), "/");
  assert.ok(within("/w/a", "/w") && within("/w", "/w") && within("/x", "/") && !within("/wa", "/w"));
});

test("letters lead to names", () => {
  const rows = tree().rows();
  assert.equal(typed(rows, 0, "b"), 5);
  assert.equal(typed(rows, 5, "b"), 6);
  assert.equal(typed(rows, 6, "b"), 5);
  assert.equal(typed(rows, 5, "b1"), 6);
  assert.equal(typed(rows, 0, "nothing"), -1);
});

test("text, and what isn't", () => {
  assert.equal(textOf(new TextEncoder().encode("ü\r\n")), "ü\r\n");
  assert.equal(textOf(new Uint8Array([0xef, 0xbb, 0xbf, 0x61])), "\ufeffa");
  assert.equal(textOf(new Uint8Array([0xff])), null);
  assert.equal(textOf(new Uint8Array([65, 0])), null);
  assert.equal(languageOf("a.test.GO"), "go");
  assert.equal(languageOf("Makefile"), "");
  for (const bad of ["", " ", ".", "..", "a/b", "a\0", "ü".repeat(128)]) assert.notEqual(wrongName(bad), "", bad);
  for (const good of ["a", "...", "-", "ü".repeat(127), "a\nb"]) assert.equal(wrongName(good), "", good);
});

test("differences between two texts", () => {
  const a = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
  assert.deepEqual(differences(a, a.replace("5", "five"), 1), [{ skip: 3 }, { sign: " ", text: "4" }, { sign: "-", text: "5" }, { sign: "+", text: "five" }, { sign: " ", text: "6" }, { skip: 4 }]);
  assert.deepEqual(differences("a", "a\nb"), [{ sign: " ", text: "a" }, { sign: "+", text: "b" }]);
  assert.deepEqual(differences("a", "a"), [{ skip: 1 }]);
  assert.deepEqual(differences("b\na", "a\nc"), [{ sign: "-", text: "b" }, { sign: " ", text: "a" }, { sign: "+", text: "c" }]);
  assert.equal(differences(Array.from({ length: 3000 }, (_, i) => `a${i}`).join("\n"), Array.from({ length: 3000 }, (_, i) => `b${i}`).join("\n")), null);
});
