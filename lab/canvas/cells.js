// How wide the cells of a grid are, so that tokens can be read in every frame. Pure, no browser needed.

export const LONGEST = 12; // characters of a token that a cell shows whole; hovering shows the rest
const SMALLEST = 0.62; // of the usual size: letters of 7.4 px
const [NARROWEST, WIDEST] = [3, 8]; // characters of the usual size
export const USUAL = 7; // before a run's tokens are known

/**
 * Width of all cells, in characters. lengths: [characters, how many cells] of all tokens over all frames. Nine in ten
 * cells fit at the usual size, and the longest token at the smallest.
 */
export function cellWidth(lengths) {
  const sorted = lengths.map(([length, count]) => [Math.min(length, LONGEST), count]).sort((a, b) => a[0] - b[0]);
  const total = sorted.reduce((sum, [, count]) => sum + count, 0);
  if (total === 0) return USUAL;
  let seen = 0;
  const most = sorted.find(([, count]) => (seen += count) >= 0.9 * total)[0];
  return Math.min(Math.max(most, Math.ceil(SMALLEST * sorted.at(-1)[0]), NARROWEST), WIDEST);
}

/** Size of a text in a cell, 0.62 … 1 of the usual. */
export const fit = (length, width) => Math.min(1, Math.max(SMALLEST, width / length));
