// The canvas widget's front end: every pass of a run in a fixed grid.
//
// - One View builds its nodes once and then writes only what changed: nothing moves or fades, and a frame costs no
//   message to the kernel.
// - The same script serves a notebook (anywidget calls `render`) and a standalone page (export.py calls `mount`).

import { node, plainModel, write } from "../frontend/dom.js";
import { barPath, cellWidth, entropy, ink, linePath, nats, parseRows, percent, probability, ramp, Run, STATES, stretches, unturned, visible } from "./run.js";

const NARROW = 720; // px: below, details float over the grid
const TRACK = 24; // px, height of one track of the strip
const BASE_RATE = { diffusion: 4, autoregressive: 20 }; // passes a second at speed 1

const SHADES = Array.from({ length: 256 }, (_, q) => {
  const rgb = ramp(q / 255);
  return { fill: `rgb(${rgb.join(" ")})`, ink: ink(rgb) };
});

const button = (label, content, click, attributes = {}) =>
  node("button", { type: "button", class: "dg-button", "aria-label": label, click, ...attributes }, content);

// Drawn, not typed: fonts lack the signs.
const ICONS = {
  first: "M1 2h2v8H1zM7 2v8L3 6zM11 2v8L7 6z", back: "M9 2v8L3 6z", play: "M3 1.5v9L10.5 6z",
  pause: "M3 2h2.5v8H3zM7 2h2.5v8H7z", forward: "M3 2v8l6-4z", last: "M11 2H9v8h2zM5 2v8l4-4zM1 2v8l4-4z",
};

const icon = (name) =>
  node("svg:svg", { class: "dg-icon", viewBox: "0 0 12 12", "aria-hidden": "true" }, node("svg:path", { d: ICONS[name] }));

function menu(label, options, choose) {
  const select = node(
    "select",
    { class: "dg-select", change: () => choose(select.value) },
    ...options.map(([value, text]) => node("option", { value }, text)),
  );
  return { select, node: node("label", { class: "dg-label" }, node("span", {}, label), select) };
}

