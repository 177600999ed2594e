// The account's secrets: what they are called and what they hold, never their values.

import { html, useEffect, useState } from "../lib.js";
import * as catalog from "../catalog.js";
import { opensRegistry } from "../wish.js";
import { Ago, ProblemNotice, Skeleton } from "../components/bits.js";
import { ConfirmDelete } from "../components/boxacts.js";
import { SecretForm } from "../components/fields.js";

export function Secrets() {
  const [adding, setAdding] = useState(false);
  const [deleting, setDeleting] = useState(null);
  const [problem, setProblem] = useState(null);
  const list = catalog.secrets.value;
  const read = () => {
    setProblem(null);
    catalog.loadSecrets().catch(setProblem);
  };
  useEffect(read, []);
  return html`<div class="page"><div class="wrap narrow">
    <div class="ph"><h1>Secrets</h1><div class="end">${!adding && html`<button type="button" class="btn go" onClick=${() => setAdding(true)}>Add secret</button>`}</div></div>
    <p class="dim">They open private registries and are given to build commands. Their values are kept encrypted and never shown again.</p>
    ${adding && html`<${SecretForm} id="secret" onDone=${() => setAdding(false)} onCancel=${() => setAdding(false)} />`}
    <${ProblemNotice} title="The secrets could not be read." problem=${problem} acts=${html`<button type="button" class="btn small" onClick=${read}>Try again</button>`} />
    ${!list && !problem && html`<${Skeleton} rows=${3} />`}
    ${list && !list.length && !adding && html`<div class="empty"><span class="strong">No secret yet</span><span>A private registry needs one: its username and password, for example.</span></div>`}
    ${list && list.length > 0 && html`<table class="table"><colgroup><col class="w-name" /><col /><col class="w-when" /><col class="w-act" /></colgroup>
      <thead><tr><th scope="col">Name</th><th scope="col">Holds</th><th scope="col" class="r">Set</th><th scope="col" class="r"><span class="vh">Actions</span></th></tr></thead>
      <tbody>${list.map((s) => html`<tr key=${s.name}><td><code class="strong">${s.name}</code></td>
        <td class="full"><span class="act">${opensRegistry(s) ? "For a registry" : "Values"}</span><span class="sub cut" title=${s.keys.join(", ")}><code>${s.keys.join(", ")}</code></span></td>
        <td class="r sub hide"><${Ago} at=${s.updated_at} /></td>
        <td class="r"><button type="button" class="btn small danger" onClick=${() => setDeleting(s)}>Delete<span class="vh"> ${s.name}</span></button></td></tr>`)}</tbody></table>`}
    ${deleting && html`<${ConfirmDelete} title=${`Delete secret ${deleting.name}?`} words="Delete secret" onYes=${() => catalog.forgetSecret(deleting.name)} onClose=${() => setDeleting(null)}>
      Images that need it can’t be pulled or built again. What was made with it stays.</${ConfirmDelete}>`}
  </div></div>`;
}
