// The account's images and secrets, and the work on images that this page began: it goes on while other pages are looked at.

import { signal } from "./lib.js";
import * as api from "./api.js";
import * as store from "./store.js";
import { fromProgress } from "./making.js";

export const images = signal(null); // null until first read
export const secrets = signal(null);
export const jobs = signal([]); // {id, name, body, events, sent, total, problem, image}

export async function loadImages() {
  images.value = (await api.images()).images || [];
}

export async function loadSecrets() {
  secrets.value = (await api.secrets()).secrets || [];
}

// need reads a list that nobody has read yet; a failure leaves it unknown.
export function need() {
  if (!images.value) loadImages().catch(() => {});
  if (!secrets.value) loadSecrets().catch(() => {});
}

// refresh reads both lists anew.
export const refresh = () => Promise.all([loadImages(), loadSecrets()]);

// making says of sandboxes whose image is being made how far it is: {id: {words, step, of}}.
export const making = signal({});

store.onEvent((e) => {
  const now = making.value;
  if (e.kind === "build" || e.kind === "image") {
    const m = e.kind === "build" ? /^Step (\d+) of (\d+)(: | is cached)/.exec(e.text) : null;
    const next = m ? { words: `Building image, step ${m[1]} of ${m[2]}`, step: Number(m[1]) - 1, of: Number(m[2]) } : !now[e.sandbox] && { words: "Fetching image" };
    if (next) making.value = { ...now, [e.sandbox]: next };
  } else if (now[e.sandbox]) {
    const { [e.sandbox]: _, ...rest } = now;
    making.value = rest;
  }
  // A snapshot is an image, and so is what a sandbox pulled.
  if ((e.kind === "snapshot" || e.kind === "running") && images.value) loadImages().catch(() => {});
});

// nameOf is what an image is called, by its ID.
export const nameOf = (id) => ((images.value || []).find((i) => i.id === id) || {}).name || "";

// imageWords says what a sandbox is made of, shortly.
export function imageWords(image) {
  if (image && image.snapshot) return nameOf(image.snapshot) || "a saved image";
  return image && image.registry && image.registry !== "host" ? image.registry : "This machine";
}

// ---- Secrets ----

export async function keepSecret(name, values) {
  const kept = await api.putSecret(name, values);
  secrets.value = [...(secrets.value || []).filter((s) => s.name !== kept.name), kept].sort((a, b) => (a.name < b.name ? -1 : 1));
  return kept;
}

export async function forgetSecret(name) {
  await api.deleteSecret(name);
  secrets.value = (secrets.value || []).filter((s) => s.name !== name);
}

export async function forgetImage(id) {
  await api.deleteImage(id);
  images.value = (images.value || []).filter((i) => i.id !== id);
}

// ---- Work on images ----

const MOST = 5000; // lines that are kept of one
let count = 0;
const change = (id, what) => {
  jobs.value = jobs.value.map((j) => (j.id === id ? { ...j, ...(typeof what === "function" ? what(j) : what) } : j));
};

export const dismiss = (id) => {
  jobs.value = jobs.value.filter((j) => j.id !== id);
};

// make pulls or builds an image. It resolves to the job, which holds the image or the problem.
export async function make(name, body) {
  const id = ++count;
  jobs.value = [{ id, name, body, events: [], at: Date.now() }, ...jobs.value];
  let waiting = [];
  // Progress comes faster than it can be read.
  const flush = () => {
    const some = waiting;
    waiting = [];
    if (some.length) change(id, (j) => ({ events: [...j.events, ...some].slice(-MOST) }));
  };
  const timer = setInterval(flush, 100);
  try {
    const image = await api.makeImage(body, (p) => p.text && waiting.push(fromProgress(p, Date.now())));
    flush();
    change(id, { image, endAt: Date.now() });
    await loadImages().catch(() => {});
  } catch (problem) {
    flush();
    change(id, { problem, endAt: Date.now() });
  } finally {
    clearInterval(timer);
  }
  return jobs.value.find((j) => j.id === id);
}

// takeIn imports an archive.
export async function takeIn(file) {
  const id = ++count;
  jobs.value = [{ id, name: file.name, file, sent: 0, total: file.size, at: Date.now() }, ...jobs.value];
  try {
    const list = await api.importImage(file, "", (sent, total) => change(id, { sent, total }));
    change(id, { image: list[0] || null, images: list, endAt: Date.now() });
    await loadImages().catch(() => {});
  } catch (problem) {
    change(id, { problem, endAt: Date.now() });
  }
}
