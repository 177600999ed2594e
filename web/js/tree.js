// The files of a sandbox as a tree that is read bit by bit, and what happens to it. Nothing here touches the document or the network, so it is
// tested in node. A place is named by its address: its path percent-encoded, which holds names that are no text, too.

const encode = (path) => path.split("/").map(encodeURIComponent).join("/");

// addressOf is where an entry is; the server says it where JSON can't hold the name.
export const addressOf = (file) => file.escaped || encode(file.path);
export const addressOfPath = encode;

export const parentOf = (at) => at.slice(0, at.lastIndexOf("/")) || "/";
export const childOf = (at, name) => `${at === "/" ? "" : at}/${encodeURIComponent(name)}`;
export const within = (at, dir) => dir === "/" || at === dir || at.startsWith(`${dir}/`);

// pathOf is an address as people read it.
export function pathOf(at) {
  return at.split("/").map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  }).join("/");
}

// isFolder says whether there is something to open in it. A link to a folder is shown as a link.
export const isFolder = (file) => file.type === "directory";

const byName = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
export const inOrder = (a, b) => isFolder(b.file) - isFolder(a.file) || byName.compare(a.file.name, b.file.name) || (a.at < b.at ? -1 : 1);

// Tree holds what was read: at address → {at, file, kids: [addresses] or null, more: cursor, open, loading, problem}.
export class Tree {
  constructor(root) {
    this.root = root;
    this.nodes = new Map([[root, { at: root, file: { name: pathOf(root), path: pathOf(root), type: "directory" }, kids: null, open: true }]]);
  }

  get = (at) => this.nodes.get(at);

  // fill takes a page of a folder. The first replaces what was known, except of what is open below it.
  fill(at, list, first = true) {
    const dir = this.nodes.get(at);
    if (!dir) return;
    const fresh = new Set();
    for (const file of list.entries) {
      const a = addressOf(file);
      fresh.add(a);
      this.put(a, file);
    }
    if (first) for (const a of dir.kids || []) if (!fresh.has(a)) this.drop(a);
    dir.kids = first ? [...fresh] : [...new Set([...(dir.kids || []), ...fresh])];
    dir.more = list.next_cursor || "";
    this.sort(dir);
  }

  put(at, file) {
    const old = this.nodes.get(at);
    if (old && isFolder(old.file) === isFolder(file)) old.file = file;
    else {
      if (old) this.drop(at);
      this.nodes.set(at, { at, file, kids: null, open: false });
    }
    return this.nodes.get(at);
  }

  sort(dir) {
    dir.kids.sort((a, b) => inOrder(this.nodes.get(a), this.nodes.get(b)));
  }

  // add shows an entry in a folder that was read; in another it is found when that is opened.
  add(at, file) {
    const dir = this.nodes.get(parentOf(at));
    if (!dir || !dir.kids) return;
    this.put(at, file);
    if (!dir.kids.includes(at)) dir.kids.push(at);
    this.sort(dir);
  }

  drop(at) {
    for (const a of [...this.nodes.keys()]) if (within(a, at)) this.nodes.delete(a);
  }

  remove(at) {
    if (at === this.root) return;
    this.drop(at);
    const dir = this.nodes.get(parentOf(at));
    if (dir && dir.kids) dir.kids = dir.kids.filter((a) => a !== at);
  }

  // move takes what is known of a folder along.
  move(from, to, file) {
    const taken = [...this.nodes].filter(([a]) => within(a, from));
    this.remove(from);
    this.remove(to);
    const dir = this.nodes.get(parentOf(to));
    if (!dir || !dir.kids) return;
    const there = (a) => to + a.slice(from.length);
    for (const [a, n] of taken) {
      const path = a === from ? file : { ...n.file, path: pathOf(there(a)), escaped: n.file.escaped && there(a) };
      this.nodes.set(there(a), { ...n, at: there(a), file: path, kids: n.kids && n.kids.map(there) });
    }
    if (taken.length) {
      dir.kids.push(to);
      this.sort(dir);
    } else {
      this.add(to, file);
    }
  }

  // apply does what an event of the watch tells, and returns the folders that have to be read anew.
  apply(event, change) {
    const at = change.file ? addressOf(change.file) : "";
    switch (event) {
      case "created":
      case "modified":
        this.add(at, change.file);
        return [];
      case "removed":
        this.remove(at);
        return [];
      case "moved":
        this.move(change.from_escaped || encode(change.from), at, change.file);
        return [];
      case "ready":
      case "resync":
        return [...this.nodes.values()].filter((n) => n.kids).map((n) => n.at);
      default:
        return [];
    }
  }

