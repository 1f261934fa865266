// Two pictures under one slider. Zoom and position are the same for both.

import { element } from "/viewer/show.js";

const MOST = 8;

// before, after: <img>; words: what stands under each. The figure has the shape of `width` by `height`.
export function slider(before, after, [left, right], width, height) {
  const figure = element("figure", undefined, "compare");
  figure.style.setProperty("--shape", width / height);
  const layers = [before, after].map((image, index) => {
    const layer = element("div", undefined, index ? "layer after" : "layer before");
    layer.append(image);
    return layer;
  });
  const range = element("input");
  Object.assign(range, { type: "range", min: 0, max: 100, step: 0.5, value: 50 });
  range.setAttribute("aria-label", `How much of "${left}" is visible`);
  const line = element("span", undefined, "line");
  const tags = [element("span", left, "tag left"), element("span", right, "tag right")];
  const view = { zoom: 1, x: 0, y: 0 };

  const slide = () => {
    figure.style.setProperty("--at", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${Math.round(range.value)} % ${left}`);
  };
  const look = () => {
    const room = (1 - view.zoom) * 100;
    view.x = Math.min(0, Math.max(room, view.x));
    view.y = Math.min(0, Math.max(room, view.y));
    for (const image of [before, after]) image.style.transform = `translate(${view.x}%, ${view.y}%) scale(${view.zoom})`;
    figure.classList.toggle("zoomed", view.zoom > 1);
    figure.classList.toggle("near", view.zoom >= 4);
    nearer.disabled = view.zoom >= MOST;
    farther.disabled = whole.disabled = view.zoom <= 1;
  };
  // Keeps the point at (x, y), in shares of the figure, where it is.
  const zoomTo = (zoom, x = 0.5, y = 0.5) => {
    const next = Math.min(MOST, Math.max(1, zoom));
    view.x = 100 * x - ((100 * x - view.x) * next) / view.zoom;
    view.y = 100 * y - ((100 * y - view.y) * next) / view.zoom;
    view.zoom = next;
    look();
  };
  const button = (text, label, act) => {
    const made = element("button", text);
    made.type = "button";
    made.setAttribute("aria-label", label);
    made.addEventListener("click", act);
    return made;
  };
  const nearer = button("+", "Zoom in", () => zoomTo(view.zoom * 2));
  const farther = button("−", "Zoom out", () => zoomTo(view.zoom / 2));
  const whole = button("1:1", "1:1, the whole picture", () => zoomTo(1));
  const tools = element("div", undefined, "tools");
  tools.append(nearer, farther, whole);

  const place = (event) => {
    const box = figure.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  let held = null; // "slide", or where the hand took hold of the picture
  figure.addEventListener("pointerdown", (event) => {
    if (event.button || event.target.closest(".tools")) return;
    const [x, y] = place(event);
    const near = Math.abs(x - range.value / 100) * figure.clientWidth < 28;
    held = view.zoom > 1 && !near ? { x: 100 * x - view.x, y: 100 * y - view.y } : "slide";
    figure.setPointerCapture(event.pointerId);
    move(event);
  });
  const move = (event) => {
    if (!held) return;
    const [x, y] = place(event);
    if (held === "slide") {
      range.value = 100 * x;
      slide();
    } else {
      view.x = 100 * x - held.x;
      view.y = 100 * y - held.y;
      look();
    }
  };
  figure.addEventListener("pointermove", move);
  for (const kind of ["pointerup", "pointercancel"]) figure.addEventListener(kind, () => (held = null));
  figure.addEventListener("dblclick", (event) => event.target.closest(".tools") || zoomTo(view.zoom > 1 ? 1 : 3, ...place(event)));
  figure.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey) return; // a pinch; the plain wheel scrolls the page
      event.preventDefault();
      zoomTo(view.zoom * Math.exp(-event.deltaY / 120), ...place(event));
    },
    { passive: false },
  );
  range.addEventListener("input", slide);
  range.addEventListener("keydown", (event) => {
    const steps = { "+": 2, "=": 2, "-": 0.5 };
    if (event.key in steps) zoomTo(view.zoom * steps[event.key], range.value / 100);
    if (event.key === "0") zoomTo(1);
  });
  for (const image of [before, after]) image.draggable = false;
  figure.append(...layers, ...tags, line, range, tools);
  slide();
  look();
  return figure;
}
