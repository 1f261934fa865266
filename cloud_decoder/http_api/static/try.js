// A picture of the visitor's own: through the edge, and back from its frame, under the slider of the comparison.

import { own } from "/viewer/compare.js";
import { ask, picture } from "/viewer/service.js";
import { $, bytes, count, element } from "/viewer/show.js";

const tell = (text, bad = false) => {
  $("try-status").textContent = text;
  $("try-status").classList.toggle("bad", bad);
};

let configured = false;
let running = false;
let toTheTop = () => {};

// What GET /v1/edge says: whether there is an edge, and how it is.
export function setEdge(edge) {
  configured = edge.configured;
  $("drop").classList.toggle("off", !configured);
  $("file").disabled = !configured;
  $("size").disabled = !configured;
  $("size-row").hidden = !configured;
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

async function send(file) {
  if (running || !configured) return;
  running = true;
  $("drop").classList.add("busy");
  toTheTop();
  try {
    tell(`${file.name || "The picture"}, ${bytes(file.size)}: encoding at the edge …`);
    const size = $("size").value;
    const answer = await ask(`/v1/encode${size ? `?target_bytes=${size}` : ""}`, { method: "POST", body: file });
    const frame = await answer.json();
    if (answer.status !== 202) return tell(frame.detail ?? `HTTP ${answer.status}`, true);
    tell(`A frame of ${count(frame.bytes)} bytes. Waiting for its reconstruction …`);
    const original = element("img");
    original.src = URL.createObjectURL(file);
    await original.decode();
    const back = await picture(element("img"), `/v1/frames/${frame.id}/image?format=png&wait=60`, () => true, true);
    if (!back) return tell("The frame has not arrived within a minute. It will appear below when it does.", true);
    const share = Math.round(file.size / frame.bytes);
    tell(
      `${bytes(file.size)} became ${count(frame.bytes)} bytes, 1 : ${count(Math.max(1, share))}, ${frame.bpp.toFixed(4)} bits per pixel, encoded in ${Math.round(frame.encode_ms)} ms.`,
    );
    await own(file, frame, back, original);
  } catch (error) {
    tell(`The picture could not be sent: ${error.message || "the service did not answer"}`, true);
  } finally {
    running = false;
    $("drop").classList.remove("busy");
    $("file").value = "";
  }
}

const carriesFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

// begun(): called when a picture is on its way, to bring the comparison into view.
export function listen(begun) {
  toTheTop = begun;
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
