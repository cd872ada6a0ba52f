// Signs of buttons, drawn and not typed: fonts lack some of them.

import { node } from "./dom.js";

const ICONS = {
  first: "M1 2h2v8H1zM7 2v8L3 6zM11 2v8L7 6z", back: "M9 2v8L3 6z", play: "M3 1.5v9L10.5 6z",
  pause: "M3 2h2.5v8H3zM7 2h2.5v8H7z", forward: "M3 2v8l6-4z", tick: "M1 6.5L2.6 5l2.2 2.2L9.6 2l1.6 1.4-6.4 7z", cross: "M2 3.4L3.4 2 6 4.6 8.6 2 10 3.4 7.4 6 10 8.6 8.6 10 6 7.4 3.4 10 2 8.6 4.6 6z",
  last: "M11 2H9v8h2zM5 2v8l4-4zM1 2v8l4-4z",
};

export const icon = (name) =>
  node("svg:svg", { class: "dg-icon", viewBox: "0 0 12 12", "aria-hidden": "true" }, node("svg:path", { d: ICONS[name] }));

/** A button that plays and pauses: a sign and a word. */
export class PlayButton {
  constructor(click, className) {
    this.sign = icon("play");
    this.word = node("span", {}, "Play");
    this.node = node("button", { type: "button", class: className, click }, this.sign, this.word);
  }

  show(playing) {
    this.word.textContent = playing ? "Pause" : "Play";
    this.sign.firstChild.setAttribute("d", ICONS[playing ? "pause" : "play"]);
  }
}
