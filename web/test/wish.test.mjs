import assert from "node:assert/strict";
import { test } from "node:test";
import * as w from "../js/wish.js";

const form = (what) => ({ ...w.EMPTY, ...what });

test("an empty form leaves everything to the server", () => {
  assert.deepEqual(w.parse(w.EMPTY), { options: {}, errors: {} });
});

test("a whole form becomes a request, and the request the form again", () => {
  const f = form({
    name: " bench ", source: "registry", registry: "debian:13-slim", secret: "ghcr", commands: "RUN a\n\nRUN b\n", buildSecrets: ["npm"], volume: "tide-data", workdir: "/src", timeout: "2 h",
    cpu: "0.5", memory: "1.5 GiB", disk: "20", pids: "512", network: { mode: "egress", every: false, allow: ["pypi.org"] }, env: "A=1\nB=x=y", labels: "team=harbor",
  });
  const { options, errors } = w.parse(f);
  assert.deepEqual(errors, {});
  assert.deepEqual(options, {
    name: "bench", image: { registry: "debian:13-slim", registry_secret: "ghcr", dockerfile_commands: ["RUN a", "", "RUN b"], secrets: ["npm"] }, volume: "tide-data", workdir: "/src", timeout_s: 7200,
    cpu: 0.5, memory_mib: 1536, disk_mib: 20480, pids: 512, network: { mode: "egress", allow: ["pypi.org"] }, env: { A: "1", B: "x=y" }, labels: { team: "harbor" },
  });
  assert.deepEqual(w.parse(w.formOf(options)), { options, errors: {} });
});

test("what can't be meant is told at its field", () => {
  for (const [what, field] of [
    [{ timeout: "soon" }, "timeout"], [{ timeout: "0 h" }, "timeout"], [{ memory: "lots" }, "memory"], [{ disk: "-1" }, "disk"], [{ cpu: "two" }, "cpu"], [{ cpu: "0" }, "cpu"], [{ pids: "1.5" }, "pids"],
    [{ volume: "Data" }, "volume"], [{ workdir: "src" }, "workdir"], [{ env: "A" }, "env"], [{ labels: "=x" }, "labels"], [{ source: "registry" }, "registry"], [{ source: "registry", registry: "a b" }, "registry"],
    [{ source: "saved" }, "saved"], [{ network: { mode: "egress", every: false, allow: [] } }, "allow"],
  ]) {
    const { options, errors } = w.parse(form(what));
    assert.deepEqual(Object.keys(errors), [field], JSON.stringify(what));
    assert.equal(options[{ timeout: "timeout_s", memory: "memory_mib", disk: "disk_mib" }[field] || field], undefined);
  }
});

test("times and sizes are read as people write them", () => {
  for (const [text, want] of [["45", 2700], ["45m", 2700], ["1.5 h", 5400], ["2 days", 172_800], ["x", null], ["", null]]) assert.equal(w.seconds(text), want, text);
  for (const [text, want] of [["2", 2048], ["512 MiB", 512], ["512mb", 512], ["1.5g", 1536], ["1 TiB", 1024 * 1024], ["2 kB", null]]) assert.equal(w.mebibytes(text), want, text);
});

test("the machine's own programs take no commands, and a saved image no secret of a registry", () => {
  assert.equal(w.parse(form({ commands: "RUN a", registry: "x" })).options.image, undefined);
  assert.deepEqual(w.parse(form({ source: "saved", saved: "img_1", secret: "ghcr", registry: "x" })).options.image, { snapshot: "img_1" });
});

test("networks go into the form and back", () => {
  for (const n of [{ mode: "none" }, { mode: "open" }, { mode: "egress", allow: ["*"] }, { mode: "egress", allow: ["a.example", "*.b.example"] }]) {
    const errors = {};
    assert.deepEqual(w.networkOf(w.networkForm(n), errors), n);
    assert.deepEqual(errors, {});
  }
  assert.equal(w.networkForm(undefined).every, true);
  assert.deepEqual(w.networkOf({ mode: "egress", every: false, allow: ["a.example"], text: "b.example" }, {}).allow, ["a.example", "b.example"]);
});

test("hosts are taken out of what is typed or pasted", () => {
  assert.deepEqual(w.hosts(["a.example"], "https://B.example/x?y A.example, *.c.example;192.0.2.0/24 d.example:8443 *"), ["a.example", "b.example", "*.c.example", "192.0.2.0/24", "d.example:8443"]);
});

test("a policy is told in a few words", () => {
  for (const [n, want] of [[{ mode: "none" }, "only the model"], [{ mode: "open" }, "every public address"], [{ mode: "egress", allow: ["*"] }, "every public host"], [{ mode: "egress", allow: ["a", "b"] }, "2 hosts"], [{ mode: "egress" }, "only the model"], [undefined, "—"]]) {
    assert.equal(w.networkWords(n), want);
  }
});

test("the fields that the server refuses are found in the form", () => {
  const errors = ["body.image.registry", "body.image.dockerfile_commands", "body.network.allow[2]", "body.memory_mib", "body.elsewhere"].map((location) => ({ location, message: location }));
  assert.deepEqual(w.serverErrors({ errors }), { registry: "body.image.registry", commands: "body.image.dockerfile_commands", allow: "body.network.allow[2]", memory: "body.memory_mib" });
  assert.deepEqual(w.serverErrors(null), {});
});

test("another sandbox like this one gets what the API takes, and nothing else", () => {
  const limit = (value) => ({ value, by: "cgroup v2" });
  const sb = {
    id: "sbx_1", name: "a", engine: "local", state: "error", workdir: "/workspace", volume: "v", timeout_s: 60, disk_mib: 100, cpu: 2, memory_mib: 64, labels: { a: "b" },
    image: { registry: "x:1", digest: "sha256:1", user: "node", registry_secret: "s", dockerfile_commands: ["RUN a"], secrets: ["t"] },
    network: { mode: "egress", allow: ["h.example"] }, limits: { pids: limit(10), open_files: limit(20), output: { value: null, by: "none" } },
  };
  assert.deepEqual(w.optionsOf(sb), {
    name: "a", engine: "local", workdir: "/workspace", volume: "v", timeout_s: 60, disk_mib: 100, cpu: 2, memory_mib: 64, labels: { a: "b" }, pids: 10, open_files: 20,
    network: { mode: "egress", allow: ["h.example"] }, image: { registry: "x:1", registry_secret: "s", dockerfile_commands: ["RUN a"], secrets: ["t"] },
  });
  assert.equal(w.optionsOf({ image: { registry: "host" } }).image, undefined);
  assert.deepEqual(w.optionsOf({ image: { snapshot: "img_1", digest: "d" } }).image, { snapshot: "img_1" });
});

test("a secret for a registry is known by its values", () => {
  for (const [keys, want] of [[["PASSWORD", "USERNAME"], true], [["DOCKER_CONFIG_JSON"], true], [["USERNAME"], false], [["NPM_TOKEN"], false], [[], false]]) assert.equal(w.opensRegistry({ keys }), want);
});
