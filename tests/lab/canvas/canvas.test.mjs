// The canvas's pure parts: rows, frames, colours, visible text, widths and places.
import assert from "node:assert/strict";
import test from "node:test";

import { beside } from "../../../lab/canvas/card.js";
import * as cells from "../../../lab/canvas/cells.js";
import * as rows from "../../../lab/canvas/rows.js";
import * as runs from "../../../lab/canvas/run.js";
import * as strip from "../../../lab/canvas/strip.js";
import * as colour from "../../../lab/frontend/colour.js";
import * as text from "../../../lab/frontend/text.js";

const js = { ...cells, ...rows, ...runs, ...strip, ...colour, ...text };

const HEADER = 36;

/** A packed row from plain values; alternatives and probabilities are given per position. */
function row({ canvas = 0, step = 0, kind = 0, decided = 0, position = 0, seconds = 0, temperature = 0.5, out, alternatives, p, h, marks, width = 2 }) {
  const n = out.length;
  const k = alternatives[0].length;
  const length = HEADER + Math.ceil((width * n * (1 + k) + n * (3 + k)) / 4) * 4;
  const view = new DataView(new ArrayBuffer(length));
  view.setUint32(0, length, true);
  view.setUint16(4, n, true);
  view.setUint8(6, width);
  view.setUint8(7, k);
  view.setUint16(8, canvas, true);
  view.setUint16(10, marks.filter((m) => m & 1).length, true);
  view.setUint32(12, step, true);
  view.setUint32(16, position, true);
  view.setFloat32(20, temperature, true);
  view.setFloat32(24, 1.5, true);
  view.setFloat32(28, seconds, true);
  view.setUint8(32, kind);
  view.setUint8(33, decided);
  const ids = [...out, ...alternatives.flat()];
  ids.forEach((id, i) => (width === 2 ? view.setUint16(HEADER + 2 * i, id, true) : view.setUint32(HEADER + 4 * i, id, true)));
  [...out.map(() => 200), ...h, ...p.flat(), ...marks].forEach((v, i) => view.setUint8(HEADER + width * ids.length + i, v));
  return new Uint8Array(view.buffer);
}

function join(...parts) {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 3));
  let at = 3; // not at the start of its buffer, as messages from the kernel are
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return new DataView(bytes.buffer, 3);
}

const two = (canvas, step, out, best, marks, more = {}) =>
  row({ canvas, step, out, alternatives: best.map((b) => [b, 9]), p: best.map(() => [255, 0]), h: best.map(() => 100), marks, position: 3 * canvas, ...more });

function run(...rows) {
  const made = new js.Run();
  js.parseRows(join(...rows)).forEach((r) => made.add(r));
  return made;
}

const diffusion = () =>
  run(
    two(0, 0, [5, 6, 7], [1, 2, 3], [1, 0, 0], { seconds: 1 }),
    two(0, 1, [1, 2, 8], [1, 2, 4], [1, 1, 0], { seconds: 2 }),
    two(0, 2, [1, 7, 4], [1, 2, 4], [1, 4, 17], { seconds: 3, decided: 1 }),
    two(1, 0, [5, 5, 5], [6, 6, 6], [0, 2, 8], { seconds: 4 }),
  );

test("rows come back as they were written, whatever their place in the buffer", () => {
  for (const width of [2, 4]) {
    const big = width === 4 ? 70000 : 65535;
    const [first, second] = js.parseRows(join(
      two(3, 7, [big, 1, 2], [4, 5, 6], [1, 2, 4], { width, kind: 1, temperature: 0.75 }), two(4, 0, [1, 1, 1], [1, 1, 1], [0, 0, 0])));
    assert.deepEqual([...first.out], [big, 1, 2]);
    assert.deepEqual([...first.alternatives], [4, 9, 5, 9, 6, 9]);
    assert.deepEqual([...first.marks], [1, 2, 4]);
    assert.deepEqual([...first.entropy], [100, 100, 100]);
    assert.deepEqual([first.canvas, first.step, first.kind, first.temperature, first.accepted], [3, 7, "correct", 0.75, 1]);
    assert.equal(second.canvas, 4);
  }
  assert.deepEqual(js.parseRows(new DataView(new ArrayBuffer(0))), []);
});

