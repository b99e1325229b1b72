"use strict";

const SVG = "http://www.w3.org/2000/svg";
const SHOWN_DEVIATIONS = 8;
const select = (selector, within = document) => within.querySelector(selector);
const percent = (share) => `${Number((100 * share).toPrecision(2))} %`;

let model = null;
let token = sessionStorage.getItem("dlsr-token");
let rate = 0.05;
const cards = [];

async function request(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) select("#token-form").hidden = false;
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({ detail: response.statusText }));
  throw Object.assign(new Error(problem.detail), { problem });
}

async function loadModel() {
  model = await (await request("/v1/model")).json();
  select("#token-form").hidden = true;
  select("#maps").closest("label").hidden = !model.maps;
  select("#model").textContent =
    `Model ${model.model}: ${model.encoder}, score ${model.score}, fitted to ${model.training_images} images, ` +
    `calibrated on ${model.calibration_images} images.` +
    (model.rate_in_doubt ? ` The false-alarm rate may not hold: ${model.rate_in_doubt}.` : "");
  if (model.confidence !== null) {
    select("#promise").textContent = `with a confidence of ${Number((100 * model.confidence).toPrecision(6))} %`;
  }
  setRate(model.false_alarm_rate);
  select("#rate").value = sliderOf(model.false_alarm_rate);
}

// The slider is logarithmic, from the smallest to the largest rate that the service gives a threshold for.
const smallestRate = () => model.thresholds[0][0];
const largestRate = () => model.thresholds.at(-1)[0];
const rateOf = (slider) => smallestRate() * (largestRate() / smallestRate()) ** (slider / 100);
const sliderOf = (share) => (100 * Math.log(share / smallestRate())) / Math.log(largestRate() / smallestRate());

function setRate(share) {
  rate = share;
  select("#rate-shown").textContent = percent(share);
  select("#rate").setAttribute("aria-valuetext", percent(share));
  cards.forEach(judge);
  summarise();
}

function summarise() {
  const judged = cards.filter((card) => card.answer.p_value !== null);
  const ood = judged.filter((card) => isOod(card.answer)).length;
  const unreadable = cards.length - judged.length;
  select("#summary").textContent = cards.length
    ? `${ood} of ${judged.length} images are out of distribution` + (unreadable ? `; ${unreadable} cannot be read` : "")
    : "";
}

// With a tolerance, because the slider rounds the rate and p-values are exact.
const TOLERANCE = 1e-9;
const isOod = (answer) => answer.p_value <= rate * (1 + TOLERANCE);

function judge(card) {
  if (card.answer.error) return;
  const ood = isOod(card.answer);
  card.element.classList.toggle("ood", ood);
  card.element.classList.toggle("id", !ood);
  select(".verdict", card.element).textContent = ood ? "✕ Out of distribution" : "✓ In distribution";
  const line = select("line.threshold", card.element);
  const cut = thresholdAt(rate);
  const place = String(card.x(cut));
  line.setAttribute("x1", place);
  line.setAttribute("x2", place);
}

// Position of the dashed line. The service gives it for each rate that the slider can have.
const thresholdAt = (share) => model.thresholds.filter(([known]) => known <= share * (1 + TOLERANCE)).at(-1)[1];

function show(file, answer) {
  const element = select("#card").content.cloneNode(true).firstElementChild;
  const card = { element, answer };
  const image = select("img", element);
  const picture = URL.createObjectURL(file);
  image.src = picture;
  image.alt = file.name;
  image.onload = () => URL.revokeObjectURL(picture);
  image.onerror = () => {
    image.replaceWith("no preview");
    select(".map", element)?.remove();
    URL.revokeObjectURL(picture);
  };
  select(".name", element).textContent = file.name;
  if (answer.map) showMap(select(".picture", element), answer.map);
  if (answer.error) {
    element.classList.add("error");
    select(".verdict", element).textContent = `Cannot be read: ${answer.error}`;
    element.querySelectorAll("dl, figure").forEach((part) => part.remove());
  } else {
    select(".score", element).textContent = answer.score.toFixed(2);
    select(".p-value", element).textContent = answer.p_value.toFixed(answer.p_value < 0.01 ? 4 : 3);
    showReasons(select(".why", element), answer.reasons);
    card.x = drawHistogram(select("svg", element), answer.score);
    drawLayers(select(".bars", element), answer);
    showNearest(select(".nearest", element), answer.nearest);
  }
  select("#results").append(element);
  cards.push(card);
  judge(card);
}

