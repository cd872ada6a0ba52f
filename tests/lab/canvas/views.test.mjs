// Replays, lines of the text, rounds of speculation: the canvas's newer pure parts.
import assert from "node:assert/strict";
import test from "node:test";

import { longestLine } from "../../../lab/canvas/grid.js";
import { replayFrame, replaySeconds, slower } from "../../../lab/canvas/replay.js";
import { chosenBy, parts, roundOf } from "../../../lab/canvas/rounds.js";

test("a replay stands on the noise, then takes two to eight seconds whatever the run's length", () => {
  for (const passes of [1, 4, 24, 500]) {
    const whole = 1 + replaySeconds(passes);
    assert.ok(whole >= 3 && whole <= 9);
    assert.deepEqual([0, 0.5, 1].map((at) => replayFrame(at, passes)), [0, 0, 0]);
    assert.equal(replayFrame(1.01, passes), passes > 400 ? replayFrame(1.01, passes) : 1);
    assert.equal(replayFrame(whole, passes), passes);
    assert.equal(replayFrame(whole + 100, passes), passes);
    let before = 0;
    for (let at = 0; at < whole; at += 0.01) {
      assert.ok(replayFrame(at, passes) >= before);
      before = replayFrame(at, passes);
    }
  }
});

test("a replay says how long the run really took", () => {
  assert.equal(slower(4, 0.016), "replayed 130 times slower: it took 16 ms");
  assert.equal(slower(4, 0.00001), "replayed 200000 times slower: it took 1 ms");
  assert.equal(slower(24, 1.24), "replayed 5 times slower: it took 1.2 s");
  assert.equal(slower(4, 2.0), "replayed: it took 2.0 s");
});

test("a board's lines are kept whole, long lines are not", () => {
  assert.equal(longestLine(new Set()), 1);
  assert.equal(longestLine(new Set([5, 10, 15])), 5);
  assert.equal(longestLine(new Set([5, 40])), 1);
});

const ROUNDS = [
  { start: 0, tokens: [7, 8, 9, 4, 5], probabilities: [255, 250, 240, 90, 80], accepted: 2, replacement: 3 },
  { start: 3, tokens: [3, 6], probabilities: [255, 200], accepted: 0, replacement: 6 },
  { start: 4, tokens: [6, 1], probabilities: [255, 200], accepted: 1, replacement: 2 },
];

test("a round says what became of each drafted token", () => {
  const shown = (round) => parts(round).map(({ kind, tokens }) => [kind, tokens.map(({ token }) => token)]);
  assert.deepEqual(shown(ROUNDS[0]), [["given", [7]], ["accepted", [8, 9]], ["replaced", [4]], ["chosen", [3]], ["rejected", [5]]]);
  assert.deepEqual(shown(ROUNDS[1]), [["given", [3]], ["chosen", [6]]], "what was drafted is what the causal mode chose");
  assert.deepEqual(shown(ROUNDS[2]), [["given", [6]], ["accepted", [1]], ["chosen", [2]]], "the draft was over");
  const long = { ...ROUNDS[0], tokens: [7, 8, 9, 4, 5, 0, 0, 0], probabilities: Array(8).fill(9) };
  assert.deepEqual(parts(long, new Set([0])).at(-1).tokens.map(({ token }) => token), [5, 0], "to the first end");
  const ended = { ...long, tokens: [7, 8, 9, 0, 0, 0], replacement: 0 };
  assert.deepEqual(parts(ended, new Set([0])).map(({ kind }) => kind), ["given", "accepted", "chosen"]);
  assert.deepEqual(parts(ROUNDS[0])[1].tokens.map(({ p }) => p), [250, 240]);
});

test("the round under the scrubber wrote the newest token", () => {
  assert.deepEqual([0, 1, 2, 3, 4, 5, 6, 7].map((count) => roundOf(ROUNDS, count)), [-1, -1, 0, 0, 0, 1, 2, 2]);
  assert.deepEqual([...chosenBy(ROUNDS, 7)], [0, 3, 4, 6]);
  assert.equal(chosenBy([], 7).size, 0);
  const apart = [ROUNDS[0], { ...ROUNDS[1], start: ROUNDS[1].start + 1 }]; // a pass without a draft stands between them
  assert.deepEqual([4, 5, 6].map((count) => roundOf(apart, count)), [0, -1, 1]);
  assert.deepEqual([...chosenBy(apart, 6)], [0, 3, 4, 5]);
});
