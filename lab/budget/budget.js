// The entropy budget of the step under the scrubber: `step` comes from a linked canvas, everything is drawn here.

import { node, numbers, plainModel, write } from "../frontend/dom.js";

const HEIGHT = 184;
const EDGE = { left: 54, right: 8, top: 12, bottom: 62 };

/** The packed rankings as typed arrays, with the first entry of each pass. */
export function unpack(data) {
  const starts = [0];
  for (const count of data.counts) starts.push(starts.at(-1) + count);
  return {
    ...data, starts, positions: numbers(data.positions, Uint32Array), entropy: numbers(data.entropy, Float32Array),
    accepted: numbers(data.accepted, Uint8Array), tokens: numbers(data.tokens, Uint32Array),
  };
}

/** One pass as a list of {position, text, entropy, before, accepted, why}, surest first. */
export function ranked(data, step) {
  const entries = [];
  let before = 0;
  for (let i = data.starts[step - 1]; i < data.starts[step]; i++) {
    const accepted = data.accepted[i] === 1;
    const entropy = data.entropy[i];
    entries.push({ position: data.positions[i], text: data.texts[data.tokens[i]], entropy, before, accepted, why: why(entries.length, before, accepted, data.bound) });
    before = Math.fround(before + entropy); // the sampler sums in float32
  }
  return entries;
}

/** Where the log scale begins: a power of ten near the least entropy; what is below it is drawn on it. */
export function floorOf(entries) {
  const least = Math.min(1, ...entries.map((entry) => entry.entropy));
  const power = Math.min(Math.max(Math.floor(Math.log10(Math.max(least, 1e-9))), -5), -2);
  return Number((10 ** power).toPrecision(1));
}

function why(place, before, accepted, bound) {
  if (place === 0) return "accepted: the surest one always is";
  const used = `those before it use ${Number(before.toPrecision(3))}`;
  return accepted ? `accepted: ${used} of ${bound} nats` : `redrawn: ${used} nats, the bound is ${bound}`;
}

