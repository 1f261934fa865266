// The page: its address, the event stream, the newest picture, the totals and the grid. No library, no build.

import { COUNTED, draw } from "/viewer/charts.js";
import * as compare from "/viewer/compare.js";
import * as day from "/viewer/day.js";
import * as detail from "/viewer/detail.js";
import { NotAllowed, ask, follow, hasToken, json, picture, remember, thumbnail } from "/viewer/service.js";
import { $, ago, answering, bytes, count, element, pairs, stageBar } from "/viewer/show.js";
import { listen as listenTry, setEdge } from "/viewer/try.js";
import * as wall from "/viewer/wall.js";

const PAGE = 24;
const MOST = 200; // cards kept
let older = null; // path of the next page of the grid
let paged = false;
const cards = new Map(); // id -> {item, link, shot, words, frame, shown}, newest first in the list

const frames = () => [...$("list").children].map((item) => cards.get(item.dataset.id).frame);

// -- the address --------------------------------------------------------------------------------------------------
// #source=roof&day=2026-11-29&state=failed&frame=ID is a source's day; &detail=ID opens the dialog on top of it.

const address = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

function moveTo(parts, replace = false) {
  const text = `#${new URLSearchParams(Object.entries(parts).filter(([, value]) => value))}`;
  if (replace) history.replaceState(null, "", text);
  else location.hash = text;
}

// Whether an address names a day that exists; 2026-02-30 does not.
const isDay = (text) =>
  /^\d{4}-\d{2}-\d{2}$/.test(text ?? "") && Number.isFinite(Date.parse(text)) && new Date(text).toISOString().startsWith(text);

function route() {
  if (!$("login").hidden) return; // the address is kept for when there is a token
  absent = "";
  const { source, day: date, state, frame, detail: shown } = address();
  document.title = source ? `${source} · AEIC cloud` : "AEIC cloud";
  $("overview").hidden = Boolean(source);
  $("day").hidden = !source;
  if (source) {
    day.open({ source, day: isDay(date) ? date : "", state: state ?? "", frame: frame ?? "" });
  } else {
    day.close();
    wall.draw();
  }
  tellSource();
  notice();
  if (shown) openDetail(shown);
  else detail.close();
}

async function openDetail(id) {
  if ((await detail.open(id)) !== false) return;
  detail.close();
  moveTo({ ...address(), detail: "" }, true);
  absent = `There is no frame ${id} here.`;
  notice();
}

function tellSource() {
  const one = wall.source(address().source);
  $("day-state").textContent = one
    ? `${one.connected ? "connected" : "not connected"}, last frame ${ago(one.newest?.received_at ?? one.last_seen_at)}, ${count(one.frames)} frames in all, ${count(one.waiting)} waiting${wall.report(one)}`
    : "";
}

// -- the grid -----------------------------------------------------------------------------------------------------

function card(frame) {
  const item = element("li");
  item.dataset.id = frame.id;
  const link = element("a", undefined, "frame");
  link.href = `#${new URLSearchParams({ detail: frame.id })}`;
  const shot = element("div", undefined, "shot");
  const words = element("div", undefined, "words");
  link.append(shot, words);
  item.append(link);
  return { item, link, shot, words, frame, shown: false };
}

function fill(made, frame) {
  made.frame = frame;
  const when = element("span", `${frame.source} · ${ago(frame.received_at)}`, "more");
  const size = element("span", undefined, "size");
  size.append(element("b", `${count(frame.bytes)} B`), ` ${frame.bpp.toFixed(4)} bpp`);
  made.words.replaceChildren(size, when);
  if (frame.parent) made.words.append(element("span", answering(frame), "kind"));
  if (frame.state !== "done") made.words.append(element("span", frame.state, `state state-${frame.state}`));
  if (made.shown) return;
  if (frame.state === "failed") {
    made.shot.replaceChildren(element("span", "cannot be decoded", "state-failed"));
  } else if (frame.state === "done") {
    made.shown = true;
    const image = element("img");
    image.alt = "";
    thumbnail(image, frame, 480)
      .then((there) => (there ? made.shot.replaceChildren(image) : (made.shown = false)))
      .catch(() => (made.shown = false));
  } else {
    made.shot.replaceChildren(element("span", frame.state === "pruned" ? "deleted" : "decoding …"));
  }
}

