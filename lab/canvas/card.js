// The card of one token: what the model thought of it, over the steps; and the controls that steer the run there.

import { node, write } from "../frontend/dom.js";
import { mayFollow, nats, percent, visible } from "../frontend/text.js";
import { button } from "./player.js";
import { automatonState, conditioned, entropy, probability, shortened, STATES } from "./rows.js";
import { stretches } from "./run.js";

const NARROW = 720; // px of the widget: below, the card floats over the grid
const GAP = 6; // px between a floating card and its token

export class Card {
  constructor(view) {
    this.view = view;
    this.details = {
      place: node("div", { class: "dg-place" }),
      token: node("div", { class: "dg-token" }),
      heads: node("div", { class: "dg-heads" }, node("span", {}, "constraint:"), node("span", { class: "dg-value" }, "before"), node("span", { class: "dg-value" }, "after")),
      alternatives: node("ol", { class: "dg-alternatives" }),
      constraint: node("div", { class: "dg-constraint" }, node("div"), node("div")),
      numbers: node("div", { class: "dg-numbers" }),
      spark: node("svg:svg", { class: "dg-spark", viewBox: "0 0 100 44", preserveAspectRatio: "none", role: "img" }),
      guesses: node("ol", { class: "dg-guesses" }),
    };
    const { place, token, heads, alternatives, constraint, numbers, spark, guesses } = this.details;
    this.hint = node("p", { class: "dg-hint" }, "Point at a token, or move to one with the arrow keys, to see what the model thought of it.");
    this.caption = node("div", { class: "dg-caption" }, "best guess over the steps");
    this.story = node("div", {}, this.caption, spark, guesses);
    this.facts = node("div", { class: "dg-facts" }, place, token, heads, alternatives, constraint, numbers, this.story);
    this.node = node("div", { class: "dg-panel", role: "group", "aria-label": "Token details" }, this.hint, this.facts, this.buildSteering());
  }

  buildSteering() {
    this.replacement = node("input", {
      type: "text", class: "dg-input", "aria-label": "Replacement text", placeholder: "other text",
      keydown: (event) => event.key === "Enter" && this.replace(),
      focus: () => this.replacement.select(), // typing replaces what stands there
    });
    this.pinButton = button("Pin this token", "Pin", () => this.steer(this.pinned() ? "unpin" : "pin"));
    this.blankButton = button("Blank the marked span", "Blank", () => this.steer("blank"));
    this.steering = node("div", { class: "dg-steering", role: "group", "aria-label": "Steering" },
      node("div", {}, this.pinButton, this.blankButton),
      node("div", {}, this.replacement, button("Replace the token", "Replace", () => this.replace())));
    return this.steering;
  }

  // -- steering --

  replace() {
    const text = this.replacement.value;
    if (!text) return;
    this.steer("replace", { text }); // it stays until another token is chosen: a constraint may refuse it
  }

  pinned() {
    const place = this.view.place(this.view.model.get("selected"));
    return place && this.view.cell(this.view.run.groups[place.g], place.i)?.state === 4;
  }

  steer(action, more = {}) {
    const { view } = this;
    const selected = view.model.get("selected");
    const [from, to] = view.grid.span();
    if (action !== "branch" && selected < 0) return;
    view.player.stop();
    const where = action === "branch" ? {} : { position: selected, start: from, stop: to + 1 };
    view.kernel.send({ type: "steer", action, step: view.step, ...where, ...more });
  }

  // -- drawing --

  draw() {
    const { view } = this;
    const place = view.grid.inspected();
    const group = place && view.run.groups[place.g];
    const selected = view.model.get("selected");
    this.hint.hidden = Boolean(place);
    this.facts.hidden = !place;
    this.steering.hidden = !view.steerable || view.live || selected < 0;
    if (place) this.drawFacts(group, place.i, view.cell(group, place.i));
    if (!this.steering.hidden) this.drawSteering();
    if (selected !== this.selected) this.replacement.value = ""; // it was meant for another token
    this.selected = selected;
    const where = place ? `${place.g}/${place.i}/${this.steering.hidden}/${this.details.constraint.textContent.length}` : "";
    if (where !== this.placed) this.put(place); // it measures: not at every frame
    this.placed = where;
  }

