// One source's day: a filmstrip under a time axis, the chosen frame large. The address has all of it, to be kept or sent.

import { json, picture, save, thumbnail } from "/viewer/service.js";
import { $, ago, bytes, chips, count, describe, drawing, element, lasting, pairs, stageWords } from "/viewer/show.js";

const PAGE = 200;
const MOST = 2000; // frames loaded without being asked for more
const STATES = [["", "all"], ["done", "decoded"], ["received", "waiting"], ["failed", "failed"], ["pruned", "deleted"]];

let asked = null; // {source, day, state, frame} of the address
let frames = []; // the earliest first
let items = new Map(); // id -> <li>
let chosen = null;
let next = null; // path of the next page, of earlier frames
let turn = 0; // raised by every change, so that late answers are dropped
let failed = false; // the service did not answer; the page asks again once it is connected
let go = () => {};

const midnight = (day) => new Date(`${day}T00:00`);
const dayOf = (time) => {
  const date = new Date(time);
  return [date.getFullYear(), date.getMonth() + 1, date.getDate()].map((n) => String(n).padStart(2, "0")).join("-");
};
const moved = (day, days) => {
  const date = midnight(day);
  date.setDate(date.getDate() + days);
  return dayOf(date);
};
const clock = (time) => new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const secondOf = (frame) => (new Date(frame.received_at) - midnight(asked.day)) / 1000;

export const unanswered = () => failed;

export async function open(wanted) {
  const mine = ++turn;
  const before = asked;
  $("day-title").textContent = wanted.source;
  if (!wanted.day) {
    const newest = await json(`/v1/frames?${new URLSearchParams({ source: wanted.source, limit: 1 })}`).catch(() => null);
    if (mine !== turn) return;
    wanted = { ...wanted, day: dayOf(newest?.frames?.[0]?.received_at ?? Date.now()) };
  }
  const same = before && ["source", "day", "state"].every((key) => before[key] === wanted[key]);
  asked = wanted;
  $("day-date").value = asked.day;
  $("day-after").disabled = asked.day >= dayOf(Date.now());
  chips($("day-states"), STATES, asked.state ?? "", (state) => go({ ...asked, state, frame: "" }));
  if (same && frames.length && !failed) return void (asked.frame && choose(asked.frame));
  frames = [];
  items = new Map();
  chosen = null;
  $("strip").replaceChildren();
  for (const id of ["day-show", "axis", "day-more"]) $(id).hidden = true;
  $("day-empty").hidden = true;
  if (!before || before.source !== asked.source) $("day-title").focus({ preventScroll: true });
  const until = midnight(moved(asked.day, 1));
  const query = { source: asked.source, since: midnight(asked.day).toISOString(), until: until.toISOString(), limit: PAGE };
  if (asked.state) query.state = asked.state;
  next = `/v1/frames?${new URLSearchParams(query)}`;
  await load(mine, MOST);
}

export function close() {
  turn += 1;
  asked = null;
  failed = false;
}

async function load(mine, most) {
  const end = frames.length + most;
  $("day-count").textContent = "loading …";
  failed = false;
  try {
    while (next && frames.length < end) {
      const found = await json(next);
      if (mine !== turn) return;
      next = found.next;
      add(found.frames);
      if (found.frames.length) drawAxis();
      if (!chosen && frames.length) choose(asked.frame && items.has(asked.frame) ? asked.frame : frames.at(-1).id, true);
    }
  } catch {
    if (mine !== turn) return;
    failed = true;
    $("day-count").textContent = "The service did not answer. Reload the page to try again.";
    return;
  }
  if (asked.frame && items.has(asked.frame) && chosen?.id !== asked.frame) choose(asked.frame, true);
  $("day-more").hidden = !next;
  tellCount();
}

function tellCount() {
  const total = frames.reduce((sum, one) => sum + one.bytes, 0);
  $("day-count").textContent = `${count(frames.length)}${next ? " or more" : ""} ${frames.length === 1 ? "frame" : "frames"}, ${bytes(total)}`;
  $("day-empty").hidden = frames.length > 0;
  $("day-empty").textContent = asked.state ? "No frame of this day has this state." : "Nothing arrived from this source on this day.";
}