test("a damaged row is an error, not an endless loop", () => {
  const bytes = two(0, 0, [1, 1, 1], [1, 1, 1], [0, 0, 0]);
  assert.throws(() => js.parseRows(bytes.subarray(0, bytes.length - 4)), /damaged row/);
  assert.throws(() => js.parseRows(new Uint8Array(40)), /damaged row of 0 bytes/);
});

test("marks say one state, the strongest", () => {
  assert.deepEqual([0, 16, 1, 17, 4, 20, 8, 9, 2, 11].map(js.stateOf), [0, 1, 2, 2, 3, 3, 5, 5, 4, 4]);
  assert.equal(js.STATES.length, 6);
});

test("quantised values keep their ends and order", () => {
  assert.equal(js.probability(0), 0);
  assert.equal(js.probability(255), 1);
  assert.equal(js.entropy(255), 16);
  for (let q = 1; q < 256; q++) assert.ok(js.probability(q) > js.probability(q - 1) && js.entropy(q) > js.entropy(q - 1));
});

test("draft shows what stays and the best guess elsewhere; canvas shows the noise", () => {
  const made = diffusion();
  const [first, second] = made.groups;
  const tokens = (group, step, show) => Array.from({ length: 3 }, (_, i) => made.cell(group, i, step, show)?.token ?? null);
  assert.deepEqual(tokens(first, 0, "draft"), [null, null, null]);
  made.initial = [7, 7, 7];
  assert.deepEqual(tokens(first, 0, "draft"), [7, 7, 7]);
  assert.deepEqual(tokens(first, 1, "canvas"), [5, 6, 7]);
  assert.deepEqual(tokens(first, 1, "draft"), [5, 2, 3]);
  assert.deepEqual(tokens(first, 3, "canvas"), [1, 7, 4]);
  assert.deepEqual(tokens(first, 3, "draft"), [1, 2, 4]); // the stop rule ended it: about to be committed
  assert.deepEqual(tokens(first, 4, "canvas"), [1, 2, 4]); // committed
  assert.deepEqual(tokens(second, 3, "draft"), [null, null, null]);
  assert.deepEqual(tokens(second, 4, "draft"), [6, 5, 6]); // the pin stays
  assert.deepEqual([second.position, second.first, second.passes], [3, 3, 1]);
});

test("live rows stand at their frames, whatever was left out between them", () => {
  const made = new js.Run();
  const put = (end, ...rows) => js.parseRows(join(...rows)).forEach((r) => made.put(r, end));
  put(2, two(0, 1, [1, 2, 8], [1, 2, 4], [1, 1, 0]));
  put(4, two(0, 3, [1, 7, 4], [1, 2, 4], [1, 4, 17], { decided: 1 }));
  put(6, two(1, 1, [5, 5, 5], [6, 6, 6], [0, 2, 8]));
  put(6, two(1, 1, [9, 9, 9], [9, 9, 9], [0, 0, 0])); // again: nothing new
  assert.deepEqual(made.rows.map((r) => [r.canvas, r.step]), [[0, 1], [0, 1], [0, 1], [0, 3], [1, 1], [1, 1]]);
  assert.deepEqual(made.groups.map(({ first, passes }) => [first, passes]), [[0, 4], [4, 2]]);
  assert.equal(made.cell(made.groups[1], 0, 6, "canvas").token, 5);
});

