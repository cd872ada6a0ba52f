// Speculation: the round under the scrubber, drawn as what became of each drafted token. Shape says it as well as colour.

import { node, write } from "../frontend/dom.js";
import { visible } from "../frontend/text.js";
import { SHADES } from "./grid.js";

/** The index of the round that wrote token number `count` (from 1); −1 where the prompt's pass did, or one without a draft. */
export function roundOf(rounds, count) {
  return rounds.findLastIndex(({ start, accepted }) => start + 1 < count && count <= start + accepted + 2);
}

/** Of `length` answer positions those whose token the causal mode chose itself: all but the accepted ones. */
export function chosenBy(rounds, length) {
  const accepted = new Set(rounds.flatMap(({ start, accepted }) => Array.from({ length: accepted }, (_, i) => start + 1 + i)));
  return new Set(rounds.length ? Array.from({ length }, (_, i) => i).filter((i) => !accepted.has(i)) : []);
}

/**
 * A round as groups of tokens: [{kind, words, tokens: [{token, p}]}]. Kinds: given, accepted, replaced, chosen, rejected.
 * A draft whose next token is the causal mode's own choice has nothing replaced. The rejected tail is shown to its first
 * end mark, and not at all behind one that stays; ends: their local ids.
 */
export function parts({ tokens, probabilities, accepted, replacement }, ends = new Set()) {
  const at = (from, to) => tokens.slice(from, to).map((token, i) => ({ token, p: probabilities[from + i] }));
  const [next] = at(1 + accepted, 2 + accepted);
  const same = next?.token === replacement;
  const tail = ends.has(replacement) && same ? [] : at(2 + accepted, tokens.length);
  const end = tail.findIndex(({ token }) => ends.has(token));
  const found = [
    { kind: "given", words: "written before", tokens: at(0, 1) },
    { kind: "accepted", words: `${accepted} accepted`, tokens: at(1, 1 + accepted) },
    { kind: "replaced", words: "replaced", tokens: next && !same ? [next] : [] },
    { kind: "chosen", words: same ? "confirmed" : "the causal mode's choice", tokens: [{ token: replacement, p: null }] },
    { kind: "rejected", words: "rejected tail", tokens: end < 0 ? tail : tail.slice(0, end + 1) },
  ];
  return found.filter((part) => part.tokens.length);
}

export class Rounds {
  constructor(view) {
    this.view = view;
    this.name = node("div", { class: "dg-round-name", role: "status" });
    this.row = node("div", { class: "dg-round" });
    this.node = node("div", { class: "dg-rounds", role: "group", "aria-label": "Round of speculation" }, this.name, this.row);
  }

  draw() {
    const { view } = this;
    const rounds = view.meta.rounds ?? [];
    this.node.hidden = rounds.length === 0;
    if (this.node.hidden) return;
    const at = roundOf(rounds, view.step);
    const shown = `${view.version}/${at}`;
    if (shown === this.shown) return;
    this.shown = shown;
    this.row.hidden = at < 0;
    if (at < 0) return write(this.name, ["rounds follow", "the first token comes with the prompt's pass"][view.step] ?? "a pass without a draft chose this token");
    const round = rounds[at];
    const steps = `${round.steps} denoising ${round.steps === 1 ? "step" : "steps"}`;
    const verified = round.verified > 1 ? `${round.verified - 1} verified in one pass · ${round.accepted} accepted` : "given up: it began otherwise";
    write(this.name, `round ${at + 1} of ${rounds.length} · ${round.tokens.length - 1} drafted in ${steps} · ${verified}`);
    this.row.replaceChildren(...parts(round, view.ends()).map(({ kind, words, tokens }) =>
      node("div", { class: `dg-part dg-part-${kind}` },
        node("div", { class: "dg-part-tokens" }, ...tokens.map((token) => this.token(token))), node("div", { class: "dg-part-name" }, words))));
  }

  token({ token, p }) {
    const made = node("span", { class: "dg-drafted" }, node("bdi", {}, visible(this.view.text(token))));
    if (p !== null) {
      made.style.setProperty("--dg-fill", SHADES[p].fill);
      made.style.setProperty("--dg-ink", SHADES[p].ink);
    }
    return made;
  }
}