function show(frame, first) {
  if (frame.media_type) return; // a file beside its frame, not a picture of its own
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
      $("more").hidden = true; // its path points past what was dropped; a reload shows all again
    }
  }
  fill(made, frame);
  if (frame.state === "done") consider(frame);
}

// A frame that was deleted or pruned leaves the page, with its picture.
function hide(frame) {
  everySource = true; // it may have been the newest of its source
  cards.get(frame.id)?.item.remove();
  cards.delete(frame.id);
  $("empty").hidden = cards.size > 0;
  if (coming?.id === frame.id) coming = null;
  if (newest?.id !== frame.id) return;
  newest = null;
  const next = frames().find((one) => one.state === "done");
  $("latest-image").removeAttribute("src");
  for (const id of ["latest-sizes", "latest-stages"]) $(id).replaceChildren();
  $("latest-bytes").textContent = "–";
  $("latest-facts").textContent = next ? "" : NO_PICTURE;
  if (next) consider(next);
}

async function page(path) {
  const found = await json(path ?? `/v1/frames?limit=${PAGE}`);
  for (const frame of path ? found.frames : found.frames.reverse()) show(frame, !path);
  if (path || !paged) older = found.next;
  paged = true;
  $("more").hidden = !older;
  $("empty").hidden = cards.size > 0;
}

// -- the newest picture -------------------------------------------------------------------------------------------

const NO_PICTURE = $("latest-facts").textContent;
let newest = null; // the frame on show
let coming = null; // the one to show next; whatever came between is in the grid
let turning = false;

function consider(frame) {
  const later = (one) => !one || frame.received_at >= one.received_at;
  if (newest?.id === frame.id) return (newest = frame), tellNewest();
  if (later(newest) && later(coming)) coming = frame;
  if (!turning) turn();
}

const onShow = () => !$("latest").hidden && !$("overview").hidden && !document.hidden;

