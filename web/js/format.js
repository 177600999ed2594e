// Words and numbers, the same everywhere. Nothing here touches the document, so it is tested in node.
// Unknown is a dash, never 0.

export const DASH = "—";

const known = (n) => typeof n === "number" && Number.isFinite(n);

// duration says how long something took: 85 ms, 3.2 s, 1 m 12 s, 2 h 05 m, 3 d 4 h.
export function duration(ms) {
  if (!known(ms)) return DASH;
  ms = Math.max(0, ms);
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 59.95) return `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
  const whole = Math.round(s);
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${String(whole % 60).padStart(2, "0")} s`;
  const m = Math.floor(whole / 60);
  if (m < 1440) return `${Math.floor(m / 60)} h ${String(m % 60).padStart(2, "0")} m`;
  const h = Math.floor(m / 60);
  return `${Math.floor(h / 24)} d ${h % 24} h`;
}

// clock is a running time in whole seconds, so that it doesn't flicker.
export function clock(ms) {
  if (!known(ms)) return DASH;
  return ms < 60_000 ? `${Math.floor(Math.max(0, ms) / 1000)} s` : duration(Math.floor(ms / 1000) * 1000);
}

// left says how long until a deadline, coarse enough to be read at a glance.
export function left(ms) {
  if (!known(ms)) return DASH;
  if (ms <= 0) return "now";
  if (ms < 60_000) return `${Math.ceil(ms / 1000)} s`;
  const m = Math.floor(ms / 60_000);
  if (m < 60) return `${m} m`;
  return duration(m * 60_000);
}

// ago says how long since: "just now", "12 min ago", "yesterday".
export function ago(then, now = Date.now()) {
  const t = typeof then === "number" ? then : Date.parse(then);
  if (!known(t)) return DASH;
  const s = (now - t) / 1000;
  if (s < 10) return "just now";
  if (s < 60) return `${Math.floor(s)} s ago`;
  const m = Math.floor(s / 60);
  if (m < 60) return `${m} min ago`;
  const h = Math.floor(m / 60);
  if (h < 24) return `${h} h ago`;
  const d = Math.floor(h / 24);
  return d === 1 ? "yesterday" : `${d} days ago`;
}

// fullTime is what a title attribute tells: local time and UTC.
export function fullTime(then) {
  const t = new Date(then);
  if (Number.isNaN(t.getTime())) return "";
  return `${t.toLocaleString()} · ${t.toISOString().replace("T", " ").slice(0, 19)} UTC`;
}

// shortTime is the local hour and minute.
export function shortTime(then) {
  const t = new Date(then);
  if (Number.isNaN(t.getTime())) return "";
  return `${String(t.getHours()).padStart(2, "0")}:${String(t.getMinutes()).padStart(2, "0")}`;
}

// bytes is 1024-based with two or three significant digits: 0 B, 512 B, 6.1 KiB, 245 MiB.
export function bytes(n) {
  if (!known(n)) return DASH;
  if (n < 1024) return `${n} B`;
  let unit = -1;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  do {
    n /= 1024;
    unit++;
  } while (n >= 1023.5 && unit < units.length - 1);
  return `${n < 10 ? n.toFixed(1) : Math.round(n)} ${units[unit]}`;
}

// mib writes a size that the wire counts in MiB.
export const mib = (n) => (known(n) ? bytes(n * 1024 * 1024).replace(/\.0 /, " ") : DASH);

// tokens: 842, 18.4k, 1.2M.
export function tokens(n) {
  if (!known(n)) return DASH;
  if (n < 1000) return String(n);
  if (n < 999_950) return `${(n / 1000).toFixed(n < 99_950 ? 1 : 0)}k`;
  return `${(n / 1e6).toFixed(1)}M`;
}

// money: $0.84; below one cent "< $0.01".
export function money(usd) {
  if (!known(usd)) return DASH;
  if (usd > 0 && usd < 0.01) return "< $0.01";
  return `$${usd.toFixed(2)}`;
}

// plural: 1 turn, 3 turns.
export const plural = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

// clip shortens s to n characters.
export const clip = (s, n) => (s.length > n ? `${s.slice(0, n - 1)}…` : s);

// volumeName is how a volume is called in passing: one that nobody named has only an ID of ours.
export const volumeName = (name) => (/^sbx_[0-9a-z]{20,}$/i.test(name || "") ? "unnamed" : name || DASH);

// sentence makes a server's reason into one.
export function sentence(s) {
  const t = String(s || "").trim();
  return t && t[0].toUpperCase() + t.slice(1) + (/[.!?…]$/.test(t) ? "" : ".");
}

// initials of a name, for its face.
export function initials(name) {
  const words = String(name || "").trim().split(/[\s._-]+/).filter(Boolean);
  if (!words.length) return "?";
  return ((words[0][0] || "") + (words.length > 1 ? words[words.length - 1][0] : words[0][1] || "")).toUpperCase();
}
