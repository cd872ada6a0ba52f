// A run as the canvas widget knows it: what a cell shows at a frame. Pure, no browser needed.

import { entropy, isAccepted, isPinned, probability, singles, stateOf } from "./rows.js";

/**
 * The passes of one run, grouped into canvases. `step` is a frame: 0 shows the first canvas's noise, s what stands
 * after s passes. In autoregression the one group grows by a cell a pass.
 */
export class Run {
  rows = [];
  groups = []; // {canvas, position, first, passes, n}
  initial = null; // local ids of the first canvas's noise
  maxEntropy = 1; // quantised

  get autoregressive() {
    return this.rows.length > 0 && this.rows[0].kind === "token";
  }

  add(row) {
    const last = this.groups.at(-1);
    if (last && last.canvas === row.canvas) {
      last.passes += 1;
      if (row.kind === "token") last.n += 1;
    } else {
      const { canvas, position, n } = row;
      this.groups.push({ canvas, position, n, first: this.rows.length, passes: 1 });
    }
    this.rows.push(row);
    for (const q of row.entropy) this.maxEntropy = Math.max(this.maxEntropy, q);
  }

  /**
   * A row that came live, which ends at frame `end`. Passes of its canvas that were not sent look like the one before
   * them, where there is none like this one; a row of several tokens is a pass for each.
   */
  put(row, end) {
    if (row.kind === "token") {
      for (const token of singles(row).slice(Math.max(row.n - (end - this.rows.length), 0))) this.add(token);
      return;
    }
    const last = this.rows.at(-1);
    const between = last?.canvas === row.canvas ? last : row;
    while (this.rows.length < end - 1) this.add(between);
    if (this.rows.length < end) this.add(row);
  }

  /**
   * What stands at place i of a group at a frame: null where nothing was written yet.
   * show "draft": accepted tokens, best guesses elsewhere; "canvas": what the model sees next, noise included.
   */
  cell(group, i, step, show) {
    if (this.autoregressive) {
      if (i >= step - group.first) return null;
      const row = this.rows[group.first + i];
      return { row, i: 0, token: row.out[0], state: stateOf(row.marks[0]) };
    }
    const done = Math.min(step - group.first, group.passes);
    if (done <= 0) {
      if (step > 0 || group.first > 0 || !this.initial) return null;
      const pinned = this.rows.length > 0 && isPinned(this.rows[0].marks[i]);
      return { row: null, i, token: this.initial[i], state: pinned ? 4 : 0 };
    }
    const row = this.rows[group.first + done - 1];
    const committed = step > group.first + group.passes || (row.decided && show === "draft");
    const onCanvas = isPinned(row.marks[i]) || (!committed && (show === "canvas" || isAccepted(row.marks[i])));
    return { row, i, token: onCanvas ? row.out[i] : row.alternatives[i * row.k], state: stateOf(row.marks[i]) };
  }

  /** Place by place, the pass of its group (from 0) from which the argmax no longer changes. */
  settled(group) {
    if (group.settledAt === group.passes) return group.settled;
    if (this.autoregressive) {
      group.settled = Array.from({ length: group.n }, (_, i) => i);
    } else {
      const rows = this.rows.slice(group.first, group.first + group.passes);
      const guess = (row, i) => (isPinned(row.marks[i]) ? row.out[i] : row.alternatives[i * row.k]);
      group.settled = Array.from({ length: group.n }, (_, i) => {
        let pass = rows.length - 1;
        const final = guess(rows[pass], i);
        while (pass > 0 && guess(rows[pass - 1], i) === final) pass -= 1;
        return pass;
      });
    }
    group.settledAt = group.passes;
    return group.settled;
  }

  /** One place over the passes of its canvas: [{pass, token, p, state}], the model's best guess. Diffusion only. */
  history(group, i) {
    return this.rows.slice(group.first, group.first + group.passes).map((row, pass) => ({
      pass,
      token: row.alternatives[i * row.k],
      p: probability(row.probabilities[i * row.k]),
      state: stateOf(row.marks[i]),
    }));
  }

  /** How sure the token of a cell is, 0 … 1: a pin is given, so it is sure. */
  confidence({ row, i, state }) {
    return state === 4 ? 1 : probability(row.probabilities[i * row.k]);
  }

  /** Colour value 0 … 255 of a cell, or null where there is none. */
  shade(group, i, step, cell, by) {
    if (!cell.row) return null;
    if (by === "confidence") return Math.round(255 * this.confidence(cell));
    if (by === "entropy") return Math.round(255 * (1 - cell.row.entropy[cell.i] / this.maxEntropy));
    const settled = this.settled(group)[i];
    if (step - group.first <= settled) return null;
    return Math.round(255 * (1 - settled / Math.max(1, group.passes - 1)));
  }

  /**
   * Answer positions that begin a line of the text at a frame, the last if none is named, where it has several: behind a
   * line break, unless nothing but another one stands there, and the first one behind the end. texts: of local ids;
   * ends: local ids of end marks.
   */
  lineStarts(texts, ends, step = this.rows.length) {
    const starts = new Set();
    const text = []; // [position, token, whether it is behind the end]
    for (const group of this.groups) {
      for (let i = 0; i < group.n; i++) {
        const cell = this.cell(group, i, step, "draft");
        if (cell) text.push([group.position + i, cell.token, cell.state === 5]);
      }
    }
    const kept = text.filter(([, token, behind]) => !behind && !ends.has(token));
    const breaks = (at) => texts[kept[at][1]]?.endsWith("\n");
    kept.forEach(([position, token], at) => at > 0 && breaks(at - 1) && texts[token] !== "\n" && starts.add(position));
    const end = text.find(([, token]) => ends.has(token));
    if (starts.size && end) starts.add(end[0] + 1);
    return starts;
  }

  /** The frame that stood at a time since the run began. */
  stepAt(seconds) {
    let low = 0;
    let high = this.rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.rows[middle].seconds <= seconds) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** token → how many cells show it, over all frames: as noise, as a sample, as the best guess. */
  occurrences() {
    const counts = new Map();
    const count = (token) => counts.set(token, (counts.get(token) ?? 0) + 1);
    this.initial?.forEach(count);
    for (const row of this.rows) {
      row.out.forEach(count);
      for (let i = 0; i < row.n; i++) count(row.alternatives[i * row.k]);
    }
    return counts;
  }
}

/** A history → its stretches of equal best guess: [{token, from, to}]. */
export function stretches(history) {
  const found = [];
  for (const { pass, token } of history) {
    if (found.length && found.at(-1).token === token) found.at(-1).to = pass;
    else found.push({ token, from: pass, to: pass });
  }
  return found;
}
