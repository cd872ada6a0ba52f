// Controls from a description: the kernel says which fields there are, the reader's values go back as one object.
//
// A field is {name, kind, label} with kind text, area, int, float, choice, flag, list or button, and where it fits
// help, inline (its label stands before it), wide (it takes the rest of the line), options ([{value, label, note,
// indent}]), when ({field: [values]} under which it shows), main (the button that Enter presses), light and mark (of a
// button: small, and the tick or cross behind it), press (of a choice: choosing is pressing), advanced (it stands in a
// fold). Native elements do the work.

import { node, write } from "../frontend/dom.js";
import { icon } from "../frontend/icons.js";
import { GONE, Kernel } from "../frontend/kernel.js";

/** Whether a field shows under these values. */
export function shows(field, values) {
  return Object.entries(field.when ?? {}).every(([name, wanted]) => wanted.includes(values[name]));
}

/** What stands in a control → value; an empty number is null, which means "none". */
export function read(kind, control) {
  if (kind === "flag") return control.checked;
  if (kind !== "int" && kind !== "float") return control.value;
  const number = control.value.trim() === "" ? NaN : Number(control.value);
  return Number.isNaN(number) ? null : number;
}

/** The lines that a box for a text has. */
export function rows(text) {
  return Math.min(Math.max(String(text ?? "").split("\n").length, 2), 8);
}

class Controls {
  constructor(model, el) {
    this.model = model;
    this.kernel = new Kernel(model, () => this.say());
    this.controls = new Map();
    this.fields = node("div", { class: "dgf-fields" });
    this.message = node("div", { class: "dgf-message", role: "status" });
    this.root = node("div", { class: "dg-base dgf" }, this.fields, this.message);
    el.append(this.root);
    this.heard = { fields: () => this.build(), values: () => this.draw(), disabled: () => this.draw(), message: () => this.say(), alert: () => this.say() };
    for (const [name, react] of Object.entries(this.heard)) model.on(`change:${name}`, react);
    this.build();
    this.say();
  }

  close() {
    this.kernel.close();
    for (const [name, react] of Object.entries(this.heard)) this.model.off(`change:${name}`, react);
    this.root.remove();
  }

  build() {
    const focused = document.activeElement;
    const held = [...this.controls].find(([, { outer }]) => outer.contains(focused))?.[0];
    this.controls = new Map();
    const fields = this.model.get("fields");
    const folded = fields.filter((field) => field.advanced).map((field) => this.field(field));
    const open = fields.filter((field) => !field.advanced).map((field) => this.field(field));
    const wasOpen = this.fold?.open;
    this.fold = folded.length ? node("details", { class: "dgf-fold", open: Boolean(wasOpen) }, node("summary", {}, "more settings"), node("div", { class: "dgf-fields" }, ...folded)) : null;
    this.fields.replaceChildren(...open, ...(this.fold ? [this.fold] : []));
    this.draw();
    const again = this.controls.get(held)?.control;
    (again?.querySelector("input:checked") ?? again)?.focus();
  }

  field(field) {
    const { name, kind, label, help = null } = field;
    const change = () => this.change(name, read(kind, control));
    let control;
    let outer;
    if (kind === "button") {
      control = node("button", { type: "button", title: help, class: field.main ? "dgf-main" : field.light ? "dgf-light" : null, click: () => this.press(name) }, label);
      if (typeof field.mark === "boolean") {
        control.append(icon(field.mark ? "tick" : "cross"));
        control.setAttribute("aria-label", `${label}, ${field.mark ? "accepted" : "rejected"} by its verifier`);
        control.classList.add(field.mark ? "dgf-right" : "dgf-wrong");
      }
      outer = control;
    } else if (kind === "list") {
      control = node("fieldset", { class: "dgf-list" }, node("legend", {}, label), ...field.options.map((option) => this.option(name, option)));
      outer = control;
    } else if (kind === "choice") {
      const chosen = () => (change(), field.press && this.press(name));
      control = node("select", { change: chosen, "aria-label": field.aria ?? null }, ...field.options.map((option) => node("option", { value: option.value }, option.label)));
      outer = node("label", { class: "dgf-field", title: help }, label, control);
    } else if (kind === "flag") {
      control = node("input", { type: "checkbox", change });
      outer = node("label", { class: "dgf-field dgf-flag", title: help }, control, label);
    } else if (kind === "area") {
      const input = () => (control.rows = rows(control.value));
      control = node("textarea", { spellcheck: "false", change, input, keydown: (event) => this.enter(event, change) });
      outer = node("label", { class: "dgf-field dgf-area", title: help }, label, control);
    } else {
      const type = kind === "text" ? "text" : "number";
      const step = kind === "int" ? 1 : "any";
      control = node("input", { type, step: type === "number" ? step : null, placeholder: field.placeholder ?? null, change, keydown: (event) => this.enter(event, change) });
      const layout = field.inline ? " dgf-inline" : field.wide ? " dgf-wide" : "";
      outer = node("label", { class: `dgf-field${layout}`, title: help }, label, control);
    }
    this.controls.set(name, { field, control, outer });
    return outer;
  }

  option(name, { value, label, note = "", indent = 0 }) {
    const branch = indent ? "   ".repeat(indent - 1) + " └ " : "";
    const radio = node("input", { type: "radio", name: `${name}-${this.id ??= Math.random().toString(36).slice(2)}`, value, change: () => this.change(name, value) });
    return node("label", {}, node("span", { class: "dgf-branch", "aria-hidden": "true" }, branch), radio, node("span", {}, label), node("span", { class: "dgf-note" }, note));
  }

  draw() {
    const values = this.model.get("values");
    const disabled = new Set(this.model.get("disabled"));
    for (const [name, { field, control, outer }] of this.controls) {
      outer.hidden = !shows(field, values);
      if (field.kind !== "list") control.disabled = disabled.has(name);
      if (field.kind === "button" || control === document.activeElement) continue;
      if (field.kind === "area") control.rows = rows(values[name]);
      if (field.kind === "flag") control.checked = Boolean(values[name]);
      else if (field.kind === "list") {
        for (const radio of control.querySelectorAll("input")) radio.checked = radio.value === String(values[name]);
      } else if (control.value !== String(values[name] ?? "")) control.value = values[name] ?? "";
    }
  }

  say() {
    const { gone } = this.kernel;
    const alert = gone || this.model.get("alert");
    this.message.className = `dgf-message${alert ? " dg-alert" : ""}`;
    this.message.setAttribute("role", alert ? "alert" : "status");
    write(this.message, gone && this.model.get("fields").length ? GONE : this.model.get("message"));
  }

  change(name, value) {
    this.model.set("values", { ...this.model.get("values"), [name]: value });
    this.model.save_changes();
  }

  /** What was typed travels along: while a kernel is busy its front end holds changes back, but no messages. */
  press(name) {
    this.kernel.send({ type: "press", name, values: this.model.get("values") });
  }

  /** Enter takes what was typed and presses the main button, or the one with no name; Shift+Enter breaks the line. */
  enter(event, change) {
    event.stopPropagation();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    const main = this.model.get("fields").find((field) => field.main);
    if (main && this.model.get("disabled").includes(main.name)) return;
    event.preventDefault();
    change();
    this.press(main?.name ?? "");
  }
}

function render({ model, el }) {
  const controls = new Controls(model, el);
  return () => controls.close();
}

export default { render };
