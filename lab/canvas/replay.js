// Showing a short run once more from its noise, at a pace that a person can follow. Pure, no browser needed.

const NOISE = 1; // seconds for which the noise stands

/** Seconds that the replay of so many passes takes, the noise before them left out. */
export const replaySeconds = (passes) => Math.min(Math.max(passes / 4, 2), 8);

/** The frame at a time since the replay began: 0 is noise, `passes` the last. */
export function replayFrame(elapsed, passes) {
  return Math.min(Math.max(Math.ceil(((elapsed - NOISE) / replaySeconds(passes)) * passes), 0), passes);
}

/** How often the replay is slower than the run was, in words: with the time that the run took. */
export function slower(passes, seconds) {
  const factor = replaySeconds(passes) / Math.max(seconds, 1e-6);
  const round = factor >= 20 ? Math.round(factor / 10) * 10 : Math.round(factor);
  const took = seconds < 1 ? `${Math.max(Math.round(1000 * seconds), 1)} ms` : `${seconds.toFixed(1)} s`;
  return round > 1 ? `replayed ${round} times slower: it took ${took}` : `replayed: it took ${took}`;
}