class View {
  constructor(model, el) {
    this.model = model;
    this.playing = null; // {at, step}: since when, from which frame
    this.follow = false; // live: show the newest pass as it comes
    this.anchor = null; // the other end of a marked span
    this.hovered = null;
    this.reduced = matchMedia("(prefers-reduced-motion: reduce)");
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

  get step() {
    return Math.min(Math.max(this.model.get("step"), 0), this.last);
  }

  get show() {
    return this.model.get("show");
  }

  text(token) {
    return this.texts[token] ?? "";
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
    if (this.live) this.follow = true;
    if (!wasLive) this.width = null; // a grid that was watched live keeps its columns
    this.playing = null;
    for (const node of this.grids.querySelectorAll(".dg-cell")) node.dgKey = null; // local ids mean other tokens now
    this.layout();
    this.tail();
    if (wasLive && !this.live && this.follow) this.go(this.last, { save: true });
    this.draw();
  }

  /**
   * Live rows, with the frames at which they end. They follow on frame `first`: a view that has not come so far (it was
   * opened later) asks for what it lacks.
   */
  tail() {
    const tail = this.model.get("_tail");
    if (!this.live || !tail || tail.version !== this.version || !tail.rows) return;
    if (tail.first > this.last || tail.firstToken > this.texts.length) {
      this.model.send({ type: "resend", first: this.last, firstToken: this.texts.length });
      return;
    }
    tail.texts.forEach((text, j) => (this.texts[tail.firstToken + j] = text));
    tail.ids.forEach((id, j) => (this.ids[tail.firstToken + j] = id));
    if (tail.initial) this.run.initial = tail.initial;
    const before = this.last;
    tail.rows.forEach((bytes, r) => parseRows(bytes).forEach((row) => this.run.put(row, tail.ends[r])));
    if (this.last === before) return;
    this.layout();
    if (this.follow) this.go(this.last);
    else this.draw();
  }

  /** Shows a frame. Only deliberate moves are told to the kernel; linked widgets hear of every one. */
  go(step, { save = false } = {}) {
    const to = Math.min(Math.max(step, 0), this.last);
    this.follow = this.live && to === this.last;
    const moved = to !== this.model.get("step");
    if (moved) this.model.set("step", to); // draws, through its change event
    else this.draw();
    if (save) this.model.save_changes();
  }

  // -- playing --

  play() {
    const from = this.step >= this.last ? 0 : this.step;
    if (this.last === 0) return;
    this.playing = { at: performance.now(), step: from, seconds: this.run.rows[from - 1]?.seconds ?? 0 };
    this.drawnAt = 0;
    this.go(from);
    this.draw();
    requestAnimationFrame((now) => this.tick(now));
  }

  stop() {
    if (!this.playing) return;
    this.playing = null;
    this.model.save_changes();
    this.draw();
    this.announce();
  }

  tick(now) {
    if (!this.playing || !this.root.isConnected) return;
    const { at, step, seconds } = this.playing;
    const elapsed = Math.max(0, now - at) / 1000;
    const speed = this.model.get("speed");
    const rate = BASE_RATE[this.run.autoregressive ? "autoregressive" : "diffusion"] * speed;
    const to = speed === 0 ? this.run.stepAt(seconds + elapsed) : step + Math.floor(elapsed * rate);
    // Reduced motion: the same pace, but at most two changes a second.
    if (to !== this.step && (!this.reduced.matches || now - this.drawnAt >= 500 || to >= this.last)) {
      this.drawnAt = now;
      this.go(to);
    }
    if (to >= this.last) this.stop();
    else requestAnimationFrame((later) => this.tick(later));
  }

  toggle() {
    if (this.playing) this.stop();
    else this.play();
  }

  // -- building --

  build(el) {
    const jump = (to) => () => {
      this.stop();
      this.go(to(), { save: true });
      this.announce();
    };
    this.playSign = node("span");
    this.playButton = button("Play", icon("play"), () => this.toggle(), { class: "dg-button dg-play" });
    this.playButton.append(this.playSign);
    this.range = node("input", {
      type: "range", class: "dg-range", min: 0, max: 0, step: 1, "aria-label": "Step",
      input: () => {
        this.stop();
        this.go(Number(this.range.value));
      },
      change: () => {
        this.model.save_changes();
        this.announce();
      },
    });
    this.speed = menu("speed", [["0.25", "¼ ×"], ["0.5", "½ ×"], ["1", "1 ×"], ["2", "2 ×"], ["4", "4 ×"], ["8", "8 ×"], ["0", "as recorded"]],
      (value) => this.choose("speed", Number(value)));
    this.colour = menu("colour", [["confidence", "confidence"], ["entropy", "entropy"], ["settled", "step settled"]],
      (value) => this.choose("colour_by", value));
    this.showing = menu("show", [["draft", "draft"], ["canvas", "canvas with noise"]], (value) => this.choose("show", value));
    this.branch = button("Branch from this step", "Branch from this step", () => this.steer("branch", {}), { class: "dg-button dg-steer" });
    this.halt = button("Stop the run", "Stop", () => this.model.send({ type: "stop" }), { class: "dg-button dg-halt" });
    const controls = node("div", { class: "dg-controls", role: "group", "aria-label": "Playback" },
      node("span", { class: "dg-buttons" },
        button("First step", icon("first"), jump(() => 0)), button("Step back", icon("back"), jump(() => this.step - 1)),
        this.playButton,
        button("Step forward", icon("forward"), jump(() => this.step + 1)), button("Last step", icon("last"), jump(() => this.last))),
      this.halt, this.branch, node("span", { class: "dg-space" }),
      this.speed.node, this.colour.node, this.showing.node);

    this.tracks = ["entropy", "accepted", "temperature"].map(() => ({
      label: node("span"), value: node("span", { class: "dg-value" }),
    }));
    this.paths = [0, 1, 2].map((t) => node("svg:path", { class: `dg-track dg-track-${t}` }));
    this.seams = node("svg:path", { class: "dg-seams" });
    this.cursor = node("svg:rect", { class: "dg-cursor", y: 0, height: 3 * TRACK });
    this.chart = node("svg:svg", { class: "dg-chart", preserveAspectRatio: "none", role: "img" },
      this.cursor, ...this.paths, this.seams);
    this.status = node("span", { class: "dg-value" });
    const strip = node("div", { class: "dg-strip" },
      node("div", { class: "dg-names" }, ...this.tracks.map((track) => track.label)), this.chart,
      node("div", { class: "dg-names dg-values" }, ...this.tracks.map((track) => track.value)),
      node("span", { class: "dg-name" }, "step"), this.range, this.status);

    this.title = node("div", { class: "dg-title" });
    this.summary = node("div", { class: "dg-summary" });
    this.grids = node("div", { class: "dg-grids" });
    this.panel = this.buildPanel();
    this.legend = node("div", { class: "dg-legend" });
    this.reading = node("div", { class: "dg-text", tabindex: 0, role: "group", "aria-label": "Text at this step", dir: "auto" });
    this.spoken = node("div", { class: "dg-spoken", role: "status", "aria-live": "polite" });
    const keys = node("details", { class: "dg-keys" }, node("summary", {}, "Keys"),
      node("span", {}, "Space plays and pauses · , and . step · < and > go to the first and last step · arrows move "
        + "between tokens, with Shift they mark a span · Page Up and Page Down change the canvas · Esc lets go"));
    this.root = node("div", { class: "dg", role: "group" },
      node("div", { class: "dg-head" }, this.title, this.summary), controls, strip,
      node("div", { class: "dg-body" },
        node("div", { class: "dg-main" }, this.grids, this.legend, this.reading, keys), this.panel),
      this.spoken);
    el.append(this.root);
  }

  buildPanel() {
    this.details = {
      place: node("div", { class: "dg-place" }),
      token: node("div", { class: "dg-token" }),
      alternatives: node("ol", { class: "dg-alternatives" }),
      numbers: node("div", { class: "dg-numbers" }),
      spark: node("svg:svg", { class: "dg-spark", viewBox: "0 0 100 44", preserveAspectRatio: "none", role: "img" }),
      guesses: node("ol", { class: "dg-guesses" }),
    };
    const replacement = node("input", { type: "text", class: "dg-input", "aria-label": "Replacement text", placeholder: "other text" });
    const replace = () => replacement.value && this.steer("replace", { text: replacement.value });
    replacement.addEventListener("keydown", (event) => event.key === "Enter" && replace());
    this.pinButton = button("Pin this token", "Pin", () => this.steer(this.pinned() ? "unpin" : "pin", {}));
    this.blankButton = button("Blank the marked span", "Blank", () => this.steer("blank", {}));
    this.steering = node("div", { class: "dg-steering", role: "group", "aria-label": "Steering" },
      node("div", {}, this.pinButton, this.blankButton),
      node("div", {}, replacement, button("Replace the token", "Replace", replace)));
    const { place, token, alternatives, numbers, spark, guesses } = this.details;
    this.hint = node("p", { class: "dg-hint" }, "Point at a token, or move to one with the arrow keys, to see what the model thought of it.");
    this.story = node("div", {}, node("div", { class: "dg-caption" }, "confidence over the steps"), spark, guesses);
    this.facts = node("div", { class: "dg-facts" }, place, token, alternatives, numbers,
      this.story);
    return node("div", { class: "dg-panel", role: "group", "aria-label": "Token details" }, this.hint, this.facts, this.steering);
  }

  /** Cells for every canvas of the run; nodes that are there already stay. */
  layout() {
    const { run } = this;
    const cells = [...this.grids.querySelectorAll(".dg-grid")];
    if (!this.live) this.width ??= cellWidth(this.finalLengths());
    this.grids.style.setProperty("--dg-columns", `${this.width ?? 6}ch`);
    this.cells = run.groups.map((group, g) => {
      const grid = cells[g] ?? this.addGrid(g);
      while (grid.children.length > group.n) grid.lastChild.remove();
      while (grid.children.length < group.n) {
        const cell = node("span", { class: "dg-cell", role: "option", tabindex: -1 }, node("bdi"));
        cell.dataset.group = g;
        cell.dataset.index = grid.children.length;
        grid.append(cell);
      }
      return [...grid.children];
    });
    for (const extra of cells.slice(run.groups.length)) extra.parentNode.remove();
    this.drawStrip();
    this.drawHead();
    this.fitReading();
  }

  addGrid(g) {
    const grid = node("div", { class: "dg-grid", role: "listbox", "aria-label": `Canvas ${g + 1}` });
    this.grids.append(node("section", { class: "dg-group" }, node("div", { class: "dg-group-name" }), grid));
    return grid;
  }

  finalLengths() {
    return this.run.groups.flatMap((group) =>
      Array.from({ length: group.n }, (_, i) => {
        const cell = this.run.cell(group, i, this.last, "draft");
        return cell && cell.state !== 5 ? [...visible(this.text(cell.token), 12)].length : 1;
      }));
  }

  // -- drawing --

  draw() {
    const { run, step } = this;
    const by = this.model.get("colour_by");
    const [from, to] = this.span();
    const counts = STATES.map(() => 0);
    run.groups.forEach((group, g) => {
      for (let i = 0; i < group.n; i++) {
        const cell = run.cell(group, i, step, this.show);
        if (cell) counts[cell.state] += 1;
        const shade = cell ? run.shade(group, i, step, cell, by) : null;
        const newest = run.autoregressive && cell && i === step - group.first - 1;
        const position = group.position + i;
        this.drawCell(this.cells[g][i], cell, shade, newest, position >= from && position <= to && to > from);
      }
    });
    this.drawSelection();
    this.drawControls();
    this.drawLegend(counts, by);
    this.drawReading();
    this.drawPanel();
    this.drawNames();
    clearTimeout(this.naming);
    if (!this.playing && !this.live) this.naming = setTimeout(() => this.label(), 200);
  }

  drawCell(node, cell, shade, newest, marked) {
    const key = cell ? `${cell.token} ${cell.state} ${shade} ${newest} ${marked}` : "";
    if (node.dgKey === key) return;
    node.dgKey = key;
    if (cell) node.removeAttribute("aria-label"); // of the frame before
    else node.setAttribute("aria-label", `${this.positionOf(node)}: not written yet`);
    node.className = cell ? `dg-cell dg-s${cell.state}` : "dg-cell dg-empty";
    if (cell && shade === null) node.classList.add("dg-blank");
    if (newest) node.classList.add("dg-newest");
    if (marked) node.classList.add("dg-marked");
    write(node.firstChild, cell ? visible(this.text(cell.token)) : "");
    if (shade !== null) {
      node.style.setProperty("--dg-fill", SHADES[shade].fill);
      node.style.setProperty("--dg-ink", SHADES[shade].ink);
    }
  }

  /** One token is reached by Tab (the selected one, else the first); arrows lead on from there. */
  drawSelection() {
    const place = this.place(this.model.get("selected"));
    const selected = place && this.cells[place.g][place.i];
    const reached = selected ?? this.cells[0]?.[0];
    for (const node of this.grids.querySelectorAll('[tabindex="0"], [aria-selected]')) {
      if (node !== reached) node.tabIndex = -1;
      if (node !== selected) node.removeAttribute("aria-selected");
    }
    if (reached) reached.tabIndex = 0;
    selected?.setAttribute("aria-selected", "true");
  }

  drawHead() {
    const { meta } = this;
    write(this.title, this.model.get("title") || meta.prompt || "");
    this.title.hidden = !this.title.textContent;
    this.root.setAttribute("aria-label", `Denoising canvas${meta.prompt ? `: ${meta.prompt}` : ""}`);
    write(this.summary, [this.live ? "live" : null, ...(meta.facts ?? [])].filter(Boolean).join(" · "));
    this.halt.hidden = !(this.live && this.model.get("_stoppable"));
    this.grids.querySelectorAll(".dg-grid").forEach((grid, g) => {
      const name = this.run.autoregressive ? "Tokens, one a pass" : `Canvas ${this.run.groups[g].canvas + 1}`;
      grid.setAttribute("aria-label", name);
      if (this.model.get("_steerable")) grid.setAttribute("aria-multiselectable", "true");
    });
    this.range.max = this.last;
  }

  drawNames() {
    const names = this.grids.querySelectorAll(".dg-group-name");
    this.run.groups.forEach((group, g) => {
      const done = Math.min(Math.max(this.step - group.first, 0), group.passes);
      if (this.run.autoregressive) return write(names[g], `one token a pass · ${done} of ${group.passes}`);
      const commit = this.meta.commits?.find(({ canvas }) => canvas === group.canvas);
      const ended = done === group.passes && commit ? (commit.converged ? " · converged" : " · not converged") : "";
      write(names[g], `canvas ${group.canvas + 1} · ${done} of ${group.passes} passes${ended}`);
    });
  }

  drawControls() {
    const { step, run } = this;
    const row = run.rows[step - 1];
    const group = run.groups.findLast(({ first }) => step > first) ?? run.groups[0];
    write(this.playSign, this.playing ? "Pause" : "Play");
    this.playButton.firstChild.firstChild.setAttribute("d", ICONS[this.playing ? "pause" : "play"]);
    this.playButton.setAttribute("aria-label", this.playing ? "Pause" : "Play");
    if (Number(this.range.value) !== step) this.range.value = step;
    const where = run.autoregressive || !group ? "" : `, canvas ${group.canvas + 1}, pass ${Math.max(step - group.first, 0)} of ${group.passes}`;
    this.range.setAttribute("aria-valuetext", `step ${step} of ${this.last}${where}`);
    write(this.status, `${step} / ${this.last}`);
    this.cursor.setAttribute("x", Math.max(step - 1, 0));
    this.cursor.setAttribute("width", row ? 1 : 0);
    const values = row
      ? run.autoregressive
        ? [nats(row.meanEntropy), percent(probability(row.sample[0])), `${row.seconds.toFixed(2)} s`]
        : [nats(row.meanEntropy), `${row.accepted} / ${row.n}`, row.temperature.toFixed(2)]
      : ["–", "–", "–"];
    values.forEach((value, t) => write(this.tracks[t].value, value));
    this.speed.select.value = String(this.model.get("speed"));
    this.colour.select.value = this.model.get("colour_by");
    this.showing.select.value = this.show;
    this.branch.hidden = !this.model.get("_steerable") || this.live || run.autoregressive;
    this.showing.node.hidden = run.autoregressive;
  }

  drawStrip() {
    const { rows, autoregressive, groups } = this.run;
    const width = Math.max(rows.length, 1);
    this.chart.setAttribute("viewBox", `0 0 ${width} ${3 * TRACK}`);
    const names = autoregressive ? ["entropy", "confidence", "seconds"] : ["entropy", "accepted", "temperature"];
    const end = Math.max(rows.at(-1)?.seconds ?? 0, 1e-9);
    const tracks = autoregressive
      ? [rows.map((row) => row.meanEntropy), rows.map((row) => probability(row.sample[0])), rows.map((row) => row.seconds / end)]
      : [rows.map((row) => row.meanEntropy), rows.map((row) => row.accepted / row.n), rows.map((row) => row.temperature)];
    tracks.forEach((values, t) => {
      const highest = t === 1 ? 1 : Math.max(...values, 1e-9);
      const scaled = values.map((v) => v / highest);
      const path = t === 2 ? linePath : barPath;
      this.paths[t].setAttribute("d", path(scaled, (t + 1) * TRACK - 2, TRACK - 5));
      write(this.tracks[t].label, names[t]);
    });
    const seams = groups.slice(1).map(({ first }) => `M${first} 0V${3 * TRACK}`);
    this.seams.setAttribute("d", seams.join(""));
    this.chart.setAttribute("aria-label", `${names.join(", ")} of each pass; the slider below moves through them`);
  }

  drawLegend(counts, by) {
    if (!this.legend.firstChild) {
      this.legendStates = STATES.map((name, state) => {
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
      this.legend.append(...this.legendStates.map(({ node }) => node), node("span", { class: "dg-space" }),
        node("span", { class: "dg-entry" }, this.ends[0], bar, this.ends[1]));
    }
    counts.forEach((count, state) => {
      write(this.legendStates[state].count, String(count));
      this.legendStates[state].node.hidden = this.run.autoregressive && state !== 2;
    });
    const ends = {
      confidence: ["unsure", "sure"],
      entropy: [nats(entropy(this.run.maxEntropy)), "0 nats"],
      settled: ["settled late", "early"],
    }[by];
    ends.forEach((text, e) => write(this.ends[e], text));
  }

  readingText(step) {
    const eos = new Set(this.meta.eos ?? []);
    const parts = [];
    for (const group of this.run.groups) {
      for (let i = 0; i < group.n; i++) {
        const cell = this.run.cell(group, i, step, "draft");
        if (cell && cell.state !== 5 && !eos.has(this.ids[cell.token])) parts.push(this.text(cell.token));
      }
    }
    return unturned(parts.join(""));
  }

  /** Room for the whole text, up to eight lines, so that nothing moves while it is being written. */
  fitReading() {
    const { reading } = this;
    if (this.live || !reading.clientWidth) return;
    const shown = reading.textContent;
    reading.textContent = this.readingText(this.last);
    reading.style.setProperty("--dg-lines", 1);
    const line = parseFloat(getComputedStyle(reading).lineHeight);
    reading.style.setProperty("--dg-lines", Math.min(Math.max(Math.floor(reading.scrollHeight / line), 1), 8));
    reading.textContent = shown;
  }

  drawReading() {
    write(this.reading, this.step === 0 ? "" : this.readingText(this.step));
  }

  // -- details of one token --

  /** The inspected place {g, i}: the one under the pointer, else the selected one. */
  inspected() {
    if (this.hovered && this.run.groups[this.hovered.g]?.n > this.hovered.i) return this.hovered;
    return this.place(this.model.get("selected"));
  }

  place(position) {
    const g = this.run.groups.findIndex((group) => position >= group.position && position < group.position + group.n);
    return position >= 0 && g >= 0 ? { g, i: position - this.run.groups[g].position } : null;
  }

  span() {
    const selected = this.model.get("selected");
    if (selected < 0) return [-1, -1];
    const other = this.anchor ?? selected;
    return [Math.min(selected, other), Math.max(selected, other)];
  }

  pinned() {
    const place = this.place(this.model.get("selected"));
    return place && this.run.cell(this.run.groups[place.g], place.i, this.step, this.show)?.state === 4;
  }

  drawPanel() {
    const place = this.inspected();
    const group = place && this.run.groups[place.g];
    const cell = group && this.run.cell(group, place.i, this.step, this.show);
    this.hint.hidden = Boolean(place);
    this.facts.hidden = !place;
    this.steering.hidden = !this.model.get("_steerable") || this.live || this.model.get("selected") < 0;
    if (place) this.drawFacts(group, place.i, cell);
    if (!this.steering.hidden) {
      const [from, to] = this.span();
      const pinned = this.pinned();
      write(this.pinButton, pinned ? "Unpin" : "Pin");
      this.pinButton.setAttribute("aria-label", pinned ? "Unpin this token" : "Pin this token");
      const blank = from === to ? "Blank" : `Blank ${from} to ${to}`;
      write(this.blankButton, blank);
      this.blankButton.setAttribute("aria-label", from === to ? "Blank this token" : blank);
    }
    const where = place ? `${place.g}/${place.i}/${this.steering.hidden}` : "";
    if (where !== this.placed) this.placePanel(place); // it measures: not at every frame
    this.placed = where;
  }

  drawFacts(group, i, cell) {
    const { place, token, alternatives, numbers, spark, guesses } = this.details;
    write(place, `position ${group.position + i} · ${cell ? STATES[cell.state] : "not written yet"}`);
    write(token, cell ? visible(this.text(cell.token), 120) : " ");
    const row = cell?.row;
    const k = this.run.rows[0]?.k ?? 0;
    while (alternatives.children.length > k) alternatives.lastChild.remove();
    while (alternatives.children.length < k) {
      alternatives.append(node("li", {}, node("bdi"), node("span", { class: "dg-bar" }), node("span", { class: "dg-value" })));
    }
    [...alternatives.children].forEach((item, a) => {
      const [name, bar, value] = item.children;
      const p = row ? probability(row.probabilities[cell.i * k + a]) : 0;
      write(name, row ? visible(this.text(row.alternatives[cell.i * k + a]), 40) : "–");
      bar.style.setProperty("--dg-part", p.toFixed(3));
      write(value, row ? percent(p) : "");
    });
    const drawn = row && row.kind !== "token" ? ` · sample ${percent(probability(row.sample[cell.i]))}` : "";
    write(numbers, row ? `entropy ${nats(entropy(row.entropy[cell.i]))}${drawn}` : "noise: a random token");
    this.story.hidden = this.run.autoregressive; // a token was written once and stays
    if (this.story.hidden) return;
    const history = this.run.history(group, i);
    this.drawSpark(spark, history, this.step - group.first - 1);
    const found = stretches(history);
    const shown = found.length > 5 ? [...found.slice(0, 2), null, ...found.slice(-2)] : found;
    while (guesses.children.length > shown.length) guesses.lastChild.remove();
    while (guesses.children.length < shown.length) guesses.append(node("li", {}, node("span", { class: "dg-value" }), node("bdi")));
    shown.forEach((stretch, s) => {
      const [when, what] = guesses.children[s].children;
      const steps = stretch && (stretch.from === stretch.to ? `${stretch.from + 1}` : `${stretch.from + 1}–${stretch.to + 1}`);
      write(when, stretch ? steps : "…");
      write(what, stretch ? visible(this.text(stretch.token), 40) : `${found.length - 4} more`);
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
    const first = history[0];
    const last = history.at(-1);
    spark.setAttribute("aria-label", `confidence from ${percent(first.p)} at step 1 to ${percent(last.p)} at step ${history.length}; the bar below marks steps at which it was accepted`);
  }

  /** Beside the grid where there is room, at the height of the token's canvas; else in the top layer near the token. */
  placePanel(place) {
    const narrow = this.root.clientWidth < NARROW && this.root.clientWidth > 0;
    this.root.classList.toggle("dg-narrow", narrow);
    const node = place && this.cells[place.g]?.[place.i];
    if (!narrow) {
      if (this.panel.hasAttribute("popover")) {
        if (this.panel.matches(":popover-open")) this.panel.hidePopover();
        this.panel.removeAttribute("popover");
        this.panel.style.removeProperty("left");
      }
      const section = node?.closest(".dg-group");
      const room = this.grids.offsetHeight - this.panel.offsetHeight;
      this.panel.style.top = `${Math.max(0, Math.min(section ? section.offsetTop - this.grids.offsetTop : 0, room))}px`;
      return;
    }
    if (!this.panel.hasAttribute("popover")) this.panel.setAttribute("popover", "manual");
    if (!node) {
      if (this.panel.matches(":popover-open")) this.panel.hidePopover();
      return;
    }
    if (!this.panel.matches(":popover-open")) this.panel.showPopover();
    const { left, top, bottom } = node.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.panel;
    const below = bottom + 6 + height <= innerHeight;
    this.panel.style.left = `${Math.max(4, Math.min(left, innerWidth - width - 4))}px`;
    this.panel.style.top = `${Math.max(4, below ? bottom + 6 : Math.min(top - 6, innerHeight - 4) - height)}px`;
  }

  // -- words for those who listen --

  /** Names for all tokens, once nothing has moved for a moment; until then their texts are their names. */
  label() {
    this.run.groups.forEach((group, g) => {
      for (let i = 0; i < group.n; i++) {
        const cell = this.run.cell(group, i, this.step, this.show);
        const text = cell
          ? `${group.position + i}: ${visible(this.text(cell.token))}, ${STATES[cell.state]}${cell.row ? `, ${percent(probability(cell.row.probabilities[cell.i * cell.row.k]))}` : ""}`
          : `${group.position + i}: not written yet`;
        const node = this.cells[g][i];
        if (node.getAttribute("aria-label") !== text) node.setAttribute("aria-label", text);
      }
    });
  }

  announce() {
    const row = this.run.rows[this.step - 1];
    const rest = !row ? "" : this.run.autoregressive ? `, ${visible(this.text(row.out[0]))}`
      : `: ${row.accepted} of ${row.n} accepted, mean entropy ${nats(row.meanEntropy)}`;
    write(this.spoken, `Step ${this.step} of ${this.last}${rest}`);
  }

  // -- input --

  choose(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  listen() {
    const on = (names, react) => names.split(" ").forEach((name) => {
      this.model.on(`change:${name}`, react);
      this.offs.push(() => this.model.off(`change:${name}`, react));
    });
    this.offs = [];
    on("_meta", () => this.load());
    on("_tail", () => this.tail());
    on("step colour_by show selected _steerable _stoppable speed", () => this.draw());
    on("title _steerable _stoppable", () => this.drawHead());
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.grids.addEventListener("pointerover", (event) => this.hover(event.target.closest(".dg-cell")));
    this.grids.addEventListener("pointerleave", () => this.hover(null));
    this.grids.addEventListener("pointerdown", (event) => {
      const node = event.target.closest(".dg-cell");
      if (!node) return;
      event.preventDefault(); // no text selection while marking a span
      this.select(node, { extend: event.shiftKey });
    });
    this.grids.addEventListener("focusin", (event) => {
      if (event.target.matches(".dg-cell") && this.positionOf(event.target) !== this.model.get("selected")) {
        this.select(event.target, { focus: false }); // reached by Tab
      }
    });
    const scrub = (event) => {
      const { left, width } = this.chart.getBoundingClientRect();
      this.stop();
      this.go(1 + Math.min(Math.max(Math.floor(((event.clientX - left) / width) * this.last), 0), this.last - 1));
    };
    this.chart.addEventListener("pointerdown", (event) => {
      if (this.last === 0) return;
      this.chart.setPointerCapture(event.pointerId);
      scrub(event);
    });
    this.chart.addEventListener("pointermove", (event) => event.buttons & 1 && this.last && scrub(event));
    this.chart.addEventListener("pointerup", () => {
      this.model.save_changes();
      this.announce();
    });
    this.resized = new ResizeObserver(() => {
      this.placePanel(this.inspected());
      this.fitReading();
    });
    this.resized.observe(this.root);
    // A floating card must not stay behind when the page scrolls away under it.
    this.scrolled = () => this.root.classList.contains("dg-narrow") && this.placePanel(this.inspected());
    addEventListener("scroll", this.scrolled, { capture: true, passive: true });
  }

  close() {
    this.playing = null;
    clearTimeout(this.naming);
    this.offs.forEach((off) => off());
    this.resized.disconnect();
    removeEventListener("scroll", this.scrolled, { capture: true });
    this.root.remove();
  }

  hover(node) {
    const next = node && !node.classList.contains("dg-sample") ? { g: Number(node.dataset.group), i: Number(node.dataset.index) } : null;
    if (next?.g === this.hovered?.g && next?.i === this.hovered?.i) return;
    this.hovered = next;
    this.drawPanel();
  }

  positionOf(node) {
    return this.run.groups[Number(node.dataset.group)].position + Number(node.dataset.index);
  }

  select(node, { extend = false, focus = true } = {}) {
    const position = this.positionOf(node);
    const before = this.model.get("selected");
    this.anchor = extend && before >= 0 ? (this.anchor ?? before) : null;
    if (position === before) this.draw();
    else this.choose("selected", position);
    if (focus) node.focus();
  }

  release() {
    this.anchor = null;
    this.hovered = null;
    this.choose("selected", -1);
    this.draw();
  }

  steer(action, more) {
    const selected = this.model.get("selected");
    const [from, to] = this.span();
    if (action !== "branch" && selected < 0) return;
    this.stop();
    const where = action === "branch" ? {} : { position: selected, start: from, stop: to + 1 };
    this.model.send({ type: "steer", action, step: this.step, ...where, ...more });
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const { target, key } = event;
    const cell = target.closest(".dg-cell");
    const typing = target.matches("input[type=text], select");
    if (key === "Escape") this.release();
    else if (typing) return;
    else if (key === " " && !target.matches("button, summary")) this.toggle();
    else if (key === ",") this.jumpTo(this.step - 1);
    else if (key === ".") this.jumpTo(this.step + 1);
    else if (key === "<") this.jumpTo(0);
    else if (key === ">") this.jumpTo(this.last);
    else if (cell && this.moveFrom(cell, key, event.shiftKey)) {
      // moved
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  jumpTo(step) {
    this.stop();
    this.go(step, { save: true });
    this.announce();
  }

  moveFrom(cell, key, extend) {
    const g = Number(cell.dataset.group);
    const i = Number(cell.dataset.index);
    const line = this.cells[g];
    const columns = line.filter((node) => node.offsetTop === line[0].offsetTop).length;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
    let to = null;
    if (by !== undefined) {
      to = line[i + by] ?? (i + by < 0 ? this.cells[g - 1]?.at(-1) : this.cells[g + 1]?.[0]);
      if (Math.abs(by) > 1 && i + by >= line.length && Math.floor(i / columns) < Math.floor((line.length - 1) / columns)) to = line.at(-1);
    } else if (key === "Home") to = line[0];
    else if (key === "End") to = line.at(-1);
    else if (key === "PageUp") to = this.cells[g - 1]?.[0] ?? line[0];
    else if (key === "PageDown") to = this.cells[g + 1]?.[0] ?? line.at(-1);
    else return false;
    if (to) this.select(to, { extend });
    return true;
  }
}

function render({ model, el }) {
  const view = new View(model, el);
  return () => view.close();
}

/** A page without a kernel: the widget over plain state, in which `_rows` is base64. */
export function mount(state, el) {
  const bytes = Uint8Array.from(atob(state._rows), (character) => character.charCodeAt(0));
  const model = plainModel({ ...state, _rows: new DataView(bytes.buffer), _tail: {}, selected: -1 });
  render({ model, el });
  return model;
}

export default { render };
