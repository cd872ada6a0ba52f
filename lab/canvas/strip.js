// The strip under the grid: three thin tracks with a value a pass; dragging it scrubs.

import { node, write } from "../frontend/dom.js";
import { nats, percent } from "../frontend/text.js";
import { probability } from "./rows.js";

const TRACK = 14; // px, height of one track
const NAMES = { diffusion: ["entropy", "accepted", "temperature"], autoregressive: ["entropy", "confidence", "seconds"] };

/** SVG path of steps over equally wide columns; values 0 … 1 go up from `bottom` by `height`. */
export function linePath(values, bottom, height) {
  return values
    .map((v, x) => `${x ? "V" : "M0 "}${(bottom - height * v).toFixed(2)}H${x + 1}`)
    .join("");
}

export function barPath(values, bottom, height) {
  return values.map((v, x) => `M${x} ${bottom}V${(bottom - height * v).toFixed(2)}H${x + 1}V${bottom}Z`).join("");
}

export class Strip {
  constructor(view) {
    this.view = view;
    this.tracks = [0, 1, 2].map(() => ({ label: node("span"), value: node("span", { class: "dg-value" }) }));
    this.paths = [0, 1, 2].map((t) => node("svg:path", { class: `dg-track dg-track-${t}` }));
    this.seams = node("svg:path", { class: "dg-seams" });
    this.cursor = node("svg:rect", { class: "dg-cursor", y: 0, height: 3 * TRACK });
    this.chart = node("svg:svg", { class: "dg-chart", preserveAspectRatio: "none", role: "img" },
      this.cursor, ...this.paths, this.seams);
    this.node = node("div", { class: "dg-strip" },
      node("div", { class: "dg-names" }, ...this.tracks.map((track) => track.label)), this.chart,
      node("div", { class: "dg-names dg-values" }, ...this.tracks.map((track) => track.value)));
    this.listen();
  }

  listen() {
    const { view, chart } = this;
    const scrub = (event) => {
      const { left, width } = chart.getBoundingClientRect();
      const column = Math.floor(((event.clientX - left) / width) * view.last);
      view.player.stop();
      view.go(1 + Math.min(Math.max(column, 0), view.last - 1));
    };
    chart.addEventListener("pointerdown", (event) => {
      if (view.last === 0) return;
      chart.setPointerCapture(event.pointerId);
      scrub(event);
    });
    chart.addEventListener("pointermove", (event) => event.buttons & 1 && view.last && scrub(event));
    chart.addEventListener("pointerup", () => view.player.announce());
  }

  /** The tracks of the whole run. */
  layout() {
    const { rows, autoregressive, groups } = this.view.run;
    const names = NAMES[autoregressive ? "autoregressive" : "diffusion"];
    const end = Math.max(rows.at(-1)?.seconds ?? 0, 1e-9);
    const tracks = autoregressive
      ? [rows.map((row) => row.meanEntropy), rows.map((row) => probability(row.sample[0])), rows.map((row) => row.seconds / end)]
      : [rows.map((row) => row.meanEntropy), rows.map((row) => row.accepted / row.n), rows.map((row) => row.temperature)];
    this.chart.setAttribute("viewBox", `0 0 ${Math.max(rows.length, 1)} ${3 * TRACK}`);
    tracks.forEach((values, t) => {
      const highest = t === 1 ? 1 : Math.max(...values, 1e-9);
      const path = t === 2 ? linePath : barPath;
      this.paths[t].setAttribute("d", path(values.map((v) => v / highest), (t + 1) * TRACK - 1, TRACK - 3));
      write(this.tracks[t].label, names[t]);
    });
    this.seams.setAttribute("d", groups.slice(1).map(({ first }) => `M${first} 0V${3 * TRACK}`).join(""));
    this.chart.setAttribute("aria-label", `${names.join(", ")} of each pass; dragging moves through them`);
  }

  /** The cursor and the values of the step in view. */
  draw() {
    const { step, run } = this.view;
    const row = run.rows[step - 1];
    this.cursor.setAttribute("x", Math.max(step - 1, 0));
    this.cursor.setAttribute("width", row ? 1 : 0);
    const values = !row ? ["–", "–", "–"]
      : run.autoregressive
        ? [nats(row.meanEntropy), percent(probability(row.sample[0])), `${row.seconds.toFixed(2)} s`]
        : [nats(row.meanEntropy), `${row.accepted} / ${row.n}`, row.temperature.toFixed(2)];
    values.forEach((value, t) => write(this.tracks[t].value, value));
  }
}
