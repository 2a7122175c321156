// What the page reads out of an interval's record (the schema is that of --jsonl): plain numbers, nothing drawn.

// The distribution of the transfers' durations, where the connector knows them one by one.
const durationOf = (part) => part.durations ?? null;

const failuresOf = (part) => part.failures ?? {};

export const sum = (values) => values.reduce((total, value) => total + (value || 0), 0);

export const groupName = (group) => [group.connector, ...Object.values(group.labels)].join(" · ");

export function groupsOf(record, chosen) {
  return record.groups.filter((group) => !chosen || groupName(group) === chosen);
}

// One point of the charts: what all chosen groups did in an interval. Quantiles do not add up: of several groups the
// largest is shown.
export function pointOf(record, chosen) {
  const groups = groupsOf(record, chosen);
  const durations = groups.map(durationOf).filter((each) => each && each.count);
  const length = Math.max(record.end - record.start, 1e-9);
  const bytes = sum(groups.map((group) => group.num_bytes));
  const busy = sum(groups.map((group) => group.busy_seconds));
  const worst = (key) => (durations.length ? Math.max(...durations.map((each) => each[key])) : null);
  const failures = {};
  for (const group of groups) {
    for (const [name, value] of Object.entries(failuresOf(group))) failures[name] = (failures[name] || 0) + value;
  }
  return {
    at: record.end,
    seconds: length,
    bytes,
    busySeconds: busy,
    wall: bytes / length,
    busy: busy ? bytes / busy : null,
    inFlight: busy / length,
    transfers: sum(durations.map((each) => each.count)),
    p50: worst("p50"),
    p90: worst("p90"),
    p99: worst("p99"),
    failures,
    ranks: sum(groups.map((group) => group.num_ranks)),
  };
}

const SLOW = 2; // times the median of its group

// One row per source and connector, and one for each that is silent and reported nothing.
export function rowsOf(record, chosen) {
  const length = Math.max(record.end - record.start, 1e-9);
  const silent = new Set(record.silent.map((source) => source.source));
  const rows = record.sources.map((source) => {
    const duration = durationOf(source);
    return {
      who: source,
      connector: source.connector,
      state: silent.has(source.source) ? "silent" : source.state,
      transfers: duration ? duration.count / length : null,
      wall: source.bytes_per_second ?? null,
      busy: source.bytes_per_busy_second ?? null,
      p50: duration && duration.count ? duration.p50 : null,
      p99: duration && duration.count ? duration.p99 : null,
      failures: sum(Object.values(failuresOf(source))),
      lastSeen: source.last_seen,
    };
  });
  const seen = new Set(record.sources.map((source) => source.source));
  for (const source of record.silent) {
    if (!seen.has(source.source)) rows.push({ who: source, connector: "", state: "silent" });
  }
  markSlow(rows);
  return chosen ? rows.filter((row) => isIn(row, chosen)) : rows;
}

function isIn(row, chosen) {
  const values = new Set(Object.values(row.who.labels));
  return chosen.split(" · ").every((part) => part === row.connector || values.has(part) || (!row.connector && part));
}

function markSlow(rows) {
  const byConnector = new Map();
  for (const row of rows) {
    if (row.p50) byConnector.set(row.connector, [...(byConnector.get(row.connector) || []), row.p50]);
  }
  for (const row of rows) {
    const all = (byConnector.get(row.connector) || []).toSorted((a, b) => a - b);
    const median = all[Math.floor((all.length - 1) / 2)];
    row.isSlow = all.length > 2 && row.p50 > SLOW * median;
  }
}
