// The page: history from the journal, then what comes by server-sent events. Nothing a worker says becomes markup.

import * as charts from "./charts.js";
import * as format from "./format.js";
import { groupKey, groupName, pointOf, Ranks, sum } from "./records.js";
import { Table } from "./table.js";

const MOST_POINTS = 9000; // six hours of intervals of 2.4 s
const byId = (id) => document.getElementById(id);
const state = { records: [], totals: [], chosen: "" };
const drawn = charts.make(byId("charts"));
const ranks = new Ranks();
const table = new Table(byId("ranks"), byId("ranks-note"));

function say(what, text) {
  byId("status").dataset.state = what;
  byId("status").textContent = text;
}

function entry(name, value, small, isBad) {
  const part = document.createElement("div");
  const term = document.createElement("dt");
  term.textContent = name;
  const description = document.createElement("dd");
  description.textContent = value;
  if (isBad) description.className = "bad";
  if (small) {
    const note = document.createElement("small");
    note.textContent = small;
    description.append(note);
  }
  part.append(term, description);
  return part;
}

// What happened between the last two totals: the numbers of now, before an interval closes.
function nowOf() {
  const [before, after] = state.totals.slice(-2);
  if (!after) return state.records.length ? pointOf(state.records.at(-1), state.chosen) : null;
  const [old, fresh] = [before, after].map((record) => pointOf(record, state.chosen));
  const length = Math.max(after.end - before.end, 1e-9);
  const bytes = fresh.bytes - old.bytes;
  const busy = fresh.busySeconds - old.busySeconds;
  return {
    wall: bytes / length,
    busy: busy > 0 ? bytes / busy : null,
    inFlight: busy / length,
    transfersPerSecond: (fresh.transfers - old.transfers) / length,
  };
}

const HANGS_SECONDS = 60; // as the alert rule has it

// Beside the mean, which counts transfers that have ended: those that have not, where workers tell of them.
function inFlight(now, told) {
  if (!told) return entry("In flight", format.count(now), "on average");
  const oldest = told.count ? `, the oldest for ${format.seconds(told.oldest)}` : "";
  return entry("In flight", format.count(now), `on average; ${told.count} now${oldest}`, told.oldest > HANGS_SECONDS);
}

function drawTiles() {
  const last = state.records.at(-1);
  const latest = state.totals.at(-1) || last;
  if (!latest) return;
  const now = nowOf() || {};
  const total = pointOf(latest, state.chosen);
  const point = last ? pointOf(last, state.chosen) : total;
  const perSecond = now.transfersPerSecond ?? point.transfers / point.seconds;
  const sources = latest.pipeline.sources;
  const [failed, everFailed] = [point, total].map((each) => sum(Object.values(each.failures)));
  byId("tiles").replaceChildren(
    entry("Throughput, wall", format.rate(now.wall), "what the pool really moves"),
    entry("Throughput, busy", format.rate(now.busy), "over summed durations: vLLM's figure"),
    entry("Transfers/s", format.count(perSecond)),
    inFlight(now.inFlight, point.underWay),
    entry("P50", format.seconds(point.p50), "of the last interval"),
    entry("P99", format.seconds(point.p99), "of the last interval"),
    entry("Failures", format.count(failed), `of the last interval${state.totals.length ? `; ${format.count(everFailed)} in total` : ""}`, failed > 0),
    entry(
      "Sources",
      `${sources.live ?? 0} live`,
      `${sources.silent ?? 0} silent, ${sources.gone ?? 0} gone`,
      (sources.silent ?? 0) > 0,
    ),
  );
  drawPipeline(latest.pipeline);
}

