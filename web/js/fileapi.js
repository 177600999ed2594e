// The files of a sandbox, over the API. Places are addresses, as in tree.js: percent-encoded paths.

import { Problem, request } from "./api.js";

const enc = encodeURIComponent;
export const fileURL = (sb, at, query = "") => `/sandbox/${enc(sb)}/files${at}${query}`;
export const archiveURL = (sb, at) => fileURL(sb, at, "?format=zip");
export const watchURL = (sb, at, recursive) => fileURL(sb, at, `?watch=true&recursive=${recursive}`);

const json = async (path, init = {}) => {
  const response = await request(path, { cache: "no-store", ...init, headers: { Accept: "application/json", ...init.headers } });
  const text = await response.text();
  return text ? JSON.parse(text) : null;
};

// PAGE is how many entries of a folder are read at a time.
export const PAGE = 500;

export const list = (sb, at, { cursor = "", contains = "" } = {}) =>
  json(fileURL(sb, at, `?limit=${PAGE}${cursor ? `&cursor=${enc(cursor)}` : ""}${contains ? `&contains=${enc(contains)}` : ""}`));
export const stat = (sb, at) => json(fileURL(sb, at, "?stat=true"));

const op = (sb, at, body) => json(fileURL(sb, at), { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
export const makeFolder = (sb, at) => op(sb, at, { op: "mkdir" });
export const move = (sb, at, to) => op(sb, at, { op: "move", to_escaped: to });
export const remove = (sb, at) => json(fileURL(sb, at), { method: "DELETE" });

// read returns {bytes, etag, size}, of a long file its beginning.
export async function read(sb, at, most) {
  let response;
  try {
    response = await request(fileURL(sb, at), { cache: "no-store", headers: { Range: `bytes=0-${most - 1}` } });
  } catch (p) {
    if (p.status !== 416) throw p;
    response = await request(fileURL(sb, at), { cache: "no-store" }); // it is empty
  }
  const bytes = new Uint8Array(await response.arrayBuffer());
  const range = /\/(\d+)$/.exec(response.headers.get("Content-Range") || "");
  return { bytes, etag: response.headers.get("ETag") || "", size: range ? Number(range[1]) : bytes.length };
}

// write replaces the version with that ETag; "" writes a file that isn't there; null whatever is there.
export async function write(sb, at, body, etag) {
  const headers = { "Content-Type": "application/octet-stream" };
  if (etag === "") headers["If-None-Match"] = "*";
  else if (etag) headers["If-Match"] = etag;
  return json(fileURL(sb, at), { method: "PUT", headers, body });
}

// send uploads a file and tells how much has gone; fetch can't. It returns {done, abort}.
export function send(sb, at, file, { overwrite, onProgress }) {
  const x = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    x.open("PUT", fileURL(sb, at));
    x.setRequestHeader("Content-Type", "application/octet-stream");
    x.setRequestHeader("Accept", "application/json");
    if (!overwrite) x.setRequestHeader("If-None-Match", "*");
    x.responseType = "json";
    x.upload.onprogress = (e) => onProgress(e.loaded);
    x.onload = () => {
      if (x.status < 300) resolve(x.response);
      else reject(new Problem({ title: x.statusText, detail: `The server answered ${x.status} ${x.statusText}.`, code: `http_${x.status}`, ...x.response, status: x.status }));
    };
    x.onerror = () => reject(new Problem({ code: "network", title: "Connection lost", detail: "The connection broke before the whole file was sent.", retryable: true }));
    x.onabort = () => reject(new Problem({ code: "aborted", title: "Not sent", detail: "You stopped it." }));
    x.send(file);
  });
  return { done, abort: () => x.abort() };
}
