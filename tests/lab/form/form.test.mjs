// Fields and their values, without a browser.

import assert from "node:assert/strict";
import { test } from "node:test";

import { read, rows, shows } from "../../../lab/form/form.js";

test("fields show under the values that they name", () => {
  const field = { when: { rule: ["a", "b"], stop: [true] } };
  assert.equal(shows(field, { rule: "a", stop: true }), true);
  assert.equal(shows(field, { rule: "c", stop: true }), false);
  assert.equal(shows(field, { rule: "b", stop: false }), false);
  assert.equal(shows({}, {}), true);
});

test("controls are read as their kind; an empty number is null", () => {
  assert.equal(read("flag", { checked: true }), true);
  assert.equal(read("float", { value: " 0.5 " }), 0.5);
  assert.equal(read("int", { value: "" }), null);
  assert.equal(read("int", { value: "x" }), null);
  assert.equal(read("choice", { value: "3" }), "3");
});

test("a text box is as high as its text, within bounds", () => {
  assert.deepEqual(["", "a\nb\nc", "\n".repeat(20), null].map(rows), [2, 3, 8, 2]);
});
