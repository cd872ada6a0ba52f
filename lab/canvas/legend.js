// The legend under the grid: the states with their counts in view, and the ramp.

import { ramp } from "../frontend/colour.js";
import { node, write } from "../frontend/dom.js";
import { nats } from "../frontend/text.js";
import { SHADES } from "./grid.js";
import { entropy, STATES } from "./rows.js";

export class Legend {
  constructor(view) {
    this.view = view;
    this.states = STATES.map((name, state) => {
      const count = node("span", { class: "dg-count" });
      const sample = node("span", { class: `dg-cell dg-sample dg-s${state}`, "aria-hidden": "true" }, node("bdi", {}, "ab"));
      sample.style.setProperty("--dg-fill", SHADES[200].fill);
      sample.style.setProperty("--dg-ink", SHADES[200].ink);
      return { count, node: node("span", { class: "dg-entry" }, sample, node("span", {}, name), count) };
    });
    const stops = Array.from({ length: 9 }, (_, s) => `rgb(${ramp(s / 8).join(" ")}) ${(s * 100) / 8}%`);
    const bar = node("span", { class: "dg-ramp", "aria-hidden": "true" });
    bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    this.ends = [node("span"), node("span")];
    this.extra = ["dg-differs", "dg-chosen"].map((look) => {
      const sample = node("span", { class: `dg-cell dg-sample ${look}`, "aria-hidden": "true" }, node("bdi", {}, "ab"));
      const words = node("span");
      return { words, node: node("span", { class: "dg-entry" }, sample, words) };
    });
    this.node = node("div", { class: "dg-legend" }, ...this.states.map((state) => state.node), ...this.extra.map((entry) => entry.node),
      node("span", { class: "dg-space" }),
      node("span", { class: "dg-entry" }, this.ends[0], bar, this.ends[1]));
  }

  draw(counts) {
    const { run, model, grid, chosen } = this.view;
    const against = model.get("_against");
    const [differs, written] = this.extra;
    differs.node.hidden = !against?.frames;
    write(differs.words, differs.node.hidden ? "" : `not as in ${against.name}: ${grid.differing}`);
    written.node.hidden = chosen.size === 0;
    write(written.words, written.node.hidden ? "" : "the causal mode's own choice");
    counts.forEach((count, state) => {
      write(this.states[state].count, String(count));
      this.states[state].node.hidden = run.autoregressive && state !== 2;
    });
    const ends = {
      confidence: ["unsure", "sure"],
      entropy: [nats(entropy(run.maxEntropy)), "0 nats"],
      settled: ["settled late", "early"],
    }[model.get("colour_by")];
    ends.forEach((text, e) => write(this.ends[e], text));
  }
}