// found: the latest first, all earlier than what is there.
function add(found) {
  const fresh = found.filter((frame) => !items.has(frame.id) && !frame.parent).reverse(); // answers are not of the day
  frames = [...fresh, ...frames];
  const strip = $("strip");
  const width = strip.scrollWidth;
  strip.prepend(...fresh.map(item));
  strip.scrollLeft += strip.scrollWidth - width; // what was in view stays in view
}

function item(frame) {
  const made = element("li");
  made.dataset.id = frame.id;
  const button = element("button", undefined, `still ${frame.state}`);
  button.type = "button";
  button.tabIndex = -1;
  const time = element("span", clock(frame.received_at));
  time.append(element("span", `, ${describe(frame)}, ${frame.state}`, "hidden"));
  button.append(element("div", undefined, "shot"), time);
  button.addEventListener("click", () => choose(frame.id));
  made.append(button);
  items.set(frame.id, made);
  seen.observe(made);
  return made;
}

const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      depict(frames.find((one) => one.id === entry.target.dataset.id));
    }
  },
  { rootMargin: "400px" },
);

async function depict(frame) {
  const shot = frame && items.get(frame.id)?.querySelector(".shot");
  if (!shot) return;
  if (frame.state !== "done") return void (shot.textContent = { failed: "failed", pruned: "deleted" }[frame.state] ?? "waiting");
  const image = element("img");
  image.alt = "";
  if (await thumbnail(image, frame, 200).catch(() => false)) shot.replaceChildren(image);
}

function choose(id, quietly = false) {
  const frame = frames.find((one) => one.id === id);
  if (!frame) return;
  const last = chosen && items.get(chosen.id);
  if (last) {
    last.firstChild.removeAttribute("aria-current");
    last.firstChild.tabIndex = -1;
  }
  chosen = frame;
  const button = items.get(id).firstChild;
  button.setAttribute("aria-current", "true");
  button.tabIndex = 0;
  const strip = $("strip");
  const middle = items.get(id).offsetLeft - strip.offsetLeft - (strip.clientWidth - button.clientWidth) / 2;
  strip.scrollTo({ left: middle, behavior: "instant" });
  $("day-show").hidden = false;
  $("axis").hidden = false;
  $("axis").style.setProperty("--at", `${(100 * secondOf(frame)) / 86400}%`);
  $("axis-range").value = secondOf(frame);
  $("axis-range").setAttribute("aria-valuetext", clock(frame.received_at));
  tell(frame);
  if (!quietly) go({ ...asked, frame: id }, true);
}

let large = 0;
async function tell(frame) {
  const at = frames.indexOf(frame);
  $("day-earlier").disabled = at <= 0;
  $("day-later").disabled = at >= frames.length - 1;
  $("day-time").textContent = `${clock(frame.received_at)} · ${ago(frame.received_at)}`;
  $("day-bytes").textContent = count(frame.bytes);
  const waited = frame.available_at ? (new Date(frame.available_at) - new Date(frame.received_at)) / 1000 : null;
  pairs($("day-facts"), [
    ["size", `${frame.width} × ${frame.height} pixels`],
    ["rate", `${frame.rate_name ?? frame.rate}, ${frame.bpp.toFixed(4)} bits per pixel`],
    ["state", frame.reason ? `${frame.state}: ${frame.reason}` : frame.state],
    ["decoded after", waited === null ? "–" : lasting(waited)],
    ["time by stage", stageWords(frame)],
  ]);
  $("day-details").href = `#${new URLSearchParams({ ...address(), detail: frame.id })}`;
  const mine = ++large;
  const image = element("img");
  image.id = "day-image";
  image.alt = `Reconstruction of a frame from ${frame.source} at ${clock(frame.received_at)}`;
  const none = { failed: "This frame cannot be decoded.", pruned: "This frame has been deleted." }[frame.state];
  $("day-save-image").hidden = Boolean(none);
  const there = none ? false : await picture(image, `/v1/frames/${frame.id}/image?format=webp&wait=20`).catch(() => false);
  if (mine !== large) return;
  $("day-none").hidden = there;
  $("day-none").textContent = none ?? "The picture could not be loaded. Choose the frame again to retry.";
  $("day-image").replaceWith(image);
  image.hidden = !there;
  image.dataset.id = frame.id;
}

