// Uses the server's page in headless Chromium: a message is answered as a stream, and the figures move.
//
//     node scripts/page.cjs http://127.0.0.1:30000 [SCREENSHOT]
//
// Chromium is what UNDERSTORY_CHROMIUM names, or else Debian's chromium-headless-shell or chromium.

const { execFileSync } = require("node:child_process");
const assert = require("node:assert");
const { chromium } = require("playwright-core");

function program() {
  if (process.env.UNDERSTORY_CHROMIUM) return process.env.UNDERSTORY_CHROMIUM;
  const names = ["chromium-headless-shell", "chromium"];
  const find = `command -v ${names.join(" || command -v ")}`;
  return execFileSync("sh", ["-c", find], { encoding: "utf8" }).trim();
}

const number = async (page, id) => parseFloat((await page.textContent(id)).replace(/[^0-9.]/g, "")) || 0;

async function main() {
  const [url, screenshot] = process.argv.slice(2);
  const browser = await chromium.launch({ executablePath: program(), args: ["--no-sandbox"] });
  const page = await browser.newPage({ viewport: { width: 1120, height: 700 } });
  const wrong = [];
  page.on("pageerror", error => wrong.push(String(error)));
  page.on("request", request => request.url().startsWith(url) || wrong.push(`asks ${request.url()}`));
  await page.goto(url);
  await page.waitForFunction(() => document.querySelector("#model").textContent !== "");

  await page.fill("#text", "Why do leaves turn red in autumn?");
  await page.click("#send");
  const lengths = new Set();
  let most = 0;
  while (lengths.size < 24) {
    assert.equal(await page.textContent("#send"), "Stop", `the answer came in ${lengths.size} pieces`);
    lengths.add((await page.textContent(".said.assistant")).length);
    most = Math.max(most, await number(page, "#running"));
    await page.waitForTimeout(20);
  }
  assert.equal(await page.locator(".said.error").count(), 0);
  assert.equal(most, 1, "the request was among those that run");
  await page.waitForFunction(() => parseFloat(document.querySelector("#generated").textContent) > 4);
  for (const id of ["#first", "#speed", "#tree"]) assert((await number(page, id)) > 0, id);
  const drawn = await page.evaluate(() => ["#pages", "#rate"].map(id => {
    const canvas = document.querySelector(id);
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return pixels.some(value => value !== 0);
  }));
  assert.deepEqual(drawn, [true, true]);
  if (screenshot) await page.screenshot({ path: screenshot });

  // An answer that is stopped frees its request.
  await page.click("#send");
  await page.waitForFunction(() => document.querySelector("#running").textContent === "0");
  await page.click("#clear");
  await page.fill("#text", "Reply with one word: yes.");
  await page.click("#send");
  await page.waitForFunction(() => document.querySelector("#send").textContent === "Send", null, { timeout: 300_000 });
  assert((await page.textContent(".said.assistant")).length > 0);
  assert.deepEqual(wrong, []);
  await browser.close();
  console.log(`page in Chromium ${browser.version()}: ok`);
}

main().catch(error => {
  console.error(error);
  process.exit(1);
});
