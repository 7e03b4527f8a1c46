// What the server is doing: numbers of now, charts of a while. Each is a PromQL question.

import { instant, ranged } from "/static/api.js";
import { Chart } from "/static/chart.js";
import { shown } from "/static/format.js";

const hits = 'sum(rate(siltstone_cache_gets_total{result="hit"}[1m]))';
const gets = "sum(rate(siltstone_cache_gets_total[1m]))";

const TILES = [
  ["hit ratio", "ratio", `${hits} / ${gets}`],
  ["items in RAM", "", 'siltstone_cache_items{tier="ram"}'],
  ["items on flash", "", 'siltstone_cache_items{tier="flash"}'],
  ["RAM used", "ratio", "siltstone_cache_ram_used_bytes / siltstone_cache_ram_limit_bytes"],
  ["flash live", "bytes", "siltstone_cache_live_bytes"],
  ["write amplification", "", "siltstone_cache_write_amplification_ratio"],
  ["series", "", "siltstone_metrics_series"],
  ["samples a second", "/s", "rate(siltstone_metrics_samples_appended_total[1m])"],
  ["metrics on disk", "bytes", "siltstone_metrics_size_on_disk_bytes"],
  ["quota lasts for", "seconds", "siltstone_metrics_retention_forecast_seconds"],
  ["up", "seconds", "siltstone_process_uptime_seconds"],
];

// title, unit, then [label, query] lines; a query of several series labels each by itself
const CHARTS = [
  ["Requests", "/s", [["get", gets], ["set", "rate(siltstone_cache_sets_total[1m])"]]],
  ["Hit ratio", "ratio", [
    ["all", `${hits} / ${gets}`],
    ["from flash", `rate(siltstone_cache_flash_hits_total[1m]) / scalar(${gets})`],
  ]],
  ["Items", "", [
    ["RAM", 'siltstone_cache_items{tier="ram"}'], ["flash", 'siltstone_cache_items{tier="flash"}'],
  ]],
  ["RAM", "bytes", [
    ["used", "siltstone_cache_ram_used_bytes"], ["limit", "siltstone_cache_ram_limit_bytes"],
  ]],
  ["Device", "bytes/s", [
    ["read", "rate(siltstone_cache_device_read_bytes_total[1m])"],
    ["written", "rate(siltstone_cache_device_written_bytes_total[1m])"],
  ]],
  ["Device latency, 99 %", "seconds", [
    ["read", 'siltstone_cache_device_latency_seconds{call="read",quantile="0.99"}'],
    ["write", 'siltstone_cache_device_latency_seconds{call="write",quantile="0.99"}'],
  ]],
  ["Write amplification", "", [["cache", "siltstone_cache_write_amplification_ratio"]]],
  ["Flash segments", "", [["", "siltstone_cache_segments"]]],
  ["Samples stored", "/s", [["appended", "rate(siltstone_metrics_samples_appended_total[1m])"]]],
  ["Queries", "/s", [["PromQL", "rate(siltstone_http_queries_total[1m])"]]],
];

function panel(parent, className, title) {
  const element = document.createElement("div");
  element.className = className;
  const heading = document.createElement(className === "chart" ? "h2" : "div");
  heading.className = "name";
  heading.textContent = title;
  const body = document.createElement("div");
  body.className = "value";
  element.append(heading, body);
  parent.append(element);
  return body;
}

export class Overview {
  constructor(tiles, charts) {
    this.tiles = TILES.map(([name, unit, query]) => ({ unit, query, body: panel(tiles, "tile", name) }));
    this.charts = CHARTS.map(([title, unit, lines]) => {
      const body = panel(charts, "chart", title);
      body.className = "";
      return { lines, chart: new Chart(body, unit) };
    });
  }

  async refresh(seconds) {
    await Promise.all([
      ...this.tiles.map(async ({ unit, query, body }) => {
        const { result } = await instant(query);
        body.textContent = shown(result.length ? Number(result[0].value[1]) : null, unit);
      }),
      ...this.charts.map(async ({ lines, chart }) => {
        const end = Date.now() / 1000;
        const answers = await Promise.all(lines.map(([, query]) => ranged(query, seconds, end)));
        const series = answers.flatMap(({ result }, index) =>
          result.map((one) => {
            const label = lines[index][0] || Object.values(one.metric).pop();
            return { ...one, label };
          }),
        );
        chart.draw(series, [end - seconds, end]);
      }),
    ]);
  }
}
