// Runs on one prompt, replayed on one clock from the times at which their passes ended. The kernel is not asked.

import { duration, entitle, node, numbers, plainModel, ticks, write } from "../frontend/dom.js";
import { PlayButton } from "../frontend/icons.js";
import { readable } from "../frontend/text.js";

const PACES = [1, 2, 5, 10, 20, 50, 100, 200];
const LENGTH = 8; // seconds: a replay that would be over sooner is slowed to about this
const HEIGHT = 156;
const EDGE = { left: 34, right: 12, top: 20, bottom: 22 };

/** The entries of a rising list that are at most `limit`. */
export function count(rising, limit) {
  let low = 0;
  let high = rising.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rising[middle] <= limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Heights of labels {x (left edge), y, width}, in order, each moved down a line at a time until it touches none before. */
export function staggered(labels, line = 14) {
  const placed = [];
  for (const { x, y, width } of labels) {
    let at = y;
    while (placed.some((other) => Math.abs(other.at - at) < line && x < other.x + other.width && other.x < x + width)) at += line;
    placed.push({ x, width, at });
  }
  return placed.map(({ at }) => at);
}

/** How often a run of so many seconds is slowed: a round number. */
export function pace(seconds) {
  return PACES.findLast((slow) => seconds * slow <= LENGTH * 1.5) ?? 1;
}

/** A lane as the kernel packed it, with its numbers unpacked. */
export function unpack(lane) {
  return { ...lane, ids: numbers(lane.ids, Uint32Array), marks: numbers(lane.marks, Uint8Array) };
}

/** What stands in a lane at a time: {kept, passes, live, over, pieces: [{text, draft}]}. */
export function standing(lane, seconds) {
  const made = count(lane.seconds, seconds);
  const over = seconds >= lane.total;
  const done = count(lane.commits.map((commit) => commit.seconds), seconds);
  const last = lane.commits[done - 1];
  const before = last ? last.kept : 0; // tokens kept by then, over all canvases
  const pieces = [];
  const add = (text, draft) => {
    if (!text) return;
    if (pieces.length && pieces.at(-1).draft === draft) pieces.at(-1).text += text;
    else pieces.push({ text, draft });
  };
  lane.kept.slice(0, before).forEach((token) => add(lane.texts[token], false));
  let live = 0;
  const pass = lane.canvas[made - 1];
  if (made > 0 && !over && (done === 0 || pass > last.canvas)) {
    for (let i = lane.offsets[made - 1]; i < lane.offsets[made]; i++) {
      if (lane.marks[i] === 0) continue; // behind the end of the text
      live += lane.marks[i] === 2;
      add(lane.texts[lane.ids[i]], lane.marks[i] === 1);
    }
  }
  const drafted = lane.rounds.reduce((sum, round) => sum + (round.seconds <= seconds ? round.passes : 0), 0);
  const written = lane.rounds.length ? drafted : made + Math.max(0, Math.min(done, lane.canvases - 1)) - lane.free * (made > 0);
  const passes = over ? lane.passes : (seconds >= lane.start ? 1 : 0) + written;
  return { kept: before, passes, live, over, pieces };
}

/** The lane's steps [seconds, tokens kept] for the chart, and those of kept and accepted together. */
export function steps(lane) {
  const kept = [[0, 0], ...lane.commits.map((commit) => [commit.seconds, commit.kept])];
  const live = lane.seconds.map((seconds) => {
    const { kept, live } = standing(lane, seconds);
    return [seconds, kept + live];
  });
  return { kept, live: [[0, 0], ...live, [lane.total, lane.kept.length]] };
}

/**
 * Who was first, in words, and how far the others are behind: by the median times, with the range over the rounds in
 * which the lanes took turns. Where the order changes from round to round nobody is.
 */
export function verdict(lanes) {
  if (lanes.length < 2) return "";
  const [first, ...others] = [...lanes].sort((a, b) => a.total - b.total);
  const rounds = Math.min(...lanes.map(({ times }) => times.length));
  const times = first.times.slice(0, rounds);
  const won = times.filter((seconds, i) => others.every((other) => seconds < other.times[i])).length;
  const who = rounds < 2 ? `${first.name} was first in the only run`
    : won < rounds ? `No clear winner: ${first.name} was first in ${won} of ${rounds} rounds` : `${first.name} is first in all ${rounds} rounds`;
  const behind = others.map((other) => {
    const ratios = times.map((seconds, i) => other.times[i] / seconds);
    const range = rounds < 2 ? "" : ` (${Math.min(...ratios).toFixed(1)} to ${Math.max(...ratios).toFixed(1)})`;
    return `${(other.total / first.total).toFixed(1)} times as fast as ${other.name}${range}`;
  });
  return `${who}, ${behind.join(", ")}.`;
}

function stairs(points, x, y) {
  return points.map(([at, value], i) => (i ? `H${x(at).toFixed(1)}V${y(value).toFixed(1)}` : `M${x(at).toFixed(1)} ${y(value).toFixed(1)}`)).join("");
}

/** A bracket over the range of several times, at a height. */
function spread(places, y) {
  const [low, high] = [Math.min(...places), Math.max(...places)].map((x) => x.toFixed(1));
  return places.length > 1 ? `M${low} ${y - 3}V${y + 3}M${low} ${y}H${high}M${high} ${y - 3}V${y + 3}` : "M0 0";
}

class Track {
  constructor(model, el) {
    this.model = model;
    this.reduced = matchMedia("(prefers-reduced-motion: reduce)");
    this.heard = { lanes: () => this.load(), seconds: () => this.draw(), note: () => this.draw() };
    this.build(el);
    for (const [name, react] of Object.entries(this.heard)) model.on(`change:${name}`, react);
    this.resized = new ResizeObserver(() => this.chart());
    this.resized.observe(this.plot);
    this.load();
  }

  close() {
    this.playing = null;
    this.resized.disconnect();
    for (const [name, react] of Object.entries(this.heard)) this.model.off(`change:${name}`, react);
    this.root.remove();
  }

  build(el) {
    this.play = new PlayButton(() => this.toggle(), "dgr-play");
    this.slider = node("input", { type: "range", min: 0, max: 1000, step: 1, "aria-label": "Time", input: () => {
      const seconds = (this.slider.value / 1000) * this.end; // before a redraw puts the slider back
      this.pause();
      this.model.set("seconds", seconds);
    } });
    this.clock = node("span", { class: "dgr-clock" });
    this.select = node("select", { change: () => this.start() }, ...PACES.map((slow) => node("option", { value: slow }, slow === 1 ? "as recorded" : `${slow} × slower`)));
    this.plot = node("svg:svg", { class: "dgr-chart", height: HEIGHT, role: "img" });
    this.lanes = node("div", { class: "dgr-lanes" });
    this.verdict = node("div", { class: "dgr-verdict", role: "status" });
    this.title = node("div", { class: "dg-title dgr-title" });
    this.root = node("div", { class: "dg-base dgf dgr", role: "group", "aria-label": "Race" },
      this.title,
      node("div", { class: "dgr-controls" }, this.play.node, this.slider, this.clock, node("label", { class: "dgr-pace" }, "pace", this.select)),
      node("div", { class: "dgr-caption" }, "tokens kept (shaded: accepted on the canvas so far)"),
      this.plot, this.lanes, this.verdict);
    this.root.addEventListener("keydown", (event) => {
      if (event.key !== " " || event.target.matches("button, select") || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      this.toggle();
    });
    el.append(this.root);
  }

  load() {
    this.runs = this.model.get("lanes").map(unpack);
    this.end = Math.max(...this.runs.flatMap((run) => [run.total, ...run.times]), 1e-9);
    this.most = Math.max(...this.runs.map((run) => run.kept.length), 1);
    this.select.value = String(pace(this.end));
    entitle(this.title, this.model.get("title"));
    this.places = this.runs.map((run, i) => {
      const places = { count: node("span", { class: "dgr-count" }), text: node("div", { class: "dgr-text", dir: "auto", tabindex: 0, role: "group", "aria-label": `Text of ${run.name}` }) };
      places.node = node("section", { class: `dgr-lane dgr-lane-${i % 4}`, style: `--dgr-colour: var(--dgr-${i % 4})` },
        node("div", { class: "dgr-head" }, node("span", { class: "dgr-name" }, run.name), places.count), places.text);
      return places;
    });
    const lines = this.runs.map((run) => run.kept.map((token) => run.texts[token]).join("").split("\n").reduce((sum, line) => sum + 1 + Math.floor(line.length / 48), 0));
    this.root.style.setProperty("--dgr-lines", Math.min(Math.max(3, ...lines), 12));
    this.lanes.replaceChildren(...this.places.map((place) => place.node));
    this.chart();
    this.draw();
  }

  get seconds() {
    const seconds = this.model.get("seconds");
    return seconds < 0 ? this.end : Math.min(seconds, this.end);
  }

  // -- the clock --

  toggle() {
    if (this.playing) this.pause();
    else this.start(true);
  }

  start(fresh = false) {
    if (!fresh && !this.playing) return; // the pace was changed while nothing plays
    const from = this.seconds >= this.end ? 0 : this.seconds;
    this.playing = { at: performance.now(), from, drawn: 0 };
    this.model.set("seconds", from);
    requestAnimationFrame((now) => this.tick(now));
  }

  pause() {
    this.playing = null;
    this.draw();
  }

  tick(now) {
    if (!this.playing || !this.root.isConnected) return;
    const { at, from, drawn } = this.playing;
    const seconds = Math.min(from + Math.max(0, now - at) / 1000 / Number(this.select.value), this.end);
    const over = seconds >= this.end;
    if (!this.reduced.matches || now - drawn >= 500 || over) {
      this.playing.drawn = now;
      this.model.set("seconds", seconds);
    }
    if (over) this.pause();
    else requestAnimationFrame((later) => this.tick(later));
  }

  // -- drawing --

  draw() {
    const { seconds } = this;
    this.play.show(this.playing);
    this.slider.value = Math.round((1000 * seconds) / this.end);
    this.slider.setAttribute("aria-valuetext", `${duration(seconds)} of ${duration(this.end)}`);
    write(this.clock, `${duration(seconds)} of ${duration(this.end)}`);
    this.runs.forEach((run, i) => {
      const { kept, passes, live, over, pieces } = standing(run, seconds);
      const { count, text } = this.places[i];
      const rest = over ? ` · done at ${duration(run.total)}` : live ? ` (${live} more accepted)` : "";
      write(count, `${kept} kept · ${passes} passes${rest}`);
      while (text.children.length > pieces.length) text.lastChild.remove();
      while (text.children.length < pieces.length) text.append(node("span"));
      pieces.forEach((piece, j) => {
        text.children[j].className = piece.draft ? "dgr-draft" : "";
        write(text.children[j], readable(piece.text));
      });
    });
    write(this.verdict, seconds >= this.end && !this.playing ? [verdict(this.runs), this.model.get("note")].filter(Boolean).join(" ") : "");
    this.cursor?.setAttribute("transform", `translate(${this.x(seconds).toFixed(1)} 0)`);
    for (const clip of this.clips ?? []) clip.setAttribute("width", Math.max(0, this.x(seconds)));
  }

  chart() {
    const width = this.plot.clientWidth;
    if (!width || !this.runs) return;
    const [bottom, right] = [HEIGHT - EDGE.bottom, width - EDGE.right];
    this.x = (seconds) => EDGE.left + (seconds / this.end) * (right - EDGE.left);
    const y = (tokens) => bottom - (tokens / this.most) * (bottom - EDGE.top);
    this.plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.plot.setAttribute("aria-label", `Tokens kept over time. ${this.runs.map((run) => `${run.name}: ${run.kept.length} after ${duration(run.total)}`).join("; ")}`);
    const axes = [
      ...ticks(this.end, width / 110).map((at) => [node("svg:path", { class: "dgr-axis", d: `M${this.x(at)} ${EDGE.top}V${bottom + 4}` }), node("svg:text", { x: this.x(at), y: bottom + 16, "text-anchor": "middle" }, `${at} s`)]),
      ...ticks(this.most, 3).map((at) => [node("svg:path", { class: "dgr-axis", d: `M${EDGE.left} ${y(at)}H${right}` }), node("svg:text", { x: EDGE.left - 6, y: y(at) + 4, "text-anchor": "end" }, `${at}`)]),
    ].flat();
    const id = (this.id ??= `race-${Math.random().toString(36).slice(2)}`);
    const clip = node("svg:rect", { x: 0, y: 0, height: HEIGHT });
    this.clips = [clip];
    const ends = this.runs.map((run) => {
      const [text, x] = [`${run.name} ⚑ ${duration(run.total)}`, this.x(run.total)];
      const left = x > width / 2;
      const room = 7.5 * text.length; // of the bold 12 px letters
      return { text, left, x: left ? x - 5 - room : x + 5, y: Math.max(y(run.kept.length) - 8, 10), width: room };
    });
    const heights = staggered(ends);
    const lines = this.runs.map((run, i) => {
      const { kept, live } = steps(run);
      const line = stairs([...kept, [run.total, run.kept.length]], this.x, y);
      const area = `${stairs(live, this.x, y)}V${bottom}Z`;
      const [endX, endY] = [this.x(run.total), y(run.kept.length)];
      const { text, left } = ends[i];
      return node("svg:g", { class: `dgr-lane-${i % 4}`, style: `--dgr-colour: var(--dgr-${i % 4})` },
        node("svg:g", { class: "dgr-rest" }, node("svg:path", { class: "dgr-line", d: line })),
        node("svg:g", { "clip-path": `url(#${id})` }, ...(run.free ? [] : [node("svg:path", { class: "dgr-live", d: area })]), node("svg:path", { class: "dgr-line", d: line })),
        node("svg:path", { class: "dgr-flag", d: `M${endX} ${bottom}V${endY - 6}` }),
        node("svg:path", { class: "dgr-spread", d: spread(run.times.map(this.x), bottom - 4 - 6 * i) }),
        node("svg:text", { class: "dgr-end", x: endX + (left ? -5 : 5), y: heights[i], "text-anchor": left ? "end" : "start" }, text));
    });
    this.cursor = node("svg:path", { class: "dgr-now", d: `M0 ${EDGE.top - 6}V${bottom}` });
    this.plot.replaceChildren(
      node("svg:defs", {}, node("svg:clipPath", { id }, clip)), ...axes, ...lines, this.cursor);
    this.draw();
  }
}

function render({ model, el }) {
  const track = new Track(model, el);
  return () => track.close();
}

/** A page without a kernel. */
export function mount(state, el) {
  const model = plainModel(state);
  render({ model, el });
  return model;
}

export default { render };
