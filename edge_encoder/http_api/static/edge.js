// The edge's page: what GET /v1/status says, asked every two seconds, and a test picture. Whatever a source says is put
// in as text, never as markup.

const $ = (id) => document.getElementById(id);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const count = (n) => n.toLocaleString("en");
const bytes = (n) => (n < 10000 ? `${count(n)} B` : n < 1e6 ? `${(n / 1e3).toFixed(0)} kB` : `${(n / 1e6).toFixed(1)} MB`);

function lasting(s) {
  if (s < 90) return `${Math.max(0, Math.round(s))} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
}

const since = (unix) => lasting(Date.now() / 1000 - unix);
const ago = (unix) => (unix === null ? "never" : `${since(unix)} ago`);

function pairs(list, entries) {
  list.replaceChildren(...entries.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

const LINK = {
  off: ["busy", "No cloud is set"],
  connecting: ["busy", "Connecting"],
  connected: ["good", "Connected"],
  unreachable: ["bad", "Not reachable"],
  "tls-failed": ["bad", "TLS failed"],
  stalled: ["bad", "Stalled"],
  "model-mismatch": ["bad", "Other model"],
  unauthorised: ["bad", "Not authorised"],
  refused: ["bad", "Refused"],
  "wrong-service": ["bad", "Wrong service"],
};
const FULL = {
  refuse: "pictures are refused",
  "drop-oldest": "the oldest are dropped",
  "drop-lowest-priority": "the least important are dropped",
};
const SOURCE = { up: "good", ended: "good", down: "bad" };

function show(status) {
  const { uplink, spool, received, encoding, bundle } = status;
  $("name").textContent = status.source_id;
  document.title = `${status.source_id} · AEIC edge`;
  const [colour, words] = LINK[uplink.state] ?? ["busy", uplink.state];
  $("link").className = `big ${colour}`;
  $("link").textContent = words;
  $("link-words").textContent = uplink.state === "connected" ? "" : uplink.detail;
  pairs($("link-facts"), [
    ["cloud", uplink.cloud || "none is set"],
    ["for", since(uplink.since_unix)],
    ["last answer", ago(uplink.last_ack_unix)],
    ["failures in a row", count(uplink.failures_in_a_row)],
  ]);
  $("spool").textContent = count(spool.frames);
  $("spool-meter").value = spool.bytes / spool.max_bytes;
  pairs($("spool-facts"), [
    ["size", `${bytes(spool.bytes)} of ${bytes(spool.max_bytes)}`],
    ["oldest", spool.oldest_seconds === null || !spool.frames ? "–" : lasting(spool.oldest_seconds)],
    ["when full", FULL[spool.full_policy] ?? spool.full_policy],
    ["not encoded yet", received.frames ? `${count(received.frames)}, ${bytes(received.bytes)}` : "none"],
  ]);
  $("pending").textContent = count(encoding.pending);
  const rate = status.rates.find((one) => one.number === status.default_rate);
  pairs($("encoding-facts"), [
    ["model", `${bundle.name} ${bundle.fingerprint}`],
    ["runs on", status.provider.replace(/ExecutionProvider$/, "")],
    ["default rate", rate ? `${rate.name}, about ${rate.bpp} bits per pixel` : status.default_rate],
    ["at the same time", count(encoding.workers)],
  ]);
  $("sources").hidden = !status.sources.length;
  $("no-sources").hidden = status.sources.length > 0;
  $("rows").replaceChildren(
    ...status.sources.map((one) => {
      const row = element("tr");
      const name = element("th", one.name);
      name.scope = "row";
      const state = element("td", one.state, SOURCE[one.state] ?? "busy");
      if (one.detail) state.append(element("small", one.detail));
      const kind = element("small", one.kind, "quiet");
      name.append(" ", kind);
      row.append(name, state, element("td", ago(one.last_picture_unix)), element("td", count(one.taken)), element("td", count(one.refused)));
      return row;
    }),
  );
}

function state(text, kind) {
  $("state").textContent = text;
  $("state").className = `pill ${kind}`;
}

function notice(text) {
  if ($("notice").textContent !== text) $("notice").textContent = text;
  $("notice").hidden = !text;
}

let lost = null;

async function refresh() {
  try {
    const [answer, ready] = await Promise.all([fetch("/v1/status", { cache: "no-store" }), fetch("/readyz", { cache: "no-store" })]);
    if (!answer.ok) throw new Error();
    show(await answer.json());
    lost = null;
    state(ready.ok ? "ready" : "not ready", ready.ok ? "good" : "bad");
    const said = await ready.json();
    const down = Object.entries(said.sources_down ?? {}).map(([name, detail]) => `${name}: ${detail}`);
    notice(ready.ok ? down.join("; ") : said.detail);
  } catch {
    lost ??= new Date();
    state("no answer", "bad");
    notice(`The edge has not answered since ${lost.toLocaleTimeString()}. The page shows the state at that time.`);
  }
}

// -- the test picture ---------------------------------------------------------------------------------------------

function draw() {
  const canvas = $("card");
  canvas.setAttribute("aria-label", "A test card with the time");
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  const sky = context.createLinearGradient(0, 0, 0, height);
  sky.addColorStop(0, "#3f6d8f");
  sky.addColorStop(1, "#d9c7a0");
  context.fillStyle = sky;
  context.fillRect(0, 0, width, height);
  ["#c0c0c0", "#c0c000", "#00c0c0", "#00c000", "#c000c0", "#c00000", "#0000c0"].forEach((colour, index) => {
    context.fillStyle = colour;
    context.fillRect(60 + (index * (width - 120)) / 7, 60, (width - 120) / 7 + 1, 130);
  });
  for (let step = 0; step < 16; step += 1) {
    context.fillStyle = `rgb(${17 * step} ${17 * step} ${17 * step})`;
    context.fillRect(60 + (step * (width - 120)) / 16, 200, (width - 120) / 16 + 1, 40);
  }
  context.strokeStyle = "#fff";
  context.lineWidth = 3;
  context.beginPath();
  context.arc(width / 2, 350, 82, 0, 2 * Math.PI);
  context.moveTo(60, 350);
  context.lineTo(width - 60, 350);
  context.stroke();
  context.fillStyle = "#10201c";
  context.font = "600 54px sans-serif";
  context.textAlign = "center";
  context.fillText(new Date().toLocaleString(), width / 2, 480, width - 120);
}

// The photograph that is sent, in the place of the test card. A format that the browser cannot show leaves it empty.
async function preview(file) {
  const canvas = $("card");
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  canvas.setAttribute("aria-label", "Your photograph");
  const picture = await createImageBitmap(file).catch(() => null);
  if (picture === null) return;
  const scale = Math.min(width / picture.width, height / picture.height);
  const [wide, tall] = [scale * picture.width, scale * picture.height];
  context.drawImage(picture, (width - wide) / 2, (height - tall) / 2, wide, tall);
  picture.close();
}

function step(text, bad = false) {
  $("steps").append(element("li", text, bad ? "bad" : ""));
}

async function send(picture) {
  $("send").disabled = $("file").disabled = true;
  $("steps").replaceChildren();
  const begun = performance.now();
  const passed = () => `${((performance.now() - begun) / 1000).toFixed(1)} s`;
  try {
    step(`A picture of ${bytes(picture.size)} is sent to the encoder.`);
    const size = $("size").value;
    const answer = await fetch(`/v1/frames?wait=spooled${size ? `&target_bytes=${size}` : ""}`, { method: "POST", body: picture });
    let frame = await answer.json();
    if (!answer.ok) return step(frame.detail ?? `HTTP ${answer.status}`, true);
    step(`Encoded in ${Math.round(frame.encode_ms)} ms: ${frame.width} × ${frame.height} pixels in ${count(frame.bytes)} bytes. It is in the spool.`);
    const waits = () => frame.state === "spooled" || frame.state === "sending";
    for (let tries = 0; tries < 60 && waits(); tries += 1) {
      await new Promise((resume) => setTimeout(resume, tries < 20 ? 100 : 1000));
      const asked = await fetch(`/v1/frames/${frame.id}`, { cache: "no-store" });
      if (!asked.ok) break;
      frame = await asked.json();
    }
    if (frame.state === "delivered") step(`The cloud has it, ${passed()} after it was sent.`);
    else if (waits()) step("It still waits for the link. It is safe in the spool.");
    else step(`It was ${frame.state}: ${frame.reason ?? "no reason is known"}`, true);
  } catch {
    step("The edge did not answer.", true);
  } finally {
    $("send").disabled = $("file").disabled = false;
    $("file").value = "";
    refresh();
  }
}

$("send").addEventListener("click", () => {
  draw();
  $("card").toBlob(send, "image/jpeg", 0.92);
});
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (!file) return;
  preview(file);
  send(file);
});
$("host").textContent = location.host;
draw();
for (;;) {
  if (!document.hidden) await refresh();
  await new Promise((resume) => setTimeout(resume, 2000));
}
