// One tile for each source: its newest picture, its age, what waits, and a badge once it is silent.

import { json, thumbnail } from "/viewer/service.js";
import { $, ago, chips, count, element, lasting } from "/viewer/show.js";

const SILENT_SECONDS = 3600; // as in the alert AeicSourceSilent
const MOST = 60; // tiles shown at first
const tiles = new Map(); // name -> {item, link, shot, badge, words, one, pictured, busy}
let shown = MOST;
let which = "all";

const quietFor = (one) => (Date.now() - new Date(one.newest?.received_at ?? one.last_seen_at)) / 1000;
// A box whose cameras send under their own names, BOX/CAMERA, is not silent because it sends nothing itself.
const hasCameras = (one) =>
  [...tiles.values()].some((tile) => tile.one.frames && tile.one.source.startsWith(`${one.source}/`));
const onlyCameras = (one) => !one.frames && hasCameras(one);
const isSilent = (one) => quietFor(one) > SILENT_SECONDS && !onlyCameras(one);
const problemOf = (one) => [one.box?.warning, one.box?.report?.problem].filter(Boolean).join("; ");
const waitsAt = (one) => one.box?.report?.waiting_frames ?? 0;

const KINDS = [
  ["all", "all", () => true],
  ["silent", "silent", isSilent],
  ["waiting", "with a backlog", (one) => one.waiting > 0 || waitsAt(one) > 0],
  ["problem", "with a problem", (one) => Boolean(problemOf(one))],
  ["failed", "last frame failed", (one) => one.newest?.state === "failed"],
];

export const source = (name) => tiles.get(name)?.one;

// What a connected box says of itself, as the end of a sentence.
export const report = (one) => (waitsAt(one) ? `, ${count(waitsAt(one))} at the box` : "") + (problemOf(one) ? `; ${problemOf(one)}` : "");

// Of GET /v1/sources. Unless the answer is `complete`, with the newest frames, those that are known already stay.
export function setSources(sources, complete = false) {
  for (const one of sources) {
    const tile = tiles.get(one.source) ?? made(one);
    tile.one = { ...one, newest: complete ? one.newest : (one.newest ?? tile.one.newest) };
    if (complete && !one.newest) tile.shot.replaceChildren(), (tile.pictured = null); // all its frames were deleted
  }
  const names = new Set(sources.map((one) => one.source));
  for (const [name, tile] of tiles) if (!names.has(name)) tile.item.remove(), tiles.delete(name);
  draw();
}

// A frame of the event stream. False where its source is not known yet.
export function arrived(frame) {
  if (frame.parent) return true; // a part of a picture, not a new one
  const tile = tiles.get(frame.source);
  if (!tile) return false;
  const newest = tile.one.newest;
  if (!newest || frame.received_at >= newest.received_at) {
    tile.one.newest = frame;
    fill(tile);
  }
  return true;
}

function made(one) {
  const item = element("li");
  const link = element("a", undefined, "tile");
  link.href = `#${new URLSearchParams({ source: one.source })}`;
  const [shot, badge, words] = [element("div", undefined, "shot"), element("span", undefined, "badge"), element("div", undefined, "words")];
  link.append(shot, badge, words);
  item.append(link);
  const tile = { item, link, shot, badge, words, one, pictured: null, busy: false };
  tiles.set(one.source, tile);
  return tile;
}

export function draw() {
  const all = [...tiles.values()].sort((a, b) => a.one.source.localeCompare(b.one.source, undefined, { numeric: true }));
  const kinds = KINDS.map(([key, words, test]) => [key, words, all.filter((tile) => test(tile.one)).length]).filter(
    ([key, , n]) => n || key === "all",
  );
  if (!kinds.some(([key]) => key === which)) which = "all";
  chips($("wall-chips"), kinds.length > 1 ? kinds.map(([key, words, n]) => [key, `${count(n)} ${words}`]) : [], which, (key) => {
    which = key;
    draw();
  });
  $("wall-search").hidden = all.length <= 8;
  const wanted = $("wall-search").value.trim().toLowerCase();
  const test = KINDS.find(([key]) => key === which)[2];
  const fit = all.filter((tile) => test(tile.one) && tile.one.source.toLowerCase().includes(wanted));
  const visible = fit.slice(0, shown);
  // Only what changed is moved, so that the keyboard's focus stays where it is.
  for (const tile of tiles.values()) if (!visible.includes(tile)) tile.item.remove();
  visible.forEach((tile, index) => {
    if ($("wall").children[index] !== tile.item) $("wall").insertBefore(tile.item, $("wall").children[index] ?? null);
    fill(tile);
  });
  $("wall-more").hidden = fit.length <= visible.length;
  $("wall-more").textContent = `Show ${count(fit.length - visible.length)} more sources`;
  $("wall-empty").hidden = visible.length > 0;
  $("wall-empty").textContent = all.length ? "No source fits." : "No source has sent a frame yet.";
}

function fill(tile) {
  const { one } = tile;
  const silent = isSilent(one);
  tile.link.className = `tile ${one.connected ? "on" : "away"}${silent ? " silent" : ""}`;
  tile.badge.hidden = !silent;
  tile.badge.textContent = `silent for ${lasting(quietFor(one))}`;
  const name = element("b", one.source);
  const state = element("span", undefined, "quiet");
  state.append(ago(one.newest?.received_at ?? one.last_seen_at), element("span", one.connected ? ", connected" : ", not connected", "hidden"));
  const parts = [name, state];
  if (one.waiting) parts.push(element("span", `${count(one.waiting)} waiting`, "busy"));
  if (waitsAt(one)) parts.push(element("span", `${count(waitsAt(one))} at the box`, "busy"));
  if (problemOf(one)) parts.push(element("span", problemOf(one), "bad"));
  if (one.newest?.state === "failed") parts.push(element("span", "last frame failed", "bad"));
  tile.words.replaceChildren(...parts);
  depict(tile);
}

// At most one request for a tile; then the newest picture of that moment.
async function depict(tile) {
  if (tile.busy || !tile.item.isConnected) return;
  const { newest, source: name } = tile.one;
  let frame = newest;
  if (newest?.state !== "done") {
    if (tile.pictured || !tile.one.frames) {
      if (!tile.pictured) tile.shot.textContent = onlyCameras(tile.one) ? "a box with cameras" : "no picture yet";
      return;
    }
    tile.busy = true;
    frame = (await json(`/v1/frames?${new URLSearchParams({ source: name, state: "done", limit: 1 })}`).catch(() => null))?.frames?.[0];
    tile.busy = false;
    tile.pictured = "none";
    if (!frame) return void (tile.shot.textContent = newest?.state === "pruned" ? "deleted" : "no picture yet");
  }
  if (tile.pictured === frame.id) return;
  tile.busy = true;
  tile.pictured = frame.id;
  const image = element("img");
  image.alt = "";
  const there = await thumbnail(image, frame, 320).catch(() => false);
  if (there) tile.shot.replaceChildren(image);
  tile.busy = false;
  if (tile.one.newest?.state === "done" && tile.one.newest.id !== frame.id) depict(tile);
}

export function listen() {
  $("wall-search").addEventListener("input", draw);
  $("wall-more").addEventListener("click", () => {
    shown += MOST;
    draw();
  });
}
