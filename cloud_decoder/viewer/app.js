// The page: lists frames, follows the event stream, shows one frame in a dialog. No library, no build step.
// Everything a source says is put in as text, never as markup.

const PAGE = 24;
const $ = (id) => document.getElementById(id);
let token = sessionStorage.getItem("token") || "";
let cursor = null;
const cards = new Map();

class NotAllowed extends Error {}

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) throw new NotAllowed();
  return answer;
}

const json = async (path) => (await ask(path)).json();

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const bytes = (n) => (n < 10000 ? `${n} B` : n < 1e7 ? `${(n / 1000).toFixed(1)} kB` : `${(n / 1e6).toFixed(1)} MB`);

function ago(text) {
  if (!text) return "never";
  const seconds = Math.max(0, (Date.now() - new Date(text)) / 1000);
  if (seconds < 5) return "now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h ago` : new Date(text).toLocaleDateString();
}

// Pictures come by fetch, since an <img> cannot send a token; the browser's cache keeps them all the same.
async function picture(image, path) {
  const answer = await ask(path);
  if (answer.status !== 200) return false;
  const url = URL.createObjectURL(await answer.blob());
  image.onload = () => URL.revokeObjectURL(url);
  image.src = url;
  return true;
}

function describe(frame) {
  return `${bytes(frame.bytes)} · ${frame.bpp.toFixed(4)} bpp`;
}

function card(frame) {
  const item = element("li");
  const button = element("button", undefined, "frame");
  const shot = element("div", undefined, "shot");
  const words = element("div", undefined, "words");
  button.append(shot, words);
  item.append(button);
  const made = { item, button, shot, words, frame, shown: false };
  button.addEventListener("click", () => open(made.frame));
  return made;
}

function fill(made, frame) {
  made.frame = frame;
  const raw = 3 * frame.width * frame.height;
  const state = element("span", frame.state === "done" ? "" : frame.state, `state-${frame.state}`);
  const when = element("span", `${frame.source} · ${ago(frame.received_at)}`, "more");
  const ratio = element("span", `${frame.width}×${frame.height} · 1 : ${Math.round(raw / frame.bytes)} `, "more");
  ratio.append(state);
  made.words.replaceChildren(element("span", describe(frame), "size"), ratio, when);
  made.button.setAttribute("aria-label", `Frame from ${frame.source}, ${describe(frame)}, ${frame.state}`);
  if (made.shown) return;
  if (frame.state === "failed") {
    made.shot.replaceChildren(element("span", "cannot be decoded", "state-failed"));
  } else if (frame.state === "done") {
    made.shown = true;
    const image = element("img");
    image.alt = `Reconstruction of a frame from ${frame.source}`;
    const width = frame.width > 640 ? "&width=640" : "";
    picture(image, `/v1/frames/${frame.id}/image?format=webp${width}&wait=20`)
      .then((there) => (there ? made.shot.replaceChildren(image) : (made.shown = false)))
      .catch(() => (made.shown = false));
  } else {
    made.shot.replaceChildren(element("span", "decoding …"));
  }
}

function show(frame, first) {
  let made = cards.get(frame.id);
  if (!made) {
    made = card(frame);
    cards.set(frame.id, made);
    if (first) $("list").prepend(made.item);
    else $("list").append(made.item);
    if (first && cards.size > 200) {
      const last = $("list").lastElementChild;
      for (const [id, one] of cards) if (one.item === last) cards.delete(id);
      last.remove();
    }
  }
  fill(made, frame);
  $("empty").hidden = true;
}

async function page(next) {
  const found = await json(`/v1/frames?limit=${PAGE}${next ? `&cursor=${next}` : ""}`);
  const order = next ? found.frames : found.frames.reverse();
  for (const frame of order) show(frame, !next);
  if (next || cursor === null) cursor = found.next_cursor;
  $("more").hidden = !cursor;
}

function pairs(list, entries) {
  list.replaceChildren();
  for (const [name, value] of entries) {
    const row = list.id === "facts" ? list : element("div");
    row.append(element("dt", name), element("dd", value));
    if (row !== list) list.append(row);
  }
}

