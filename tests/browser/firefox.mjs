// The exported pages in Firefox, driven by WebDriver BiDi: what test_firefox.py wrote into the folder PAGES.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { join } from "node:path";
import puppeteer from "puppeteer-core";

const PATIENCE = 90_000; // ms that a page may take on a busy machine
const PAGES = process.env.PAGES;
const AXE = readFileSync(fileURLToPath(new URL("node_modules/axe-core/axe.min.js", import.meta.url)), "utf-8");
const named = (name, tag = "") => `${tag}[aria-label="${name}"]`;
const step = (page) => page.$eval(named("Step"), (slider) => Number(slider.value));
const set = (page, name, value) => page.evaluate((name, value) => canvas.set(name, value), name, value);
const count = (page, selector) => page.$$eval(selector, (nodes) => nodes.length);
const CELLS = ".dg-grid .dg-cell";
const BUTTON = ".dg-play, .dgr-play";
const playing = (wanted) => [...document.querySelectorAll(".dg-play, .dgr-play")].some((node) => node.innerText.trim() === wanted);
const texts = (page, selector) => page.$$eval(selector, (nodes) => nodes.map((node) => node.innerText));

const LOOKS = {
  light: { "layout.css.prefers-color-scheme.content-override": 1 },
  dark: { "layout.css.prefers-color-scheme.content-override": 0 },
  "forced colours": { "browser.display.document_color_use": 2 },
};

