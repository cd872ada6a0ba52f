// One transport for several canvases: `step`, `colour_by` and `show` are linked to theirs in the browser.

import { button, menu } from "../canvas/player.js";
import { replayFrame } from "../canvas/replay.js";
import { node, write } from "../frontend/dom.js";
import { icon, PlayButton } from "../frontend/icons.js";

class Shared {
  constructor(model, el) {
    this.model = model;
    this.reduced = matchMedia("(prefers-reduced-motion: reduce)");
    this.build(el);
    this.heard = { step: () => this.draw(), last: () => this.draw(), colour_by: () => this.draw(), show: () => this.draw(), plays: () => this.play() };
    for (const [name, react] of Object.entries(this.heard)) model.on(`change:${name}`, react);
    this.draw();
  }

  close() {
    this.playing = null;
    for (const [name, react] of Object.entries(this.heard)) this.model.off(`change:${name}`, react);
    this.root.remove();
  }

  build(el) {
    this.playButton = new PlayButton(() => (this.playing ? this.pause() : this.play()), "dg-button dg-play");
    this.range = node("input", { type: "range", class: "dg-range", min: 0, max: 0, step: 1, "aria-label": "Step of all", input: () => this.jump(Number(this.range.value)) });
    this.count = node("span", { class: "dg-value dg-position" });
    this.colour = menu("colour", [["confidence", "colour: confidence"], ["entropy", "colour: entropy"], ["settled", "colour: step settled"]], (value) => this.choose("colour_by", value));
    this.showing = menu("show", [["draft", "show: draft"], ["canvas", "show: noise"]], (value) => this.choose("show", value));
    this.root = node("div", { class: "dg-base dg dg-controls dg-shared", role: "group", "aria-label": "Playback of all columns" },
      node("span", { class: "dg-buttons" },
        button("First step", icon("first"), () => this.jump(0)),
        button("Step back", icon("back"), () => this.jump(Math.max(this.step - 1, 0))),
        this.playButton.node,
        button("Step forward", icon("forward"), () => this.jump(this.step + 1)),
        button("Last step", icon("last"), () => this.jump(-1))),
      this.range, this.count, this.colour, this.showing);
    this.root.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("select")) return;
      if (event.key === " " && event.target.matches("button")) return;
      const act = { " ": () => (this.playing ? this.pause() : this.play()), ",": () => this.jump(Math.max(this.step - 1, 0)),
        ".": () => this.jump(this.step + 1), "<": () => this.jump(0), ">": () => this.jump(-1) }[event.key];
      if (!act) return;
      event.preventDefault();
      event.stopPropagation();
      act();
    });
    el.append(this.root);
  }

  get last() {
    return this.model.get("last");
  }

  get step() {
    const step = this.model.get("step");
    return step < 0 ? this.last : Math.min(step, this.last);
  }

  choose(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  jump(step) {
    this.playing = null;
    this.choose("step", step < 0 || step >= this.last ? -1 : step);
    this.draw();
  }

  pause() {
    this.playing = null;
    this.draw();
  }

  /** From the noise to the last step, at a pace that can be followed; then every run rests at its end. */
  play() {
    if (this.last === 0 || (this.reduced.matches && this.model.get("plays") && !this.root.contains(document.activeElement))) return;
    this.playing = { at: performance.now() };
    this.choose("step", 0);
    this.draw();
    requestAnimationFrame((now) => this.tick(now));
  }

  tick(now) {
    if (!this.playing || !this.root.isConnected) return;
    const frame = replayFrame(Math.max(0, now - this.playing.at) / 1000, this.last);
    if (frame >= this.last) return this.jump(-1);
    if (frame !== this.step) this.choose("step", frame);
    requestAnimationFrame((later) => this.tick(later));
  }

  draw() {
    this.root.hidden = this.last === 0;
    this.playButton.show(this.playing);
    this.range.max = this.last;
    this.range.value = this.step;
    this.range.setAttribute("aria-valuetext", `step ${this.step} of ${this.last}`);
    write(this.count, `${this.step} / ${this.last}`);
    this.colour.value = this.model.get("colour_by");
    this.showing.value = this.model.get("show");
  }
}

function render({ model, el }) {
  const shared = new Shared(model, el);
  return () => shared.close();
}

export default { render };
