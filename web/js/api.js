// The server's API: one function per call, one kind of error. Authentication is the session's cookie.

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
export const interrupt = (id) => json("POST", `/session/${q(id)}/interrupt`);
export const sessionEvents = (id, after, signal) => json("GET", `/session/${q(id)}/events?after=${after}&limit=5000`, undefined, { signal });
export const sessionStream = (id, after) => `/session/${q(id)}/events?after=${after}&follow=true`;

// events are what happened to one sandbox.
export const events = (sandboxID, after = 0) => json("GET", `/event?sandbox=${q(sandboxID)}&after=${after}`);
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
