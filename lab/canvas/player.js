// Moving through the steps of a run: buttons, the slider, playing; and what is said of it to those who listen.

import { node, write } from "../frontend/dom.js";
import { icon, PlayButton } from "../frontend/icons.js";
import { nats, visible } from "../frontend/text.js";
import { replayFrame, slower } from "./replay.js";

const BASE_RATE = { diffusion: 4, autoregressive: 20 }; // passes a second at speed 1

export const button = (label, content, click, attributes = {}) =>
  node("button", { type: "button", class: "dg-button", "aria-label": label, click, ...attributes }, content);

export function menu(label, options, choose) {
  return node(
    "select",
    { class: "dg-select", "aria-label": label, title: label, change: (event) => choose(event.target.value) },
    ...options.map(([value, text]) => node("option", { value }, text)),
  );
}

export class Player {
  playing = null; // {at, step, seconds, replay}: since when, from which frame; a replay leaves `step` alone

  constructor(view) {
    this.view = view;
    this.reduced = matchMedia("(prefers-reduced-motion: reduce)");
    this.play = new PlayButton(() => this.toggle(), "dg-button dg-play");
    this.halt = button("Stop the run", "Stop", () => view.kernel.send({ type: "stop" }), { class: "dg-button dg-halt" });
    this.branch = button("Branch from this step", "Branch", () => view.card.steer("branch"), { class: "dg-button dg-steer" });
    this.speed = menu("speed", [["0.25", "speed ¼ ×"], ["0.5", "speed ½ ×"], ["1", "speed 1 ×"], ["2", "speed 2 ×"], ["4", "speed 4 ×"],
      ["8", "speed 8 ×"], ["0", "as recorded"]], (value) => view.choose("speed", Number(value)));
    this.colour = menu("colour", [["confidence", "colour: confidence"], ["entropy", "colour: entropy"], ["settled", "colour: step settled"]],
      (value) => view.choose("colour_by", value));
    this.showing = menu("show", [["draft", "show: draft"], ["canvas", "show: noise"]], (value) => view.choose("show", value));
    this.range = node("input", {
      type: "range", class: "dg-range", min: 0, max: 0, step: 1, "aria-label": "Step",
      input: () => {
        const to = Number(this.range.value); // before a redraw puts the slider back
        this.stop();
        view.go(to);
      },
      change: () => this.announce(),
    });
    this.count = node("span", { class: "dg-value dg-position" });
    this.node = node("div", { class: "dg-controls", role: "group", "aria-label": "Playback" },
      node("span", { class: "dg-buttons" },
        button("First step", icon("first"), () => this.jump(0)),
        button("Step back", icon("back"), () => this.jump(Math.max(view.step - 1, 0))),
        this.play.node,
        button("Step forward", icon("forward"), () => this.jump(view.step + 1)),
        button("Last step", icon("last"), () => this.jump(-1))),
      this.range, this.count, this.halt, this.branch, this.speed, this.colour, this.showing);
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

  /** Shows the run once more from its noise and rests on the last step. The reader's `step` stays as it is. */
  replay() {
    const { view } = this;
    if (view.last === 0 || this.reduced.matches) return;
    this.playing = { at: performance.now(), replay: slower(view.last, view.meta.seconds ?? 0) };
    view.replayed = 0;
    view.drawHead();
    view.draw();
    requestAnimationFrame((now) => this.tick(now));
  }

  /** Ends a replay, so that the model's own step shows. */
  yield() {
    if (this.playing?.replay) this.stop();
  }

  stop() {
    if (!this.playing) return;
    this.playing = null;
    this.view.replayed = null;
    this.view.drawHead();
    this.view.draw();
    this.announce();
  }

  tick(now) {
    const { view } = this;
    if (!this.playing || !view.root.isConnected) return;
    const { at, step, seconds, replay } = this.playing;
    const elapsed = Math.max(0, now - at) / 1000;
    if (replay) return this.tickReplay(replayFrame(elapsed, view.last));
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

  tickReplay(frame) {
    const { view } = this;
    if (frame >= view.last) return this.stop();
    if (frame !== view.replayed) {
      view.replayed = frame;
      view.draw();
    }
    requestAnimationFrame((later) => this.tick(later));
  }

  toggle() {
    const { view } = this;
    const at = view.replayed;
    if (!this.playing) return this.start();
    this.stop();
    if (at !== null) view.go(at); // a replay that is paused stays where it is
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
    this.speed.value = String(view.model.get("speed"));
    this.colour.value = view.model.get("colour_by");
    this.showing.value = view.show;
    this.branch.hidden = !view.steerable || view.live || run.autoregressive;
    this.showing.hidden = run.autoregressive;
  }

  announce() {
    const { view } = this;
    const row = view.run.rows[view.step - 1];
    const rest = !row ? "" : view.run.autoregressive ? `, ${visible(view.text(row.out[0]))}`
      : `: ${row.accepted} of ${row.n} accepted, mean entropy ${nats(row.meanEntropy)}`;
    write(this.spoken, `Step ${view.step} of ${view.last}${rest}`);
  }
}
