// The page: follows the event stream, keeps the newest picture, the charts, the fleet and the grid. No library, no build.

import { LAST, draw } from "/viewer/charts.js";
import { NotAllowed, ask, follow, json, picture, remember, save } from "/viewer/service.js";
import { $, ago, bytes, count, describe, element, pairs, sizeBars, stageBar } from "/viewer/show.js";
import { listen, setEdge, setRates } from "/viewer/try.js";

const PAGE = 24;
const MOST = 200; // cards kept
const ROWS = 12; // sources shown
let cursor = null;
const cards = new Map(); // id -> {item, button, shot, words, frame, shown}, newest first in the list

const frames = () => [...$("list").children].map((item) => cards.get(item.dataset.id).frame);

// -- the grid -----------------------------------------------------------------------------------------------------

function card(frame) {
  const item = element("li");
  item.dataset.id = frame.id;
  const button = element("button", undefined, "frame");
  const shot = element("div", undefined, "shot");
  const words = element("div", undefined, "words");
  button.append(shot, words);
  item.append(button);
  const made = { item, button, shot, words, frame, shown: false };
  button.addEventListener("click", () => open(made.frame));
  return made;
}

function fill(made, frame) {
  made.frame = frame;
  const when = element("span", `${frame.source} · ${ago(frame.received_at)}`, "more");
  const size = element("span", undefined, "size");
  size.append(element("b", `${count(frame.bytes)} B`), ` ${frame.bpp.toFixed(4)} bpp`);
  made.words.replaceChildren(size, when);
  if (frame.state !== "done") made.words.append(element("span", frame.state, `state state-${frame.state}`));
  made.button.setAttribute("aria-label", `Frame from ${frame.source}, ${describe(frame)}, ${frame.state}`);
  if (made.shown) return;
  if (frame.state === "failed") {
    made.shot.replaceChildren(element("span", "cannot be decoded", "state-failed"));
  } else if (frame.state === "done") {
    made.shown = true;
    const image = element("img");
    image.alt = `Reconstruction of a frame from ${frame.source}`;
    const width = frame.width > 480 ? "&width=480" : "";
    picture(image, `/v1/frames/${frame.id}/image?format=webp${width}&wait=20`)
      .then((there) => (there ? made.shot.replaceChildren(image) : (made.shown = false)))
      .catch(() => (made.shown = false));
  } else {
    made.shot.replaceChildren(element("span", frame.state === "pruned" ? "pruned" : "decoding …"));
  }
}

function show(frame, first) {
  let made = cards.get(frame.id);
  if (!made) {
    made = card(frame);
    cards.set(frame.id, made);
    if (first) $("list").prepend(made.item);
    else $("list").append(made.item);
    if (first && cards.size > MOST) {
      const last = $("list").lastElementChild;
      cards.delete(last.dataset.id);
      last.remove();
      $("more").hidden = true; // its cursor points past what was dropped; a reload shows all again
    }
  }
  fill(made, frame);
  $("empty").hidden = true;
  if (frame.state === "done") consider(frame);
}

async function page(next) {
  const found = await json(`/v1/frames?limit=${PAGE}${next ? `&cursor=${next}` : ""}`);
  const order = next ? found.frames : found.frames.reverse();
  for (const frame of order) show(frame, !next);
  if (next || cursor === null) cursor = found.next_cursor;
  $("more").hidden = !cursor;
}

// -- the newest picture -------------------------------------------------------------------------------------------

let newest = null; // the frame on show
let coming = null; // the one to show next; whatever came between is in the grid
let turning = false;

function consider(frame) {
  const later = (one) => !one || frame.received_at >= one.received_at;
  if (newest?.id === frame.id) return (newest = frame), tellNewest();
  if (later(newest) && later(coming)) coming = frame;
  if (!turning) turn();
}

