// Elements and words. Whatever a source says is put in as text, never as markup; nothing here knows the service.

export const $ = (id) => document.getElementById(id);

export function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function drawing(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export const count = (n) => n.toLocaleString("en");

export const bytes = (n) =>
  n < 10000 ? `${count(n)} B` : n < 1e6 ? `${(n / 1e3).toFixed(n < 1e5 ? 1 : 0)} kB` : `${(n / 1e6).toFixed(1)} MB`;

export const seconds = (s) =>
  s < 0.0095 ? `${(1000 * s).toFixed(1)} ms` : s < 0.9995 ? `${Math.round(1000 * s)} ms` : `${s.toFixed(s < 10 ? 1 : 0)} s`;

export function ago(time) {
  if (!time) return "never";
  const passed = Math.max(0, (Date.now() - new Date(time)) / 1000);
  if (passed < 5) return "now";
  if (passed < 90) return `${Math.round(passed)} s ago`;
  if (passed < 5400) return `${Math.round(passed / 60)} min ago`;
  return passed < 129600 ? `${Math.round(passed / 3600)} h ago` : new Date(time).toLocaleDateString();
}

// A length of time in one unit: "3 h".
export function lasting(s) {
  if (s < 90) return seconds(s);
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

// "every 4 seconds"
export function every(s) {
  if (s < 0.95) return `every ${s.toFixed(1)} seconds`;
  if (s < 120) return Math.round(s) === 1 ? "every second" : `every ${Math.round(s)} seconds`;
  return `every ${Math.round(s / 60)} minutes`;
}

// choices: [key, words]; the chosen one is pressed.
export function chips(place, choices, chosen, choose) {
  const kept = place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  place.replaceChildren(
    ...choices.map(([key, words]) => {
      const made = element("button", words, "chip");
      made.type = "button";
      made.dataset.key = key;
      made.setAttribute("aria-pressed", key === chosen);
      made.addEventListener("click", () => choose(key));
      return made;
    }),
  );
  if (kept !== null) [...place.children].find((one) => one.dataset.key === kept)?.focus();
}

export const describe = (frame) => `${count(frame.bytes)} B · ${frame.bpp.toFixed(4)} bpp`;

// What a frame that answers a request shows; empty for a frame of a source.
export const answering = (frame) =>
  frame.parent
    ? { region: "sharper part of an earlier picture", better: "better quality of an earlier picture", original: "original of an earlier picture", now: "new picture on request" }[frame.kind] ?? "answer to a request"
    : "";

// entries: [name, text or element, alarming]
export function pairs(list, entries, wrapped) {
  list.replaceChildren();
  for (const [name, value, alarming] of entries) {
    const row = wrapped ? element("div", undefined, alarming ? "alarming" : "") : list;
    const said = element("dd");
    said.append(value);
    row.append(element("dt", name), said);
    if (wrapped) list.append(row);
  }
}

// -- sizes and stages of one frame -------------------------------------------------------------------------------

// rows: [name, bytes]; the first is ours. Lengths are true to scale: that ours is a sliver is the point.
export function sizeBars(place, rows) {
  const most = Math.max(...rows.map(([, n]) => n));
  place.replaceChildren(
    ...rows.map(([name, n], index) => {
      const row = element("div", undefined, index ? "" : "ours");
      const track = element("span", undefined, "track");
      const fill = element("span");
      fill.style.width = `max(3px, ${(100 * n) / most}%)`;
      track.append(fill);
      const times = index ? `${bytes(n)} · ${count(Math.max(1, Math.round(n / rows[0][1])))}×` : bytes(n);
      row.append(element("span", name), track, element("span", times));
      return row;
    }),
  );
}

export const STAGES = [
  ["way", "transfer"],
  ["queue", "waiting"],
  ["entropy", "entropy decoding"],
  ["device_wait", "waiting for the device"],
  ["synthesis", "synthesis"],
  ["image", "writing the file"],
];

// Whether a frame shows what its parent shows. Its time of capture is then that of the parent.
export const repeats = (frame) => Boolean(frame.parent) && frame.kind !== "now";

// Whether the time of capture says when the frame's way to the cloud began. EXIF and files may be years old.
export const live = (frame) => Boolean(frame.captured_at) && !repeats(frame) && !["exif", "file"].includes(frame.captured_from);

// Seconds of each stage; "way" is from capture to arrival, where the edge knew when it was taken.
export function times(frame) {
  const found = { ...frame.timings };
  if (live(frame) && frame.received_at) {
    const way = (new Date(frame.received_at) - new Date(frame.captured_at)) / 1000;
    if (way >= 0 && way < 86400) found.way = way;
  }
  return found;
}

export function stageBar(place, frame) {
  const all = times(frame);
  const list = STAGES.map(([key, name], index) => [name, all[key] ?? 0, index]).filter(([, s]) => s >= 0.0005);
  if (!list.length) return place.replaceChildren(element("p", "not decoded yet", "quiet"));
  const sum = list.reduce((most, [, s]) => most + s, 0);
  const bar = element("div", undefined, "stagebar");
  bar.setAttribute("aria-hidden", "true");
  const legend = element("ul", undefined, "legend");
  for (const [name, s, index] of list) {
    const part = element("span", undefined, `hue-${index}`);
    part.style.flexGrow = (100 * s) / sum;
    bar.append(part);
    const line = element("li");
    line.append(element("span", undefined, `dot hue-${index}`), `${name} `, element("b", seconds(s)));
    legend.append(line);
  }
  place.replaceChildren(bar, legend);
}

// The same as one line of text.
export function stageWords(frame) {
  const all = times(frame);
  const parts = STAGES.map(([key, name]) => [name, all[key] ?? 0]).filter(([, s]) => s >= 0.0005);
  return parts.length ? parts.map(([name, s]) => `${name} ${seconds(s)}`).join(", ") : "–";
}
