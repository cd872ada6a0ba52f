// The canvas widget's front end: every pass of a run in a fixed grid.
//
// - One View holds the run; its parts build their nodes once and then write only what changed: nothing moves or fades,
//   and a frame costs no message to the kernel.
// - `step` is the reader's: only a deliberate move sets it. Its value −1 stands for the last frame, so a live run is
//   followed without a word about it.
// - The same script serves a notebook (anywidget calls `render`) and a standalone page (page.py calls `mount`).

import { entitle, node, plainModel, write } from "../frontend/dom.js";
import { GONE, Kernel } from "../frontend/kernel.js";
import { Card } from "./card.js";
import { Grid } from "./grid.js";
import { Legend } from "./legend.js";
import { Player } from "./player.js";
import { Reading } from "./reading.js";
import { chosenBy, Rounds } from "./rounds.js";
import { parseRows } from "./rows.js";
import { Run } from "./run.js";
import { Share } from "./share.js";
import { Strip } from "./strip.js";

class View {
  replayed = null; // the frame of a replay under way, which leaves the reader's `step` alone
  chosen = new Set(); // answer positions whose token the causal mode chose, in a run of speculation

  constructor(model, el) {
    this.model = model;
    this.kernel = new Kernel(model, () => this.drawHead());
    this.build(el);
    this.listen();
    this.load();
  }

  // -- state --

  get meta() {
    return this.model.get("_meta") ?? {};
  }

  get last() {
    return this.run.rows.length;
  }

  /** The frame in view, 0 … last. */
  get step() {
    if (this.replayed !== null) return Math.min(this.replayed, this.last);
    const step = this.model.get("step");
    return step < 0 ? this.last : Math.min(step, this.last);
  }

  get show() {
    return this.model.get("show");
  }

  get steerable() {
    return this.model.get("_steerable");
  }

  text(token) {
    return this.texts[token] ?? "";
  }

  /** Local ids of the end marks. */
  ends() {
    const eos = new Set(this.meta.eos ?? []);
    return new Set(this.ids.flatMap((id, local) => (eos.has(id) ? [local] : [])));
  }

  /** What another run has at an answer position, in words, where it is not this token; "" where it is, or nobody compares. */
  differs(position, token) {
    const { name, frames, texts } = this.model.get("_against") ?? {};
    if (!frames?.length || this.live) return "";
    const other = frames[Math.min(this.step, frames.length - 1)][position] ?? -1;
    return other < 0 || other === this.ids[token] ? "" : `${texts[other]} in ${name}`;
  }

  /** What stands at place i of a group in view. */
  cell(group, i) {
    return this.run.cell(group, i, this.step, this.show);
  }

  /** Where an answer position is: {g, i}, null for none. */
  place(position) {
    const g = this.run.groups.findIndex((group) => position >= group.position && position < group.position + group.n);
    return position >= 0 && g >= 0 ? { g, i: position - this.run.groups[g].position } : null;
  }

  /** Everything again from the model: a new trace, a live run that begins, or the whole of one that ended. */
  load() {
    const wasLive = this.live;
    this.live = Boolean(this.meta.live);
    this.version = this.meta.version;
    this.run = new Run();
    this.texts = [...(this.model.get("_tokens")?.texts ?? [])];
    this.ids = [...(this.model.get("_tokens")?.ids ?? [])];
    this.run.initial = this.meta.initial ?? null;
    const rows = this.model.get("_rows");
    if (rows?.byteLength) for (const row of parseRows(rows)) this.run.add(row);
    this.player.playing = this.replayed = null;
    this.chosen = chosenBy(this.meta.rounds ?? [], this.run.rows.length);
    this.grid.renew({ keepWidth: wasLive && !this.live });
    this.layout();
    this.tail();
    this.draw();
    this.replay();
  }