test("a live row of several tokens is a pass for each, and those that are there stay", () => {
  const tokens = (step, ...ids) => row({
    kind: 2, step, position: step, out: ids, alternatives: ids.map((id) => [id, 0]), p: ids.map((id) => [id, 1]), h: ids, marks: ids.map(() => 1),
  });
  const made = new js.Run();
  const put = (end, bytes) => js.parseRows(join(bytes)).forEach((r) => made.put(r, end));
  put(1, tokens(0, 4));
  put(4, tokens(1, 5, 6, 7));
  put(4, tokens(0, 4, 5, 6, 7)); // for a view that came late
  put(5, tokens(0, 4, 5, 6, 7, 8));
  assert.deepEqual(made.rows.map((r) => [r.n, r.step, r.position, r.out[0], r.alternatives[0], r.probabilities[0], r.entropy[0], r.marks[0]]),
    [4, 5, 6, 7, 8].map((id, i) => [1, i, i, id, id, id, id, 1]));
  assert.deepEqual([made.groups.length, made.groups[0].n], [1, 5]);
  assert.equal(made.rows[2].meanEntropy, js.entropy(6));
});

test("settled: from which pass the argmax no longer changes", () => {
  const made = diffusion();
  assert.deepEqual(made.settled(made.groups[0]), [0, 0, 1]);
  const cell = made.cell(made.groups[0], 2, 1, "draft");
  assert.equal(made.shade(made.groups[0], 2, 1, cell, "settled"), null); // not yet
  assert.equal(made.shade(made.groups[0], 2, 2, cell, "settled"), 128);
  assert.equal(made.shade(made.groups[0], 0, 1, cell, "settled"), 255);
  assert.equal(made.shade(made.groups[0], 0, 1, cell, "confidence"), 255);
});

test("history and its stretches", () => {
  const made = diffusion();
  const history = made.history(made.groups[0], 2);
  assert.deepEqual(history.map(({ token }) => token), [3, 4, 4]);
  assert.deepEqual(js.stretches(history), [{ token: 3, from: 0, to: 0 }, { token: 4, from: 1, to: 2 }]);
});

test("recorded time finds its frame", () => {
  const made = diffusion();
  assert.deepEqual([0, 0.99, 1, 2.5, 9].map((s) => made.stepAt(s)), [0, 0, 1, 2, 4]);
});

test("autoregression is one group that grows by a cell a pass", () => {
  const token = (step, id) => row({ kind: 2, step, position: step, out: [id], alternatives: [[id]], p: [[128]], h: [50], marks: [1] });
  const made = run(token(0, 4), token(1, 5), token(2, 6));
  assert.ok(made.autoregressive);
  assert.equal(made.groups.length, 1);
  const [group] = made.groups;
  assert.deepEqual([group.n, group.passes], [3, 3]);
  assert.deepEqual([0, 1, 2].map((i) => made.cell(group, i, 2, "draft")?.token ?? null), [4, 5, null]);
  assert.deepEqual(made.settled(group), [0, 1, 2]);
});

test("every token's text is visible and stays in its line", () => {
  assert.equal(js.visible(" the\n"), "·the⏎");
  assert.equal(js.visible(""), "∅");
  assert.equal(js.visible("\t\u0000\u001b\u007f"), "⇥⟨00⟩⟨1B⟩⟨7F⟩");
  assert.equal(js.visible("\u202eevil"), "⟨202E⟩evil");
  assert.equal(js.visible("\u200b\ufeff\u00a0\u2028"), "⟨200B⟩⟨FEFF⟩⟨00A0⟩⟨2028⟩");
  assert.equal(js.visible("\u0301"), "◌\u0301");
  assert.equal(js.visible("👩\u200d👧"), "👩\u200d👧");
  assert.equal(js.visible("\u200d"), "⟨200D⟩");
  assert.equal(js.visible("שלום"), "שלום");
  assert.equal(js.visible("\ud800x"), "⟨D800⟩x");
  const long = js.visible("x".repeat(5000));
  assert.equal(long, "x".repeat(24) + "…");
});