  drawSteering() {
    const [from, to] = this.view.grid.span();
    const pinned = this.pinned();
    write(this.pinButton, pinned ? "Unpin" : "Pin");
    this.pinButton.setAttribute("aria-label", pinned ? "Unpin this token" : "Pin this token");
    const blank = from === to ? "Blank" : `Blank ${from} to ${to}`;
    write(this.blankButton, blank);
    this.blankButton.setAttribute("aria-label", from === to ? "Blank this token" : blank);
  }

  drawFacts(group, i, cell) {
    const { view } = this;
    const { place, token, numbers, spark, guesses } = this.details;
    write(place, `position ${group.position + i} · ${cell ? STATES[cell.state] : "not written yet"}`);
    write(token, cell ? visible(view.text(cell.token), 120) : " ");
    const row = cell?.row;
    const pinned = cell?.state === 4;
    const constrained = view.run.rows[0]?.constrained ?? false;
    const k = view.run.rows[0]?.k ?? 0;
    if (constrained) {
      const found = row?.constrained ? conditioned(row, cell.i, pinned ? row.out[cell.i] : null) : [];
      this.drawAlternatives(shortened(found, k + 1), k + 1);
    } else {
      const own = (a) => ({ token: row.alternatives[cell.i * k + a], after: probability(row.probabilities[cell.i * k + a]) });
      this.drawAlternatives(row ? Array.from({ length: k }, (_, a) => own(a)) : [], k);
    }
    this.drawConstraint(constrained, row, cell, pinned);
    const would = constrained ? "what the model would have written here stands under “before”" : "before conditioning: the list is what the model would have written here";
    const own = pinned ? ` · ${would}` : "";
    const drawn = row && row.kind !== "token" && !own ? ` · sample ${percent(probability(row.sample[cell.i]))}` : "";
    write(numbers, row ? `entropy ${nats(entropy(row.entropy[cell.i]))}${drawn}${own}` : "noise: a random token");
    this.story.hidden = view.run.autoregressive; // a token was written once and stays
    if (this.story.hidden) return;
    const history = view.run.history(group, i);
    this.drawSpark(spark, history, view.step - group.first - 1);
    this.drawGuesses(guesses, stretches(history));
  }

  /** Tokens with their probabilities; of a constrained run before and after conditioning, what is forbidden struck out. */
  drawAlternatives(found, count) {
    const { alternatives } = this.details;
    while (alternatives.children.length > count) alternatives.lastChild.remove();
    while (alternatives.children.length < count) {
      alternatives.append(node("li", {}, node("bdi"), node("span", { class: "dg-bar" }), node("span", { class: "dg-value dg-before" }), node("span", { class: "dg-value" })));
    }
    [...alternatives.children].forEach((item, a) => {
      const [name, bar, before, value] = item.children;
      const one = found[a];
      item.classList.toggle("dg-barred", Boolean(one?.barred));
      item.classList.toggle("dg-nobody", !one);
      write(name, one ? visible(this.view.text(one.token), 40) : "–");
      bar.style.setProperty("--dg-part", (one?.after ?? 0).toFixed(3));
      bar.style.setProperty("--dg-whole", (one?.before ?? 0).toFixed(3));
      write(before, typeof one?.before === "number" ? percent(one.before) : "");
      write(value, !one ? "" : one.barred ? "forbidden" : one.after === null ? "–" : percent(one.after));
    });
  }

  /** What the constraint forbids here, and where its automaton stands on the way of the most probable text. */
  drawConstraint(constrained, row, cell, pinned) {
    const { heads, alternatives, constraint } = this.details;
    heads.hidden = constraint.hidden = !constrained;
    alternatives.classList.toggle("dg-conditioned", constrained);
    const state = automatonState(row, cell?.i);
    const what = this.view.model.get("_states")?.[state];
    const [mass, follow] = constraint.children;
    const forbidden = pinned ? "held by a pin" : `forbidden here: ${percent(probability(row?.barred?.mass[cell.i] ?? 0))}`;
    write(mass, state === null ? "" : `${forbidden} · automaton in state ${state}`);
    write(follow, what ? `here may come: ${mayFollow(what)}` : "");
  }