async function totals() {
  const [status, sources] = await Promise.all([json("/v1/status"), json("/v1/sources")]);
  const { frames, bundle } = status;
  $("model").textContent = `${bundle.name} ${bundle.fingerprint} on ${status.device}`;
  const all = sources.sources.reduce((sum, one) => [sum[0] + one.frames, sum[1] + one.bytes], [0, 0]);
  pairs($("totals"), [
    ["frames", all[0].toLocaleString()],
    ["bytes received", bytes(all[1])],
    ["mean frame", all[0] ? bytes(Math.round(all[1] / all[0])) : "–"],
    ["waiting", (frames.received + frames.decoding).toLocaleString()],
    ["in quarantine", frames.failed.toLocaleString()],
  ]);
  $("sources").replaceChildren(
    ...sources.sources.map((one) => {
      const text = `${one.source} · ${one.frames.toLocaleString()} frames · ${ago(one.last_seen_at)}`;
      return element("li", text, one.connected ? "on" : "off");
    }),
  );
  if (!sources.sources.length) $("sources").append(element("li", "none yet", "off"));
}

function stages(timings) {
  const list = Object.entries(timings || {}).filter(([, seconds]) => seconds > 0);
  const sum = list.reduce((all, [, seconds]) => all + seconds, 0);
  $("stages").replaceChildren(
    ...list.map(([name, seconds], index) => {
      const text = `${name.replace("_", " ")} ${(1000 * seconds).toFixed(0)} ms`;
      const bar = element("span", text);
      bar.title = text;
      bar.style.setProperty("flex", `${seconds / sum} 1 0`);
      bar.style.setProperty("--hue", `${170 + 47 * index}`);
      return bar;
    }),
  );
}

async function save(link, path, name) {
  const data = await (await ask(path)).blob();
  const url = URL.createObjectURL(data);
  const anchor = element("a");
  anchor.href = url;
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

async function open(frame) {
  $("detail-title").textContent = `${frame.source}: ${describe(frame)}`;
  $("detail-image").removeAttribute("src");
  $("detail-image").alt = `Reconstruction of a frame from ${frame.source}`;
  stages(frame.timings);
  const waited = frame.available_at ? (new Date(frame.available_at) - new Date(frame.received_at)) / 1000 : null;
  pairs($("facts"), [
    ["id", frame.id],
    ["size", `${frame.width} × ${frame.height} pixels, rate ${frame.rate_name ?? frame.rate}`],
    ["captured", frame.captured_at ? new Date(frame.captured_at).toLocaleString() : "unknown"],
    ["received", new Date(frame.received_at).toLocaleString()],
    ["decoded after", waited === null ? "–" : `${waited.toFixed(2)} s`],
    ["state", frame.reason ? `${frame.state}: ${frame.reason}` : frame.state],
    ["latents", frame.latents_digest ? frame.latents_digest.slice(0, 16) : "–"],
  ]);
  const base = `/v1/frames/${frame.id}`;
  $("save-image").href = `${base}/image?wait=20`;
  $("save-frame").href = `${base}/bitstream`;
  $("save-image").onclick = (event) => (event.preventDefault(), save(event.target, `${base}/image?wait=20`, `${frame.id}.png`));
  $("save-frame").onclick = (event) => (event.preventDefault(), save(event.target, `${base}/bitstream`, `${frame.id}.aeic`));
  $("detail").showModal();
  if (frame.state !== "failed") await picture($("detail-image"), `${base}/image?wait=20`);
}

// Server-sent events, read by hand so that the token can go with them.
async function follow() {
  const answer = await ask("/v1/events", { cache: "no-store" });
  if (!answer.ok) throw new Error(`events: ${answer.status}`);
  $("link").textContent = "live";
  $("link").classList.add("live");
  await page(null); // what came while nobody was listening
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "));
      if (!data) continue;
      const event = JSON.parse(data.slice(6));
      if (event.frame) show(event.frame, true);
      else await page(null);
    }
    stale = true;
  }
}

let stale = true;
async function keepTotals() {
  let last = 0;
  for (;;) {
    if (!document.hidden && (stale || Date.now() - last > 10000)) {
      stale = false;
      last = Date.now();
      await totals().catch(() => {});
      for (const made of cards.values()) fill(made, made.frame); // "3 min ago" grows older
    }
    await new Promise((resume) => setTimeout(resume, 1000));
  }
}

async function run() {
  $("login").hidden = true;
  keepTotals();
  for (;;) {
    try {
      await follow();
    } catch (error) {
      if (error instanceof NotAllowed) {
        $("login").hidden = false;
        $("link").textContent = "token needed";
        $("token").focus();
        return;
      }
    }
    $("link").textContent = "reconnecting";
    $("link").classList.remove("live");
    await new Promise((resume) => setTimeout(resume, 2000));
  }
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  sessionStorage.setItem("token", token);
  location.reload();
});
$("more").addEventListener("click", () => page(cursor));
run();