test("text on every colour of the ramp contrasts at least 4.5 : 1, and lightness rises", () => {
  let before = 0; // rounded colours wiggle by a thousandth
  for (let q = 0; q < 256; q++) {
    const rgb = js.ramp(q / 255);
    const light = js.luminance(rgb);
    const text = js.ink(rgb) === "#000" ? 0 : 1;
    const contrast = (Math.max(light, text) + 0.05) / (Math.min(light, text) + 0.05);
    assert.ok(contrast >= 4.5, `${rgb}: ${contrast}`);
    assert.ok(light >= before - 0.003, `${rgb} is darker than the colour before`);
    before = light;
  }
});

test("numbers for people", () => {
  assert.equal(js.percent(0.12345), "12.3 %");
  assert.equal(js.percent(1e-6), "< 0.1 %");
  assert.equal(js.percent(0.99999), "100 %");
  assert.equal(js.nats(0.0042), "0.004 nats");
  assert.equal(js.nats(2.345), "2.35 nats");
});

test("cells fit nine in ten tokens whole, and the longest in small letters", () => {
  assert.equal(js.cellWidth([]), js.USUAL);
  assert.equal(js.cellWidth([[1, 30]]), 3);
  assert.equal(js.cellWidth([[4, 99], [9, 1]]), 6); // 9 characters at 0.62 of the size
  assert.equal(js.cellWidth([[4, 50], [7, 50]]), 7);
  assert.equal(js.cellWidth([[50, 10]]), 8);
  assert.deepEqual([js.fit(3, 6), js.fit(8, 6), js.fit(50, 6)], [1, 0.75, 0.62]);
  for (let longest = 1; longest <= js.LONGEST; longest++) {
    const width = js.cellWidth([[1, 1000], [longest, 1]]);
    assert.ok(longest * js.fit(longest, width) <= width + 0.01, `${longest} in ${width}`);
  }
});

test("a floating card leaves its token and the controls to be seen", () => {
  const card = { width: 256, height: 312 };
  const page = { width: 600, height: 700, controls: { top: 132, bottom: 190 } };
  const at = (left, top, controls = page.controls) => beside({ left, top, right: left + 60, bottom: top + 25 }, card, { ...page, controls });
  assert.deepEqual(at(20, 220), { x: 20, y: 251 }); // below
  assert.deepEqual(at(500, 220), { x: 340, y: 251 });
  assert.deepEqual(at(20, 640), { x: 20, y: 322 }); // above, where that is below the controls
  assert.deepEqual(at(20, 400), { x: 86, y: 384 }); // neither: at its right
  assert.deepEqual(at(480, 400), { x: 218, y: 384 }); // or left
  assert.deepEqual(at(20, 560, { top: 420, bottom: 478 }), { x: 20, y: 102 }); // no room below the controls: above them
});

test("bytes are legible one by one, and spell characters in running text", () => {
  assert.equal(js.visible("<0xF0>"), "⟨F0⟩");
  assert.equal(js.visible("<0xF0><0x9F>"), "⟨F0⟩⟨9F⟩");
  assert.equal(js.readable("a <0xF0><0x9F><0x99><0x82>!"), "a 🙂!");
  assert.equal(js.readable("<0xF0>"), "\ufffd");
});

test("a pin is sure; its list and its history are the model's own", () => {
  const made = diffusion();
  const pinned = made.cell(made.groups[1], 1, 4, "draft");
  assert.equal(pinned.state, 4);
  assert.equal(made.confidence(pinned), 1);
  assert.equal(made.shade(made.groups[1], 1, 4, pinned, "confidence"), 255);
});

test("paths of the strip keep to their track", () => {
  assert.equal(js.linePath([0, 1], 22, 20), "M0 22.00H1V2.00H2");
  assert.equal(js.barPath([0.5], 22, 20), "M0 22V12.00H1V22Z");
});