// The empty parts are left out, so that addresses stay short.
export const address = () => Object.fromEntries(Object.entries(asked ?? {}).filter(([, value]) => value));

function drawAxis() {
  const paths = { done: "", failed: "", other: "" };
  for (const frame of frames) {
    const x = ((1000 * secondOf(frame)) / 86400).toFixed(1);
    paths[frame.state in paths ? frame.state : "other"] += `M${x} 0V30`;
  }
  const picture = drawing("svg", { viewBox: "0 0 1000 30", preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const [state, d] of Object.entries(paths)) if (d) picture.append(drawing("path", { d, class: `mark-${state}` }));
  $("axis-marks").replaceChildren(picture);
  if ($("axis-hours").children.length) return;
  for (let hour = 0; hour <= 24; hour += 3) {
    const made = element("li", `${String(hour % 24).padStart(2, "0")}:00`);
    made.style.left = `${(100 * hour) / 24}%`;
    $("axis-hours").append(made);
  }
}

// A frame of the event stream.
export function arrived(frame) {
  if (!asked || frame.parent || frame.source !== asked.source || dayOf(frame.received_at) !== asked.day) return;
  const at = frames.findIndex((one) => one.id === frame.id);
  if (at >= 0) {
    frames[at] = frame;
    items.get(frame.id).firstChild.className = `still ${frame.state}`;
    depict(frame);
    if (chosen?.id === frame.id && chosen.state !== frame.state) tell((chosen = frame));
  } else if (!asked.state || asked.state === frame.state) {
    const atEnd = !chosen || chosen === frames.at(-1);
    frames.push(frame);
    $("strip").append(item(frame));
    tellCount();
    if (atEnd) choose(frame.id, true);
    else tell(chosen);
  }
  drawAxis();
}

// A frame that was deleted while the page is open stays in its place, without its picture.
export function gone(frame) {
  if (asked && items.has(frame.id)) arrived(frame);
}

function step(by) {
  const at = frames.indexOf(chosen);
  const to = frames[Math.min(frames.length - 1, Math.max(0, at + by))];
  if (!to || to === chosen) return;
  const inStrip = $("strip").contains(document.activeElement);
  choose(to.id);
  if (inStrip) items.get(to.id).firstChild.focus({ preventScroll: true });
}

// moveTo(address, replace): changes the address of the page.
export function listen(moveTo) {
  go = moveTo;
  $("day-before").addEventListener("click", () => go({ ...asked, day: moved(asked.day, -1), frame: "" }));
  $("day-after").addEventListener("click", () => go({ ...asked, day: moved(asked.day, 1), frame: "" }));
  $("day-date").addEventListener("change", () => $("day-date").value && go({ ...asked, day: $("day-date").value, frame: "" }));
  $("day-earlier").addEventListener("click", () => step(-1));
  $("day-later").addEventListener("click", () => step(1));
  $("day-more").addEventListener("click", () => load(turn, MOST));
  const saving = (path, end) => (event) => {
    event.preventDefault();
    save(event.target, `/v1/frames/${chosen.id}/${path}`, `${chosen.source}-${chosen.id}.${end}`);
  };
  $("day-save-image").addEventListener("click", saving("image?wait=20", "png"));
  $("day-save-frame").addEventListener("click", saving("bitstream", "aeic"));
  $("axis-range").addEventListener("input", () => {
    const at = Number($("axis-range").value);
    const nearest = frames.reduce((best, one) => (Math.abs(secondOf(one) - at) < Math.abs(secondOf(best) - at) ? one : best), frames[0]);
    if (nearest) choose(nearest.id);
  });
  addEventListener("keydown", (event) => {
    if (!asked || $("detail").open || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.matches("input, select")) return;
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    if (event.key in steps) {
      event.preventDefault();
      step(steps[event.key]);
    } else if (event.key === "Escape") {
      location.hash = "";
    }
  });
}