async function turn() {
  turning = true;
  while (coming && onShow()) {
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
        tellNewest();
        await detail.sizes($("latest-sizes"), frame);
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
  const kind = answering(newest);
  $("latest-facts").textContent =
    `${kind && `${kind[0].toUpperCase()}${kind.slice(1)}. `}${newest.bpp.toFixed(4)} bits per pixel, ${newest.width} × ${newest.height}, from ${newest.source}, ${ago(newest.received_at)}`;
  stageBar($("latest-stages"), newest);
}

// Which of the two is on top: the comparison, or the newest picture. The browser remembers it.
export function showOnTop(which) {
  const latest = which === "latest";
  for (const [id, hidden] of [["showcase", latest], ["showcase-stage", latest], ["latest", !latest], ["latest-stage", !latest]])
    $(id).hidden = hidden;
  $("show-latest").setAttribute("aria-pressed", latest);
  $("show-compare").setAttribute("aria-pressed", !latest);
  localStorage.setItem("top", which);
  if (latest && !turning) turn();
}

// -- totals, charts, sources --------------------------------------------------------------------------------------

const sum = (text, name, label = "") =>
  text
    .split("\n")
    .filter((line) => (line.startsWith(`${name}{`) || line.startsWith(`${name} `)) && line.includes(label))
    .reduce((all, line) => all + Number(line.slice(line.lastIndexOf(" "))), 0);

let everySource = true; // with their newest frames, after an interruption

async function sources() {
  const withNewest = everySource;
  everySource = false;
  const found = await json(`/v1/sources${withNewest ? "?newest=true" : ""}`).catch((error) => {
    everySource ||= withNewest; // to be asked for again
    throw error;
  });
  wall.setSources(found.sources, withNewest);
  tellSource();
  return found.sources;
}

async function totals(all) {
  const asked = [json("/v1/status"), json("/v1/edge"), ask("/metrics").then((answer) => answer.text())];
  const [status, edge, metrics] = await Promise.all(asked);
  const models = status.bundles.map(({ name, fingerprint }) => `${name} ${fingerprint}`).join(", ");
  $("model").textContent = `${models} on ${status.device}`;
  const [received, size] = all.reduce(([n, b], one) => [n + one.frames, b + one.bytes], [0, 0]);
  const mean = recent.reduce((sum, one) => sum + one.bytes, 0) / recent.length;
  const refused = sum(metrics, "aeic_cloud_sheds_total");
  const errors = sum(metrics, "aeic_cloud_http_requests_total", 'code="5xx"');
  pairs(
    $("totals"),
    [
      ["frames", count(received)],
      ["received in total", bytes(size)],
      recent.length ? [`mean frame, last ${count(recent.length)}`, `${count(Math.round(mean))} B`] : ["mean frame", "–"],
      ["sources connected", `${all.filter((one) => one.connected).length} of ${all.length}`],
      ["waiting", count(status.frames.received + status.frames.decoding)],
      ["in quarantine", count(status.frames.failed), status.frames.failed > 0],
      ["refused for load", count(refused), refused > 0],
      ["server errors", count(errors), errors > 0],
    ],
    true,
  );
  $("grafana").hidden = !status.grafana;
  if (status.grafana) $("grafana").href = status.grafana;
  setEdge(edge);
  const wrong = [status.problem, ...status.warnings].filter(Boolean);
  notice(wrong.length ? `The service reports: ${wrong.join("; ")}` : "");
}

let recent = []; // the newest decoded frames, without files

async function charts() {
  recent = (await json(`/v1/frames?state=done&limit=${COUNTED}`)).frames.filter((one) => !one.media_type);
  const drawn = draw($("charts"), recent);
  $("times-count").textContent = drawn ? `of the last ${count(drawn)} frames, with their median` : "";
}

let stale = true;
async function keepUp() {
  let last = 0;
  for (;;) {
    if (!document.hidden && (stale || Date.now() - last > 10000)) {
      stale = false;
      last = Date.now();
      const all = await sources().catch(() => null); // first: the wall is what the page is opened for
      if (!$("overview").hidden) await charts().catch(() => {});
      if (all) await totals(all).catch(() => {});
      for (const made of cards.values()) fill(made, made.frame); // "3 min ago" grows older
      if (newest) tellNewest();
      if (coming && !turning) turn();
    }
    await new Promise((resume) => setTimeout(resume, 1000));
  }
}

// -- the stream ---------------------------------------------------------------------------------------------------

let lost = null; // since when the service has not answered
let absent = ""; // what the address names and the service does not have
let reported = ""; // what the service says of itself

function link(text, live = false) {
  $("link").textContent = text;
  $("link").classList.toggle("live", live);
  document.body.classList.toggle("offline", Boolean(lost));
}

function notice(text = reported) {
  reported = text;
  text = [absent, reported].filter(Boolean).join(" ");
  if (lost) text = `The service has not answered since ${lost.toLocaleTimeString()}. The page shows the state at that time, and it reconnects automatically.`;
  if ($("notice").textContent !== text) $("notice").textContent = text;
  $("notice").hidden = !text;
}

async function run() {
  keepUp();
  for (;;) {
    try {
      await follow(
        async () => {
          lost = null;
          notice("");
          link("live", true);
          everySource = stale = true;
          if (detail.unanswered() || day.unanswered()) route();
          await page(null); // frames that arrived while no stream was open
        },
        async (event) => {
          stale = true;
          detail.heard(event).catch(() => {});
          if (!event.frame) {
            everySource = true;
            return page(null);
          }
          if (event.event === "pruned") {
            hide(event.frame);
            day.gone(event.frame);
            detail.gone(event.frame).catch(() => {});
          }
          if (event.frame.state === "pruned") return; // also where it was another event that came late
          show(event.frame, true);
          $("empty").hidden = true;
          everySource ||= !wall.arrived(event.frame);
          day.arrived(event.frame);
        },
      );
    } catch (error) {
      if (error instanceof NotAllowed) {
        $("login").hidden = false;
        $("login-refused").hidden = !hasToken();
        detail.close();
        $("overview").hidden = $("day").hidden = true;
        link("token needed");
        $("token").focus();
        return;
      }
      lost ??= new Date();
      notice("");
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
$("more").addEventListener("click", () => page(older));
$("show-compare").addEventListener("click", () => showOnTop("compare"));
$("show-latest").addEventListener("click", () => showOnTop("latest"));
addEventListener("hashchange", route);
detail.listen(frames, (changes, replace) => {
  moveTo({ ...address(), ...changes }, replace);
  if (replace) route();
});
day.listen(moveTo);
wall.listen();
listenTry(() => showOnTop("compare"));
showOnTop(localStorage.getItem("top") === "latest" ? "latest" : "compare");
route();
run();
compare.start();
