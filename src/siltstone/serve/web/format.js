// Numbers for people. Units: "bytes", "seconds", "ratio" (0 to 1), "/s", or none.

const LARGE = ["", "k", "M", "G", "T", "P"];
const BYTES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

function scaled(value, base, units) {
  let power = 0;
  while (Math.abs(value) >= base && power < units.length - 1) {
    value /= base;
    power += 1;
  }
  const digits = Math.abs(value) >= 100 || value === Math.round(value) ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${units[power]}`.trimEnd();
}

function time(seconds) {
  if (seconds === 0) return "0 s";
  if (seconds < 1e-3) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 120) return `${seconds.toFixed(1)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(0)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} d`;
}

export function shown(value, unit = "") {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (unit === "bytes") return scaled(value, 1024, BYTES);
  if (unit === "bytes/s") return `${scaled(value, 1024, BYTES)}/s`;
  if (unit === "seconds") return time(value);
  if (unit === "ratio") return `${(value * 100).toFixed(1)} %`;
  if (unit === "/s") return `${scaled(value, 1000, LARGE)}/s`;
  return scaled(value, 1000, LARGE);
}