async function turn() {
  turning = true;
  while (coming) {
    const frame = coming;
    coming = null;
    const image = $("latest-image");
    const width = frame.width > 1280 ? "&width=1280" : "";
    try {
      const next = element("img");
      if (await picture(next, `/v1/frames/${frame.id}/image?format=webp${width}&wait=20`)) {
        next.id = "latest-image";
        next.dataset.id = frame.id;
        next.alt = `The newest reconstruction, from ${frame.source}`;
        image.replaceWith(next);
        newest = frame;
        $("latest").hidden = false;
        tellNewest();
        if (!document.hidden) await tellSizes($("latest-sizes"), frame);
      }
    } catch {
      // the stream will tell of the next one
    }
    await new Promise((resume) => setTimeout(resume, 600)); // calm: a busy fleet must not make it flicker
  }
  turning = false;
}

function tellNewest() {
  $("latest-bytes").textContent = count(newest.bytes);
  $("latest-facts").textContent =
    `${newest.bpp.toFixed(4)} bits per pixel, ${newest.width} × ${newest.height}, from ${newest.source}, ${ago(newest.received_at)}`;
  stageBar($("latest-stages"), newest);
}

async function tellSizes(place, frame) {
  const answer = await ask(`/v1/frames/${frame.id}/sizes`);
  if (answer.status !== 200) return place.replaceChildren(element("p", "not decoded yet", "quiet"));
  const sizes = await answer.json();
  sizeBars(place, [["frame", sizes.frame], ["JPEG", sizes.jpeg], ["PNG", sizes.png]]);
}

// -- totals, charts, fleet ----------------------------------------------------------------------------------------

async function totals() {
  const [status, fleet, edge] = await Promise.all([json("/v1/status"), json("/v1/sources"), json("/v1/edge")]);
  const { frames: counted, bundles } = status;
  const models = bundles.map(({ name, fingerprint }) => `${name} ${fingerprint}`).join(", ");
  $("model").textContent = `${models} on ${status.device}`;
  const all = fleet.sources.reduce((sum, one) => [sum[0] + one.frames, sum[1] + one.bytes], [0, 0]);
  const connected = fleet.sources.filter((one) => one.connected).length;
  pairs(
    $("totals"),
    [
      ["frames", count(all[0])],
      ["received in total", bytes(all[1])],
      ["mean frame", all[0] ? `${count(Math.round(all[1] / all[0]))} B` : "–"],
      ["sources connected", `${connected} of ${fleet.sources.length}`],
      ["waiting", count(counted.received + counted.decoding)],
      ["in quarantine", count(counted.failed)],
    ],
    true,
  );
  setRates(status.rates);
  setEdge(edge);
  $("sources").replaceChildren(...fleet.sources.slice(0, ROWS).map(source));
  if (!fleet.sources.length) {
    const cell = element("td", "No source has sent a frame yet.", "quiet");
    cell.colSpan = 4;
    const row = element("tr");
    row.append(cell);
    $("sources").replaceChildren(row);
  }
  const rest = fleet.sources.length - ROWS;
  $("fleet-rest").hidden = rest <= 0;
  $("fleet-rest").textContent = `and ${count(rest)} more that were last seen earlier`;
}

async function charts() {
  const drawn = draw($("charts"), (await json(`/v1/frames?state=done&limit=${LAST}`)).frames);
  $("times-count").textContent = drawn ? `median of ${drawn}` : "";
}

function source(one) {
  const row = element("tr");
  const name = element("th", one.source, one.connected ? "on" : "away");
  name.scope = "row";
  name.append(element("span", one.connected ? " connected" : " away", "hidden"));
  const waiting = element("td", count(one.waiting), one.waiting ? "busy" : "");
  row.append(name, element("td", ago(one.last_seen_at)), element("td", count(one.frames)), waiting);
  return row;
}

let stale = true;
async function keepUp() {
  let last = 0;
  for (;;) {
    if (!document.hidden && (stale || Date.now() - last > 10000)) {
      stale = false;
      last = Date.now();
      await totals().catch(() => {});
      for (const made of cards.values()) fill(made, made.frame); // "3 min ago" grows older
      if (newest) tellNewest();
      await charts().catch(() => {});
    }
    await new Promise((resume) => setTimeout(resume, 1000));
  }
}

