// Look closer: a box drawn on a picture is asked of the box that took it, and its answer is shown in place.

import { ask, json, picture, save } from "/viewer/service.js";
import { $, bytes, count, element, seconds, times } from "/viewer/show.js";

const LEAST = 16; // pixels of the original, a side
const SIZES = [1500, 4000, 8000]; // bytes of a frame
const FILE_SIZES = [8000, 16000, 32000, 64000, 250000, 1000000, 8000000]; // bytes of an original

let frame = null;
let region = null; // in pixels of the original; null for the whole picture
let allowed = null; // what GET .../requests says

const original = () => [frame.original_width ?? frame.width, frame.original_height ?? frame.height];
const tell = (text) => ($("closer-status").textContent = text);
const kind = () => $("closer-kind").value;
const most = () => (kind() === "original" ? allowed?.original_max_bytes : allowed?.max_bytes);

// A frame that the dialog shows; null for one that cannot be asked about: a part of another one.
export async function about(shown) {
  frame = shown && (!shown.parent || shown.kind === "now") && shown.state === "done" ? shown : null;
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
  $("closer-kind").value = "sharper";
  choose();
}

// Another kind: its sizes.
function choose() {
  const all = kind() === "original" ? FILE_SIZES : SIZES;
  const some = all.filter((size, index) => !index || size <= most());
  $("closer-bytes").replaceChildren(
    ...some.map((size) => Object.assign(element("option", bytes(size)), { value: size })),
  );
  if (kind() === "now") {
    region = null;
    $("closer-box").hidden = true;
  }
  cost();
}

function cost() {
  const can = Boolean(most()) && allowed.hour_bytes_left > 0;
  $("closer-ask").disabled = !can;
  $("closer-bytes").disabled = !can;
  $("closer-kind").disabled = !allowed?.max_bytes;
  if (allowed === null) return void ($("closer-cost").textContent = "The service did not answer.");
  if (allowed.max_bytes === null) return void ($("closer-cost").textContent = "The box that took this picture is not connected, so nothing more can be asked now.");
  if (allowed.max_bytes === 0) return void ($("closer-cost").textContent = "The box that took this picture takes no requests.");
  if (!most()) return void ($("closer-cost").textContent = "The box that took this picture sends no originals.");
  const size = Math.min(Number($("closer-bytes").value), most());
  const way = times(frame).way;
  const [width, height] = region ? [region.width, region.height] : original();
  const part = `This part has ${width} × ${height} pixels at the box.`;
  const what = {
    sharper: region ? part : "Draw a box on the picture, or ask for all of it in better quality.",
    original: region ? part : "The photograph itself if it is small enough, else a JPEG of it. Draw a box to get only a part.",
    now: "The same camera takes a new picture at once.",
  }[kind()];
  const time = way === undefined ? "" : ` At the speed of this frame, which took ${seconds(way)} for ${bytes(frame.bytes)}, that is up to ${seconds((way * size) / frame.bytes)}.`;
  $("closer-cost").textContent = `${what} It costs at most ${bytes(size)} of the ${bytes(allowed.hour_bytes_left)} left this hour.${time}`;
  $("closer-ask").textContent = kind() === "now" ? "Take a picture" : region ? "Ask for this part" : "Ask for all of it";
}

async function send() {
  const mine = frame;
  const wanted = region;
  const asked = kind();
  const limit = Math.min(Number($("closer-bytes").value), most());
  const named = asked === "sharper" ? (wanted ? "region" : "better") : asked;
  const body = JSON.stringify({ kind: named, max_bytes: limit, ...(wanted && { region: wanted }), ...(asked === "original" && { deadline_seconds: 600 }) });
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
    const taken = `${count(request.bytes)} bytes more, ${seconds((performance.now() - begun) / 1000)} after asking.`;
    if (asked === "now") {
      const link = element("a", "Open the new picture");
      link.href = `#${new URLSearchParams({ detail: request.answer })}`;
      tell(`${taken} `);
      $("closer-status").append(link);
      return;
    }
    const image = element("img", undefined, "answer");
    image.alt = asked === "original" ? "The original" : wanted ? "The sharper part" : "The picture in better quality";
    const path = `/v1/frames/${request.answer}/${asked === "original" ? "file" : "image?wait=30"}`;
    if (!(await picture(image, path, () => frame === mine))) return void tell("The answer has not been decoded yet.");
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
    tell(`${taken} `);
    if (asked === "original") {
      const link = element("a", "Save the file");
      link.href = path;
      link.addEventListener("click", async (event) => {
        event.preventDefault();
        const answer = await json(`/v1/frames/${request.answer}`);
        save(path, `${request.answer}.${{ "image/jpeg": "jpg", "image/png": "png", "image/webp": "webp" }[answer.media_type]}`);
      });
      $("closer-status").append(link);
    }
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
    if (event.button || !frame || $("closer-ask").disabled || kind() === "now") return;
    event.preventDefault();
    from = at(event);
    place.setPointerCapture(event.pointerId);
  });
  place.addEventListener("pointermove", (event) => from && draw(event));
  for (const kind of ["pointerup", "pointercancel"]) place.addEventListener(kind, () => (from = null));
  $("closer-kind").addEventListener("change", choose);
  $("closer-bytes").addEventListener("change", cost);
  $("closer-ask").addEventListener("click", send);
}