  /** Replays a short run once, when it is first seen; not where the reader has gone to a step. */
  replay() {
    const { meta, model } = this;
    if (!meta.replay || model.get("step") >= 0 || model.dgReplayed === meta.version || !this.last) return;
    this.seen?.disconnect();
    this.seen = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      this.seen.disconnect();
      if (model.get("step") >= 0 || this.live || model.dgReplayed === meta.version) return;
      model.dgReplayed = meta.version; // views of one model: once
      this.player.replay();
    });
    this.seen.observe(this.grid.node);
  }

  /**
   * Live rows, with the frames at which they end. They follow on frame `first`: a view that has not come so far (it was
   * opened later) asks for what it lacks.
   */
  tail() {
    const tail = this.model.get("_tail");
    if (!this.live || !tail || tail.version !== this.version || !tail.rows) return;
    if (tail.first > this.last || tail.firstToken > this.texts.length) {
      this.kernel.send({ type: "resend", first: this.last, firstToken: this.texts.length });
      return;
    }
    tail.texts.forEach((text, j) => (this.texts[tail.firstToken + j] = text));
    tail.ids.forEach((id, j) => (this.ids[tail.firstToken + j] = id));
    if (tail.initial) this.run.initial = tail.initial;
    const before = this.last;
    tail.rows.forEach((bytes, r) => parseRows(bytes).forEach((row) => this.run.put(row, tail.ends[r])));
    if (this.last === before) return;
    this.layout();
    this.draw();
  }

  /** Shows a frame; beyond the last of a live run, and for −1, whichever is the last from then on. */
  go(step) {
    this.replayed = null;
    const end = step < 0 || (this.live && step >= this.last);
    const to = end ? -1 : Math.min(step, this.last);
    if (to === this.model.get("step")) this.draw();
    else this.choose("step", to); // draws, through its change event
  }

  choose(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  // -- building and drawing --

  build(el) {
    this.player = new Player(this);
    this.strip = new Strip(this);
    this.grid = new Grid(this);
    this.card = new Card(this);
    this.legend = new Legend(this);
    this.reading = new Reading(this);
    this.title = node("div", { class: "dg-title" });
    this.summary = node("div", { class: "dg-summary", role: "status" });
    this.rounds = new Rounds(this);
    this.share = new Share(this);
    const keys = node("details", { class: "dg-keys" }, node("summary", {}, "Keys"),
      node("span", {}, "Space plays and pauses · , and . step · < and > go to the first and last step · arrows move "
        + "between tokens, with Shift they mark a span · Page Up and Page Down change the canvas · Esc lets go"));
    this.main = node("div", { class: "dg-main" }, this.grid.node, this.rounds.node, this.strip.node, this.legend.node, this.reading.node, keys);
    this.root = node("div", { class: "dg-base dg", role: "group" },
      node("div", { class: "dg-head" }, this.title, this.summary, this.share.node), this.player.node,
      node("div", { class: "dg-body" }, this.main, this.card.node), this.player.spoken);
    el.append(this.root);
  }

  /** What depends on the run's length: cells, strip, the slider's end. */
  layout() {
    this.grid.layout();
    this.strip.layout();
    this.player.layout();
    this.reading.fit();
    this.drawHead();
  }

  draw() {
    const counts = this.grid.draw();
    this.player.draw();
    this.strip.draw();
    this.legend.draw(counts);
    this.reading.draw();
    this.rounds.draw();
    this.card.draw();
    this.takeFocus();
  }

  drawHead() {
    const { meta } = this;
    const { gone } = this.kernel;
    const { playing } = this.player;
    entitle(this.title, this.model.get("title") || (this.model.get("heading") ? meta.prompt : "") || "");
    this.root.classList.toggle("dg-follows", this.model.get("transport") === false);
    this.root.classList.toggle("dg-nothing", this.last === 0 && !this.live);
    this.root.setAttribute("aria-label", `Denoising canvas${meta.prompt ? `: ${meta.prompt}` : ""}`);
    const facts = [this.live ? "live" : null, ...(meta.facts ?? [])].filter(Boolean).join(" · ");
    const rest = this.last === 0 && !this.live ? "The canvas fills here." : facts;
    write(this.summary, gone ? GONE : this.model.get("status") || playing?.replay || rest);
    this.share.draw(gone);
    this.summary.classList.toggle("dg-alert", gone || Boolean(this.model.get("alert")));
    this.player.halt.hidden = gone || !(this.live && this.model.get("_stoppable"));
  }

  /** A run that replaces another under the reader's hands takes the focus that was lost with it. */
  takeFocus() {
    const place = this.place(this.model.get("_focus"));
    if (!place) return;
    this.choose("_focus", -1);
    if (document.activeElement === document.body || document.activeElement?.contains(this.root)) this.grid.focus(place);
  }

  // -- input --

  listen() {
    this.offs = [];
    const on = (names, react) => names.split(" ").forEach((name) => {
      this.model.on(`change:${name}`, react);
      this.offs.push(() => this.model.off(`change:${name}`, react));
    });
    on("_meta", () => this.load());
    on("_tail", () => this.tail());
    on("step", () => this.player.yield()); // a step that is set ends a replay
    on("step colour_by show selected _steerable _focus speed _against _states", () => this.draw());
    on("title heading transport status alert _steerable _stoppable", () => this.drawHead());
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.resized = new ResizeObserver(() => {
      this.card.put();
      this.reading.fit();
    });
    this.resized.observe(this.root);
    // A floating card must not stay behind when the page scrolls away under it.
    this.scrolled = () => this.card.floats && this.card.put();
    addEventListener("scroll", this.scrolled, { capture: true, passive: true });
  }

  close() {
    this.player.playing = null;
    this.seen?.disconnect();
    this.share.close();
    this.kernel.close();
    this.grid.close();
    this.offs.forEach((off) => off());
    this.resized.disconnect();
    removeEventListener("scroll", this.scrolled, { capture: true });
    this.root.remove();
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const { target, key } = event;
    const cell = target.closest(".dg-cell");
    if (key === "Escape") this.grid.release();
    else if (target.matches("input[type=text], select")) return;
    else if (key === " " && !target.matches("button, summary")) this.player.toggle();
    else if (key === ",") this.player.jump(Math.max(this.step - 1, 0));
    else if (key === ".") this.player.jump(this.step + 1);
    else if (key === "<") this.player.jump(0);
    else if (key === ">") this.player.jump(-1);
    else if (!cell || !this.grid.moveFrom(cell, key, event.shiftKey)) return;
    event.preventDefault();
    event.stopPropagation();
  }
}

function render({ model, el }) {
  const view = new View(model, el);
  return () => view.close();
}

/** A page without a kernel: the widget over plain state, in which `_rows` is base64. */
export function mount(state, el) {
  const bytes = Uint8Array.from(atob(state._rows), (character) => character.charCodeAt(0));
  const model = plainModel({ ...state, _rows: new DataView(bytes.buffer), _tail: {}, _focus: -1, selected: -1 });
  render({ model, el });
  return model;
}

export default { render };
