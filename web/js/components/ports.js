// The ports on which something in a sandbox listens, and ways to them.

import { html, useEffect, useRef, useState } from "../lib.js";
import * as api from "../api.js";
import { Icon } from "./icons.js";
import { Busy, Copy, Left, ProblemNotice } from "./bits.js";

const EVERY = 5000;

export function Ports({ sb }) {
  const [list, setList] = useState(null);
  const [problem, setProblem] = useState(null);
  const [links, setLinks] = useState({});
  const [other, setOther] = useState("");
  const gone = useRef(false);
  const read = async () => {
    try {
      const found = (await api.ports(sb.id)).ports || [];
      if (!gone.current) setList(found);
    } catch (p) {
      // What was known stays; a sandbox that ends meanwhile says so itself.
      if (!gone.current && !list) setProblem({ title: "The ports could not be read.", problem: p });
    }
  };
  useEffect(() => {
    gone.current = false;
    read();
    const timer = setInterval(() => document.hidden || read(), EVERY);
    return () => {
      gone.current = true;
      clearInterval(timer);
    };
  }, [sb.id]);
  // The tab is opened at once, while the browser still takes it for the user's wish, and led to the address when that is known.
  const open = async (port) => {
    const tab = window.open("about:blank", "_blank");
    if (tab) tab.opener = null;
    setProblem(null);
    try {
      const p = await api.preview(sb.id, port);
      setLinks((old) => ({ ...old, [port]: p }));
      if (tab) tab.location.replace(p.url);
    } catch (e) {
      if (tab) tab.close();
      setProblem({ title: `Port ${port} can’t be previewed.`, problem: e });
    }
  };
  const rows = [...(list || [])];
  for (const port of Object.keys(links).map(Number)) if (!rows.some((r) => r.port === port)) rows.push({ port, process: "" });
  const number = Number(other);
  const good = /^\d{1,5}$/.test(other.trim()) && number > 0 && number < 65536;
  const submit = (e) => {
    e.preventDefault();
    if (good) open(number).then(() => setOther(""));
  };
  return html`<div class="block"><div class="bh"><h2>Ports</h2><span class="end">${list && html`<button type="button" class="link" onClick=${read}>Look again</button>`}</span></div>
    ${list && !rows.length && html`<p class="faint">Nothing is listening.</p>`}
    ${rows.length > 0 && html`<ul class="ports">${rows.map((r) => {
      const link = links[r.port];
      return html`<li key=${r.port}><code class="strong">:${r.port}</code><span class="grow cut dim">${r.process || (list && !list.some((x) => x.port === r.port) ? "nothing listens yet" : "")}</span>
        <${Busy} class="btn small" onClick=${() => open(r.port)}>Open preview<span class="vh"> of port ${r.port}</span></${Busy}>
        ${link && html`<span class="sub"><a href=${link.url} target="_blank" rel="noopener noreferrer">${new URL(link.url).host}</a> · <${Copy} text=${link.url} words="Copy link" /> · good for <${Left} until=${link.expires_at} />, for whoever has it</span>`}</li>`;
    })}</ul>`}
    <form class="port-form" onSubmit=${submit}><label class="vh" for="other-port">Another port</label><input id="other-port" class="input mono" inputmode="numeric" placeholder="another port" value=${other} autocomplete="off" onInput=${(e) => setOther(e.currentTarget.value)} />
      <button type="submit" class="btn" aria-disabled=${good ? undefined : "true"}><${Icon} name="globe" small />Preview</button></form>
    ${problem && html`<${ProblemNotice} ...${problem} />`}</div>`;
}
