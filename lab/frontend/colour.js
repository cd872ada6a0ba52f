// The ramp of confidence, and text that can be read on it.

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
