// How a widget learns that its kernel is gone, without a browser.

import assert from "node:assert/strict";
import { test } from "node:test";

import { plainModel } from "../../../lab/frontend/dom.js";
import { Kernel } from "../../../lab/frontend/kernel.js";

test("what cannot be sent says once that the kernel is gone, and nothing is sent after it", () => {
  const model = plainModel({});
  const sent = [];
  let said = 0;
  const kernel = new Kernel(model, () => (said += 1));
  model.send = (message) => sent.push(message);
  kernel.send({ type: "press", name: "run" });
  assert.deepEqual([sent.length, kernel.gone], [1, false]);
  model.send = () => {
    throw new Error("Cannot send");
  };
  kernel.send({ type: "stop" });
  model.send = (message) => sent.push(message);
  kernel.send({ type: "stop" });
  assert.deepEqual([sent.length, kernel.gone, said], [1, true, 1]);
});

test("a kernel that is disposed of is gone, unless the widget was closed before", () => {
  for (const closed of [false, true]) {
    const heard = new Set();
    const disposed = { connect: (react) => heard.add(react), disconnect: (react) => heard.delete(react) };
    let said = 0;
    const kernel = new Kernel({ ...plainModel({}), widget_manager: { kernel: { disposed } } }, () => (said += 1));
    if (closed) kernel.close();
    for (const react of heard) react();
    assert.deepEqual([kernel.gone, said], [!closed, closed ? 0 : 1]);
  }
});
