// The charts: uPlot, a card each; data are columns, the first is time in Unix seconds.

import * as format from "./format.js";

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// Steps of an axis of bytes are powers of two, or its numbers would read as 1.86 GiB.
const BYTE_STEPS = Array.from({ length: 51 }, (_, power) => 2 ** power);
const COUNT_STEPS = [1, 2, 5].flatMap((step) => Array.from({ length: 12 }, (_, power) => step * 10 ** power)).sort((a, b) => a - b);
const clock = (time, hasSeconds) =>
  new Date(1000 * time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false, ...(hasSeconds && { second: "2-digit" }) });
const PALETTE = ["--accent", "--warn", "--bad", "--good", "--dim"];

export class Chart {
  constructor(parent, title, note, show, { log = false, steps } = {}) {
    this.card = document.createElement("div");
    this.card.className = "card";
    const heading = document.createElement("h3");
    heading.textContent = `${title} `;
    const small = document.createElement("small");
    small.textContent = note;
    heading.append(small);
    this.body = document.createElement("div");
    this.body.setAttribute("role", "img");
    this.card.append(heading, this.body);
    parent.append(this.card);
    this.title = title;
    this.show = show;
    this.log = log;
    this.steps = steps;
    this.names = [];
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.body);
  }

  size() {
    return { width: Math.max(200, this.body.clientWidth), height: 190 };
  }

  // Lines by name; all of the length of the times. Drawn anew where the names or the colours have changed.
  draw(times, lines) {
    const names = Object.keys(lines);
    const data = [times, ...names.map((name) => lines[name])];
    if (this.plot && names.join("\n") === this.names.join("\n")) {
      this.plot.setData(data);
    } else {
      this.plot?.destroy();
      this.names = names;
      this.plot = new uPlot(this.options(names), data, this.body);
    }
    this.showLast();
    const last = names.map((name) => `${name} ${this.show(lines[name].findLast((value) => value !== null))}`);
    this.body.setAttribute("aria-label", `${this.title}, last: ${last.join(", ") || "nothing yet"}`);
  }

  // Under the chart stand the last numbers, while none is pointed at.
  showLast() {
    if (this.plot.cursor.idx == null) this.plot.setLegend({ idx: this.plot.data[0].length - 1 });
  }

  options(names) {
    const axis = { stroke: color("--dim"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false } };
    return {
      ...this.size(),
      series: [
        { label: "Time", value: (_, time) => (time == null ? "–" : clock(time, true)) },
        ...names.map((name, number) => ({
          label: name,
          stroke: color(PALETTE[number % PALETTE.length]),
          width: 1.6,
          spanGaps: false,
          points: { size: 4 },
          value: (_, value) => this.show(value),
        })),
      ],
      axes: [{ ...axis, size: 30, space: 70, values: (_, ticks) => ticks.map((tick) => clock(tick, ticks[1] - ticks[0] < 60)) }, { ...axis, size: 72, ...(this.steps && { incrs: this.steps }), values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : this.show(tick))) }],
      scales: { y: this.log ? { distr: 3 } : { range: (_, low, high) => [Math.min(0, low), high > 0 ? high * 1.05 : 1] } },
      cursor: { drag: { x: true, y: false } },
      hooks: { setCursor: [(plot) => plot === this.plot && this.showLast()] },
    };
  }

  recolor() {
    this.plot?.destroy();
    this.plot = null;
    this.names = [];
  }
}

export function make(parent) {
  return {
    throughput: new Chart(parent, "Throughput", "wall: over the interval; busy: over summed durations", format.rate, {
      steps: BYTE_STEPS,
    }),
    latency: new Chart(parent, "Duration", "per interval; of several groups the slowest", format.seconds, { log: true }),
    inFlight: new Chart(parent, "In flight", "mean number of transfers under way", format.count),
    failures: new Chart(parent, "Failures and expiry", "per interval", format.count, { steps: COUNT_STEPS }),
  };
}

export function draw(charts, points) {
  const times = points.map((point) => point.at);
  const line = (key) => points.map((point) => point[key] ?? null);
  const positive = (key) => points.map((point) => (point[key] > 0 ? point[key] : null));
  charts.throughput.draw(times, { wall: line("wall"), busy: line("busy") });
  charts.latency.draw(times, { P50: positive("p50"), P90: positive("p90"), P99: positive("p99") });
  charts.inFlight.draw(times, { "in flight": line("inFlight") });
  const all = [...new Set(points.flatMap((point) => Object.keys(point.failures)))].sort();
  const some = all.filter((name) => points.some((point) => point.failures[name] > 0));
  const names = (some.length ? some : all).slice(0, 8);
  charts.failures.draw(
    times,
    Object.fromEntries(names.map((name) => [name, points.map((point) => point.failures[name] ?? 0)])),
  );
}
