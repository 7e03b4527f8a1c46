// A segment map: one cell a segment, coloured by state, filled by how much of it lives.

import { shown } from "/static/format.js";

const CELL = 14;
const GAP = 2;
const STATES = ["free", "ahead", "open", "sealed", "draining"];

const colour = (state) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${state}`).trim() || "#888";

function draw(canvas, segments) {
  const width = canvas.parentElement.clientWidth - 2;
  const across = Math.max(1, Math.floor(width / (CELL + GAP)));
  const down = Math.ceil(segments.length / across);
  const ratio = window.devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = down * (CELL + GAP) * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  segments.forEach((segment, index) => {
    const x = (index % across) * (CELL + GAP);
    const y = Math.floor(index / across) * (CELL + GAP);
    context.fillStyle = colour("free");
    context.fillRect(x, y, CELL, CELL);
    if (segment.state === "free") return;
    context.strokeStyle = colour(segment.state);
    context.strokeRect(x + 0.5, y + 0.5, CELL - 1, CELL - 1);
    const share = segment.filled_bytes ? Math.min(1, segment.live_bytes / segment.filled_bytes) : 0;
    context.fillStyle = colour(segment.state);
    context.fillRect(x, y + CELL * (1 - share), CELL, CELL * share);
  });
}

function square(state) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const side of ["width", "height"]) shape.setAttribute(side, "100%");
  shape.setAttribute("fill", colour(state));
  svg.append(shape);
  return svg;
}

function legend(segments) {
  const line = document.createElement("div");
  line.className = "legend";
  for (const state of STATES) {
    const count = segments.filter((segment) => segment.state === state).length;
    if (!count) continue;
    const item = document.createElement("span");
    item.append(square(state), `${state}: ${count}`);
    line.append(item);
  }
  const total = (name) => segments.reduce((sum, segment) => sum + segment[name], 0);
  const item = document.createElement("span");
  item.append(`${shown(total("live_bytes"), "bytes")} live of ${shown(total("filled_bytes"), "bytes")} filled`);
  line.append(item);
  return line;
}

// `engines`: name -> segments, as the server tells them.
export function drawMaps(element, engines) {
  element.replaceChildren();
  for (const [name, segments] of Object.entries(engines)) {
    const map = document.createElement("div");
    map.className = "map";
    const title = document.createElement("h2");
    title.textContent = `${name}: ${segments.length} segments`;
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `segments of ${name}`);
    map.append(title, canvas, legend(segments));
    element.append(map);
    draw(canvas, segments);
  }
  if (!element.children.length) element.textContent = "no engine with segments is open";
}
