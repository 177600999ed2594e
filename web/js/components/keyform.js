// The form for an API key. The key becomes a cookie; it isn't kept in the browser.

import { html, useEffect, useRef, useState } from "../lib.js";
import * as api from "../api.js";
import { Notice } from "./bits.js";

export function KeyForm({ onDone, focus }) {
  const [problem, setProblem] = useState(null);
  const [running, setRunning] = useState(false);
  const input = useRef();
  useEffect(() => {
    if (focus) input.current.focus();
  }, []);
  const submit = async (e) => {
    e.preventDefault();
    const key = input.current.value.trim();
    if (!key) {
      input.current.focus();
      return;
    }
    setRunning(true);
    setProblem(null);
    try {
      await api.signIn(key);
      input.current.value = "";
      await onDone();
    } catch (p) {
      setProblem(p);
      setRunning(false);
    }
  };
  return html`<form class="keyform" onSubmit=${submit}>
    ${problem && html`<${Notice} kind="bad" title=${problem.status === 401 ? "This key is not known here." : "Signing in failed."} code=${problem.code} requestID=${problem.requestID}><span>${problem.detail}</span></${Notice}>`}
    <div class="field"><label class="lab" for="key">API key</label>
      <input id="key" ref=${input} class="input mono" type="password" name="key" autocomplete="current-password" autocapitalize="off" spellcheck="false" placeholder="slk_…" aria-describedby="key-hint" aria-invalid=${problem ? "true" : undefined} />
      <span class="hint" id="key-hint">Kept as a session cookie. The key itself is not stored in this browser.</span></div>
    <button type="submit" class="btn go wide tall" aria-busy=${running ? "true" : undefined}>Sign in with key</button></form>`;
}
