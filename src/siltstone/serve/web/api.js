// The server's answers as data; every failure is an Error with the server's own text.

async function ask(path, parameters) {
  const options = parameters
    ? { method: "POST", body: new URLSearchParams(parameters) }
    : { method: "GET" };
  const response = await fetch(path, options);
  let body;
  try {
    body = await response.json();
  } catch {
    throw new Error(`${path}: ${response.status} ${response.statusText}`);
  }
  if (body.status !== "success") throw new Error(body.error ?? `${path}: ${response.status}`);
  return body.data;
}

export const instant = (query) => ask("/api/v1/query", { query });
export const names = () => ask("/api/v1/label/__name__/values");
export const segments = () => ask("/api/siltstone/segments");

// At most about as many points as a chart has pixels; a step is whole seconds.
export function ranged(query, seconds, end = Date.now() / 1000) {
  const step = Math.max(1, Math.ceil(seconds / 600));
  const last = Math.floor(end / step) * step;
  return ask("/api/v1/query_range", { query, start: last - seconds, end: last, step });
}

// "name{a="b"}", the way PromQL writes it.
export function seriesName(metric) {
  const { __name__: name = "", ...labels } = metric;
  const inside = Object.entries(labels).map(([label, value]) => `${label}="${value}"`).join(", ");
  return inside ? `${name}{${inside}}` : name || "{}";
}