/** A row, and behind it what a constraint forbids: f tokens a position. */
function constrained(plain, { f, ids, states, p, mass }) {
  const n = states.length;
  const tail = new DataView(new ArrayBuffer(Math.ceil((2 * n * f + 2 * n + n * f + n) / 4) * 4));
  ids.flat().forEach((id, i) => tail.setUint16(2 * i, id, true));
  states.forEach((state, i) => tail.setUint16(2 * n * f + 2 * i, state, true));
  [...p.flat(), ...mass].forEach((v, i) => tail.setUint8(2 * n * f + 2 * n + i, v));
  const bytes = new Uint8Array(plain.length + tail.byteLength);
  bytes.set(plain);
  bytes.set(new Uint8Array(tail.buffer), plain.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint8(34, 1);
  view.setUint8(35, f);
  return bytes;
}

const half = 128; // about 0.5
const bound = (more = {}) => constrained(
  row({ out: [1, 2, 3], alternatives: [[1, 4], [2, 4], [3, 4]], p: [[255, 0], [half, half], [0, 255]], h: [0, 0, 0], marks: [1, 0, 2], ...more }),
  { f: 1, ids: [[8], [9], [9]], states: [7, 0, 65535], p: [[half], [0], [0]], mass: [half, 0, 0] });

test("a constrained row tells what is forbidden and where the automaton stands", () => {
  const [free, first] = js.parseRows(join(two(0, 0, [1, 2, 3], [1, 2, 3], [0, 0, 0]), bound()));
  assert.deepEqual([free.constrained, free.barred, js.automatonState(free, 0), js.automatonState(null, 0)], [false, null, null, null]);
  assert.deepEqual([0, 1, 2].map((i) => js.automatonState(first, i)), [7, 0, null]);
  const [one, two_] = [js.conditioned(first, 0), js.conditioned(first, 1)];
  assert.deepEqual(one.map(({ token, barred = false }) => [token, barred]), [[8, true], [1, false]]);
  assert.equal(one[0].after, null);
  assert.ok(Math.abs(one[1].before - 0.5) < 0.01 && one[1].after === 1, "what is left was renormalised");
  assert.deepEqual(two_.map(({ token, before, after }) => [token, before === after]), [[2, true], [4, true]]);
});

test("a best guess of hardly any probability is not called forbidden", () => {
  const [first] = js.parseRows(join(bound()));
  const third = js.conditioned(first, 2); // its argmax has 0 of 255
  assert.deepEqual(third.map(({ token, after, barred = false }) => [token, after, barred]), [[4, 1, false], [3, 0, false]]);
});

test("a pinned place lists what the model would have written; the pin alone is left of it", () => {
  const [first] = js.parseRows(join(bound()));
  assert.deepEqual(js.conditioned(first, 1, 4).map(({ token, after }) => [token, after]), [[2, null], [4, 1]]);
  assert.deepEqual(js.conditioned(first, 0, 77).map(({ token, before, after }) => [token, before, after]), [[77, null, 1], [1, 1, null]]);
});

test("a short list holds something that is allowed", () => {
  const found = [1, 2, 3].map((token) => ({ token, before: 0.3, after: null, barred: true })).concat({ token: 9, before: 0.1, after: 1 });
  assert.deepEqual(js.shortened(found, 2).map(({ token }) => token), [1, 9]);
  assert.deepEqual(js.shortened(found, 9).length, 4);
  assert.deepEqual(js.shortened([], 3), []);
});

test("tokens of a constrained text written one by one come apart", () => {
  const [joined] = js.parseRows(join(bound({ kind: 2 })));
  const [one, , three] = js.singles(joined);
  assert.deepEqual([js.automatonState(one, 0), js.automatonState(three, 0)], [7, null]);
  assert.deepEqual(js.conditioned(one, 0).map(({ token }) => token), [8, 1]);
});

test("what may follow is said in words, with nothing unseen in it", () => {
  assert.equal(js.mayFollow({ tokens: 2, texts: [" a", "<b>"], end: false }), "·a  <b>");
  assert.equal(js.mayFollow({ tokens: 40, texts: ["a–z", "\u202e"], end: true }), "40 tokens, which begin with a–z  ⟨202E⟩, or the end");
  assert.equal(js.mayFollow({ tokens: 0, texts: [], end: true }), "the end");
});
