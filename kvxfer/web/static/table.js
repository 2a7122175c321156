// The table of ranks: sorted by a click or a key on its head; whatever a worker says is text.

import * as format from "./format.js";

const ORDER = { silent: 0, slow: 1, live: 2, gone: 3 };
const stateOf = (row) => (row.state === "live" && row.isSlow ? "slow" : row.state);

const COLUMNS = [
  { name: "Rank", text: true, key: (row) => labelsOf(row.who), show: (value) => value },
  { name: "State", text: true, key: (row) => ORDER[stateOf(row)], show: (_, row) => stateOf(row), state: true },
  { name: "Connector", text: true, key: (row) => row.connector, show: (value) => value },
  { name: "Process", text: true, key: (row) => `${row.who.host}:${row.who.pid}`, show: (value) => value },
  { name: "Transfers/s", key: (row) => row.transfers, show: format.count },
  { name: "Wall", key: (row) => row.wall, show: format.rate },
  { name: "Busy", key: (row) => row.busy, show: format.rate },
  { name: "P50", key: (row) => row.p50, show: format.seconds },
  { name: "P99", key: (row) => row.p99, show: format.seconds },
  { name: "Failures", key: (row) => row.failures, show: format.count },
  { name: "Oldest", key: (row) => row.oldest, show: format.seconds },
  { name: "Heard", key: (row) => row.lastSeen, show: (value, row) => format.ago(row.now - value) },
];

const byNumber = new Intl.Collator(undefined, { numeric: true });

function labelsOf(who) {
  const labels = Object.entries(who.labels).filter(([name]) => name !== "rank");
  const rank = who.labels.rank === undefined ? [] : [`rank ${who.labels.rank}`];
  return [...rank, ...labels.map(([name, value]) => `${name}=${value}`)].join(" ") || who.source.slice(0, 12);
}

function compare(a, b) {
  const [noA, noB] = [a === null || a === undefined, b === null || b === undefined];
  if (noA || noB) return noA - noB;
  return typeof a === "string" ? byNumber.compare(a, b) : a - b;
}

export const MOST = 1000; // rows drawn; beyond it a page only stutters

export class Table {
  constructor(table, note) {
    this.head = table.tHead.rows[0];
    this.body = table.tBodies[0];
    this.note = note;
    this.sorted = 1;
    this.isDown = false;
    this.rows = [];
    COLUMNS.forEach((column, number) => {
      const cell = document.createElement("th");
      cell.scope = "col";
      if (column.text) cell.className = "text";
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = column.name;
      button.addEventListener("click", () => this.sortBy(number));
      cell.append(button);
      this.head.append(cell);
    });
    this.mark();
  }

  sortBy(number) {
    // The first click on numbers shows the largest first, on words the first.
    this.isDown = number === this.sorted ? !this.isDown : !COLUMNS[number].text;
    this.sorted = number;
    this.mark();
    this.draw(this.rows);
  }

  mark() {
    [...this.head.cells].forEach((cell, number) => {
      if (number === this.sorted) cell.setAttribute("aria-sort", this.isDown ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
  }

  draw(rows) {
    this.rows = rows;
    const key = COLUMNS[this.sorted].key;
    const sign = this.isDown ? -1 : 1;
    const ordered = rows.toSorted(
      (a, b) => sign * compare(key(a), key(b)) || byNumber.compare(labelsOf(a.who), labelsOf(b.who)),
    );
    this.body.replaceChildren(...ordered.slice(0, MOST).map(rowOf));
    const counts = rows.map(stateOf).reduce((all, each) => ({ ...all, [each]: (all[each] || 0) + 1 }), {});
    const told = Object.entries(counts).map(([state, number]) => `${number} ${state}`);
    this.note.textContent =
      `${told.join(", ") || "none yet"}. Slow: three times the median of its group, in P90 and in seconds per byte. Oldest: how long a transfer has been under way.` +
      (rows.length > MOST ? ` The first ${MOST} of ${rows.length} are shown.` : "");
  }
}

function rowOf(row) {
  const line = document.createElement("tr");
  for (const column of COLUMNS) {
    const cell = document.createElement("td");
    const value = column.key(row);
    cell.textContent = value === null || value === undefined ? "–" : column.show(value, row);
    if (column.text) cell.className = "text";
    if (column.name === "Rank") cell.title = cell.textContent;
    if (column.state) cell.classList.add(`state-${stateOf(row)}`);
    line.append(cell);
  }
  return line;
}
