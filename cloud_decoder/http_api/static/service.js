// Talking to the service: the token, JSON, pictures, and the event stream read by hand so that the token goes with it.

let token = sessionStorage.getItem("token") || "";

export class NotAllowed extends Error {}

export function remember(given) {
  token = given;
  sessionStorage.setItem("token", given);
}

export async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) throw new NotAllowed();
  return answer;
}

export const json = async (path) => (await ask(path)).json();

// An <img> cannot send a token, so pictures come by fetch; the browser's cache keeps them all the same.
export async function picture(image, path) {
  const answer = await ask(path);
  if (answer.status !== 200) return false;
  const url = URL.createObjectURL(await answer.blob());
  await new Promise((resolve) => {
    image.onload = image.onerror = resolve;
    image.src = url;
  });
  URL.revokeObjectURL(url);
  return true;
}

export async function save(path, name) {
  const url = URL.createObjectURL(await (await ask(path)).blob());
  const anchor = document.createElement("a");
  anchor.href = url;
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// Calls `heard` with each event until the stream ends; `opened` once it is open.
export async function follow(opened, heard) {
  const answer = await ask("/v1/events", { cache: "no-store" });
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
      const data = part.split("\n").find((line) => line.startsWith("data: "));
      if (data) await heard(JSON.parse(data.slice(6)));
    }
  }
}
