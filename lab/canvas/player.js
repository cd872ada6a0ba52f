// Moving through the steps of a run: buttons, the slider, playing; and what is said of it to those who listen.

import { node, write } from "../frontend/dom.js";
import { icon, PlayButton } from "../frontend/icons.js";
import { nats, visible } from "../frontend/text.js";

const BASE_RATE = { diffusion: 4, autoregressive: 20 }; // passes a second at speed 1

export const button = (label, content, click, attributes = {}) =>
  node("button", { type: "button", class: "dg-button", "aria-label": label, click, ...attributes }, content);

export function menu(label, options, choose) {
  const select = node(
    "select",
    { class: "dg-select", change: () => choose(select.value) },
    ...options.map(([value, text]) => node("option", { value }, text)),
  );
  return { select, node: node("label", { class: "dg-label" }, node("span", {}, label), select) };
}

export class Player {
  playing = null; // {at, step, seconds}: since when, from which frame

  constructor(view) {
    this.view = view;
    this.reduced = matchMedia("(prefers-reduced-motion: reduce)");
    this.play = new PlayButton(() => this.toggle(), "dg-button dg-play");
    this.halt = button("Stop the run", "Stop", () => view.model.send({ type: "stop" }), { class: "dg-button dg-halt" });
    this.branch = button("Branch from this step", "Branch from this step", () => view.card.steer("branch"), { class: "dg-button dg-steer" });
    this.speed = menu("speed", [["0.25", "¼ ×"], ["0.5", "½ ×"], ["1", "1 ×"], ["2", "2 ×"], ["4", "4 ×"], ["8", "8 ×"], ["0", "as recorded"]],
      (value) => view.choose("speed", Number(value)));
    this.colour = menu("colour", [["confidence", "confidence"], ["entropy", "entropy"], ["settled", "step settled"]],
      (value) => view.choose("colour_by", value));
    this.showing = menu("show", [["draft", "draft"], ["canvas", "canvas with noise"]], (value) => view.choose("show", value));
    this.node = node("div", { class: "dg-controls", role: "group", "aria-label": "Playback" },
      node("span", { class: "dg-buttons" },
        button("First step", icon("first"), () => this.jump(0)),
        button("Step back", icon("back"), () => this.jump(Math.max(view.step - 1, 0))),
        this.play.node,
        button("Step forward", icon("forward"), () => this.jump(view.step + 1)),
        button("Last step", icon("last"), () => this.jump(-1))),
      this.halt, this.branch, node("span", { class: "dg-space" }),
      this.speed.node, this.colour.node, this.showing.node);
    this.range = node("input", {
      type: "range", class: "dg-range", min: 0, max: 0, step: 1, "aria-label": "Step",
      input: () => {
        const to = Number(this.range.value); // before a redraw puts the slider back
        this.stop();
        view.go(to);
      },
      change: () => this.announce(),
    });
    this.count = node("span", { class: "dg-value" });
    this.spoken = node("div", { class: "dg-spoken", role: "status", "aria-live": "polite" });
  }

  // -- playing --

  start() {
    const { view } = this;
    if (view.last === 0) return;
    const from = view.step >= view.last ? 0 : view.step;
    this.playing = { at: performance.now(), step: from, seconds: view.run.rows[from - 1]?.seconds ?? 0 };
    this.drawnAt = 0;
    view.go(from);
    view.draw();
    requestAnimationFrame((now) => this.tick(now));
  }

  stop() {
    if (!this.playing) return;
    this.playing = null;
    this.view.draw();
    this.announce();
  }

  tick(now) {
    const { view } = this;
    if (!this.playing || !view.root.isConnected) return;
    const { at, step, seconds } = this.playing;
    const elapsed = Math.max(0, now - at) / 1000;
    const speed = view.model.get("speed");
    const rate = BASE_RATE[view.run.autoregressive ? "autoregressive" : "diffusion"] * speed;
    const to = speed === 0 ? view.run.stepAt(seconds + elapsed) : step + Math.floor(elapsed * rate);
    // Reduced motion: the same pace, but at most two changes a second.
    if (to !== view.step && (!this.reduced.matches || now - this.drawnAt >= 500 || to >= view.last)) {
      this.drawnAt = now;
      view.go(to);
    }
    if (to >= view.last) this.stop();
    else requestAnimationFrame((later) => this.tick(later));
  }

  toggle() {
    if (this.playing) this.stop();
    else this.start();
  }

  /** A deliberate move to a frame; −1 is the last. */
  jump(step) {
    this.stop();
    this.view.go(step);
    this.announce();
  }

  // -- drawing --

  layout() {
    this.range.max = this.view.last;
  }

  draw() {
    const { view } = this;
    const { step, run } = view;
    const group = run.groups.findLast(({ first }) => step > first) ?? run.groups[0];
    this.play.show(this.playing);
    if (Number(this.range.value) !== step) this.range.value = step;
    const where = run.autoregressive || !group ? "" : `, canvas ${group.canvas + 1}, pass ${Math.max(step - group.first, 0)} of ${group.passes}`;
    this.range.setAttribute("aria-valuetext", `step ${step} of ${view.last}${where}`);
    write(this.count, `${step} / ${view.last}`);
    this.speed.select.value = String(view.model.get("speed"));
    this.colour.select.value = view.model.get("colour_by");
    this.showing.select.value = view.show;
    this.branch.hidden = !view.steerable || view.live || run.autoregressive;
    this.showing.node.hidden = run.autoregressive;
  }

  announce() {
    const { view } = this;
    const row = view.run.rows[view.step - 1];
    const rest = !row ? "" : view.run.autoregressive ? `, ${visible(view.text(row.out[0]))}`
      : `: ${row.accepted} of ${row.n} accepted, mean entropy ${nats(row.meanEntropy)}`;
    write(this.spoken, `Step ${view.step} of ${view.last}${rest}`);
  }
}
