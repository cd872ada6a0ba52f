// A run as the canvas widget knows it: packed rows (the format is in packing.py) → what a cell shows at a frame. Pure,
// no browser needed.

const HEADER = 36;
const MAX_ENTROPY = 16;
export const STATES = ["noise", "candidate", "accepted", "re-melted", "pinned", "after EOS"];
export const KINDS = ["predict", "correct", "token"];
const [ACCEPTED, PINNED, REMELTED, AFTER_EOS, STEADY] = [1, 2, 4, 8, 16];

// ---- bytes -------------------------------------------------------------------------------------------------------

/** 0 … 255 → probability. */
export const probability = (q) => Math.sin((Math.PI / 2) * (q / 255)) ** 2;

/** 0 … 255 → nats. */
export const entropy = (q) => MAX_ENTROPY * (q / 255) ** 2;

/** All rows of a DataView (or any ArrayBuffer view), in order. */
export function parseRows(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const rows = [];
  for (let at = 0; at < view.byteLength; ) {
    const length = view.getUint32(at, true);
    if (length < HEADER || at + length > view.byteLength) throw new Error(`damaged row of ${length} bytes at ${at}`);
    rows.push(parseRow(view, at, length));
    at += length;
  }
  return rows;
}

function parseRow(view, at, length) {
  const n = view.getUint16(at + 4, true);
  const width = view.getUint8(at + 6);
  const k = view.getUint8(at + 7);
  // A slice starts aligned, as typed arrays of ids need it.
  const body = view.buffer.slice(view.byteOffset + at + HEADER, view.byteOffset + at + length);
  const ids = new (width === 2 ? Uint16Array : Uint32Array)(body, 0, n * (1 + k));
  const u8 = new Uint8Array(body, width * ids.length);
  return {
    n,
    k,
    canvas: view.getUint16(at + 8, true),
    accepted: view.getUint16(at + 10, true),
    step: view.getUint32(at + 12, true),
    position: view.getUint32(at + 16, true),
    temperature: view.getFloat32(at + 20, true),
    meanEntropy: view.getFloat32(at + 24, true),
    seconds: view.getFloat32(at + 28, true),
    kind: KINDS[view.getUint8(at + 32)],
    decided: view.getUint8(at + 33) === 1,
    out: ids.subarray(0, n),
    alternatives: ids.subarray(n), // position-major, k each, the argmax first
    sample: u8.subarray(0, n),
    entropy: u8.subarray(n, 2 * n),
    probabilities: u8.subarray(2 * n, (2 + k) * n),
    marks: u8.subarray((2 + k) * n, (3 + k) * n),
  };
}

/** A mark byte → index into STATES, as Trace.states() orders them. */
export function stateOf(marks) {
  if (marks & PINNED) return 4;
  if (marks & AFTER_EOS) return 5;
  if (marks & REMELTED) return 3;
  if (marks & ACCEPTED) return 2;
  return marks & STEADY ? 1 : 0;
}

// ---- a run -------------------------------------------------------------------------------------------------------

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
      const pinned = this.rows.length > 0 && this.rows[0].marks[i] & PINNED;
      return { row: null, i, token: this.initial[i], state: pinned ? 4 : 0 };
    }
    const row = this.rows[group.first + done - 1];
    const committed = step > group.first + group.passes || (row.decided && show === "draft");
    const onCanvas = row.marks[i] & PINNED || (!committed && (show === "canvas" || row.marks[i] & ACCEPTED));
    return { row, i, token: onCanvas ? row.out[i] : row.alternatives[i * row.k], state: stateOf(row.marks[i]) };
  }

  /** Place by place, the pass of its group (from 0) from which the argmax no longer changes. */
  settled(group) {
    if (group.settledAt === group.passes) return group.settled;
    if (this.autoregressive) {
      group.settled = Array.from({ length: group.n }, (_, i) => i);
    } else {
      const rows = this.rows.slice(group.first, group.first + group.passes);
      const { alternatives: final, k } = rows.at(-1);
      group.settled = Array.from({ length: group.n }, (_, i) => {
        let pass = rows.length - 1;
        while (pass > 0 && rows[pass - 1].alternatives[i * rows[pass - 1].k] === final[i * k]) pass -= 1;
        return pass;
      });
    }
    group.settledAt = group.passes;
    return group.settled;
  }

  /** One place over the passes of its canvas: [{pass, token, p, state}]. Diffusion only. */
  history(group, i) {
    return this.rows.slice(group.first, group.first + group.passes).map((row, pass) => ({
      pass,
      token: row.alternatives[i * row.k],
      p: probability(row.probabilities[i * row.k]),
      state: stateOf(row.marks[i]),
    }));
  }

  /** Colour value 0 … 255 of a cell, or null where there is none. */
  shade(group, i, step, cell, by) {
    if (!cell.row) return null;
    if (by === "confidence") return Math.round(255 * probability(cell.row.probabilities[cell.i * cell.row.k]));
    if (by === "entropy") return Math.round(255 * (1 - cell.row.entropy[cell.i] / this.maxEntropy));
    const settled = this.settled(group)[i];
    if (step - group.first <= settled) return null;
    return Math.round(255 * (1 - settled / Math.max(1, group.passes - 1)));
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
}

