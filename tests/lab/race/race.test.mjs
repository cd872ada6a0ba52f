// Lanes, their chart and the verdict, without a browser.

import assert from "node:assert/strict";
import { test } from "node:test";

import * as race from "../../../lab/race/race.js";

const base64 = (array) => Buffer.from(array.buffer).toString("base64");

// Two canvases of 2, two passes each; the text is a b c, its end mark and what is behind it are hidden.
const diffusion = race.unpack({
  name: "diffusion", total: 1.0, times: [0.9, 1.2, 1.0], start: 0.1, passes: 6, canvases: 2, free: 0,
  seconds: [0.2, 0.3, 0.7, 0.8], canvas: [0, 0, 1, 1], offsets: [0, 2, 4, 6, 8],
  ids: base64(new Uint32Array([0, 3, 0, 1, 2, 4, 2, 4])), marks: base64(new Uint8Array([2, 1, 2, 2, 1, 0, 2, 0])),
  rounds: [], kept: [0, 1, 2], commits: [{ seconds: 0.3, canvas: 0, kept: 2 }, { seconds: 0.8, canvas: 1, kept: 3 }],
  texts: ["a", "b", "c", "x", ""],
});
const causal = race.unpack({
  name: "autoregressive", total: 0.5, times: [0.5, 0.4, 0.6], start: 0.1, passes: 2, canvases: 0, free: 1,
  seconds: [0.2, 0.4], canvas: [0, 1], offsets: [0, 1, 2],
  ids: base64(new Uint32Array([0, 1])), marks: base64(new Uint8Array([2, 2])),
  rounds: [], kept: [0, 1], commits: [{ seconds: 0.2, canvas: 0, kept: 1 }, { seconds: 0.4, canvas: 1, kept: 2 }], texts: ["a", "b"],
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

test("a drafted lane counts the passes of its rounds", () => {
  const drafted = { ...causal, rounds: [{ seconds: 0.2, passes: 2 }, { seconds: 0.4, passes: 2 }] };
  const passes = (seconds) => race.standing(drafted, seconds).passes;
  assert.equal(passes(0.2) - passes(0.15), 2);
  assert.equal(passes(0.4) - passes(0.2), 2);
});

test("the chart's steps end with all that is kept", () => {
  const { kept, live } = race.steps(diffusion);
  assert.deepEqual(kept, [[0, 0], [0.3, 2], [0.8, 3]]);
  assert.deepEqual(live, [[0, 0], [0.2, 1], [0.3, 2], [0.7, 2], [0.8, 3], [1.0, 3]]);
});

test("short runs are slowed by a round number, long ones are not", () => {
  assert.deepEqual([0.05, 0.5, 2, 8, 60].map(race.pace), [200, 20, 5, 1, 1]);
});

test("the verdict names the first, and how far the others are behind, over all rounds", () => {
  assert.equal(race.verdict([diffusion, causal]), "autoregressive is first in all 3 rounds, 2.0 times as fast as diffusion (1.7 to 3.0).");
  const close = { ...diffusion, times: [0.4, 0.6, 0.7], total: 0.6 };
  assert.equal(race.verdict([close, causal]), "No clear winner: autoregressive was first in 2 of 3 rounds, 1.2 times as fast as diffusion (0.8 to 1.5).");
  assert.equal(race.verdict([{ ...diffusion, times: [1] }, causal]), "autoregressive was first in the only run, 2.0 times as fast as diffusion.");
  assert.equal(race.verdict([causal]), "");
  const drafted = { ...causal, name: "speculative", times: [0.2, 0.2, 0.2], total: 0.2 };
  assert.equal(race.verdict([diffusion, causal, drafted]),
    "speculative is first in all 3 rounds, 2.5 times as fast as autoregressive (2.0 to 3.0), 5.0 times as fast as diffusion (4.5 to 6.0).");
  const uneven = { ...diffusion, times: [0.1, 1.2, 1.0] }; // the last by its median time, and yet the first of one round
  assert.match(race.verdict([uneven, causal, drafted]), /^No clear winner: speculative was first in 2 of 3 rounds, /);
});

test("labels of close finishes stand one below the other", () => {
  const label = (x, y = 10) => ({ x, y, width: 100 });
  assert.deepEqual(race.staggered([label(0), label(150)]), [10, 10]);
  assert.deepEqual(race.staggered([label(0), label(60), label(30)]), [10, 24, 38]);
  assert.deepEqual(race.staggered([label(0), label(60, 40)]), [10, 40]);
});
