// The grid: a cell a token, canvas by canvas, in places that never move; pointing, selecting and marking in it.

import { ink, ramp } from "../frontend/colour.js";
import { node, write } from "../frontend/dom.js";
import { percent, visible } from "../frontend/text.js";
import { cellWidth, fit, USUAL } from "./cells.js";
import { isAccepted, STATES } from "./rows.js";

const BOARD = 9; // cells of a line that is kept whole in a narrow grid

export const SHADES = Array.from({ length: 256 }, (_, q) => {
  const rgb = ramp(q / 255);
  return { fill: `rgb(${rgb.join(" ")})`, ink: ink(rgb) };
});

/** Of the first row among `others` that is not the cell's own, the one that stands nearest to it. */
function nearest(cell, others) {
  const row = others.find((other) => other.offsetTop !== cell.offsetTop)?.offsetTop;
  const off = (other) => Math.abs(other.offsetLeft - cell.offsetLeft);
  return others.filter((other) => other.offsetTop === row).sort((a, b) => off(a) - off(b))[0];
}

/** Cells of the longest line of a text in several lines, where it is a short one as a board's; 1 where there is none. */
export function longestLine(starts) {
  if (starts.size === 0) return 1;
  const begins = [0, ...[...starts].sort((a, b) => a - b)];
  const longest = Math.max(...begins.slice(1).map((at, i) => at - begins[i]));
  return longest <= BOARD ? longest : 1;
}

export class Grid {
  cells = []; // [canvas][place] nodes
  width = null; // of all cells, in characters
  starts = new Set(); // answer positions that begin a line
  hovered = null; // {g, i} under the pointer
  anchor = null; // the other end of a marked span

  constructor(view) {
    this.view = view;
    this.node = node("div", { class: "dg-grids" });
    this.listen();
  }

  close() {
    clearTimeout(this.naming);
  }

  // -- drawing --

  /** Another run: its tokens have other local ids. A grid that was watched live keeps its columns. */
  renew({ keepWidth }) {
    if (!keepWidth) this.width = null;
    for (const cell of this.node.querySelectorAll(".dg-cell")) cell.dgKey = null;
  }

  /** Cells for every canvas of the run; nodes that are there already stay. */
  layout() {
    const { run, live } = this.view;
    const grids = [...this.node.querySelectorAll(".dg-grid")];
    this.width ??= live ? USUAL : cellWidth(this.lengths());
    this.node.style.setProperty("--dg-columns", `${this.width}ch`);
    const starts = (this.starts = this.lines());
    this.node.style.setProperty("--dg-line-length", longestLine(starts));
    this.cells = run.groups.map((group, g) => {
      const grid = grids[g] ?? this.add();
      grid.setAttribute("aria-label", run.autoregressive ? "Tokens, one a pass" : `Canvas ${group.canvas + 1}`);
      while (grid.children.length > group.n) grid.lastChild.remove();
      while (grid.children.length < group.n) {
        const cell = node("span", { class: "dg-cell", role: "option", tabindex: -1 }, node("bdi"));
        cell.dataset.group = g;
        cell.dataset.index = grid.children.length;
        grid.append(cell);
      }
      [...grid.children].forEach((cell, i) => (cell.style.gridColumnStart = starts.has(group.position + i) ? "1" : ""));
      return [...grid.children];
    });
    for (const extra of grids.slice(run.groups.length)) extra.parentNode.remove();
  }

  /**
   * Where lines begin: as the text has it; of a run that denoises live as its draft had it at two steps in succession, and
   * until then as before, so that the grid does not follow every change of mind, and does not jump at the end.
   */
  lines() {
    const { run, live, last, texts } = this.view;
    const at = (step) => run.lineStarts(texts, this.view.ends(), step);
    const found = at(last);
    if (!live || run.autoregressive) return found;
    const before = at(last - 1);
    return found.size === before.size && [...found].every((start) => before.has(start)) ? found : this.starts;
  }

  add() {
    const grid = node("div", { class: "dg-grid", role: "listbox" });
    this.node.append(node("section", { class: "dg-group" }, node("div", { class: "dg-group-name" }), grid));
    return grid;
  }

