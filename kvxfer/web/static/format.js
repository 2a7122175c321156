// Numbers as people read them. Units: bytes, seconds, counts; what is not a number is a dash.

const STEPS = ["", "k", "M", "G", "T", "P"];

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function scaled(value, base, names) {
  let step = 0;
  while (Math.abs(value) >= base && step < names.length - 1) {
    value /= base;
    step += 1;
  }
  const digits = Math.abs(value) >= 100 || Number.isInteger(value) ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return [value.toFixed(digits), names[step]];
}

export function count(value) {
  return isNumber(value) ? scaled(value, 1000, STEPS).join("") : "–";
}

export function bytes(value) {
  return isNumber(value) ? scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]).join(" ") : "–";
}

export const rate = (value) => (isNumber(value) ? `${bytes(value)}/s` : "–");

export function seconds(value) {
  if (!isNumber(value)) return "–";
  if (value === 0) return "0 s";
  for (const [unit, size] of [["s", 1], ["ms", 1e-3], ["µs", 1e-6]]) {
    if (value >= size || unit === "µs") {
      const scaledValue = value / size;
      return `${scaledValue.toFixed(scaledValue >= 100 ? 0 : scaledValue >= 10 ? 1 : 2)} ${unit}`;
    }
  }
  return "–";
}

export function ago(value) {
  if (!isNumber(value)) return "–";
  const past = Math.max(0, value);
  if (past < 90) return `${Math.round(past)} s ago`;
  return past < 5400 ? `${Math.round(past / 60)} min ago` : `${Math.round(past / 3600)} h ago`;
}
