// Look closer: asks the box that took a picture for the rectangle drawn on it, and shows the answer in place.

import { ask, json, picture, save } from "/viewer/service.js";
import { $, bytes, count, element, lasting, repeats, seconds, times } from "/viewer/show.js";

const LEAST = 16; // pixels of the original, a side
const STEPS = 40; // of the keyboard, across a side
const LEAST_CHARGE = 256; // bytes that every request costs at least
const SIZES = [1500, 4000, 8000]; // bytes of a frame
const FILE_SIZES = [8000, 16000, 32000, 64000, 250000, 1000000, 8000000]; // bytes of an original
const KINDS = { region: "sharper part", better: "better quality", original: "original", now: "new picture" };
const STATES = { open: "waiting", answered: "answered", refused: "refused" };
const SUFFIXES = { "image/jpeg": "jpg", "image/png": "png", "image/webp": "webp" };

let frame = null;
let region = null; // in pixels of the original; null for the whole picture
let allowed = null; // what GET .../requests says
let asking = false;

const original = () => [frame.original_width ?? frame.width, frame.original_height ?? frame.height];
const tell = (text) => ($("closer-status").textContent = text);
const kind = () => $("closer-kind").value;
const most = () => (kind() === "original" ? allowed?.original_max_bytes : allowed?.max_bytes);
const mayAsk = () => Boolean(most()) && !asking;
const mayDraw = () => frame && kind() !== "now";
const part = ({ x, y, width, height }) => `${width} × ${height} pixels at ${x}, ${y}`;

// A frame that the dialog shows; null for one that cannot be asked about: a part of another one.
export async function about(shown) {
  frame = shown && !repeats(shown) && shown.state === "done" ? shown : null;
  allowed = null;
  asking = false;
  $("closer").hidden = !frame;
  const place = $("closer-place");
  place.classList.remove("drawable");
  for (const name of ["tabindex", "role", "aria-label", "aria-describedby"]) place.removeAttribute(name);
  for (const old of place.querySelectorAll(".answer")) old.remove();
  draw(null);
  showComposed(false);
  tell("");
  list();
  if (!frame) return;
  place.tabIndex = 0;
  place.setAttribute("role", "application");
  place.setAttribute("aria-label", "Rectangle on the picture");
  place.setAttribute("aria-describedby", "closer-keys");
  $("closer-kind").value = "sharper";
  const mine = frame;
  await refresh();
  if (frame === mine) choose();
}

// What may be asked, and what was asked.
async function refresh() {
  const mine = frame;
  const found = await json(`/v1/frames/${mine.id}/requests`).catch(() => null);
  if (frame !== mine) return;
  allowed = found;
  list();
}

// An event of the stream: a request has ended, here or in another window.
export async function heard(event) {
  if (event.event !== "request" || !frame || event.request?.frame !== frame.id) return;
  await refresh();
  if (frame) cost();
}

// Another kind: its sizes.
function choose() {
  const all = kind() === "original" ? FILE_SIZES : SIZES;
  const some = all.filter((size, index) => !index || size <= most());
  $("closer-bytes").replaceChildren(
    ...some.map((size) => Object.assign(element("option", bytes(size)), { value: size })),
  );
  if (kind() === "now") draw(null);
  cost();
}

function cost() {
  const size = Math.min(Number($("closer-bytes").value), most() || 0);
  const left = allowed?.hour_bytes_left ?? 0;
  const spent = Math.max(size, LEAST_CHARGE) > left;
  const noBetter = kind() === "sharper" && !region && size <= frame.bytes;
  $("closer-ask").disabled = !mayAsk() || spent || noBetter;
  $("closer-bytes").disabled = !mayAsk();
  $("closer-kind").disabled = !allowed?.max_bytes;
  $("closer-place").classList.toggle("drawable", mayDraw() && mayAsk()); // else a finger scrolls and zooms
  if (allowed === null) return void ($("closer-cost").textContent = "The service did not answer.");
  if (allowed.max_bytes === null) return void ($("closer-cost").textContent = "The box that took this picture is not connected, so nothing more can be asked now.");
  if (allowed.max_bytes === 0) return void ($("closer-cost").textContent = "The box that took this picture takes no requests. Its operator can turn them on with AEIC_EDGE_ORIGINALS_MAX_BYTES.");
  if (!most()) return void ($("closer-cost").textContent = "The box that took this picture sends no originals.");
  $("closer-ask").textContent = kind() === "now" ? "Take a picture" : region ? "Ask for this part" : "Ask for the whole picture";
  if (spent) return void ($("closer-cost").textContent = `An answer may cost ${bytes(Math.max(size, LEAST_CHARGE))}, but only ${bytes(left)} are left this hour for this source. Choose fewer bytes or ask later. The operator of this service can raise AEIC_CLOUD_REQUEST_BYTES_PER_HOUR.`);
  if (noBetter) return void ($("closer-cost").textContent = `This picture already has ${bytes(frame.bytes)}. Draw a rectangle on it, or choose more bytes for the whole picture in better quality.`);
  const [width, height] = region ? [region.width, region.height] : original();
  const here = `This part has ${width} × ${height} pixels in the original.`;
  const what = {
    sharper: region ? here : "Draw a rectangle on the picture, or ask for the whole picture in better quality.",
    original: region ? here : "The photograph itself if it is small enough, or else a JPEG made from it. Draw a rectangle to get only a part.",
    now: "The same camera takes a new picture at once.",
  }[kind()];
  $("closer-cost").textContent = `${what} It costs at most ${bytes(size)} of the ${bytes(left)} left this hour.${duration(size)}`;
}