  /** [characters, how many cells] of every token of the run, over all its frames. */
  lengths() {
    const { view } = this;
    return [...view.run.occurrences()].map(([token, count]) => [[...visible(view.text(token))].length, count]);
  }

  /** Draws the frame in view; returns how many cells are in each state. */
  draw() {
    const { view } = this;
    const { run, step } = view;
    const by = view.model.get("colour_by");
    const [from, to] = this.span();
    const counts = STATES.map(() => 0);
    this.differing = 0;
    run.groups.forEach((group, g) => {
      for (let i = 0; i < group.n; i++) {
        const cell = view.cell(group, i);
        if (cell) counts[cell.state] += 1;
        if (cell?.state === 5 && isAccepted(cell.row.marks[cell.i])) counts[2] += 1; // behind the end, accepted all the same
        const shade = cell ? run.shade(group, i, step, cell, by) : null;
        const newest = run.autoregressive && cell && i === step - group.first - 1;
        const position = group.position + i;
        const differs = cell && this.view.differs(position, cell.token);
        if (differs) this.differing += 1;
        const flags = [newest && "dg-newest", position >= from && position <= to && to > from && "dg-marked", differs && "dg-differs",
          cell && this.view.chosen.has(position) && "dg-chosen", cell?.state === 3 && this.view.player.playing && "dg-flash"];
        this.drawCell(this.cells[g][i], cell, shade, flags.filter(Boolean).join(" "));
      }
    });
    this.drawSelection();
    this.drawNames();
    clearTimeout(this.naming);
    if (!view.player.playing && !view.live) this.naming = setTimeout(() => this.label(), 200);
    return counts;
  }

  drawCell(node, cell, shade, flags) {
    const key = cell ? `${cell.token} ${cell.state} ${shade} ${flags}` : "";
    if (node.dgKey === key) return;
    node.dgKey = key;
    if (cell) node.removeAttribute("aria-label"); // of the frame before
    else node.setAttribute("aria-label", `${this.positionOf(node)}: not written yet`);
    node.className = cell ? `dg-cell dg-s${cell.state}` : "dg-cell dg-empty";
    if (cell && shade === null) node.classList.add("dg-blank");
    if (flags) node.className += ` ${flags}`;
    const text = cell ? visible(this.view.text(cell.token)) : "";
    write(node.firstChild, text);
    node.style.setProperty("--dg-fit", fit([...text].length, this.width).toFixed(2));
    if (shade !== null) {
      node.style.setProperty("--dg-fill", SHADES[shade].fill);
      node.style.setProperty("--dg-ink", SHADES[shade].ink);
    }
  }

  /** One token is reached by Tab (the selected one, else the first); arrows lead on from there. */
  drawSelection() {
    const place = this.view.place(this.view.model.get("selected"));
    const selected = place && this.cells[place.g][place.i];
    const reached = selected ?? this.cells[0]?.[0];
    for (const node of this.node.querySelectorAll('[tabindex="0"], [aria-selected]')) {
      if (node !== reached) node.tabIndex = -1;
      if (node !== selected) node.removeAttribute("aria-selected");
    }
    if (reached) reached.tabIndex = 0;
    selected?.setAttribute("aria-selected", "true");
  }

  drawNames() {
    const { run, step, meta, steerable } = this.view;
    this.node.querySelectorAll(".dg-group").forEach((section, g) => {
      const [name, grid] = section.children;
      const group = run.groups[g];
      const done = Math.min(Math.max(step - group.first, 0), group.passes);
      if (steerable) grid.setAttribute("aria-multiselectable", "true");
      if (meta.rounds?.length) return write(name, `${done} of ${group.passes} tokens`);
      if (run.autoregressive) return write(name, `one token a pass · ${done} of ${group.passes}`);
      const commit = meta.commits?.find(({ canvas }) => canvas === group.canvas);
      const ended = done === group.passes && commit ? (commit.converged ? " · converged" : " · not converged") : "";
      write(name, `canvas ${group.canvas + 1} · ${done} of ${group.passes} passes${ended}`);
    });
  }

