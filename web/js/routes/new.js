// A new session: the task, and the options of its sandbox for those who care.

import { html, useState } from "../lib.js";
import { newSandbox } from "../actions.js";
import { Busy, ProblemNotice } from "../components/bits.js";
import { Composer } from "../components/composer.js";
import { EMPTY, Options, parse, serverErrors } from "../components/options.js";
import { route } from "../router.js";

export function New() {
  const [form, setForm] = useState(EMPTY);
  const [problem, setProblem] = useState(null);
  const create = async (text, mode) => {
    const { options, errors } = parse(form);
    if (Object.keys(errors).length) return false;
    setProblem(null);
    try {
      await newSandbox(options, { text, mode });
    } catch (p) {
      setProblem(p);
      return false;
    }
    return true;
  };
  return html`<div class="page"><div class="hello">
    <div class="block"><h1>What should Claude do?</h1><p class="lead">A sandbox starts, and Claude begins in it.</p></div>
    <${Composer} scope="new" big focus modes action="Start" label="What should Claude do?" placeholder="Describe a task" onSend=${create}
      left=${html`<${Busy} class="btn small" onClick=${() => create("", "")} title="An empty sandbox; the task can follow">New sandbox</${Busy}>`} />
    <${ProblemNotice} title="The sandbox could not be created." problem=${problem} />
    <${Options} form=${form} onChange=${setForm} errors=${serverErrors(problem)} startOpen=${route.value.query.has("options")} />
  </div></div>`;
}