class Chart {
  constructor(model, el) {
    this.model = model;
    this.build(el);
    this.heard = { step: () => this.draw(), data: () => this.load() };
    for (const [name, react] of Object.entries(this.heard)) model.on(`change:${name}`, react);
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.plot);
    this.load();
  }

  close() {
    this.resized.disconnect();
    for (const [name, react] of Object.entries(this.heard)) this.model.off(`change:${name}`, react);
    this.root.remove();
  }

  build(el) {
    this.title = node("span", { class: "dgb-title", role: "status" });
    const keys = ["accepted", "redrawn", "sum before", "bound"].map((name, k) =>
      node("span", { class: "dgb-entry" }, node("span", { class: `dgb-key dgb-key-${k}`, "aria-hidden": "true" }), name));
    this.plot = node("svg:svg", { class: "dgb-chart", height: HEIGHT, role: "img", tabindex: 0 });
    this.why = node("div", { class: "dgb-why", "aria-live": "polite" });
    this.root = node("div", { class: "dg-base dgf dgb", role: "group", "aria-label": "Entropy budget" },
      node("div", { class: "dgb-head" }, this.title, ...keys), this.plot, this.why);
    this.plot.addEventListener("pointerover", (event) => this.point(event.target.dataset?.place));
    this.plot.addEventListener("pointerleave", () => this.point(undefined));
    this.plot.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || !this.entries?.length) return;
      event.preventDefault();
      event.stopPropagation();
      this.point(Math.min(Math.max((this.place ?? (by > 0 ? -1 : 1)) + by, 0), this.entries.length - 1));
    });
    el.append(this.root);
  }

  load() {
    this.data = unpack(this.model.get("data"));
    this.draw();
  }

  draw() {
    const { data } = this;
    const at = this.model.get("step");
    const step = at < 0 ? data.counts.length : Math.min(at, data.counts.length);
    this.entries = step > 0 ? ranked(data, step) : [];
    const { entries } = this;
    const kept = entries.filter((entry) => entry.accepted).length;
    write(this.title, step > 0 ? `Step ${step}: ${kept} of ${entries.length} positions fit the budget · canvas ${data.canvas[step - 1] + 1}, T = ${data.temperature[step - 1].toFixed(2)}` : "Step 0: noise, nothing is predicted yet");
    const width = this.plot.clientWidth;
    if (!width) return;
    this.plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.plot.setAttribute("aria-label", `Entropies in order, ${kept} of ${entries.length} accepted; left and right arrows go through them`);
    const [right, bottom] = [width - EDGE.right, HEIGHT - EDGE.bottom];
    const floor = floorOf(entries);
    const top = 3 * Math.max(data.bound, entries.at(-1)?.before ?? 0, 10 * floor);
    const slot = (right - EDGE.left) / Math.max(entries.length, 1);
    const x = (place) => EDGE.left + place * slot;
    const [low, high] = [Math.log10(floor / 1.6), Math.log10(top)];
    const y = (nats) => bottom - ((Math.log10(Math.max(nats, floor)) - low) / (high - low)) * (bottom - EDGE.top);
    const parts = [];
    for (let power = Math.round(Math.log10(floor)); 10 ** power <= top; power++) {
      const at = 10 ** power;
      parts.push(node("svg:path", { class: "dgb-axis", d: `M${EDGE.left} ${y(at)}H${right}` }),
        node("svg:text", { x: EDGE.left - 6, y: y(at) + 4, "text-anchor": "end" }, `${Number(at.toPrecision(1))}`));
    }
    entries.forEach((entry, place) => {
      parts.push(node("svg:circle", { class: `dgb-dot${entry.accepted ? " dgb-accepted" : ""}`, cx: x(place) + slot / 2, cy: y(entry.entropy), r: Math.min(4, Math.max(slot / 3, 1.5)) }));
      if (slot >= 13) {
        parts.push(node("svg:text", { class: "dgb-token", transform: `translate(${x(place) + slot / 2 + 4} ${bottom + 8}) rotate(-60)`, "text-anchor": "end" }, entry.text.slice(0, 9)));
      }
    });
    if (slot < 13) parts.push(node("svg:text", { x: EDGE.left, y: bottom + 16 }, "positions, surest first"));
    const sums = entries.map((entry, place) => `${place ? "" : `M${x(0)} ${y(floor)}`}V${y(entry.before).toFixed(1)}H${x(place + 1).toFixed(1)}`).join("");
    parts.push(
      node("svg:path", { class: "dgb-sum", d: sums || "M0 0" }),
      node("svg:path", { class: "dgb-bound", d: `M${EDGE.left} ${y(data.bound)}H${right}` }),
      node("svg:text", { x: 0, y: 10 }, "nats, log"));
    this.hits = entries.map((_, place) => node("svg:rect", { class: "dgb-hit", "data-place": place, x: x(place), y: EDGE.top, width: slot, height: HEIGHT - EDGE.top }));
    this.plot.replaceChildren(...parts, ...this.hits);
    this.point(this.place);
  }

  /** Says why the entry at a place was accepted or not. */
  point(place) {
    this.hits?.[this.place]?.classList.remove("dgb-here");
    this.place = place === undefined ? undefined : Number(place);
    const entry = this.entries?.[this.place];
    this.hits?.[this.place]?.classList.add("dgb-here");
    write(this.why, entry ? `“${entry.text}” at position ${entry.position}, ${Number(entry.entropy.toPrecision(3))} nats; ${entry.why}` : "Point at a dot to see why it was accepted, or redrawn.");
  }
}

function render({ model, el }) {
  const chart = new Chart(model, el);
  return () => chart.close();
}

/** A page without a kernel. */
export function mount(state, el) {
  const model = plainModel(state);
  render({ model, el });
  return model;
}

export default { render };