for (const [look, preferences] of Object.entries(LOOKS)) {
  describe(`Firefox, ${look}`, () => {
    let browser;
    before(async () => {
      browser = await puppeteer.launch({ browser: "firefox", executablePath: process.env.FIREFOX, extraPrefsFirefox: preferences });
    });
    after(() => browser?.close());

    async function open(name, { width = 1200, height = 900 } = {}) {
      const page = await browser.newPage();
      page.wrong = [];
      page.on("pageerror", (error) => page.wrong.push(String(error)));
      page.on("console", (message) => message.type() === "error" && page.wrong.push(message.text()));
      page.on("request", (request) => {
        if (!/^(file|data|blob|about):/.test(request.url())) page.wrong.push(request.url());
      });
      page.setDefaultTimeout(PATIENCE);
      await page.setViewport({ width, height });
      await page.goto(pathToFileURL(join(PAGES, name)).href);
      return page;
    }

    async function done(page) {
      await page.evaluate(AXE);
      const found = await page.evaluate(() => axe.run(document));
      assert.ok([...found.passes, ...found.violations].some((rule) => rule.id === "color-contrast"), "axe saw no text");
      assert.deepEqual(found.violations.map((rule) => [rule.id, rule.nodes.map((node) => node.failureSummary)]), []);
      assert.deepEqual(page.wrong, []);
      await page.close();
    }

    if (look === "forced colours") {
      test("what a fill alone says keeps its colours", async () => {
        const page = await open("run.html");
        assert.ok(await page.evaluate(() => matchMedia("(forced-colors: active)").matches));
        await set(page, "step", 2);
        await (await page.$$(CELLS))[5].click();
        const style = (selector, name) => page.$eval(selector, (node, name) => getComputedStyle(node)[name], name);
        for (const bar of [".dg-bar", ".dg-ramp"]) assert.match(await style(bar, "backgroundImage"), /gradient/, bar);
        assert.notEqual(await style(".dg-track-1", "fill"), await style(".dg", "backgroundColor"));
        assert.deepEqual(page.wrong, []);
        await page.close();
      });
      return;
    }

    test("a run's page: its last step, buttons, slider, strip, keys and card", async () => {
      const page = await open("run.html");
      const last = await step(page);
      assert.equal(last, 24);
      const cells = await texts(page, ".dg-grid .dg-cell");
      assert.equal(cells.length, 64);
      assert.equal(cells[0], "·word0");
      const places = () => page.$$eval(".dg-grid .dg-cell", (all) =>
        all.map((cell) => [cell.offsetLeft, cell.offsetTop, cell.offsetWidth, cell.offsetHeight].join()));
      const grid = await places();
      await page.click(named("First step"));
      assert.equal(await step(page), 0);
      assert.deepEqual(await places(), grid, "the grid never moves");
      await page.click(named("Step forward"));
      await page.click(named("Step forward"));
      await page.click(named("Step back"));
      assert.equal(await step(page), 1);
      assert.equal(
        await page.$eval(named("Step"), (slider) => slider.getAttribute("aria-valuetext")),
        "step 1 of 24, canvas 1, pass 1 of 6",
      );
      const chart = await (await page.$(".dg-chart")).boundingBox();
      for (const wanted of [13, 24]) {
        await page.mouse.click(chart.x + (chart.width * (wanted - 0.5)) / 24, chart.y + 20);
        assert.equal(await step(page), wanted);
      }
      const [, , , , , sixth] = await page.$$(".dg-grid .dg-cell");
      await sixth.hover();
      await page.waitForFunction(() => document.querySelector(".dg-panel").innerText.includes("position 5"));
      assert.equal((await page.$$(".dg-alternatives li")).length, 5);
      await (await page.$(".dg-grid .dg-cell")).click();
      await page.keyboard.press("ArrowRight");
      await page.keyboard.press("ArrowRight");
      const focused = () => page.evaluate(() => `${document.activeElement.dataset.group}/${document.activeElement.dataset.index}`);
      assert.equal(await focused(), "0/2");
      await page.keyboard.press("PageDown");
      assert.equal(await focused(), "1/0");
      await page.keyboard.press(",");
      assert.equal(await step(page), 23);
      await page.keyboard.press("Home");
      await page.select(named("colour"), "entropy");
      await page.select(named("speed"), "8");
      await page.click(named("First step"));
      await page.click(BUTTON);
      await page.waitForFunction(() => canvas.get("step") === 24);
      await done(page);
    });

    test("a race is run again", async () => {
      const page = await open("race.html");
      const finish = await texts(page, ".dgr-text");
      assert.equal(finish.length, 3);
      await page.$eval(named("Time"), (slider) => {
        slider.value = 150;
        slider.dispatchEvent(new Event("input", { bubbles: true }));
      });
      assert.notDeepEqual(await texts(page, ".dgr-text"), finish);
      await page.click(BUTTON);
      await page.waitForFunction(() => document.querySelector(".dgr-verdict").innerText.includes("was first"));
      assert.deepEqual(await texts(page, ".dgr-text"), finish);
      await done(page);
    });

    test("a chart is drawn in the page's colours", async () => {
      const page = await open("chart.html", { width: 1000, height: 700 });
      await page.waitForSelector(".main-svg text");
      const fills = await page.$$eval(".main-svg text", (all) =>
        all.filter((node) => node.textContent.trim() && node.getBoundingClientRect().width).map((node) => getComputedStyle(node).fill));
      assert.ok(fills.length >= 8);
      assert.deepEqual([...new Set(fills)], [await page.evaluate(() => getComputedStyle(document.documentElement).color)]);
      assert.deepEqual(page.wrong, []);
      await page.close();
    });

    if (look === "dark") return; // what follows does the same in both

    test("live rows appear as they come", async () => {
      const { meta, tails } = JSON.parse(readFileSync(join(PAGES, "told.json"), "utf-8"));
      const page = await open("run.html");
      await page.evaluate((meta) => {
        globalThis.heard = [];
        canvas.send = (message) => heard.push(message);
        canvas.set("_rows", new DataView(new ArrayBuffer(0)));
        canvas.set("_tokens", {});
        canvas.set("_meta", meta);
      }, meta);
      const tell = (tail) => page.evaluate((tail) => canvas.set("_tail", { ...tail, rows: tail.rows.map((row) =>
        new DataView(Uint8Array.from(atob(row), (c) => c.charCodeAt(0)).buffer)) }), tail);
      assert.match((await texts(page, ".dg-summary"))[0], /^live/);
      await tell(tails[0]);
      assert.deepEqual([await step(page), await count(page, CELLS)], [3, 16]);
      await page.click(named("Step back"));
      await tell(tails[1]);
      assert.equal(await step(page), 2, "who scrubbed back is left in peace");
      await page.click(named("Last step"));
      await tell(tails[3]); // one went missing
      assert.deepEqual(await page.evaluate(() => heard.splice(0).map(({ type, first }) => [type, first])), [["resend", 6]]);
      await tell(tails[2]);
      await tell(tails[3]);
      assert.deepEqual([await step(page), await count(page, CELLS)], [12, 32]);
      await page.close();
    });

    test("steering tells the kernel", async () => {
      const page = await open("run.html");
      await page.evaluate(() => {
        globalThis.heard = [];
        canvas.send = (message) => heard.push(message);
      });
      await set(page, "_steerable", true);
      await set(page, "step", 9);
      const cells = await page.$$(CELLS);
      await cells[18].click();
      await page.click(named("Pin this token"));
      await page.keyboard.down("Shift");
      await cells[21].click();
      await page.keyboard.up("Shift");
      assert.equal(await count(page, ".dg-marked"), 4);
      await page.click(named("Blank 18 to 21"));
      await cells[4].click();
      await page.click(named("Replacement text"));
      await page.keyboard.type("sea, b x m .");
      await page.keyboard.press("Enter");
      await page.click(named("Branch from this step"));
      const steer = { type: "steer", step: 9 };
      assert.deepEqual(await page.evaluate(() => heard), [
        { ...steer, action: "pin", position: 18, start: 18, stop: 19 },
        { ...steer, action: "blank", position: 21, start: 18, stop: 22 },
        { ...steer, action: "replace", position: 4, start: 4, stop: 5, text: "sea, b x m ." },
        { ...steer, action: "branch" },
      ]);
      await done(page);
    });

    test("a round of speculation shows what became of each token", async () => {
      const page = await open("rounds.html");
      await set(page, "step", 4);
      assert.match((await texts(page, ".dg-round-name"))[0], /^round 1 of 4 · 5 drafted in 1 denoising step/);
      const part = (kind) => texts(page, `.dg-part-${kind} .dg-drafted`);
      assert.deepEqual([await part("given"), await part("accepted"), await part("chosen")], [["·w20"], ["·w21", "·w22"], ["·w23"]]);
      assert.deepEqual([(await part("replaced")).length, (await part("rejected")).length], [1, 2]);
      assert.equal(await count(page, ".dg-grid .dg-chosen"), 2);
      await done(page);
    });

    test("what another run has is marked where it differs", async () => {
      const { against } = JSON.parse(readFileSync(join(PAGES, "told.json"), "utf-8"));
      const page = await open("board.html");
      await page.click(named("Last step"));
      await set(page, "_against", against);
      assert.deepEqual(await page.$$eval(".dg-grid .dg-differs", (cells) => cells.map((cell) => cell.dataset.index)), ["5"]);
      assert.match((await texts(page, ".dg-legend"))[0], /not as in B: 1/);
      await done(page);
    });

    test("a token that is taken back flashes while one watches", async () => {
      const page = await open("flash.html");
      await page.evaluate(() => {
        globalThis.flashed = 0;
        canvas.set("step", 0);
        new MutationObserver(() => (flashed += document.querySelectorAll(".dg-grid .dg-flash").length))
          .observe(document.querySelector(".dg-grids"), { subtree: true, attributeFilter: ["class"] });
      });
      await page.select(named("speed"), "4");
      await page.click(BUTTON);
      await page.waitForFunction(() => [-1, 6].includes(canvas.get("step")));
      assert.ok(await page.evaluate(() => flashed > 0));
      await done(page);
    });

    test("a mailed page plays by itself, keeps its board and fits a phone", async () => {
      const page = await open("board.html", { width: 450, height: 844 });
      await page.waitForFunction(playing, {}, "Pause");
      await page.waitForFunction(playing, {}, "Play");
      assert.equal(await step(page), 6);
      const rows = await page.$$eval(".dg-grid .dg-cell", (cells) => {
        const counts = new Map();
        for (const cell of cells) counts.set(cell.offsetTop, (counts.get(cell.offsetTop) ?? 0) + 1);
        return [...counts.values()];
      });
      assert.deepEqual(rows.slice(0, 3), [4, 4, 4]);
      assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
      await done(page);
    });

    test("a constrained run's card says what is forbidden", async () => {
      const page = await open("bound.html");
      await page.evaluate(() => canvas.set("step", 1));
      await page.click(".dg-grid .dg-cell");
      await page.waitForSelector(".dg-barred");
      assert.match(await page.$eval(".dg-constraint", (node) => node.innerText), /forbidden here: \d[^]*automaton in state 0/);
      await done(page);
    });
  });
}
