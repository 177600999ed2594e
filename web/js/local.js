// What this device keeps: drafts, the outbox, the theme. Storage may be full or forbidden; then it lasts as long as the tab.

const memory = new Map();
const PREFIX = "sandlot.";

export function get(key, fallback = null) {
  try {
    const v = localStorage.getItem(PREFIX + key);
    if (v !== null) return JSON.parse(v);
  } catch {
    // Fall through to what this tab remembers.
  }
  return memory.has(key) ? memory.get(key) : fallback;
}

export function set(key, value) {
  if (value === null || value === undefined || value === "") {
    memory.delete(key);
    try {
      localStorage.removeItem(PREFIX + key);
    } catch {
      // Nothing was kept there.
    }
    return;
  }
  memory.set(key, value);
  try {
    localStorage.setItem(PREFIX + key, JSON.stringify(value));
  } catch {
    // Kept in memory.
  }
}

// watch calls back when another tab changed key.
export function watch(key, callback) {
  const on = (e) => {
    if (e.key === PREFIX + key) callback(get(key));
  };
  addEventListener("storage", on);
  return () => removeEventListener("storage", on);
}
