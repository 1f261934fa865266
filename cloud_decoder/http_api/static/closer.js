// Look closer: a box drawn on a picture is asked of the box that took it, and its answer is shown in place.

import { ask, json, picture } from "/viewer/service.js";
import { $, bytes, count, element, seconds, times } from "/viewer/show.js";

const LEAST = 16; // pixels of the original, a side

let frame = null;
let region = null; // in pixels of the original; null for the whole picture
let allowed = null; // what GET .../requests says

const original = () => [frame.original_width ?? frame.width, frame.original_height ?? frame.height];
const tell = (text) => ($("closer-status").textContent = text);

// A frame that the dialog shows; null for one that cannot be asked about.
export async function about(shown) {
  frame = shown && !shown.parent && shown.state === "done" ? shown : null;
  region = allowed = null;
  $("closer").hidden = !frame;
  $("closer-box").hidden = true;
  for (const old of $("closer-place").querySelectorAll(".answer")) old.remove();
  tell("");
  if (!frame) return;
  const mine = frame;
  const found = await json(`/v1/frames/${mine.id}/requests`).catch(() => null);
  if (frame !== mine) return;
  allowed = found;
  cost();
}

function cost() {
  const most = allowed?.max_bytes;
  const can = Boolean(most) && allowed.hour_bytes_left > 0;
  $("closer-ask").disabled = !can;
  $("closer-bytes").disabled = !can;
  if (allowed === null) return void ($("closer-cost").textContent = "The service did not answer.");
  if (most === null) return void ($("closer-cost").textContent = "The box that took this picture is not connected, so nothing more can be asked now.");
  if (most === 0) return void ($("closer-cost").textContent = "The box that took this picture takes no requests.");
  const size = Math.min(Number($("closer-bytes").value), most);
  const way = times(frame).way;
  const [width, height] = region ? [region.width, region.height] : original();
  const what = region ? `This part has ${width} × ${height} pixels at the box.` : "Draw a box on the picture, or ask for all of it in better quality.";
  const time = way === undefined ? "" : ` At the speed of this frame, which took ${seconds(way)} for ${bytes(frame.bytes)}, that is up to ${seconds((way * size) / frame.bytes)}.`;
  $("closer-cost").textContent = `${what} It costs at most ${bytes(size)} of the ${bytes(allowed.hour_bytes_left)} left this hour.${time}`;
  $("closer-ask").textContent = region ? "Ask for this part" : "Ask for all of it";
}

async function send() {
  const mine = frame;
  const wanted = region;
  const most = Math.min(Number($("closer-bytes").value), allowed.max_bytes);
  const body = JSON.stringify(wanted ? { kind: "region", region: wanted, max_bytes: most } : { kind: "better", max_bytes: most });
  $("closer-ask").disabled = true;
  const begun = performance.now();
  try {
    tell("Asked. Waiting for the box …");
    const posted = await ask(`/v1/frames/${mine.id}/requests`, { method: "POST", body });
    let request = await posted.json();
    if (!posted.ok) return void tell(request.detail);
    while (frame === mine && request.state === "open") request = await json(`/v1/frames/${mine.id}/requests/${request.id}?wait=20`);
    if (frame !== mine) return;
    if (request.state !== "answered") return void tell(`The box refused: ${request.detail ?? request.reason}.`);
    const image = element("img", undefined, "answer");
    image.alt = wanted ? "The sharper part" : "The picture in better quality";
    if (!(await picture(image, `/v1/frames/${request.answer}/image?wait=30`, () => frame === mine))) return void tell("The answer has not been decoded yet.");
    const [width, height] = original();
    const at = wanted ?? { x: 0, y: 0, width, height };
    Object.assign(image.style, {
      left: `${(100 * at.x) / width}%`,
      top: `${(100 * at.y) / height}%`,
      width: `${(100 * at.width) / width}%`,
      height: `${(100 * at.height) / height}%`,
    });
    image.dataset.id = request.answer;
    $("closer-place").append(image);
    tell(`${count(request.bytes)} bytes more, ${seconds((performance.now() - begun) / 1000)} after asking.`);
    allowed = await json(`/v1/frames/${mine.id}/requests`);
    $("closer-box").hidden = true;
    region = null;
  } catch {
    if (frame === mine) tell("The service did not answer. Ask again.");
  } finally {
    if (frame === mine) cost();
  }
}

export function listen() {
  const place = $("closer-place");
  let from = null;
  const at = (event) => {
    const box = place.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((share) => Math.min(1, Math.max(0, share)));
  };
  const draw = (event) => {
    const [x, y] = at(event);
    const [width, height] = original();
    const [left, top] = [Math.min(x, from[0]), Math.min(y, from[1])];
    const found = {
      x: Math.floor(left * width),
      y: Math.floor(top * height),
      width: Math.max(LEAST, Math.round(Math.abs(x - from[0]) * width)),
      height: Math.max(LEAST, Math.round(Math.abs(y - from[1]) * height)),
    };
    found.x = Math.max(0, Math.min(found.x, width - found.width));
    found.y = Math.max(0, Math.min(found.y, height - found.height));
    region = found;
    const box = $("closer-box");
    box.hidden = false;
    Object.assign(box.style, {
      left: `${(100 * found.x) / width}%`,
      top: `${(100 * found.y) / height}%`,
      width: `${(100 * found.width) / width}%`,
      height: `${(100 * found.height) / height}%`,
    });
    cost();
  };
  place.addEventListener("pointerdown", (event) => {
    if (event.button || !frame || $("closer-ask").disabled) return;
    event.preventDefault();
    from = at(event);
    place.setPointerCapture(event.pointerId);
  });
  place.addEventListener("pointermove", (event) => from && draw(event));
  for (const kind of ["pointerup", "pointercancel"]) place.addEventListener(kind, () => (from = null));
  $("closer-bytes").addEventListener("change", cost);
  $("closer-ask").addEventListener("click", send);
}