  drawGuesses(guesses, found) {
    const shown = found.length > 5 ? [...found.slice(0, 2), null, ...found.slice(-2)] : found;
    while (guesses.children.length > shown.length) guesses.lastChild.remove();
    while (guesses.children.length < shown.length) guesses.append(node("li", {}, node("span", { class: "dg-value" }), node("bdi")));
    shown.forEach((stretch, s) => {
      const [when, what] = guesses.children[s].children;
      const steps = stretch && (stretch.from === stretch.to ? `${stretch.from + 1}` : `${stretch.from + 1}–${stretch.to + 1}`);
      write(when, stretch ? steps : "…");
      write(what, stretch ? visible(this.view.text(stretch.token), 40) : `${found.length - 4} more`);
    });
  }

  drawSpark(spark, history, now) {
    const width = 100 / history.length;
    const line = history.map(({ p }, x) => `${x ? "V" : "M0 "}${(34 - 32 * p).toFixed(1)}H${((x + 1) * width).toFixed(2)}`).join("");
    const kept = history.map(({ state }, x) => (state === 2 || state === 4 ? `M${(x * width).toFixed(2)} 40H${((x + 1) * width).toFixed(2)}` : "")).join("");
    if (!spark.firstChild) {
      spark.append(node("svg:rect", { class: "dg-cursor", y: 0, height: 44 }), node("svg:path", { class: "dg-spark-line" }),
        node("svg:path", { class: "dg-spark-kept" }));
    }
    const [cursor, path, bar] = spark.children;
    cursor.setAttribute("x", Math.max(now, 0) * width);
    cursor.setAttribute("width", now >= 0 && now < history.length ? width : 0);
    path.setAttribute("d", line);
    bar.setAttribute("d", kept);
    const [first, last] = [history[0], history.at(-1)];
    spark.setAttribute("aria-label", `confidence from ${percent(first.p)} at step 1 to ${percent(last.p)} at step ${history.length}; the bar below marks steps at which it was accepted`);
  }

  // -- where it stands --

  get floats() {
    return this.node.hasAttribute("popover");
  }

  /** Beside the grid where there is room, at the height of the token's canvas; else in the top layer near the token. */
  put(place = this.view.grid.inspected()) {
    const { view } = this;
    const narrow = view.root.clientWidth < NARROW && view.root.clientWidth > 0;
    view.root.classList.toggle("dg-narrow", narrow);
    const cell = place && view.grid.cells[place.g]?.[place.i];
    if (narrow) this.float(cell);
    else this.dock(cell);
  }

  dock(cell) {
    if (this.floats) {
      if (this.node.matches(":popover-open")) this.node.hidePopover();
      this.node.removeAttribute("popover");
      this.node.style.removeProperty("left");
    }
    const grids = this.view.grid.node;
    const section = cell?.closest(".dg-group");
    const room = grids.offsetHeight - this.node.offsetHeight;
    this.node.style.top = `${Math.max(0, Math.min(section ? section.offsetTop - grids.offsetTop : 0, room))}px`;
  }

  float(cell) {
    if (!this.floats) this.node.setAttribute("popover", "manual");
    if (!cell) {
      if (this.node.matches(":popover-open")) this.node.hidePopover();
      return;
    }
    if (!this.node.matches(":popover-open")) this.node.showPopover();
    const { offsetWidth: width, offsetHeight: height } = this.node;
    const page = { width: innerWidth, height: innerHeight, controls: this.view.player.node.getBoundingClientRect() };
    const { x, y } = beside(cell.getBoundingClientRect(), { width, height }, page);
    this.node.style.left = `${x}px`;
    this.node.style.top = `${y}px`;
  }
}

/**
 * Where a card of a size goes: below its token, else above, else at its side below the controls, else above those; within
 * the window, and on the controls only where no other place has room.
 */
export function beside(token, card, page) {
  const clamp = (value, low, high) => Math.max(low, Math.min(value, high));
  const [right, bottom] = [page.width - card.width - 4, page.height - card.height - 4];
  const x = clamp(token.left, 4, right);
  if (token.bottom + GAP <= bottom) return { x, y: Math.max(token.bottom + GAP, 4) };
  if (token.top - GAP - card.height >= Math.max(page.controls.bottom, 4)) return { x, y: token.top - GAP - card.height };
  const over = page.controls.top - GAP - card.height;
  if (page.controls.bottom + 4 > bottom && over >= 4) return { x, y: over };
  const y = clamp(token.top, Math.min(page.controls.bottom + 4, bottom), bottom);
  const rightOf = token.right + GAP;
  return { x: rightOf <= right ? rightOf : clamp(token.left - GAP - card.width, 4, right), y: Math.max(y, 4) };
}