// What it may take: by the last answers about this source, else by the way of this frame.
function duration(size) {
  const speed = allowed.bytes_per_second;
  if (speed) return ` At the ${bytes(Math.round(speed))} per second of the last answers, that is up to ${seconds(size / speed)}.`;
  const way = times(frame).way;
  if (way === undefined) return " How long it takes is not known yet.";
  return ` At the speed of this frame, which took ${seconds(way)} for ${bytes(frame.bytes)}, that is up to ${seconds((way * size) / frame.bytes)}.`;
}

// -- the rectangle on the picture ------------------------------------------------------------------------------------

function draw(found) {
  region = found;
  $("closer-box").hidden = !found;
  if (!found) return;
  lay($("closer-box"), found);
  cost();
}

function lay(over, { x, y, width, height }) {
  const [wide, tall] = original();
  Object.assign(over.style, {
    left: `${(100 * x) / wide}%`,
    top: `${(100 * y) / tall}%`,
    width: `${(100 * width) / wide}%`,
    height: `${(100 * height) / tall}%`,
  });
}

// A rectangle inside the original, with sides of at least LEAST pixels.
function within(x, y, width, height) {
  const [wide, tall] = original();
  const found = { width: Math.min(wide, Math.max(LEAST, width)), height: Math.min(tall, Math.max(LEAST, height)) };
  found.x = Math.max(0, Math.min(x, wide - found.width));
  found.y = Math.max(0, Math.min(y, tall - found.height));
  return found;
}

function byKey(event) {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!mayDraw() || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Enter") {
    if (!$("closer-ask").disabled) send();
  } else if (event.key === "Delete" || event.key === "Backspace") {
    draw(null);
    cost();
    $("closer-said").textContent = "No rectangle: the whole picture.";
  } else if (move) {
    const [wide, tall] = original();
    const [across, down] = [move[0] * Math.max(1, Math.round(wide / STEPS)), move[1] * Math.max(1, Math.round(tall / STEPS))];
    const { x, y, width, height } = region ?? within(Math.round(wide / 3), Math.round(tall / 3), Math.round(wide / 3), Math.round(tall / 3));
    if (!region) draw({ x, y, width, height }); // the first key shows it
    else if (event.shiftKey) draw(within(x, y, Math.min(width + across, wide - x), Math.min(height + down, tall - y)));
    else draw(within(x + across, y + down, width, height));
    $("closer-said").textContent = `Rectangle of ${part(region)}.${$("closer-ask").disabled ? "" : " Enter asks for it."}`;
  } else return;
  event.preventDefault();
  event.stopPropagation(); // the arrow keys of the dialog go to other frames
}

// -- asking, and what was asked --------------------------------------------------------------------------------------

async function send() {
  const mine = frame;
  const wanted = region;
  const asked = kind();
  const limit = Math.min(Number($("closer-bytes").value), most());
  const named = asked === "sharper" ? (wanted ? "region" : "better") : asked;
  const body = JSON.stringify({ kind: named, max_bytes: limit, ...(wanted && { region: wanted }), ...(asked === "original" && { deadline_seconds: 600 }) });
  asking = true;
  cost();
  const begun = performance.now();
  try {
    tell("Asked. Waiting for the box …");
    const posted = await ask(`/v1/frames/${mine.id}/requests`, { method: "POST", body });
    let request = await posted.json();
    if (!posted.ok) return void tell(request.detail);
    while (frame === mine && request.state === "open") request = await json(`/v1/frames/${mine.id}/requests/${request.id}?wait=20`);
    if (frame !== mine) return;
    if (request.state !== "answered") return void tell(request.reason === "expired" ? "The box did not answer in time. Ask again." : `Refused: ${request.detail ?? request.reason}.`);
    if (await show(request, `${count(request.bytes)} bytes more, ${seconds((performance.now() - begun) / 1000)} after asking.`)) draw(null);
  } catch {
    if (frame === mine) tell("The service did not answer. Ask again.");
  } finally {
    if (frame === mine) {
      asking = false;
      await refresh();
      if (frame === mine) cost();
    }
  }
}

