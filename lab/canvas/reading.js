// The answer as running text, as it stands at the step in view.

import { node, write } from "../frontend/dom.js";
import { readable, unturned } from "../frontend/text.js";

export class Reading {
  constructor(view) {
    this.view = view;
    this.node = node("div", { class: "dg-text", tabindex: 0, role: "group", "aria-label": "Text at this step", dir: "auto" });
  }

  text(step) {
    const { view } = this;
    const eos = new Set(view.meta.eos ?? []);
    const parts = [];
    for (const group of view.run.groups) {
      for (let i = 0; i < group.n; i++) {
        const cell = view.run.cell(group, i, step, "draft");
        if (cell && cell.state !== 5 && !eos.has(view.ids[cell.token])) parts.push(view.text(cell.token));
      }
    }
    return unturned(readable(parts.join("")));
  }

  /** Room for the whole text, up to six lines, so that nothing moves while it is being written. */
  fit() {
    const { node, view } = this;
    if (view.live || !node.clientWidth) return;
    const shown = node.textContent;
    node.textContent = this.text(view.last);
    node.style.setProperty("--dg-lines", 1);
    const line = parseFloat(getComputedStyle(node).lineHeight);
    node.style.setProperty("--dg-lines", Math.min(Math.max(Math.floor(node.scrollHeight / line), 1), 6));
    node.textContent = shown;
  }

  draw() {
    const { step } = this.view;
    write(this.node, step === 0 ? "" : this.text(step));
  }
}
