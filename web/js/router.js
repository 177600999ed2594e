// Real addresses with the History API: a reload, a link and Back always work.

import { signal } from "./lib.js";

const ROUTES = [
  ["home", /^\/$/],
  ["new", /^\/new$/],
  ["sessions", /^\/sessions$/],
  ["session", /^\/session\/(ses_[^/]+)(?:\/(files|terminal))?$/],
  ["sandboxes", /^\/sandboxes$/],
  ["sandbox", /^\/sandbox\/(sbx_[^/]+)(?:\/(terminal))?$/],
  ["images", /^\/images?$/],
  ["image", /^\/images?\/(img_[^/]+)$/],
  ["secrets", /^\/secrets?$/],
  ["signin", /^\/signin$/],
];

// match reads a path: {name, id, panel, query}. An unknown path is the route "lost".
export function match(path, search = "") {
  for (const [name, pattern] of ROUTES) {
    const m = pattern.exec(path);
    if (m) return { name, id: m[1] ? decodeURIComponent(m[1]) : "", panel: m[2] || "", query: new URLSearchParams(search), path };
  }
  return { name: "lost", id: "", panel: "", query: new URLSearchParams(search), path };
}

export const route = signal(match("/"));

const read = () => {
  route.value = match(location.pathname, location.search);
};

// go navigates; with replace, Back doesn't return here.
export function go(path, { replace = false } = {}) {
  if (path === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", path);
  read();
}

// start reads the first location and turns clicks on our own links into navigation.
export function start() {
  read();
  addEventListener("popstate", read);
  document.addEventListener("click", (e) => {
    if (e.defaultPrevented || e.button !== 0 || e.metaKey || e.ctrlKey || e.shiftKey || e.altKey) return;
    const a = e.target.closest && e.target.closest("a[href]");
    if (!a || a.target || a.origin !== location.origin || a.hasAttribute("download")) return;
    if (match(a.pathname, a.search).name === "lost") return; // the API's own pages, as /docs
    e.preventDefault();
    go(a.pathname + a.search + a.hash);
  });
}
