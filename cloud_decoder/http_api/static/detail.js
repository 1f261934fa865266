// The dialog with everything that is known of one frame.

import * as closer from "/viewer/closer.js";
import { ask, picture, save } from "/viewer/service.js";
import { $, answering, count, describe, element, lasting, pairs, repeats, sizeBars, stageBar } from "/viewer/show.js";

const CAPTURED_FROM = {
  sender: "named by the sender",
  exif: "from the picture's EXIF",
  file: "from the file's time",
  clock: "by the edge's clock",
};

let opened = null;
let asked = null; // the id that the address names
let failed = false; // the service did not say whether there is such a frame
let listed = () => [];

const original = (frame) =>
  frame.original_width ? `${frame.original_width} × ${frame.original_height} pixels` : "unknown";

function captured(frame) {
  if (!frame.captured_at) return "unknown";
  const source = CAPTURED_FROM[frame.captured_from];
  const when = new Date(frame.captured_at).toLocaleString() + (source ? `, ${source}` : "");
  return repeats(frame) ? `${when} (the earlier picture)` : when;
}

// What a frame answers: a link to the picture that was asked about.
function parent(frame) {
  const link = element("a", answering(frame));
  link.href = `#${new URLSearchParams({ detail: frame.parent })}`;
  return link;
}

export async function sizes(place, frame) {
  const answer = await ask(`/v1/frames/${frame.id}/sizes`);
  if (answer.status !== 200) return place.replaceChildren(element("p", "not decoded yet", "quiet"));
  const found = await answer.json();
  sizeBars(place, [["frame", found.frame], ["JPEG", found.jpeg], ["PNG", found.png]]);
}

// False where there is no such frame.
export async function open(id) {
  asked = id;
  failed = false;
  if (opened?.id === id && $("detail").open) return;
  let frame = listed().find((one) => one.id === id);
  if (!frame) {
    const answer = await ask(`/v1/frames/${encodeURIComponent(id)}`).catch(() => null);
    if (asked !== id) return;
    if (answer && [400, 404].includes(answer.status)) return false;
    if (!answer?.ok) return void (failed = true);
    frame = await answer.json();
    if (asked !== id) return;
  }
  await show(frame);
}

export const unanswered = () => failed;

// A frame that was deleted while the page is open: its picture goes from the dialog too.
export async function gone(frame) {
  if (opened?.id === frame.id) await show(frame);
}

async function show(frame) {
  opened = frame;
  $("detail-title").textContent = `${frame.source}: ${describe(frame)}`;
  const image = $("detail-image");
  image.removeAttribute("src");
  image.alt = `Reconstruction of a frame from ${frame.source}`;
  image.style.aspectRatio = `${frame.width} / ${frame.height}`;
  const none = { failed: "This frame cannot be decoded.", pruned: "This frame has been deleted." }[frame.state];
  image.hidden = Boolean(none);
  $("detail-none").hidden = !none;
  $("detail-none").textContent = none ?? "";
  $("detail").classList.toggle("tall", frame.height > frame.width);
  stageBar($("detail-stages"), frame);
  $("detail-sizes").replaceChildren();
  const waited = frame.available_at ? (new Date(frame.available_at) - new Date(frame.received_at)) / 1000 : null;
  pairs($("facts"), [
    ["id", frame.id],
    ...(frame.parent ? [["answers a request", parent(frame)]] : []),
    ["size", `${frame.width} × ${frame.height} pixels, rate ${frame.rate_name ?? frame.rate}`],
    ["original", original(frame)],
    ["captured", captured(frame)],
    ["received", new Date(frame.received_at).toLocaleString()],
    ["decoded after", waited === null ? "–" : lasting(waited)],
    ["state", frame.reason ? `${frame.state}: ${frame.reason}` : frame.state],
    ["digest of latents", frame.latents_digest ? frame.latents_digest.slice(0, 16) : "–"],
  ]);
  $("newer").disabled = !neighbour(-1);
  $("older").disabled = !neighbour(1);
  $("to-day").href = `#${new URLSearchParams({ source: frame.source, day: localDay(frame.received_at), frame: frame.id })}`;
  if (!$("detail").open) $("detail").showModal();
  closer.about(frame);
  $("save-frame").hidden = Boolean(frame.media_type);
  $("save-image").hidden = Boolean(none);
  if (none) return;
  await picture(image, `/v1/frames/${frame.id}/${pictured(frame)}`, () => opened === frame).catch(() => {});
  if (opened === frame && !frame.media_type) await sizes($("detail-sizes"), frame).catch(() => {});
}

// A file that a box sent as an original is not decoded by the service, only by the browser.
const pictured = (frame) => (frame.media_type ? "file" : "image?wait=20");
const ending = (frame) => ({ "image/jpeg": "jpg", "image/webp": "webp" })[frame.media_type] ?? "png";

const localDay = (time) => {
  const date = new Date(time);
  return `${date.getFullYear()}-${String(date.getMonth() + 1).padStart(2, "0")}-${String(date.getDate()).padStart(2, "0")}`;
};

export const heard = closer.heard;

export function close() {
  opened = asked = null;
  failed = false;
  closer.about(null);
  if ($("detail").open) $("detail").close();
}

function neighbour(step) {
  const all = listed();
  const at = all.findIndex((one) => one.id === opened.id);
  return at < 0 ? undefined : all[at + step];
}

// frames(): those that "newer" and "older" go through, the newest first. moveTo(changes): changes the page's address.
export function listen(frames, moveTo) {
  listed = frames;
  closer.listen();
  const go = (step) => neighbour(step) && moveTo({ detail: neighbour(step).id }, true);
  $("newer").addEventListener("click", () => go(-1));
  $("older").addEventListener("click", () => go(1));
  $("detail").addEventListener("keydown", (event) => {
    if (event.target.matches("select")) return;
    if (event.key === "ArrowLeft") go(-1);
    if (event.key === "ArrowRight") go(1);
  });
  $("detail").addEventListener("click", (event) => event.target === $("detail") && $("detail").close());
  $("detail").addEventListener("close", () => opened && moveTo({ detail: "" }));
  const saving = (path, end) => (event) => {
    event.preventDefault();
    save(event.target, `/v1/frames/${opened.id}/${path(opened)}`, `${opened.id}.${end(opened)}`);
  };
  $("save-image").addEventListener("click", saving(pictured, ending));
  $("save-frame").addEventListener("click", saving(() => "bitstream", () => "aeic"));
}
