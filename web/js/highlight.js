// Syntax colours, loaded when the first finished code block comes near the view, and worked out while nothing else happens.

const ALIASES = {
  bash: "bash", sh: "bash", shell: "bash", zsh: "bash", console: "bash", c: "c", h: "c", cpp: "cpp", "c++": "cpp", cc: "cpp", hpp: "cpp", css: "css",
  diff: "diff", patch: "diff", go: "go", golang: "go", java: "java", javascript: "javascript", js: "javascript", jsx: "javascript",
  mjs: "javascript", json: "json", jsonc: "json", markdown: "markdown", md: "markdown", python: "python", py: "python", rust: "rust",
  rs: "rust", sql: "sql", typescript: "typescript", ts: "typescript", tsx: "typescript", html: "xml", xml: "xml", svg: "xml", yaml: "yaml", yml: "yaml",
};
const BIGGEST = 64 * 1024;

const languages = new Map();
let core = null;

async function load(name) {
  core ||= import("../vendor/highlight/core.js").then((m) => m.default);
  if (!languages.has(name)) {
    languages.set(
      name,
      Promise.all([core, import(`../vendor/highlight/languages/${name}.js`)]).then(([hljs, m]) => {
        hljs.registerLanguage(name, m.default);
      }),
    );
  }
  await languages.get(name);
  return core;
}

const idle = globalThis.requestIdleCallback ? (f) => requestIdleCallback(f, { timeout: 800 }) : (f) => setTimeout(f, 50);

const near =
  typeof IntersectionObserver === "undefined"
    ? null
    : new IntersectionObserver(
        (entries) => {
          for (const e of entries) {
            if (!e.isIntersecting) continue;
            near.unobserve(e.target);
            idle(() => color(e.target).catch(() => {}));
          }
        },
        { rootMargin: "600px 0px" },
      );

async function color(code) {
  const name = language(code);
  const text = code.textContent;
  if (!name || text.length > BIGGEST) return;
  const hljs = await load(name);
  if (code.textContent !== text) return;
  // The library escapes the text; what it returns holds only its own spans.
  code.innerHTML = hljs.highlight(text, { language: name, ignoreIllegals: true }).value;
}

const language = (code) => ALIASES[((/language-([\w+#.-]+)/.exec(code.className) || [])[1] || "").toLowerCase()];

// highlight colours the code blocks inside box once they come near the view.
export function highlight(box) {
  if (!near) return;
  for (const code of box.querySelectorAll("pre > code[class]")) {
    if (language(code) && !code.dataset.seen) {
      code.dataset.seen = "1";
      near.observe(code);
    }
  }
}
