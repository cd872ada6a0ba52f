// Tokens as text that a reader can see, and numbers with their units. Pure, no browser needed.

const JOINERS = /[\u200c\u200d]/;
const TURNERS = /[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]/g;
const BYTES = /(?:<0x[0-9A-F]{2}>)+/g;
const ONLY_BYTES = /^(?:<0x[0-9A-F]{2}>)+$/;

/** A text without characters that turn the reading direction of what follows: they show as codes. */
export const unturned = (text) => text.replace(TURNERS, visibleCharacter);

/** Running text: bytes that tokens hold one by one ("<0xF0>…") become the characters that they spell. */
export function readable(text) {
  return text.replace(BYTES, (found) =>
    new TextDecoder().decode(Uint8Array.from(found.match(/[0-9A-F]{2}(?=>)/g), (digits) => parseInt(digits, 16))));
}

/**
 * A token's text with everything visible: one line, no control characters, nothing that turns its neighbours' reading
 * direction, at most `limit` characters. A byte shows as ⟨F0⟩.
 */
export function visible(text, limit = 24) {
  if (text === "") return "∅";
  let shown = "";
  let count = 0;
  const characters = [...text.replace(ONLY_BYTES, (bytes) => bytes.replaceAll("<0x", "⟨").replaceAll(">", "⟩"))];
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
  if (code < 0x20) return `⟨${code.toString(16).toUpperCase().padStart(2, "0")}⟩`; // few fonts have the pictures of controls
  if (code === 0x7f) return "⟨7F⟩";
  if (/[\p{C}\p{Z}]/u.test(character)) return `⟨${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  return character;
}

export const percent = (p) => (p >= 0.9995 ? "100 %" : p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);
export const nats = (h) => `${h.toFixed(h < 0.0995 ? 3 : 2)} nats`;

/** "1 pass", "2 passes". */
export const passes = (count) => `${count} ${count === 1 ? "pass" : "passes"}`;

/** What may follow in a state of an automaton (constraints/onward.py), in words. */
export function mayFollow({ tokens, texts, end }) {
  const named = texts.map((text) => visible(text, 16)).join("  ");
  const many = texts.length === tokens ? named : `${tokens} tokens, which begin with ${named}`;
  return [tokens ? many : "", end ? "the end" : ""].filter(Boolean).join(", or ");
}