// -- one frame ----------------------------------------------------------------------------------------------------

const CAPTURED_FROM = {
  sender: "named by the sender",
  exif: "from the picture's EXIF",
  file: "from the file's time",
  clock: "by the edge's clock",
};

const original = (frame) =>
  frame.original_width ? `${frame.original_width} × ${frame.original_height} pixels` : "unknown";

function captured(frame) {
  if (!frame.captured_at) return "unknown";
  const source = CAPTURED_FROM[frame.captured_from];
  return new Date(frame.captured_at).toLocaleString() + (source ? `, ${source}` : "");
}

let opened = null;

async function open(frame) {
  opened = frame;
  $("detail-title").textContent = `${frame.source}: ${describe(frame)}`;
  $("detail-image").removeAttribute("src");
  $("detail-image").alt = `Reconstruction of a frame from ${frame.source}`;
  $("detail-image").style.aspectRatio = `${frame.width} / ${frame.height}`;
  stageBar($("detail-stages"), frame);
  $("detail-sizes").replaceChildren();
  const waited = frame.available_at ? (new Date(frame.available_at) - new Date(frame.received_at)) / 1000 : null;
  pairs($("facts"), [
    ["id", frame.id],
    ["size", `${frame.width} × ${frame.height} pixels, rate ${frame.rate_name ?? frame.rate}`],
    ["original", original(frame)],
    ["captured", captured(frame)],
    ["received", new Date(frame.received_at).toLocaleString()],
    ["decoded after", waited === null ? "–" : `${waited.toFixed(2)} s`],
    ["state", frame.reason ? `${frame.state}: ${frame.reason}` : frame.state],
    ["latents", frame.latents_digest ? frame.latents_digest.slice(0, 16) : "–"],
  ]);
  $("newer").disabled = !neighbour(-1);
  $("older").disabled = !neighbour(1);
  if (!$("detail").open) $("detail").showModal();
  if (frame.state === "failed") return;
  await picture($("detail-image"), `/v1/frames/${frame.id}/image?wait=20`).catch(() => {});
  if (opened === frame) await tellSizes($("detail-sizes"), frame).catch(() => {});
}

function neighbour(step) {
  const all = frames();
  const at = all.findIndex((one) => one.id === opened.id);
  return at < 0 ? undefined : all[at + step];
}

const go = (step) => neighbour(step) && open(neighbour(step));

function listenDetail() {
  $("newer").addEventListener("click", () => go(-1));
  $("older").addEventListener("click", () => go(1));
  $("detail").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") go(-1);
    if (event.key === "ArrowRight") go(1);
  });
  $("detail").addEventListener("click", (event) => event.target === $("detail") && $("detail").close());
  const saving = (path, end) => (event) => {
    event.preventDefault();
    save(`/v1/frames/${opened.id}/${path}`, `${opened.id}.${end}`);
  };
  $("save-image").addEventListener("click", saving("image?wait=20", "png"));
  $("save-frame").addEventListener("click", saving("bitstream", "aeic"));
}

// -- the stream ---------------------------------------------------------------------------------------------------

function link(text, live = false) {
  $("link").textContent = text;
  $("link").classList.toggle("live", live);
}

async function run() {
  keepUp();
  for (;;) {
    try {
      await follow(
        async () => {
          link("live", true);
          await page(null); // frames that arrived while no stream was open
          stale = true;
        },
        async (event) => {
          stale = true;
          if (event.frame) show(event.frame, true);
          else await page(null);
        },
      );
    } catch (error) {
      if (error instanceof NotAllowed) {
        $("login").hidden = false;
        link("token needed");
        $("token").focus();
        return;
      }
    }
    link("reconnecting");
    await new Promise((resume) => setTimeout(resume, 2000));
  }
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  remember($("token").value);
  location.reload();
});
$("more").addEventListener("click", () => page(cursor));
listenDetail();
listen();
run();
