// Sharing a run: the kernel makes a page or a picture that moves, and the browser saves it.

import { node } from "../frontend/dom.js";

export class Share {
  constructor(view) {
    this.view = view;
    this.node = node("select", { class: "dg-select dg-share", "aria-label": "Share this run", change: () => this.ask() },
      ...[["", "Share …"], ["html", "as a page (HTML)"], ["gif", "as a picture (GIF)"]].map(([value, text]) => node("option", { value }, text)));
    this.heard = (content, buffers) => content?.type === "shared" && save(content, buffers[0]);
    view.model.on("msg:custom", this.heard);
  }

  close() {
    this.view.model.off("msg:custom", this.heard);
  }

  draw(gone) {
    const { view } = this;
    this.node.hidden = gone || view.live || view.last === 0 || !view.model.get("_shareable");
  }

  ask() {
    this.view.kernel.send({ type: "share", kind: this.node.value });
    this.node.value = "";
  }
}

/** Hands a file to the browser's downloads. */
function save({ name, mime }, bytes) {
  const address = URL.createObjectURL(new Blob([bytes], { type: mime }));
  node("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
