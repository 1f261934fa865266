// Talking to the service: the token, JSON, pictures, and the event stream read by hand so that the token goes with it.

let token = sessionStorage.getItem("token") || "";

export class NotAllowed extends Error {}

export const hasToken = () => Boolean(token);

export function remember(given) {
  token = given;
  sessionStorage.setItem("token", given);
}

export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  try {
    if (token) headers.set("Authorization", `Bearer ${token}`);
  } catch {
    throw new NotAllowed(); // a character that no header can have, so no token has it
  }
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) throw new NotAllowed();
  return answer;
}

export async function json(path) {
  const answer = await ask(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

// An <img> cannot send a token, so pictures come by fetch; the browser's cache keeps them all the same. False where
// there is none yet, or where it is not `wanted` any more; else true, or the object URL where the caller keeps it.
export async function picture(image, path, wanted = () => true, keep = false) {
  const answer = await ask(path);
  if (answer.status !== 200 || !wanted()) return false;
  const url = URL.createObjectURL(await answer.blob());
  await new Promise((resolve) => {
    image.onload = image.onerror = resolve;
    image.src = url;
  });
  if (keep) return url;
  URL.revokeObjectURL(url);
  return true;
}

// Small pictures come a few at a time, so that the rest of the page does not wait behind a thousand of them.
const AT_ONCE = 3;
const queue = [];
let loading = 0;

async function nextThumbnail() {
  while (loading < AT_ONCE && queue.length) {
    const { image, path, resolve, reject } = queue.shift();
    loading += 1;
    picture(image, path)
      .then(resolve, reject)
      .finally(() => {
        loading -= 1;
        nextThumbnail();
      });
  }
}

export function thumbnail(image, frame, width) {
  const smaller = frame.width > width ? `&width=${width}` : "";
  const path = `/v1/frames/${frame.id}/image?format=webp${smaller}&wait=20`;
  return new Promise((resolve, reject) => {
    queue.push({ image, path, resolve, reject });
    nextThumbnail();
  });
}

// Saves what `path` answers as the file `name`. Where it is no file, `link`, which was clicked, says so for some seconds.
export async function save(link, path, name) {
  const answer = await ask(path).catch(() => null);
  if (answer?.status !== 200) {
    const words = link.dataset.words ?? link.textContent;
    link.dataset.words = words;
    link.textContent = answer?.status === 410 ? "It has been deleted" : "It could not be saved: try again";
    return void setTimeout(() => (link.textContent = words), 5000);
  }
  const url = URL.createObjectURL(await answer.blob());
  const anchor = document.createElement("a");
  anchor.href = url;
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

let last = null; // the id of the last event: after an interruption the stream goes on behind it

// Calls `heard` with each event until the stream ends; `opened` once it is open.
export async function follow(opened, heard) {
  const answer = await ask("/v1/events", { cache: "no-store", headers: last ? { "Last-Event-ID": last } : {} });
  if (answer.status === 400) last = null;
  if (!answer.ok) throw new Error(`events: ${answer.status}`);
  await opened();
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n");
      const [id, data] = ["id: ", "data: "].map((name) => lines.find((line) => line.startsWith(name))?.slice(name.length));
      if (data) await heard(JSON.parse(data));
      if (id) last = id;
    }
  }
}
