// Packed rows, one a pass (the format is in packing.py), as objects with typed arrays. Pure, no browser needed.

const HEADER = 36;
const MAX_ENTROPY = 16;
const NO_STATE = 65535;
export const STATES = ["noise", "candidate", "accepted", "re-melted", "pinned", "after EOS"];
export const KINDS = ["predict", "correct", "token"];
const [ACCEPTED, PINNED, REMELTED, AFTER_EOS, STEADY] = [1, 2, 4, 8, 16];

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
  const constrained = view.getUint8(at + 34) === 1;
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
    alternatives: ids.subarray(n), // position-major, k each, the model's best first
    sample: u8.subarray(0, n),
    entropy: u8.subarray(n, 2 * n),
    probabilities: u8.subarray(2 * n, (2 + k) * n),
    marks: u8.subarray((2 + k) * n, (3 + k) * n),
    constrained,
    barred: constrained ? parseBarred(body, 4 * Math.ceil((width * ids.length + (3 + k) * n) / 4), n, view.getUint8(at + 35), width) : null,
  };
}

/** What a constrained row has behind its marks: f forbidden tokens a position, the automaton's states, what is forbidden. */
function parseBarred(body, at, n, f, width) {
  const states = at + width * n * f;
  const chances = states + 2 * n;
  return {
    f,
    ids: new (width === 2 ? Uint16Array : Uint32Array)(body, at, n * f), // position-major, the likeliest first
    states: new Uint16Array(body, states, n),
    probabilities: new Uint8Array(body, chances, n * f), // 0: none
    mass: new Uint8Array(body, chances + n * f, n),
  };
}

/**
 * The tokens of place i of a constrained row as the model would have had them, and given the constraint: [{token, before,
 * after}], the likeliest before first. before null: not known. after null: ruled out, by the constraint where `barred`, else
 * by a pin. pin: the token that is held there, null for none.
 */
export function conditioned(row, i, pin = null) {
  const { k, barred } = row;
  const own = Array.from({ length: k }, (_, a) => ({ token: row.alternatives[i * k + a], p: probability(row.probabilities[i * k + a]) }));
  if (pin !== null) {
    const found = own.filter(({ token, p }) => p > 0 || token === pin).map(({ token, p }) => ({ token, before: p, after: token === pin ? 1 : null }));
    return found.some(({ token }) => token === pin) ? found : [{ token: pin, before: null, after: 1 }, ...found];
  }
  const allowed = 1 - probability(barred.mass[i]);
  const found = own.filter(({ p }, a) => p > 0 || a === 0).map(({ token, p }) => ({ token, before: p * allowed, after: p }));
  for (let b = 0; b < barred.f; b++) {
    const before = probability(barred.probabilities[i * barred.f + b]);
    if (before > 0) found.push({ token: barred.ids[i * barred.f + b], before, after: null, barred: true });
  }
  return found.sort((one, other) => other.before - one.before || other.after - one.after);
}

/** The first `count` of these, one that is not ruled out among them. */
export function shortened(found, count) {
  const shown = found.slice(0, count);
  const possible = ({ after }) => after !== null;
  if (shown.length && !shown.some(possible)) shown[shown.length - 1] = found.find(possible) ?? shown.at(-1);
  return shown;
}

/** The automaton's state before place i, null where it is not known. */
export function automatonState(row, i) {
  const state = row?.barred?.states[i] ?? NO_STATE;
  return state === NO_STATE ? null : state;
}

/** A row of n tokens of an autoregressive run → n rows of one. */
export function singles(row) {
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
    barred: row.barred && {
      f: row.barred.f,
      ids: row.barred.ids.subarray(i * row.barred.f, (i + 1) * row.barred.f),
      states: row.barred.states.subarray(i, i + 1),
      probabilities: row.barred.probabilities.subarray(i * row.barred.f, (i + 1) * row.barred.f),
      mass: row.barred.mass.subarray(i, i + 1),
    },
  }));
}

/** Whether a mark byte says that its position is pinned, or accepted by the sampler. */
export const isPinned = (marks) => (marks & PINNED) !== 0;
export const isAccepted = (marks) => (marks & ACCEPTED) !== 0;

/** A mark byte → index into STATES, as Trace.states() orders them. */
export function stateOf(marks) {
  if (marks & PINNED) return 4;
  if (marks & AFTER_EOS) return 5;
  if (marks & REMELTED) return 3;
  if (marks & ACCEPTED) return 2;
  return marks & STEADY ? 1 : 0;
}