/** A row of n tokens → n rows of one. */
function singles(row) {
  const { n, k } = row;
  return Array.from({ length: n }, (_, i) => ({
    ...row,
    n: 1,
    step: row.step + i,
    position: row.position + i,
    meanEntropy: entropy(row.entropy[i]),
    out: row.out.subarray(i, i + 1),
    alternatives: row.alternatives.subarray(i * k, (i + 1) * k),
    sample: row.sample.subarray(i, i + 1),
    entropy: row.entropy.subarray(i, i + 1),
    probabilities: row.probabilities.subarray(i * k, (i + 1) * k),
    marks: row.marks.subarray(i, i + 1),
  }));
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

// ---- text and colour ---------------------------------------------------------------------------------------------

const JOINERS = /[\u200c\u200d]/;
const TURNERS = /[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]/g;

/** A text without characters that turn the reading direction of what follows: they show as codes. */
export const unturned = (text) => text.replace(TURNERS, visibleCharacter);

/**
 * A token's text with everything visible: one line, no control characters, nothing that turns its neighbours' reading
 * direction, at most `limit` characters.
 */
export function visible(text, limit = 24) {
  if (text === "") return "∅";
  let shown = "";
  let count = 0;
  const characters = [...text];
  for (const character of characters) {
    if (++count > limit) return shown + "…";
    const joins = JOINERS.test(character) && count > 1 && count < characters.length; // as in emoji, Persian
    shown += joins ? character : visibleCharacter(character);
  }
  return /^\p{M}/u.test(shown) ? "◌" + shown : shown;
}

function visibleCharacter(character) {
  const code = character.codePointAt(0);
  if (character === " ") return "·";
  if (character === "\n") return "⏎";
  if (character === "\t") return "⇥";
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "␡";
  if (/[\p{C}\p{Z}]/u.test(character)) return `⟨${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  return character;
}

// Dark blue to pale straw, after cividis (Nuñez, Anderton, Renslow 2018) but softer: lightness rises evenly, so the
// order reads with every kind of colour vision and in grey.
const RAMP = [
  [24, 52, 97], [52, 84, 125], [88, 116, 148], [128, 148, 163], [168, 178, 170],
  [203, 203, 168], [230, 221, 160], [250, 236, 152],
];

/** 0 … 1 → [r, g, b]. */
export function ramp(x) {
  const place = Math.min(Math.max(x, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[low].map((a, c) => Math.round(a + (RAMP[low + 1][c] - a) * (place - low)));
}

/** Relative luminance of [r, g, b], as WCAG 2 defines it. */
export function luminance(rgb) {
  const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Text colour on a ramp colour: black and white contrast equally, 4.58 : 1, at luminance 0.179. */
export const ink = (rgb) => (luminance(rgb) > 0.179 ? "#000" : "#fff");

export const percent = (p) => (p >= 0.9995 ? "100 %" : p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);
export const nats = (h) => `${h.toFixed(h < 0.0995 ? 3 : 2)} nats`;

/** Width of a cell in characters: wide enough for most tokens of the last frame, the same for all. */
export function cellWidth(lengths) {
  if (lengths.length === 0) return 6;
  const sorted = [...lengths].sort((a, b) => a - b);
  return Math.min(Math.max(sorted[Math.floor(0.9 * (sorted.length - 1))], 2), 9);
}

/** SVG path of steps over equally wide columns; values 0 … 1 go up from `bottom` by `height`. */
export function linePath(values, bottom, height) {
  return values
    .map((v, x) => `${x ? "V" : "M0 "}${(bottom - height * v).toFixed(2)}H${x + 1}`)
    .join("");
}

export function barPath(values, bottom, height) {
  return values.map((v, x) => `M${x} ${bottom}V${(bottom - height * v).toFixed(2)}H${x + 1}V${bottom}Z`).join("");
}