// Shows the answer to a request in its place. False where it cannot be shown.
async function show(request, words) {
  const mine = frame;
  if (request.kind === "now") {
    const link = element("a", "Open the new picture");
    link.href = `#${new URLSearchParams({ detail: request.answer })}`;
    tell(`${words} `);
    $("closer-status").append(link);
    return true;
  }
  const file = request.kind === "original";
  const image = element("img", undefined, "answer");
  image.alt = file ? "The original" : request.region ? "The sharper part" : "The picture in better quality";
  const path = `/v1/frames/${request.answer}/${file ? "file" : "image?wait=30"}`;
  if (!(await picture(image, path, () => frame === mine))) {
    if (frame === mine) tell("The answer has not been decoded yet.");
    return false;
  }
  const [width, height] = original();
  lay(image, request.region ?? { x: 0, y: 0, width, height });
  image.dataset.id = request.answer;
  showComposed(false);
  $("closer-place").querySelector(`.answer[data-id="${request.answer}"]`)?.remove();
  $("closer-place").append(image);
  tell(`${words} `);
  if (file) {
    const link = element("a", "Save the file");
    link.href = path;
    link.addEventListener("click", async (event) => {
      event.preventDefault();
      const answer = await json(`/v1/frames/${request.answer}`);
      save(link, path, `${request.answer}.${SUFFIXES[answer.media_type]}`);
    });
    $("closer-status").append(link);
  }
  return true;
}

// The history: one row for each request about the frame, the newest first.
function list() {
  const all = allowed?.requests ?? [];
  $("closer-history").hidden = !all.length;
  $("closer-count").textContent = all.length === 200 ? "the last 200" : count(all.length);
  const held = document.activeElement?.dataset?.request;
  $("closer-rows").replaceChildren(...all.map(row));
  if (held) $("closer-rows").querySelector(`[data-request="${held}"]`)?.focus();
  $("closer-composed").hidden = !all.some((one) => one.kind === "region" && one.state === "answered");
}

function row(request) {
  const made = element("tr");
  const what = element("td");
  if (request.state === "answered") {
    const button = element("button", KINDS[request.kind] ?? request.kind, "plain");
    button.type = "button";
    button.dataset.request = request.id;
    button.addEventListener("click", () => {
      const took = (new Date(request.finished_at) - new Date(request.created_at)) / 1000;
      show(request, `${count(request.bytes)} bytes, ${lasting(took)} after asking.`).catch(() => tell("The service did not answer. Try again."));
    });
    what.append(button);
  } else what.textContent = KINDS[request.kind] ?? request.kind;
  const size = request.state === "answered" ? bytes(request.bytes) : `at most ${bytes(request.max_bytes)}`;
  const state = element("td", STATES[request.state] ?? request.state);
  if (request.reason) state.append(`: ${request.detail ?? request.reason} (${request.reason})`);
  made.append(what, element("td", request.region ? part(request.region) : "whole picture"), element("td", size), state);
  return made;
}

// -- the composed picture --------------------------------------------------------------------------------------------

function showComposed(on) {
  $("closer-composed").setAttribute("aria-pressed", on);
  $("closer-composed").textContent = on ? "Show the picture as received" : "Show the composed picture";
  $("closer-mark").hidden = !on;
  if (!on) $("closer-place").querySelector(".composed")?.remove();
}

async function compose() {
  if ($("closer-place").querySelector(".composed")) return showComposed(false);
  const mine = frame;
  const image = element("img", undefined, "composed");
  image.alt = "The picture with the sharper parts painted in";
  try {
    if (!(await picture(image, `/v1/frames/${mine.id}/composed?format=webp&wait=30`, () => frame === mine))) {
      if (frame === mine) tell("The composed picture is not ready yet. Try again.");
      return;
    }
  } catch {
    return void (frame === mine && tell("The service did not answer. Try again."));
  }
  if (frame !== mine || $("closer-place").querySelector(".composed")) return;
  $("closer-place").append(image);
  showComposed(true);
}

export function listen() {
  const place = $("closer-place");
  let from = null;
  const at = (event) => {
    const box = place.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((share) => Math.min(1, Math.max(0, share)));
  };
  place.addEventListener("pointerdown", (event) => {
    if (event.button || !event.isPrimary || !mayDraw() || !mayAsk()) return;
    event.preventDefault(); // no text is selected, and no picture dragged
    place.focus({ preventScroll: true });
    from = at(event);
    place.setPointerCapture(event.pointerId);
  });
  place.addEventListener("pointermove", (event) => {
    if (!from || !event.isPrimary) return;
    const [x, y] = at(event);
    const [wide, tall] = original();
    const [width, height] = [Math.round(Math.abs(x - from[0]) * wide), Math.round(Math.abs(y - from[1]) * tall)];
    draw(within(Math.floor(Math.min(x, from[0]) * wide), Math.floor(Math.min(y, from[1]) * tall), width, height));
  });
  for (const end of ["pointerup", "pointercancel"]) place.addEventListener(end, () => (from = null));
  place.addEventListener("keydown", byKey);
  $("closer-kind").addEventListener("change", choose);
  $("closer-bytes").addEventListener("change", cost);
  $("closer-ask").addEventListener("click", send);
  $("closer-composed").addEventListener("click", compose);
}
