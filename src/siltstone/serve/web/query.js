// The page for questions: a PromQL box, its answer as chart and table, and the names there are.

import { names, ranged, seriesName } from "/static/api.js";
import { Chart } from "/static/chart.js";

const ROWS_MAX = 500;
const NAMES_MAX = 300;

function row(cells, kind = "td") {
  const line = document.createElement("tr");
  for (const text of cells) {
    const cell = document.createElement(kind);
    cell.textContent = text;
    line.append(cell);
  }
  return line;
}

export class Query {
  constructor(root, range) {
    this.range = range;
    this.text = root.querySelector("#promql");
    this.problem = root.querySelector("#problem");
    this.answer = root.querySelector("#answer");
    this.table = root.querySelector("#answer-table");
    this.find = root.querySelector("#find");
    this.list = root.querySelector("#names");
    this.chart = new Chart(root.querySelector("#answer-chart"), "");
    this.known = [];
    root.querySelector("#ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        this.run();
      }
    });
    this.find.addEventListener("input", () => this.showNames());
  }

  async run() {
    const query = this.text.value.trim();
    if (!query) return;
    const seconds = Number(this.range.value);
    try {
      const end = Date.now() / 1000;
      const { result } = await ranged(query, seconds, end);
      this.problem.hidden = true;
      this.answer.hidden = false;
      this.chart.draw(result, [end - seconds, end]);
      const rows = result.slice(0, ROWS_MAX);
      const head = row([`series (${result.length})`, "last value"], "th");
      this.table.replaceChildren(head, ...rows.map((one) => row([seriesName(one.metric), one.values.at(-1)[1]])));
    } catch (error) {
      this.problem.textContent = error.message;
      this.problem.hidden = false;
      this.answer.hidden = true;
    }
  }

  async load() {
    this.known = await names();
    this.showNames();
  }

  showNames() {
    const part = this.find.value.trim();
    const found = this.known.filter((name) => name.includes(part)).slice(0, NAMES_MAX);
    this.list.replaceChildren(...found.map((name) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => {
        this.text.value = name.endsWith("_total") ? `rate(${name}[1m])` : name;
        this.run();
      });
      const item = document.createElement("li");
      item.append(button);
      return item;
    }));
  }
}