function drawHistogram(svg, score) {
  const { edges, counts } = model.calibration_histogram;
  const low = Math.min(edges[0], score);
  const span = Math.max(edges.at(-1), score) - low || 1;
  const x = (value) => 6 + (228 * (value - low)) / span;
  const most = Math.max(...counts);
  counts.forEach((count, i) => {
    const height = (56 * count) / most;
    svg.append(shape("rect", { x: x(edges[i]), y: 66 - height, width: Math.max(x(edges[i + 1]) - x(edges[i]) - 0.3, 0.3), height }));
  });
  svg.append(shape("line", { class: "threshold", x1: 0, x2: 0, y1: 6, y2: 66 }));
  svg.append(shape("line", { x1: x(score), x2: x(score), y1: 6, y2: 66 }));
  svg.append(shape("path", { d: `M${x(score) - 5},0 h10 l-5,8 z` }));
  svg.setAttribute("aria-label", `Score ${score.toFixed(2)}; calibration scores from ${edges[0].toFixed(2)} to ${edges.at(-1).toFixed(2)}`);
  return x;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  return made;
}

function drawLayers(bars, answer) {
  Object.entries(answer.layers).forEach(([layer, deviations]) => {
    const shown = Math.max(-SHOWN_DEVIATIONS, Math.min(SHOWN_DEVIATIONS, deviations));
    const fill = document.createElement("div");
    fill.className = layer === answer.top_layer ? "fill top" : "fill";
    const half = (50 * Math.abs(shown)) / SHOWN_DEVIATIONS;
    // Not as an attribute: the content security policy allows no inline styles.
    fill.style.left = `${shown < 0 ? 50 - half : 50}%`;
    fill.style.width = `${half}%`;
    bars.append(text("span", "layer", layer), wrap("track", fill), text("span", "value", (Math.round(10 * deviations) / 10 + 0).toFixed(1)));
  });
}

function text(tag, name, content) {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = content;
  return made;
}

function wrap(name, child) {
  const made = document.createElement("div");
  made.className = name;
  made.append(child);
  return made;
}

function showReasons(line, reasons) {
  if (!reasons || !reasons.length) return;
  const byPValue = new Map();
  for (const { words, p_value } of reasons) byPValue.set(p_value, [...(byPValue.get(p_value) || []), words]);
  const listed = [...byPValue].map(([p, words]) => `${words.join(", ")} (p\u00a0=\u00a0${Number(p.toPrecision(2))})`);
  line.textContent = `Unlike in-distribution images: ${listed.join("; ")}`;
  line.hidden = false;
}

function showMap(picture, map) {
  const overlay = document.createElement("img");
  overlay.className = "map";
  overlay.src = `data:image/png;base64,${map}`;
  overlay.alt = "";
  select("div", picture).append(overlay);
}

async function showNearest(figure, nearest) {
  if (!nearest || !nearest.length) return;
  figure.hidden = false;
  for (const index of nearest) {
    const response = await request(`/v1/examples/${index}`).catch(() => null);
    if (response === null) continue;
    const image = document.createElement("img");
    image.src = URL.createObjectURL(await response.blob());
    image.alt = `Training image ${index}`;
    select(".thumbnails", figure).append(image);
  }
}

// Split files into requests within the limits of the service.
function groups(files) {
  const made = [];
  let group = [];
  let size = 0;
  for (const file of files) {
    if (group.length === model.max_images || (group.length && size + file.size > 0.9 * model.max_body_bytes)) {
      made.push(group);
      group = [];
      size = 0;
    }
    group.push(file);
    size += file.size;
  }
  return group.length ? [...made, group] : made;
}

async function score(files) {
  select("#errors").textContent = "";
  try {
    if (!model) await loadModel();
  } catch (error) {
    select("#errors").textContent = error.message;
    return;
  }
  let done = 0;
  for (const group of groups(files)) {
    select("#summary").textContent = `Scoring ${done + 1} to ${done + group.length} of ${files.length} …`;
    const form = new FormData();
    group.forEach((file) => form.append("images", file));
    try {
      const answer = await (await request(`/v1/score?reasons=true&maps=${model.maps}`, { method: "POST", body: form })).json();
      if (answer.model !== model.model) await loadModel();
      answer.images.forEach((found, i) => show(group[i], found));
    } catch (error) {
      const unreadable = error.problem && error.problem.images;
      if (unreadable) group.forEach((file) => show(file, { p_value: null, error: unreadable[file.name] || error.message }));
      else select("#errors").textContent += `${error.message}\n`;
    }
    done += group.length;
  }
  summarise();
}

const drop = select("#drop");
select("#files").addEventListener("change", (event) => {
  score([...event.target.files]);
  event.target.value = "";
});
["dragenter", "dragover"].forEach((name) => drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); }));
["dragleave", "drop"].forEach((name) => drop.addEventListener(name, () => drop.classList.remove("over")));
drop.addEventListener("drop", (event) => { event.preventDefault(); score([...event.dataTransfer.files]); });
select("#maps").addEventListener("change", (event) => select("#results").classList.toggle("plain", !event.target.checked));
select("#rate").addEventListener("input", (event) => setRate(rateOf(Number(event.target.value))));
select("#token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = select("#token").value;
  sessionStorage.setItem("dlsr-token", token);
  loadModel().catch((error) => { select("#errors").textContent = error.message; });
});
loadModel().catch((error) => { select("#model").textContent = error.message; });
