// The same bytes, side by side: a frame beside JPEG, WebP and AVIF files with no more bytes, or beside the original.

import { $, bytes, chips, count, element, every } from "/viewer/show.js";
import { slider } from "/viewer/slider.js";

const PLAN_BYTES = 1e9;
const MONTH_SECONDS = 30 * 86400;
const NAMES = { webp: "WebP", jpeg: "JPEG", avif: "AVIF", original: "the original" };
const SCALES = [1, 0.75, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2, 0.16, 0.13, 0.1, 0.08];

let pictures = []; // {name, title, width, height, bytes, fileBytes, model, frame, original, baselines: {codec: {...}}}
let chosen = null;
let against = "webp";

export async function start() {
  const answer = await fetch("/viewer/compare/index.json").catch(() => null);
  if (!answer?.ok) return;
  const about = await answer.json();
  const at = (file) => `/viewer/compare/${file}`;
  pictures = about.pictures.map((one) => ({
    ...one,
    fileBytes: one.file_bytes,
    model: `${about.model} ${about.fingerprint}`,
    frame: at(`${one.name}-frame.webp`),
    original: at(`${one.name}-original.webp`),
    baselines: Object.fromEntries(Object.entries(one.baselines).map(([codec, baseline]) => [codec, { ...baseline, url: at(baseline.file) }])),
  }));
  pictures.sort((a, b) => a.bytes - b.bytes);
  if (!chosen) choose(pictures[0]);
}

// The visitor's own picture, before the others. Its baselines are made in this browser, a moment later.
export async function own(file, frame, frameUrl, image) {
  const mine = {
    name: "own",
    title: "Yours",
    width: frame.width,
    height: frame.height,
    bytes: frame.bytes,
    fileBytes: file.size,
    frame: frameUrl,
    original: image.src,
    baselines: {},
  };
  for (const one of pictures.filter((two) => two.name === "own"))
    for (const url of [one.frame, one.original, ...Object.values(one.baselines).map((baseline) => baseline.url)]) URL.revokeObjectURL(url);
  pictures = [mine, ...pictures.filter((one) => one.name !== "own")];
  against = "original";
  choose(mine);
  for (const codec of ["webp", "jpeg"]) {
    const baseline = await best(image, frame, codec);
    if (baseline) mine.baselines[codec] = baseline;
    if (chosen === mine) offer();
  }
}

function choose(picture) {
  chosen = picture;
  if (against !== "original" && !picture.baselines[against]) against = Object.keys(picture.baselines)[0] ?? "original";
  offer();
  show();
}

function offer() {
  chips($("showcase-pictures"), pictures.map((one) => [one.name, one.title]), chosen.name, (name) => choose(pictures.find((one) => one.name === name)));
  const there = ["webp", "jpeg", "avif"].filter((codec) => chosen.baselines[codec]);
  chips($("showcase-baselines"), [...there, "original"].map((codec) => [codec, `vs ${codec === "original" ? "original" : NAMES[codec]}`]), against, (codec) => {
    against = codec;
    offer();
    show();
  });
}

function loaded(url, alt, picture) {
  const image = element("img");
  Object.assign(image, { alt, src: url, width: picture.width, height: picture.height, decoding: "async" });
  return image;
}

function show() {
  const picture = chosen;
  const baseline = picture.baselines[against];
  const left = baseline ? `${NAMES[against]} · ${count(baseline.bytes)} B` : `original · ${bytes(picture.fileBytes)}`;
  const before = loaded(baseline?.url ?? picture.original, baseline ? `${picture.title} as ${NAMES[against]}` : `${picture.title}, the original`, picture);
  const after = loaded(picture.frame, `${picture.title}, decoded from its frame`, picture);
  $("showcase-stage").replaceChildren(slider(before, after, [left, `this frame · ${count(picture.bytes)} B`], picture.width, picture.height));
  $("showcase-bytes").textContent = count(picture.bytes);
  const share = Math.max(1, Math.round(picture.fileBytes / picture.bytes));
  $("showcase-words").textContent =
    `carry this whole picture of ${picture.width} × ${picture.height} pixels. Its file has ${bytes(picture.fileBytes)}: ${count(share)} times the size.`;
  $("showcase-note").textContent = baseline ? said(baseline, picture) : "On the left is the file that was encoded, on the right what the decoder made of the frame.";
  $("showcase-plan").replaceChildren(
    "A plan of 1 GB a month carries ",
    element("strong", count(Math.floor(PLAN_BYTES / picture.bytes))),
    ` such pictures, one ${every((MONTH_SECONDS * picture.bytes) / PLAN_BYTES)}, without the overhead of the connection.`,
  );
}

function said(baseline, picture) {
  const name = NAMES[against];
  if (baseline.width >= picture.width)
    return `${name} at its best with as many bytes, ${count(baseline.bytes)}.`;
  return (
    `${name} cannot hold this picture in so few bytes: at full size it needs at least ${bytes(baseline.smallest)}. ` +
    `This is its best with ${count(baseline.bytes)} bytes, ${baseline.width} × ${baseline.height} pixels, enlarged.`
  );
}

// -- baselines of the visitor's own picture ----------------------------------------------------------------------------
// Of all sizes and qualities with no more bytes than the frame, the one nearest to the original after enlarging.

const sheet = (width, height) => Object.assign(document.createElement("canvas"), { width, height });

const file = (canvas, codec, quality) =>
  new Promise((resolve) => canvas.toBlob((blob) => resolve(blob?.type === `image/${codec}` ? blob : null), `image/${codec}`, quality));

function drawn(image, width, height) {
  const canvas = sheet(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
  return canvas;
}

const pixels = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;

function difference(one, other) {
  let sum = 0;
  for (let at = 0; at < one.length; at += 4)
    for (let channel = 0; channel < 3; channel += 1) sum += (one[at + channel] - other[at + channel]) ** 2;
  return sum;
}

async function best(image, frame, codec) {
  const whole = drawn(image, frame.width, frame.height);
  const truth = pixels(whole);
  const smallest = (await file(whole, codec, 0))?.size;
  if (!smallest) return null; // this browser cannot write it
  let found = null;
  for (const scale of SCALES) {
    const [width, height] = [frame.width, frame.height].map((side) => Math.max(1, Math.round(scale * side)));
    const canvas = drawn(whole, width, height);
    let fits = null;
    for (let low = 0, high = 100; low <= high; ) {
      const middle = (low + high) >> 1;
      const blob = await file(canvas, codec, middle / 100);
      if (blob.size <= frame.bytes) [fits, low] = [blob, middle + 1];
      else high = middle - 1;
    }
    if (!fits) continue;
    const bitmap = await createImageBitmap(fits);
    const error = difference(truth, pixels(drawn(bitmap, frame.width, frame.height)));
    bitmap.close();
    if (!found || error < found.error) found = { error, blob: fits, width, height, bytes: fits.size, smallest };
  }
  return found && { ...found, url: URL.createObjectURL(found.blob) };
}