function drawPipeline(pipeline) {
  const parts = [];
  for (const [name, value] of Object.entries(pipeline)) {
    const words = name.replaceAll("_", " ");
    const isGood = name === "reports_received" || name === "reports_duplicate" || name === "sources";
    if (typeof value === "number") {
      parts.push(entry(words, value.toLocaleString("en"), "", !isGood && value > 0));
    } else {
      const causes = Object.entries(value).filter(([, number]) => number);
      if (!causes.length) parts.push(entry(words, "0"));
      for (const [cause, number] of causes) {
        const isBad = name !== "sources" || cause === "silent";
        parts.push(entry(`${words}: ${cause.replaceAll("_", " ")}`, number.toLocaleString("en"), "", isBad));
      }
    }
  }
  byId("pipeline").replaceChildren(...parts);
}

function drawGroups() {
  const names = new Map(state.records.flatMap((record) => record.groups.map((group) => [groupKey(group), groupName(group)])));
  const select = byId("group");
  if (select.options.length === names.size + 1) return;
  const option = (value, text) => Object.assign(document.createElement("option"), { value, textContent: text });
  const ordered = [...names].sort(([, a], [, b]) => (a < b ? -1 : 1));
  select.replaceChildren(option("", "all"), ...ordered.map(([key, name]) => option(key, name)));
  select.value = state.chosen;
}

function draw() {
  const last = state.records.at(-1);
  drawGroups();
  drawTiles();
  const since = Date.now() / 1000 - Number(byId("range").value);
  charts.draw(drawn, state.records.filter((record) => record.end >= since).map((record) => pointOf(record, state.chosen)));
  if (last) table.draw(ranks.of(state.chosen).map((row) => ({ ...row, now: last.end })));
}

function add(record) {
  if (state.records.length && record.end <= state.records.at(-1).end) return;
  ranks.take(record);
  // Its ranks are in the table now: a day of all of them would be gigabytes.
  state.records.push({ ...record, sources: [] });
  if (state.records.length > MOST_POINTS) state.records.shift();
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

async function ask(path) {
  for (let tries = 0; ; tries += 1) {
    const answer = await fetch(path);
    if (answer.ok) return answer.json();
    if (answer.status !== 503 || tries > 9) throw new Error(`${path}: ${(await answer.json()).error}`);
    await pause(2); // others ask too
  }
}

// The newest first, a thousand at a time: what is there is drawn while the rest comes. One load at a time.
let loading = Promise.resolve();
const load = () => (loading = loading.then(loadOnce).catch((error) => say("lost", String(error.message))));

async function loadOnce() {
  ranks.know(await ask("api/v1/snapshot"));
  const since = Date.now() / 1000 - Number(byId("range").value);
  let found = [];
  for (let isCut = true, before = 1e12; isCut; ) {
    const { intervals, is_cut } = await ask(`api/v1/history?start=${since}&end=${before}&limit=1000`);
    found = [...intervals, ...found];
    if (!found.length) break;
    const newer = state.records.filter((record) => record.end > found.at(-1).end);
    state.records = [...found.map((record) => ({ ...record, sources: [] })), ...newer].slice(-MOST_POINTS);
    draw();
    isCut = is_cut && intervals.length > 0;
    before = found[0].start;
  }
}

function listen() {
  const events = new EventSource("events");
  events.addEventListener("open", () => {
    say("live", "live");
    load();
  });
  events.addEventListener("interval", (event) => {
    add(JSON.parse(event.data));
    draw();
  });
  events.addEventListener("totals", (event) => {
    state.totals = [...state.totals, JSON.parse(event.data)].slice(-2);
    // A collector without a journal that was started again begins at 0.
    if (state.totals.length === 2 && state.totals[0].start !== state.totals[1].start) state.totals.shift();
    drawTiles();
  });
  events.addEventListener("error", () => {
    const isRefused = events.readyState === EventSource.CLOSED;
    say("lost", isRefused ? "as many pages as may be are open, trying again in a minute" : "no connection to the collector, trying again");
    if (isRefused) setTimeout(listen, 60_000);
  });
}

byId("group").addEventListener("change", (event) => {
  state.chosen = event.target.value;
  draw();
});
byId("range").addEventListener("change", load);
byId("theme").addEventListener("click", () => {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
  Object.values(drawn).forEach((chart) => chart.recolor());
  draw();
});
listen();
