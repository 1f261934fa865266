// Small charts of the last frames: one column a frame, oldest on the left. The median stands beside the name, the 95th
// and the 99th percentile below.

import { bytes, count, drawing, element, live, seconds, times } from "/viewer/show.js";

export const COUNTED = 200; // frames that the figures are of
const LAST = 60; // columns drawn

const waits = (t) => (t.queue === undefined ? undefined : t.queue + (t.device_wait ?? 0));
const whole = (f) => f.available_at && (new Date(f.available_at) - new Date(live(f) ? f.captured_at : f.received_at)) / 1000;

const CHARTS = [
  ["Capture to picture", (f) => whole(f), seconds],
  ["Transfer", (f, t) => t.way, seconds],
  ["Waiting", (f, t) => waits(t), seconds],
  ["Entropy decoding", (f, t) => t.entropy, seconds],
  ["Synthesis", (f, t) => t.synthesis, seconds],
  ["Writing the file", (f, t) => t.image, seconds],
  ["Bytes per frame", (f) => f.bytes, bytes],
  ["Bits per pixel", (f) => f.bpp, (n) => n.toFixed(4)],
];

function quantile(sorted, q) {
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
}

function chart(name, values, say) {
  const item = element("li", undefined, "card chart");
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length ? say(quantile(sorted, 0.5)) : "–";
  const title = element("p", name);
  title.append(element("b", middle));
  // One outlier must not flatten the rest: columns end at the top, and the number below says how far it went.
  const top = sorted.length ? Math.max(quantile(sorted, 0.95) * 1.15, 1e-9) : 1;
  const step = 100 / LAST;
  const drawn = values.slice(-LAST);
  const picture = drawing("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img" });
  const spoken = sorted.length ? `median ${middle}, 95th percentile ${say(quantile(sorted, 0.95))}, 99th ${say(quantile(sorted, 0.99))}` : "no data yet";
  picture.setAttribute("aria-label", `${name} of the last ${count(values.length)} frames: ${spoken}`);
  drawn.forEach((value, index) => {
    const height = Math.max(0.8, Math.min(30, (30 * value) / top));
    const x = 100 - (drawn.length - index) * step;
    picture.append(drawing("rect", { x: x + step * 0.14, y: 30 - height, width: step * 0.72, height, rx: 0.4 }));
  });
  const foot = element("p", sorted.length ? `p95 ${say(quantile(sorted, 0.95))}` : "no data yet", "quiet");
  if (sorted.length) foot.append(element("span", `p99 ${say(quantile(sorted, 0.99))}`));
  item.append(title, picture, foot);
  return item;
}

// frames: newest first.
export function draw(place, frames) {
  const last = frames.slice(0, COUNTED).reverse();
  place.replaceChildren(
    ...CHARTS.map(([name, value, say]) => {
      const found = last.map((frame) => value(frame, times(frame))).filter((one) => Number.isFinite(one) && one >= 0);
      return chart(name, found, say);
    }),
  );
  return last.length;
}
