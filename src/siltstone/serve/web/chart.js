// A chart of a PromQL matrix: uPlot where it is there, else nothing (the table still is).

import { seriesName } from "/static/api.js";
import { shown } from "/static/format.js";

const COLOURS = ["#3f88c5", "#d1603d", "#5b8c5a", "#8f6bb1", "#d1903a", "#4aa3a2", "#b3507a", "#8a6d4f"];
const HEIGHT = 200;
const SERIES_MAX = 40; // more lines than a person can tell apart

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Columns for uPlot: times, then one of values a series; null where a series has no point.
export function columns(results) {
  const times = [...new Set(results.flatMap((series) => series.values.map(([time]) => time)))];
  times.sort((a, b) => a - b);
  const place = new Map(times.map((time, index) => [time, index]));
  const values = results.map((series) => {
    const column = new Array(times.length).fill(null);
    for (const [time, text] of series.values) {
      const value = Number(text.replace("Inf", "Infinity"));
      column[place.get(time)] = Number.isFinite(value) ? value : null;
    }
    return column;
  });
  return [times, ...values];
}

export class Chart {
  constructor(element, unit) {
    this.element = element;
    this.unit = unit;
    this.plot = null;
    this.drawn = "";
    new ResizeObserver(() => this.resize()).observe(element);
  }

  resize() {
    const width = this.element.clientWidth;
    if (this.plot && width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  draw(labelled, span) {
    const shownSeries = labelled.slice(0, SERIES_MAX);
    const data = columns(shownSeries);
    const labels = shownSeries.map((series) => series.label ?? seriesName(series.metric));
    const scales = span ? { x: { min: span[0], max: span[1] } } : {};
    const same = labels.join("\n");
    if (this.plot && same === this.drawn) {
      this.plot.setData(data, false);
      if (span) this.plot.setScale("x", scales.x);
      return;
    }
    this.drawn = same;
    this.plot?.destroy();
    this.plot = null;
    if (!window.uPlot || data[0].length === 0) {
      this.element.textContent = window.uPlot ? "no data in this range" : "";
      return;
    }
    this.element.textContent = "";
    this.plot = new window.uPlot(this.options(labels), data, this.element);
    if (span) this.plot.setScale("x", scales.x);
  }

  options(labels) {
    const ink = colour("--faint");
    const grid = { stroke: colour("--line"), width: 1 };
    const value = (_, raw) => shown(raw, this.unit);
    return {
      width: this.element.clientWidth || 400,
      height: HEIGHT,
      scales: { y: { range: (_, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.05 : 1] } },
      cursor: { sync: { key: "siltstone" }, drag: { x: false, y: false } },
      axes: [
        { stroke: ink, grid },
        { stroke: ink, grid, size: 72, values: (_, ticks) => ticks.map((tick) => shown(tick, this.unit)) },
      ],
      series: [
        {},
        ...labels.map((label, index) => ({
          label, value, stroke: COLOURS[index % COLOURS.length], width: 1.5, points: { show: false },
        })),
      ],
    };
  }
}