  // rows are the entries that are shown, top to bottom: {node, level, pos, size, more}.
  rows() {
    const out = [];
    const walk = (at, level) => {
      const dir = this.nodes.get(at);
      if (!dir || !dir.kids) return;
      dir.kids.forEach((a, i) => {
        const node = this.nodes.get(a);
        if (!node) return;
        out.push({ node, level, pos: i + 1, size: dir.more ? -1 : dir.kids.length });
        if (node.open) walk(a, level + 1);
      });
      if (dir.more) out.push({ node: dir, level, more: true });
    };
    walk(this.root, 1);
    return out;
  }
}

// typed finds the row that typed letters lead to, from the one after `from`.
export function typed(rows, from, letters) {
  const fits = (r) => r && !r.more && r.node.file.name.toLowerCase().startsWith(letters.toLowerCase());
  for (let i = 1; i <= rows.length; i++) {
    const at = (from + (letters.length > 1 ? i - 1 : i) + rows.length) % rows.length;
    if (fits(rows[at])) return at;
  }
  return -1;
}

const LANGUAGES = {
  go: "go", js: "js", mjs: "js", cjs: "js", jsx: "js", ts: "ts", tsx: "ts", py: "py", rs: "rust", c: "c", h: "c", cc: "cpp", cpp: "cpp", hpp: "cpp", java: "java", sh: "sh", bash: "sh",
  css: "css", html: "html", htm: "html", xml: "xml", svg: "xml", json: "json", jsonl: "json", yaml: "yaml", yml: "yaml", md: "md", sql: "sql", diff: "diff", patch: "diff",
};
export const languageOf = (name) => LANGUAGES[name.slice(name.lastIndexOf(".") + 1).toLowerCase()] || "";

const PICTURES = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp", svg: "image/svg+xml", ico: "image/x-icon" };
export const pictureOf = (name) => PICTURES[name.slice(name.lastIndexOf(".") + 1).toLowerCase()] || "";

// textOf returns what bytes say, or null if they are no text.
export function textOf(bytes) {
  if (bytes.includes(0)) return null;
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}

// wrongName says why a name can't be one, "" if it can.
export function wrongName(name) {
  if (!name.trim()) return "It needs a name.";
  if (name === "." || name === "..") return "This name is taken by the file system.";
  if (name.includes("/")) return "A name can’t hold a slash.";
  if (name.includes("\0") || new TextEncoder().encode(name).length > 255) return "A name has at most 255 bytes.";
  return "";
}

// differences compares two texts line by line: [{sign, text}], unchanged lines far from a change left out as {skip: n}. null = too much to compare.
export function differences(a, b, around = 3) {
  const x = a.split("\n");
  const y = b.split("\n");
  let head = 0;
  while (head < x.length && head < y.length && x[head] === y[head]) head++;
  let tail = 0;
  while (tail < x.length - head && tail < y.length - head && x[x.length - 1 - tail] === y[y.length - 1 - tail]) tail++;
  const n = x.length - head - tail;
  const m = y.length - head - tail;
  if (n * m > 4_000_000) return null;
  const w = m + 1;
  const long = new Uint32Array((n + 1) * w);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      long[i * w + j] = x[head + i] === y[head + j] ? long[(i + 1) * w + j + 1] + 1 : Math.max(long[(i + 1) * w + j], long[i * w + j + 1]);
    }
  }
  const all = x.slice(0, head).map((text) => ({ sign: " ", text }));
  for (let i = 0, j = 0; i < n || j < m; ) {
    if (i < n && j < m && x[head + i] === y[head + j]) {
      all.push({ sign: " ", text: x[head + i] });
      i++;
      j++;
    } else if (i < n && (j === m || long[(i + 1) * w + j] >= long[i * w + j + 1])) all.push({ sign: "-", text: x[head + i++] });
    else all.push({ sign: "+", text: y[head + j++] });
  }
  all.push(...x.slice(x.length - tail).map((text) => ({ sign: " ", text })));
  const keep = all.map((l, i) => all.slice(Math.max(0, i - around), i + around + 1).some((k) => k.sign !== " "));
  const out = [];
  all.forEach((l, i) => {
    const last = out[out.length - 1];
    if (keep[i]) out.push(l);
    else if (last && last.skip) last.skip++;
    else out.push({ skip: 1 });
  });
  return out;
}
