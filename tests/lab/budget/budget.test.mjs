// The ranking of a pass, without a browser.

import assert from "node:assert/strict";
import { test } from "node:test";

import * as budget from "../../../lab/budget/budget.js";

const base64 = (array) => Buffer.from(array.buffer).toString("base64");

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
