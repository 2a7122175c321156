// What the page reads out of an interval's record (the schema is that of --jsonl): plain numbers, nothing drawn.

// The distribution of the transfers' durations, where the connector knows them one by one.
const durationOf = (part) => part.durations ?? null;

const failuresOf = (part) => part.failures ?? {};

export const sum = (values) => values.reduce((total, value) => total + (value || 0), 0);

export const groupName = (group) => [group.connector, ...Object.values(group.labels)].join(" · ");

// What tells groups apart, whatever their values are: connector and labels by name.
export const groupKey = (group) => JSON.stringify([group.connector, group.labels]);

const groupsOf = (record, chosen) => record.groups.filter((group) => !chosen || groupKey(group) === chosen);

// What has begun and not ended, of groups whose workers tell of it.
function underWayOf(groups) {
  const known = groups.map((group) => group.in_flight).filter((each) => each);
  if (!known.length) return null;
  return { count: sum(known.map((each) => each.num_transfers)), oldest: Math.max(...known.map((each) => each.oldest_seconds)) };
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
    underWay: underWayOf(groups),
    ranks: sum(groups.map((group) => group.num_ranks)),
  };
}

// The ranks that a page has heard of: by source and connector, the last that is known of each.
export class Ranks {
  constructor() {
    this.rows = new Map();
  }

  // Who is known without having reported lately, out of a record of all since the beginning.
  know(record) {
    for (const source of record.sources) {
      this.rows.delete(`${source.source} `);
      const key = `${source.source} ${source.connector}`;
      if (!this.rows.has(key)) this.rows.set(key, idle(source, source.connector, source.state, source.last_seen));
    }
  }

  take(record) {
    const length = Math.max(record.end - record.start, 1e-9);
    for (const row of this.rows.values()) Object.assign(row, idle(row.who, row.connector, row.state, row.lastSeen));
    for (const source of record.sources) {
      this.rows.delete(`${source.source} `);
      this.rows.set(`${source.source} ${source.connector}`, rowOf(source, length));
    }
    this.mark(record.silent, "silent");
    this.mark(record.departed, "gone");
    for (const [key, row] of this.rows) {
      if (row.state === "gone" && record.end - (row.lastSeen ?? record.end) > 900) this.rows.delete(key);
    }
  }

  mark(sources, state) {
    const ids = new Set(sources.map((source) => source.source));
    for (const row of this.rows.values()) {
      if (ids.has(row.who.source)) row.state = state;
      // Who is silent no longer has reported, or said that it lives.
      else if (state === "silent" && row.state === "silent") row.state = "live";
    }
    const known = new Set([...this.rows.values()].map((row) => row.who.source));
    for (const source of sources) {
      if (!known.has(source.source)) this.rows.set(`${source.source} `, idle(source, "", state, undefined));
    }
  }

  // Those of a group, or all.
  of(chosen) {
    if (!chosen) return [...this.rows.values()];
    const [connector, labels] = JSON.parse(chosen);
    const isIn = (row) =>
      (!row.connector || row.connector === connector) &&
      Object.entries(labels).every(([name, value]) => row.who.labels[name] === value);
    return [...this.rows.values()].filter(isIn);
  }
}

const idle = (who, connector, state, lastSeen) => ({
  who, connector, state, lastSeen, transfers: null, wall: null, busy: null, p50: null, p99: null,
  failures: null, oldest: null, isSlow: false,
});

function rowOf(source, length) {
  const duration = source.durations && source.durations.count ? source.durations : null;
  const [bytes, busy] = [source.num_bytes, source.busy_seconds];
  return {
    ...idle(source, source.connector, source.state, source.last_seen),
    transfers: source.durations ? source.durations.count / length : null,
    wall: bytes === undefined ? null : bytes / length,
    busy: busy ? bytes / busy : null,
    p50: duration && duration.p50,
    p99: duration && duration.p99,
    failures: sum(Object.values(failuresOf(source))),
    oldest: source.in_flight && source.in_flight.num_transfers ? source.in_flight.oldest_seconds : null,
    isSlow: source.is_slow ?? false,
  };
}
