// The server's API: one function per call, one kind of error. Authentication is the session's cookie.

import { parser } from "./sse.js";

// Problem is every failure: the server's problem document, or what we know when there was no answer. `fatal` says that
// the same request won't do better later.
export class Problem extends Error {
  constructor({ status = 0, title = "", detail = "", code = "", request_id = "", retryable = false, errors = [] }) {
    super(detail || title || "The request failed.");
    this.status = status;
    this.title = title;
    this.detail = detail;
    this.code = code;
    this.requestID = request_id;
    this.retryable = retryable;
    this.errors = errors || [];
    this.fatal = [400, 401, 403, 404, 405, 410].includes(status);
  }
}

let signedOut = () => {};

// onSignedOut sets what happens when the server no longer knows us.
export function onSignedOut(callback) {
  signedOut = callback;
}

// request is fetch with our errors: it resolves to an ok response or throws a Problem, or an AbortError as fetch does.
export async function request(path, init = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...init });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new Problem({ code: "network", title: "No connection", detail: "The server did not answer. It may be restarting, or the network is away.", retryable: true });
  }
  if (response.ok) return response;
  let body = {};
  try {
    body = await response.json();
  } catch {
    // Not ours, perhaps a proxy's page.
  }
  const problem = new Problem({
    title: response.statusText,
    detail: `The server answered ${response.status} ${response.statusText}.`,
    code: `http_${response.status}`,
    request_id: response.headers.get("X-Request-ID") || "",
    ...body,
    status: response.status,
  });
  if (response.status === 401 && path !== "/signin") signedOut(problem);
  throw problem;
}

