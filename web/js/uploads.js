// Files on their way into a sandbox: a few at a time, each with its progress, what fails is kept until it is tried again or put away.

import { signal } from "./lib.js";
import * as files from "./fileapi.js";
import { childOf } from "./tree.js";

const AT_ONCE = 3;

// items: {id, sb, at, name, file, size, sent, state: "waits" | "goes" | "done" | "exists" | "failed", problem}. A folder has no file.
export const items = signal([]);
// spoken is what was last finished, said once to those who listen.
export const spoken = signal("");

let next = 1;
const running = new Map();

const change = (id, what) => {
  items.value = items.value.map((i) => (i.id === id ? { ...i, ...what } : i));
};

// add takes what was chosen or dropped, [{name, file}], where name may be a path, into a folder.
export function add(sb, dir, list) {
  items.value = [
    ...items.value.filter((i) => i.state !== "done"),
    ...list.map(({ name, file }) => ({ id: next++, sb, at: name.split("/").reduce(childOf, dir), name, file, size: file ? file.size : 0, sent: 0, state: "waits", problem: null })),
  ];
  pump();
}

function pump() {
  for (const i of items.value) {
    if (running.size >= AT_ONCE) return;
    if (i.state === "waits" && !running.has(i.id)) go(i);
  }
  if (!running.size) finished();
}

async function go(i) {
  running.set(i.id, () => {});
  change(i.id, { state: "goes", sent: 0, problem: null });
  try {
    if (i.file) {
      let drawn = 0;
      const { done, abort } = files.send(i.sb, i.at, i.file, {
        overwrite: i.overwrite,
        onProgress: (sent) => {
          if (Date.now() - drawn < 100 && sent < i.size) return;
          drawn = Date.now();
          change(i.id, { sent });
        },
      });
      running.set(i.id, abort);
      await done;
    } else {
      await files.makeFolder(i.sb, i.at).catch((p) => {
        if (p.code !== "exists") throw p;
      });
    }
    change(i.id, { state: "done", sent: i.size, file: null });
  } catch (problem) {
    if (problem.code === "aborted") items.value = items.value.filter((x) => x.id !== i.id);
    else change(i.id, { state: problem.code === "exists" ? "exists" : "failed", problem });
  } finally {
    running.delete(i.id);
    pump();
  }
}

function finished() {
  const all = items.value;
  if (!all.length) return;
  const n = (state) => all.filter((i) => i.state === state && (i.file || state === "done")).length;
  const bad = n("failed");
  const there = n("exists");
  spoken.value = `${n("done")} uploaded${bad ? `, ${bad} failed` : ""}${there ? `, ${there} already there` : ""}.`;
}

export function retry(ids, overwrite = false) {
  for (const id of ids) change(id, overwrite ? { state: "waits", overwrite } : { state: "waits" });
  pump();
}

export function dismiss(ids) {
  for (const id of ids) if (running.has(id)) running.get(id)();
  items.value = items.value.filter((i) => !ids.includes(i.id) || running.has(i.id));
}

// What broke off because the network went is tried again when it is back.
addEventListener("online", () => retry(items.value.filter((i) => i.state === "failed" && i.problem.code === "network").map((i) => i.id)));

// dropped reads what a drop brought, folders with all that is in them: [{name, file}].
export async function dropped(transfer) {
  const entries = [...transfer.items].map((i) => i.kind === "file" && (i.webkitGetAsEntry ? i.webkitGetAsEntry() : null) || i.kind === "file" && i.getAsFile()).filter(Boolean);
  const out = [];
  const walk = async (e, path) => {
    if (!e.isDirectory) {
      const file = await new Promise((ok, no) => e.file(ok, no));
      out.push({ name: path, file });
      return;
    }
    const reader = e.createReader();
    let empty = true;
    for (;;) {
      const some = await new Promise((ok, no) => reader.readEntries(ok, no)); // a hundred at a time
      if (!some.length) break;
      empty = false;
      for (const kid of some) await walk(kid, `${path}/${kid.name}`);
    }
    if (empty) out.push({ name: path, file: null });
  };
  for (const e of entries) {
    if (e instanceof File) out.push({ name: e.name, file: e });
    else await walk(e, e.name);
  }
  return out;
}
