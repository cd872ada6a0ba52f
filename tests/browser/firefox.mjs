// The exported pages in Firefox, driven by WebDriver BiDi: what test_firefox.py wrote into the folder PAGES.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { join } from "node:path";
import puppeteer from "puppeteer-core";

const PAGES = process.env.PAGES;
const AXE = readFileSync(fileURLToPath(new URL("node_modules/axe-core/axe.min.js", import.meta.url)), "utf-8");
const named = (name, tag = "") => `${tag}[aria-label="${name}"]`;
const step = (page) => page.$eval(named("Step"), (slider) => Number(slider.value));
const BUTTON = ".dg-play, .dgr-play";
const playing = (wanted) => [...document.querySelectorAll(".dg-play, .dgr-play")].some((node) => node.innerText.trim() === wanted);
const texts = (page, selector) => page.$$eval(selector, (nodes) => nodes.map((node) => node.innerText));

for (const [scheme, content] of [["light", 1], ["dark", 0]]) {
  describe(`Firefox, ${scheme}`, () => {
    let browser;
    before(async () => {
      browser = await puppeteer.launch({
        browser: "firefox",
        executablePath: process.env.FIREFOX,
        extraPrefsFirefox: { "layout.css.prefers-color-scheme.content-override": content },
      });
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
      await page.waitForFunction(() => document.querySelector(".dgr-verdict").innerText.includes("was first"), { timeout: 60_000 });
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

    if (scheme === "dark") return; // what follows does the same in both

    test("a mailed page plays by itself, keeps its board and fits a phone", async () => {
      const page = await open("board.html", { width: 450, height: 844 });
      await page.waitForFunction(playing, {}, "Pause");
      await page.waitForFunction(playing, { timeout: 20_000 }, "Play");
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
