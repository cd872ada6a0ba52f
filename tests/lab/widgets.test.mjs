// The pure parts of the small widgets, without a browser.

import assert from "node:assert/strict";
import { test } from "node:test";

import * as budget from "../../lab/budget.js";
import { duration, node, numbers, plainModel, ticks } from "../../lab/dom.js";
import { read, rows, shows } from "../../lab/form.js";
import * as race from "../../lab/race.js";

const base64 = (array) => Buffer.from(array.buffer).toString("base64");

test("numbers come back from base64", () => {
  assert.deepEqual([...numbers(base64(new Uint32Array([1, 70000])), Uint32Array)], [1, 70000]);
  assert.deepEqual([...numbers("", Uint8Array)], []);
});

test("ticks are round, from 0 and within the end", () => {
  assert.deepEqual(ticks(0.53, 5), [0, 0.2, 0.4]);
  assert.deepEqual(ticks(20, 3), [0, 10, 20]);
  assert.deepEqual(ticks(0), [0]);
});

test("durations have digits as they deserve", () => {
  assert.deepEqual([0.2277, 2.66, 61.04].map(duration), ["0.228 s", "2.66 s", "61.0 s"]);
});

test("a plain model tells its listeners, and only of changes", () => {
  const model = plainModel({ step: 1 });
  let heard = 0;
  const react = () => (heard += 1);
  model.on("change:step", react);
  model.set("step", 2);
  model.set("step", 2);
  assert.equal(heard, 1);
  model.off("change:step", react);
  model.set("step", 3);
  assert.deepEqual([heard, model.get("step")], [1, 3]);
});

test("a focusable node keeps JupyterLab's keys to itself", () => {
  globalThis.document = {
    createElement: (name) => ({ name, dataset: {}, set: {}, children: [], setAttribute(k, v) { this.set[k] = v; }, addEventListener() {}, append(...c) { this.children.push(...c); } }),
  };
  for (const name of ["button", "input", "select", "textarea"]) assert.equal(node(name).dataset.lmSuppressShortcuts, "true");
  assert.equal(node("div", { tabindex: 0 }).dataset.lmSuppressShortcuts, "true");
  assert.equal(node("div").dataset.lmSuppressShortcuts, undefined);
  assert.deepEqual(node("div", { title: null, hidden: true, id: "x" }).set, { hidden: "", id: "x" });
  delete globalThis.document;
});

test("fields show under the values that they name", () => {
  const field = { when: { rule: ["a", "b"], stop: [true] } };
  assert.equal(shows(field, { rule: "a", stop: true }), true);
  assert.equal(shows(field, { rule: "c", stop: true }), false);
  assert.equal(shows(field, { rule: "b", stop: false }), false);
  assert.equal(shows({}, {}), true);
});

test("controls are read as their kind; an empty number is null", () => {
  assert.equal(read("flag", { checked: true }), true);
  assert.equal(read("float", { value: " 0.5 " }), 0.5);
  assert.equal(read("int", { value: "" }), null);
  assert.equal(read("int", { value: "x" }), null);
  assert.equal(read("choice", { value: "3" }), "3");
});

test("a text box is as high as its text, within bounds", () => {
  assert.deepEqual(["", "a\nb\nc", "\n".repeat(20), null].map(rows), [2, 3, 8, 2]);
});

// Two canvases of 2, two passes each; the text is a b c, its end mark and what is behind it are hidden.
const diffusion = race.unpack({
  name: "diffusion", total: 1.0, start: 0.1, passes: 6, canvases: 2, free: 0,
  seconds: [0.2, 0.3, 0.7, 0.8], canvas: [0, 0, 1, 1], offsets: [0, 2, 4, 6, 8],
  ids: base64(new Uint32Array([0, 3, 0, 1, 2, 4, 2, 4])), marks: base64(new Uint8Array([2, 1, 2, 2, 1, 0, 2, 0])),
  kept: [0, 1, 2], commits: [{ seconds: 0.3, canvas: 0, kept: 2 }, { seconds: 0.8, canvas: 1, kept: 3 }],
  texts: ["a", "b", "c", "x", ""],
});
const causal = race.unpack({
  name: "autoregressive", total: 0.5, start: 0.1, passes: 2, canvases: 0, free: 1,
  seconds: [0.2, 0.4], canvas: [0, 1], offsets: [0, 1, 2],
  ids: base64(new Uint32Array([0, 1])), marks: base64(new Uint8Array([2, 2])),
  kept: [0, 1], commits: [{ seconds: 0.2, canvas: 0, kept: 1 }, { seconds: 0.4, canvas: 1, kept: 2 }], texts: ["a", "b"],
});

