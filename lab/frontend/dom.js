// What the small widgets share: nodes, text written only where it changed, bytes as numbers, a page without a kernel.

const SVG = "http://www.w3.org/2000/svg";

/**
 * A node: "svg:path" makes an SVG one, functions become listeners, null and false attributes are left out. JupyterLab
 * acts on keys such as b and x wherever focus is, unless the very element in focus tells it not to: all do here.
 */
export function node(name, attributes = {}, ...children) {
  const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  if (/^(button|input|select|textarea|summary)$/.test(name) || "tabindex" in attributes) {
    made.dataset.lmSuppressShortcuts = "true";
  }
  made.append(...children);
  return made;
}

/** Writes text where it differs: screen and screen reader hear of changes alone. */
export function write(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

/** Writes a title, or hides it where there is none. A prompt of several lines stands in columns, as a grid does. */
export function entitle(place, text) {
  write(place, text);
  place.hidden = !text;
  place.classList.toggle("dg-lines", text.includes("\n"));
}

/** Little-endian numbers from base64, as the kernel packs them; `kind` is e.g. Uint16Array. */
export function numbers(base64, kind) {
  return new kind(Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)).buffer);
}

/** Evenly spread round values from 0 to `end`, about `count` of them. */
export function ticks(end, count = 5) {
  if (!(end > 0)) return [0];
  const rough = end / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  return Array.from({ length: Math.floor(end / step + 1e-9) + 1 }, (_, i) => Number((i * step).toPrecision(12)));
}

/** Seconds with as many digits as they deserve. */
export function duration(seconds) {
  return `${seconds.toFixed(seconds < 1 ? 3 : seconds < 10 ? 2 : 1)} s`;
}

/** A model for a page without a kernel: values that can be set and heard. */
export function plainModel(values) {
  const heard = new Map();
  return {
    get: (name) => values[name],
    set(name, value) {
      if (values[name] === value) return;
      values[name] = value;
      for (const react of heard.get(`change:${name}`) ?? []) react();
    },
    on: (event, react) => heard.set(event, [...(heard.get(event) ?? []), react]),
    off: (event, react) => heard.set(event, (heard.get(event) ?? []).filter((other) => other !== react)),
    save_changes() {},
    send() {},
  };
}
