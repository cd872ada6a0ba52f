// What the widgets' front ends share, without a browser.

import assert from "node:assert/strict";
import { test } from "node:test";

import { duration, node, numbers, plainModel, ticks } from "../../../lab/frontend/dom.js";

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