test("a lane at each moment: drafts, kept tokens, passes", () => {
  const at = (seconds) => {
    const { kept, passes, live, over, pieces } = race.standing(diffusion, seconds);
    return [kept, passes, live, over, pieces.map(({ text, draft }) => (draft ? `(${text})` : text)).join("")];
  };
  assert.deepEqual(at(0), [0, 0, 0, false, ""]);
  assert.deepEqual(at(0.15), [0, 1, 0, false, ""]);
  assert.deepEqual(at(0.2), [0, 2, 1, false, "a(x)"]);
  assert.deepEqual(at(0.3), [2, 4, 0, false, "ab"]);
  assert.deepEqual(at(0.7), [2, 5, 0, false, "ab(c)"]);
  assert.deepEqual(at(1.0), [3, 6, 0, true, "abc"]);
});

test("an autoregressive lane: the first token comes with the prefill", () => {
  const at = (seconds) => {
    const { kept, passes, pieces } = race.standing(causal, seconds);
    return [kept, passes, pieces.map(({ text }) => text).join("")];
  };
  assert.deepEqual([0, 0.1, 0.2, 0.4].map(at), [[0, 0, ""], [0, 1, ""], [1, 1, "a"], [2, 2, "ab"]]);
});

test("the chart's steps end with all that is kept", () => {
  const { kept, live } = race.steps(diffusion);
  assert.deepEqual(kept, [[0, 0], [0.3, 2], [0.8, 3]]);
  assert.deepEqual(live, [[0, 0], [0.2, 1], [0.3, 2], [0.7, 2], [0.8, 3], [1.0, 3]]);
});

test("short runs are slowed by a round number, long ones are not", () => {
  assert.deepEqual([0.05, 0.5, 2, 8, 60].map(race.pace), [200, 20, 5, 1, 1]);
});

test("the verdict names the first", () => {
  assert.equal(race.verdict([diffusion, causal]), "autoregressive is first, 2.0 times as fast as diffusion (autoregressive: 2 tokens in 2 passes, diffusion: 3 tokens in 6 passes).");
  assert.equal(race.verdict([causal]), "");
});

const data = budget.unpack({
  bound: 0.1, counts: [3, 1], canvas: [0, 0], temperature: [0.8, 0.7],
  positions: base64(new Uint32Array([4, 0, 2, 1])), entropy: base64(new Float32Array([0.05, 0.5, 1.0, 2.0])),
  accepted: base64(new Uint8Array([1, 1, 0, 1])), tokens: base64(new Uint32Array([0, 1, 0, 1])), texts: ["a", "b"],
});

test("a pass is ranked with the sums before each position, and why", () => {
  const entries = budget.ranked(data, 1);
  assert.deepEqual(entries.map(({ position, text, accepted }) => [position, text, accepted]), [[4, "a", true], [0, "b", true], [2, "a", false]]);
  assert.deepEqual(entries.map(({ why }) => why), [
    "accepted: the surest one always is",
    "accepted: those before it use 0.05 of 0.1 nats",
    "redrawn: those before it use 0.55 nats, the bound is 0.1",
  ]);
  assert.deepEqual(budget.ranked(data, 2).map(({ position, before }) => [position, before]), [[1, 0]]);
});

test("the log scale begins at a power of ten", () => {
  assert.deepEqual([[{ entropy: 0.05 }], [{ entropy: 3e-4 }], [{ entropy: 0 }], []].map(budget.floorOf), [1e-2, 1e-4, 1e-5, 1e-2]);
});

test("labels of close finishes stand one below the other", () => {
  const label = (x, y = 10) => ({ x, y, width: 100 });
  assert.deepEqual(race.apart([label(0), label(150)]), [10, 10]);
  assert.deepEqual(race.apart([label(0), label(60), label(30)]), [10, 24, 38]);
  assert.deepEqual(race.apart([label(0), label(60, 40)]), [10, 40]);
});
