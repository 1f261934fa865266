// A picture of the visitor's own: through the edge, back from its frame, and the two under one slider.

import { ask, json, picture } from "/viewer/service.js";
import { $, bytes, count, element, sizeBars } from "/viewer/show.js";

const tell = (text, bad = false) => {
  $("try-status").textContent = text;
  $("try-status").classList.toggle("bad", bad);
};

let configured = false;
let running = false;

// What GET /v1/edge says: whether there is an edge, and how it is.
export function setEdge(edge) {
  configured = edge.configured;
  $("drop").classList.toggle("off", !configured);
  $("file").disabled = !configured;
  $("rate").disabled = !configured;
  if (!configured) {
    $("drop-words").textContent = "No edge is configured";
    tell(`${edge.detail} You can then send pictures from this page. Frames of other edges are shown in any case.`);
  }
  const place = $("edge");
  place.hidden = !configured;
  if (!configured) return;
  const spool = edge.waiting ? `${count(edge.waiting)} frames in its spool, the oldest ${Math.round(edge.oldest_seconds)} s old` : "nothing in its spool";
  place.textContent = edge.reachable ? `Edge ${edge.source}: ${spool}, link ${edge.link}.` : `The configured edge: ${edge.detail}.`;
}

export function setRates(rates) {
  if ($("rate").length) return;
  $("rate").append(new Option("the edge's default", ""));
  for (const rate of rates) $("rate").append(new Option(`${rate.name}${rate.bpp ? ` · about ${rate.bpp} bpp` : ""}`, rate.number));
}

function comparison(original, reconstruction, words) {
  const figure = element("figure", undefined, "compare");
  const range = element("input");
  Object.assign(range, { type: "range", min: 0, max: 100, step: 0.5, value: 50 });
  range.setAttribute("aria-label", "Before and after: share of the original that is visible");
  const line = element("span", undefined, "line");
  const move = () => {
    figure.style.setProperty("--at", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${Math.round(range.value)} % original`);
  };
  range.addEventListener("input", move);
  original.className = "before";
  reconstruction.className = "after";
  figure.append(original, reconstruction, element("span", "original", "tag left"), element("span", words, "tag right"), line, range);
  figure.style.setProperty("--shape", reconstruction.naturalWidth / reconstruction.naturalHeight);
  move();
  return figure;
}

async function send(file) {
  if (running || !configured) return;
  running = true;
  $("drop").classList.add("busy");
  try {
    tell(`${file.name || "The picture"}, ${bytes(file.size)}: encoding at the edge …`);
    const rate = $("rate").value;
    const answer = await ask(`/v1/encode${rate ? `?rate=${encodeURIComponent(rate)}` : ""}`, { method: "POST", body: file });
    const frame = await answer.json();
    if (answer.status !== 202) return tell(frame.detail ?? `HTTP ${answer.status}`, true);
    tell(`A frame of ${count(frame.bytes)} bytes. Waiting for its reconstruction …`);
    const [original, back] = [element("img"), element("img")];
    original.alt = "The original";
    back.alt = "Its reconstruction";
    original.src = URL.createObjectURL(file);
    await original.decode();
    if (!(await picture(back, `/v1/frames/${frame.id}/image?format=png&wait=60`)))
      return tell("The frame has not arrived within a minute. It will appear below when it does.", true);
    const known = await json(`/v1/frames/${frame.id}/sizes`);
    const bars = element("div", undefined, "bars");
    sizeBars(bars, [["frame", frame.bytes], ["your file", file.size], ["PNG", known?.png ?? file.size]]);
    $("compare-place").replaceChildren(comparison(original, back, `${count(frame.bytes)} bytes`), bars);
    const share = Math.round(file.size / frame.bytes);
    tell(`${bytes(file.size)} became ${count(frame.bytes)} bytes, 1 : ${count(Math.max(1, share))}, ${frame.bpp.toFixed(4)} bits per pixel, encoded in ${Math.round(frame.encode_ms)} ms.`);
  } catch (error) {
    tell(`The picture could not be sent: ${error.message || "the service did not answer"}`, true);
  } finally {
    running = false;
    $("drop").classList.remove("busy");
    $("file").value = "";
  }
}

const carriesFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

export function listen() {
  $("file").addEventListener("change", () => $("file").files[0] && send($("file").files[0]));
  for (const kind of ["dragenter", "dragover"])
    addEventListener(kind, (event) => {
      if (!carriesFile(event)) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = configured ? "copy" : "none";
      $("drop").classList.toggle("over", configured);
    });
  addEventListener("dragleave", (event) => event.relatedTarget || $("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    $("drop").classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) send(file);
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) send(file);
  });
}
