// xterm.js under `style-src 'self'`. It puts its theme into <style> elements and row colours into style attributes; the policy refuses
// both. Constructed style sheets and CSSOM are allowed, so the same text goes there instead.

// Rows are spans; their colours arrive as setAttribute("style", …). Same effect through CSSOM.
const setAttribute = Element.prototype.setAttribute;
HTMLSpanElement.prototype.setAttribute = function (name, value) {
  if (name === "style") this.style.cssText = value;
  else setAttribute.call(this, name, value);
};

// Stands in for a <style> element: its text lives in a sheet adopted by the document.
function sheetElement() {
  const sheet = new CSSStyleSheet();
  const el = Document.prototype.createElement.call(document, "span");
  const remove = el.remove.bind(el);
  el.hidden = true;
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  Object.defineProperty(el, "textContent", { get: () => "", set: (css) => sheet.replaceSync(css) });
  el.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((s) => s !== sheet);
    remove();
  };
  return el;
}

/** Opens term in parent. xterm makes all its <style> elements during this one synchronous call. */
export function openTerminal(term, parent) {
  document.createElement = (name, options) =>
    name === "style" ? sheetElement() : Document.prototype.createElement.call(document, name, options);
  try {
    term.open(parent);
  } finally {
    delete document.createElement;
  }
}
