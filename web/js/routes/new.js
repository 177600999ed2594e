// A new session: the task, and the options of its sandbox for those who care.

import { html } from "../lib.js";
import { Busy, ProblemNotice } from "../components/bits.js";
import { Composer } from "../components/composer.js";
import { Options, useForm } from "../components/newbox.js";
import { route } from "../router.js";

export function New() {
  const state = useForm();
  const create = (text, mode) => state.submit({ text, mode });
  return html`<div class="page"><div class="hello">
    <div class="block"><h1>What should Claude do?</h1><p class="lead">A sandbox starts, and Claude begins in it.</p></div>
    <${Composer} scope="new" big focus modes action="Start" label="What should Claude do?" placeholder="Describe a task" onSend=${create}
      left=${html`<${Busy} class="btn small" onClick=${() => create("", "")} title="An empty sandbox; the task can follow">New sandbox</${Busy}>`} />
    <${ProblemNotice} title="The sandbox could not be created." problem=${state.problem} />
    <${Options} state=${state} startOpen=${route.value.query.has("options")} />
  </div></div>`;
}
