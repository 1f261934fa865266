// A client of the cloud in JavaScript, for Node.js (18 or later) and for browsers. It needs no package and no build.
//
//     import { Cloud } from "./aeic_client.mjs";
//     const cloud = new Cloud("http://127.0.0.1:8081", { token: "..." });
//     for await (const frame of cloud.frames({ source: "roof-camera-1" })) console.log(frame.received_at, frame.bytes);
//     for await (const event of cloud.events()) if (event.event === "done") show(await cloud.image(event.id));
//
// In a browser, a page of another origin needs AEIC_CLOUD_CORS_ORIGINS=https://the.origin at the cloud.
//
// From a shell: node aeic_client.mjs URL list | image ID FILE | follow [LAST_EVENT_ID] | delete ID

const PASSING = new Set([429, 502, 503, 504]); // the same request may succeed later
const LONGEST_PAUSE_MS = 30000;
const sleep = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

// An answer that is no success: `status`, the `type` of the problem (such as urn:aeic:unknown-frame) and its `detail`.
export class Problem extends Error {
  constructor(status, body) {
    super(`HTTP ${status}: ${body.detail ?? ""}`);
    this.name = "Problem";
    this.status = status;
    this.type = body.type ?? "";
    this.detail = body.detail ?? "";
  }
}

export class Cloud {
  #url;
  #headers;
  #retries;

  // `retries`: how often a request is sent again after 429, 502, 503, 504 or a failed connection.
  constructor(url, { token = "", retries = 3 } = {}) {
    this.#url = url.replace(/\/+$/, "");
    this.#headers = token ? { Authorization: `Bearer ${token}` } : {};
    this.#retries = retries;
  }

  // All frames that fit, the newest first: source, state, rate, since, until (a Date, or text in RFC 3339). Those that
  // are undefined do not count. Pages are fetched as they are needed.
  async *frames(filters = {}) {
    const asked = new URLSearchParams({ limit: "100" });
    for (const [name, value] of Object.entries(filters))
      if (value !== undefined && value !== null) asked.set(name, value instanceof Date ? value.toISOString() : value);
    let path = `/v1/frames?${asked}`;
    while (path) {
      const page = await (await this.#send(path)).json();
      yield* page.frames;
      path = page.next;
    }
  }

  // One frame, with `wait` seconds for one that has not arrived.
  async frame(id, wait = 0) {
    return (await this.#send(`/v1/frames/${id}?wait=${wait}`)).json();
  }

  // The picture as a Blob, or null while it is not decoded after `wait` seconds.
  async image(id, { format = "webp", width, wait = 30 } = {}) {
    const asked = new URLSearchParams({ format, wait: String(wait), ...(width ? { width: String(width) } : {}) });
    const answer = await this.#send(`/v1/frames/${id}/image?${asked}`);
    return answer.status === 200 ? answer.blob() : null;
  }

  // The frame itself: the bytes of an .aeic file.
  async bitstream(id) {
    return new Uint8Array(await (await this.#send(`/v1/frames/${id}/bitstream`)).arrayBuffer());
  }

  // Deletes a frame. A second call does nothing.
  async delete(id) {
    await this.#send(`/v1/frames/${id}`, { method: "DELETE" });
  }

  // Events without end, each with its `lastEventId`; begin after `lastEventId` if it is given. A broken connection is
  // opened again after the last event, so none is missed. {event: "lost"} says that the cloud does not keep them all.
  async *events({ lastEventId = "", signal } = {}) {
    for (let attempt = 0; !signal?.aborted; attempt += 1) {
      try {
        const headers = lastEventId ? { "Last-Event-ID": lastEventId } : {};
        const answer = await this.#once("/v1/events", { headers, signal, cache: "no-store" });
        let text = "";
        const decoder = new TextDecoder();
        const reader = answer.body.getReader();
        for (;;) {
          const { value, done } = await reader.read();
          if (done) break;
          const blocks = (text + decoder.decode(value, { stream: true })).split("\n\n");
          text = blocks.pop();
          for (const block of blocks) {
            const field = (name) => block.split("\n").find((line) => line.startsWith(name))?.slice(name.length);
            lastEventId = field("id: ") ?? lastEventId;
            const data = field("data: ");
            attempt = 0;
            if (data) yield { ...JSON.parse(data), lastEventId };
          }
        }
      } catch (error) {
        if (signal?.aborted) return;
        if (error instanceof Problem && !PASSING.has(error.status)) throw error;
        if (error instanceof SyntaxError) throw error; // this is not an AEIC cloud
      }
      await sleep(Math.min(LONGEST_PAUSE_MS, 500 * 2 ** attempt), signal);
    }
  }

  // The answer to a request that may be sent again.
  async #send(path, options = {}) {
    for (let attempt = 0; ; attempt += 1) {
      let pause = 500 * 2 ** attempt;
      try {
        return await this.#once(path, options);
      } catch (error) {
        const passing = error instanceof Problem ? PASSING.has(error.status) : error instanceof TypeError;
        if (!passing || attempt >= this.#retries) throw error;
        if (error.retryAfter) pause = 1000 * error.retryAfter;
      }
      await sleep(Math.min(LONGEST_PAUSE_MS, pause) * (1 + Math.random() / 2));
    }
  }

  async #once(path, { headers = {}, ...options } = {}) {
    const answer = await fetch(this.#url + path, { ...options, headers: { ...this.#headers, ...headers } });
    if (answer.ok) return answer;
    const problem = new Problem(answer.status, await answer.json().catch(() => ({})));
    problem.retryAfter = Number(answer.headers.get("Retry-After")) || 0;
    throw problem;
  }
}

async function main([url, command, ...rest]) {
  const cloud = new Cloud(url, { token: process.env.AEIC_TOKEN });
  if (command === "list") for await (const frame of cloud.frames()) console.log(frame.id, frame.state, frame.bytes);
  if (command === "image") {
    const { writeFile } = await import("node:fs/promises");
    const picture = await cloud.image(rest[0]);
    if (!picture) throw new Error("it is not decoded yet");
    await writeFile(rest[1], new Uint8Array(await picture.arrayBuffer()));
  }
  if (command === "follow") {
    for await (const one of cloud.events({ lastEventId: rest[0] })) console.log(one.event, one.id ?? "", one.lastEventId);
  }
  if (command === "delete") await cloud.delete(rest[0]);
}

if (typeof process !== "undefined" && process.argv?.[1]?.endsWith("aeic_client.mjs")) {
  main(process.argv.slice(2)).catch((error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
}