async function json(method, path, body, init = {}) {
  const headers = { Accept: "application/json", ...(body === undefined ? {} : { "Content-Type": "application/json" }) };
  const response = await request(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store", ...init });
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

const q = encodeURIComponent;

export const me = () => json("GET", "/me");
export const signIn = (key) => json("POST", "/signin", { key });
export const signOut = () => json("POST", "/signout");

// health answers while the server is failing too: then it says what is wrong.
export async function health() {
  try {
    return await json("GET", "/healthz");
  } catch (e) {
    if (e instanceof Problem && e.status === 503) {
      return { status: "failing", version: "", model: "", claude: "", engine: "", isolation: "", problem: e.detail };
    }
    throw e;
  }
}

export const createSandbox = (options) => json("POST", "/sandbox?wait=false", options);
export const sandbox = (id) => json("GET", `/sandbox/${q(id)}`);
export const suspend = (id) => json("POST", `/sandbox/${q(id)}/suspend`);
export const resume = (id) => json("POST", `/sandbox/${q(id)}/resume`);
export const terminate = (id) => json("DELETE", `/sandbox/${q(id)}`);
export const sandboxes = (limit = 200) => json("GET", `/sandbox?limit=${limit}`);

export const sessions = () => json("GET", "/session");
export const session = (id) => json("GET", `/session/${q(id)}`);
export const change = (id, what) => json("PATCH", `/session/${q(id)}`, what);
export const answer = (id, prompt, body) => json("POST", `/session/${q(id)}/prompt/${q(prompt)}`, body);
export const turn = (id, turn) => json("GET", `/session/${q(id)}/turn/${q(turn)}`);
export const cancelTurn = (id, turn) => json("DELETE", `/session/${q(id)}/turn/${q(turn)}`);
export const interrupt = (id) => json("POST", `/session/${q(id)}/interrupt`);
export const sessionEvents = (id, after, signal) => json("GET", `/session/${q(id)}/events?after=${after}&limit=5000`, undefined, { signal });
export const sessionStream = (id, after) => `/session/${q(id)}/events?after=${after}&follow=true`;

export const runs = (id) => json("GET", `/sandbox/${q(id)}/run`);
export const run = (id, runID) => json("GET", `/sandbox/${q(id)}/run/${q(runID)}`);
export const endRun = (id, runID) => json("DELETE", `/sandbox/${q(id)}/run/${q(runID)}`);

export const update = (id, change) => json("PATCH", `/sandbox/${q(id)}`, change);
export const snapshot = (id, name) => json("POST", `/sandbox/${q(id)}/snapshot`, name ? { name } : {});
export const ports = (id) => json("GET", `/sandbox/${q(id)}/port`);
export const preview = (id, port) => json("POST", `/sandbox/${q(id)}/preview`, { port });

export const images = () => json("GET", "/image");
export const image = (id) => json("GET", `/image/${q(id)}`);
export const deleteImage = (id) => json("DELETE", `/image/${q(id)}`);
export const exportPath = (id, format) => `/image/${q(id)}/export?format=${format}`;
export const secrets = () => json("GET", "/secret");
export const putSecret = (name, values) => json("PUT", `/secret/${q(name)}`, { values });
export const deleteSecret = (name) => json("DELETE", `/secret/${q(name)}`);

// makeImage pulls or builds an image and resolves to it. onProgress hears how it goes. Who leaves doesn't stop it.
export async function makeImage(body, onProgress) {
  const response = await request("/image", { method: "POST", headers: { "Content-Type": "application/json", Accept: "text/event-stream" }, body: JSON.stringify(body) });
  let made = null;
  let failed = null;
  const feed = parser((e) => {
    if (e.event === "progress") onProgress(JSON.parse(e.data));
    else if (e.event === "image") made = JSON.parse(e.data);
    else if (e.event === "error") failed = new Problem(JSON.parse(e.data));
  });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  try {
    for (let r = await reader.read(); !r.done; r = await reader.read()) feed(decoder.decode(r.value, { stream: true }));
  } catch {
    // Told below: nothing was said of how it ended.
  }
  if (failed) throw failed;
  if (!made) throw new Problem({ code: "network", title: "Connection lost", detail: "The connection broke while the image was being made. It goes on; the same request joins it.", retryable: true });
  return made;
}

// importImage sends an archive and resolves to the images in it. onProgress hears how much was sent; fetch can't tell that.
export function importImage(file, name, onProgress) {
  return new Promise((resolve, reject) => {
    const x = new XMLHttpRequest();
    x.open("POST", `/image/import${name ? `?name=${q(name)}` : ""}`);
    x.setRequestHeader("Content-Type", "application/x-tar");
    x.responseType = "json";
    x.upload.onprogress = (e) => onProgress(e.loaded, file.size);
    x.onload = () => {
      if (x.status < 300) {
        resolve((x.response && x.response.images) || []);
        return;
      }
      const problem = new Problem({ title: x.statusText, detail: `The server answered ${x.status} ${x.statusText}.`, code: `http_${x.status}`, ...x.response, status: x.status });
      if (x.status === 401) signedOut(problem);
      reject(problem);
    };
    x.onerror = () => reject(new Problem({ code: "network", title: "Connection lost", detail: "The connection broke before the whole file was sent. Try it again.", retryable: true }));
    x.send(file);
  });
}

// events are what happened to one sandbox, a page of it; allEvents is all of it: a build may write thousands of lines.
export const events = (sandboxID, after = 0) => json("GET", `/event?sandbox=${q(sandboxID)}&after=${after}&limit=500`);
export async function allEvents(sandboxID) {
  const all = [];
  for (let more = true; more; ) {
    const page = await events(sandboxID, all.length ? all[all.length - 1].seq : 0);
    all.push(...(page.events || []));
    more = page.more && (page.events || []).length > 0;
  }
  return all;
}
export const eventStream = (after) => (after ? `/event?after=${after}` : "/event");

// prompt starts a turn and returns its session's ID. The turn belongs to the server: we let go of the answer's body and
// follow the session's log instead, as every other viewer does.
export async function prompt(sandboxID, { text, session: sessionID, mode }) {
  const abort = new AbortController();
  const body = { prompt: text };
  if (sessionID) body.session = sessionID;
  if (mode) body.permission_mode = mode;
  const response = await request(`/sandbox/${q(sandboxID)}/claude`, {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify(body),
    signal: abort.signal,
  });
  const id = response.headers.get("Sandlot-Session");
  abort.abort();
  return id || sessionID;
}