  /** Names for all tokens, once nothing has moved for a moment; until then their texts are their names. */
  label() {
    const { view } = this;
    view.run.groups.forEach((group, g) => {
      for (let i = 0; i < group.n; i++) {
        const cell = view.cell(group, i);
        const sure = cell?.row && cell.state !== 4 ? `, ${percent(view.run.confidence(cell))}` : "";
        const what = cell ? `${visible(view.text(cell.token))}, ${STATES[cell.state]}${sure}` : "not written yet";
        const other = cell ? view.differs(group.position + i, cell.token) : "";
        const text = `${group.position + i}: ${what}${other ? `, ${other}` : ""}`;
        const node = this.cells[g][i];
        if (node.getAttribute("aria-label") !== text) node.setAttribute("aria-label", text);
      }
    });
  }

  // -- pointing and selecting --

  listen() {
    const cellOf = (event) => event.target.closest(".dg-cell");
    this.node.addEventListener("pointerover", (event) => this.hover(cellOf(event)));
    this.node.addEventListener("pointerleave", () => this.hover(null));
    this.node.addEventListener("pointerdown", (event) => {
      const cell = cellOf(event);
      if (!cell) return;
      event.preventDefault(); // no text selection while marking a span
      this.select(cell, { extend: event.shiftKey });
    });
    this.node.addEventListener("focusin", (event) => {
      const cell = cellOf(event);
      if (cell && this.positionOf(cell) !== this.view.model.get("selected")) {
        this.select(cell, { focus: false }); // reached by Tab
      }
    });
  }

  hover(cell) {
    const next = cell ? { g: Number(cell.dataset.group), i: Number(cell.dataset.index) } : null;
    if (next?.g === this.hovered?.g && next?.i === this.hovered?.i) return;
    this.hovered = next;
    this.view.card.draw();
  }

  positionOf(cell) {
    return this.view.run.groups[Number(cell.dataset.group)].position + Number(cell.dataset.index);
  }

  /** The inspected place {g, i}: the one under the pointer, else the selected one. */
  inspected() {
    if (this.hovered && this.view.run.groups[this.hovered.g]?.n > this.hovered.i) return this.hovered;
    return this.view.place(this.view.model.get("selected"));
  }

  /** First and last answer position of the marked span, [−1, −1] for none. */
  span() {
    const selected = this.view.model.get("selected");
    if (selected < 0) return [-1, -1];
    const other = this.anchor ?? selected;
    return [Math.min(selected, other), Math.max(selected, other)];
  }

  select(cell, { extend = false, focus = true } = {}) {
    const position = this.positionOf(cell);
    const before = this.view.model.get("selected");
    this.anchor = extend && before >= 0 ? (this.anchor ?? before) : null;
    if (position === before) this.view.draw();
    else this.view.choose("selected", position);
    if (focus) cell.focus();
  }

  focus({ g, i }) {
    this.select(this.cells[g][i]);
  }

  release() {
    this.anchor = null;
    this.hovered = null;
    this.view.choose("selected", -1);
    this.view.draw();
  }

  /** Moves from a cell by a key; false for a key that moves nowhere. */
  moveFrom(cell, key, extend) {
    const g = Number(cell.dataset.group);
    const i = Number(cell.dataset.index);
    const line = this.cells[g];
    let to = null;
    if (key === "ArrowLeft") to = line[i - 1] ?? this.cells[g - 1]?.at(-1);
    else if (key === "ArrowRight") to = line[i + 1] ?? this.cells[g + 1]?.[0];
    else if (key === "ArrowUp") to = nearest(cell, line.slice(0, i).reverse()) ?? this.cells[g - 1]?.at(-1);
    else if (key === "ArrowDown") to = nearest(cell, line.slice(i + 1)) ?? this.cells[g + 1]?.[0];
    else if (key === "Home") to = line[0];
    else if (key === "End") to = line.at(-1);
    else if (key === "PageUp") to = this.cells[g - 1]?.[0] ?? line[0];
    else if (key === "PageDown") to = this.cells[g + 1]?.[0] ?? line.at(-1);
    else return false;
    if (to) this.select(to, { extend });
    return true;
  }
}
