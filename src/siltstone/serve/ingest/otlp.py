"""OTLP/HTTP metrics, read: OpenTelemetry's points as Prometheus' samples.

Names follow OpenTelemetry's own mapping: characters become "_", the unit is appended
(`_seconds`, `_bytes`), counters end in `_total`; `service.name` becomes `job`,
`service.instance.id` becomes `instance`, what else a resource says is in `target_info`. Points
that Prometheus has no form for (deltas, exponential histograms) are left out and reported, as
OTLP's "partial success" has it. Pure functions, any thread.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from siltstone.errors import ProtocolError
from siltstone.metrics.source import STALE_NAN
from siltstone.serve.ingest import otlp_message
from siltstone.serve.ingest.rows import NAME_LABEL, Labels, Parsed, label_name, metric_name

CUMULATIVE: Final = {2, "2", "AGGREGATION_TEMPORALITY_CUMULATIVE"}
NO_RECORDED_VALUE: Final = 1
UNITS: Final = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds",
    "us": "microseconds", "ns": "nanoseconds", "By": "bytes", "KiBy": "kibibytes",
    "MiBy": "mebibytes", "GiBy": "gibibytes", "TiBy": "tibibytes", "KBy": "kilobytes",
    "MBy": "megabytes", "GBy": "gigabytes", "TBy": "terabytes", "m": "meters", "V": "volts",
    "A": "amperes", "J": "joules", "W": "watts", "g": "grams", "Cel": "celsius", "Hz": "hertz",
    "%": "percent",
}  # fmt: skip
PER: Final = {"s": "second", "m": "minute", "min": "minute", "h": "hour", "d": "day"}
Message = Mapping[str, Any]


def parse(body: bytes, *, json: bool = False) -> Parsed:
    """The samples of an ExportMetricsServiceRequest. ProtocolError when it is malformed."""
    message = otlp_message.of_json(body) if json else otlp_message.of_protobuf(body)
    parsed = Parsed()
    for resource in _each(message, "resourceMetrics"):
        _resource(resource, parsed)
    return parsed


def _resource(message: Message, parsed: Parsed) -> None:
    attributes = attributes_of(_part(message, "resource"))
    base: dict[str, str] = {}
    service, space = attributes.pop("service.name", ""), attributes.pop("service.namespace", "")
    if service:
        base["job"] = f"{space}/{service}" if space else service
    if instance := attributes.pop("service.instance.id", ""):
        base["instance"] = instance
    newest: int | None = None
    for scope in _each(message, "scopeMetrics"):
        for metric in _each(scope, "metrics"):
            before = len(parsed.rows)
            _metric(metric, base, parsed)
            times = [row.time_ms for row in parsed.rows[before:] if row.time_ms is not None]
            newest = max([*times, newest] if newest is not None else times, default=None)
    if attributes and base and newest is not None:
        labels = {**_labels(attributes, base), NAME_LABEL: "target_info"}
        parsed.tell("target_info", "type", "gauge")
        parsed.add(labels, newest, 1.0)


def _metric(metric: Message, base: Labels, parsed: Parsed) -> None:
    name = metric.get("name")
    if not isinstance(name, str) or not name:
        raise ProtocolError("OTLP: a metric without a name")
    shapes = {"gauge": "gauge", "sum": "counter", "histogram": "histogram", "summary": "summary"}
    for shape, kind in shapes.items():
        if shape not in metric:
            continue
        data = _part(metric, shape)
        count = len(_each(data, "dataPoints"))
        if shape in ("sum", "histogram") and (data.get("aggregationTemporality") not in CUMULATIVE):
            _refuse(parsed, name, count, "deltas: use cumulative temporality")
            continue
        if shape == "sum" and not data.get("isMonotonic"):
            kind = "gauge"
        full = full_name(name, str(metric.get("unit", "")), kind)
        parsed.tell(full, "type", kind)
        parsed.tell(full, "help", str(metric.get("description", "")))
        for point in _each(data, "dataPoints"):
            for labels, value in _samples(point, shape, full, base):
                parsed.add(labels, _time_ms(point), value)
    if "exponentialHistogram" in metric:
        _refuse(parsed, name, 1, "an exponential histogram")


def _refuse(parsed: Parsed, name: str, count: int, why: str) -> None:
    parsed.skipped += count
    parsed.problems.append(f"{name}: {why} is not supported; {count} points were left out")


def _samples(point: Message, shape: str, name: str, base: Labels) -> Iterator[tuple[Labels, float]]:
    labels = _labels(attributes_of(point), base)
    stale = bool(_whole(point.get("flags", 0)) & NO_RECORDED_VALUE)
    if shape in ("gauge", "sum"):
        value = point.get("asDouble")
        number = float(_whole(point.get("asInt", 0))) if value is None else _double(value)
        yield {**labels, NAME_LABEL: name}, STALE_NAN if stale else number
        return
    count = float(_whole(point.get("count", 0)))
    yield {**labels, NAME_LABEL: name + "_count"}, STALE_NAN if stale else count
    if "sum" in point:
        total = _double(point["sum"])
        yield {**labels, NAME_LABEL: name + "_sum"}, STALE_NAN if stale else total
    if shape == "summary":
        for one in _each(point, "quantileValues"):
            quantile = repr(_double(one.get("quantile", 0.0)))
            value = STALE_NAN if stale else _double(one.get("value", 0.0))
            yield {**labels, NAME_LABEL: name, "quantile": quantile}, value
        return
    bounds = [_double(bound) for bound in _list(point, "explicitBounds")]
    counts = [_whole(one) for one in _list(point, "bucketCounts")]
    if counts and len(counts) != len(bounds) + 1:
        raise ProtocolError(f"OTLP: {name}: {len(counts)} buckets with {len(bounds)} bounds")
    below = 0
    for bound, inside in zip(bounds, counts, strict=False):
        below += inside
        value = STALE_NAN if stale else float(below)
        yield {**labels, NAME_LABEL: name + "_bucket", "le": _bound(bound)}, value
    yield {**labels, NAME_LABEL: name + "_bucket", "le": "+Inf"}, STALE_NAN if stale else count


def _bound(bound: float) -> str:
    """As Go's shortest form has it: 5, not 5.0."""
    return str(int(bound)) if bound == int(bound) and abs(bound) < 1e21 else repr(bound)


# Names and labels ---------------------------------------------------------------------------


def full_name(name: str, unit: str, kind: str) -> str:
    """The metric's name with its unit and, of a counter, `_total`."""
    found = metric_name(name)
    if kind == "counter":
        found = found.removesuffix("_total")
    for suffix in _unit_suffixes(unit, kind):
        if not found.endswith("_" + suffix) and f"_{suffix}_" not in found:
            found += "_" + suffix
    return found + "_total" if kind == "counter" else found


def _unit_suffixes(unit: str, kind: str) -> list[str]:
    if "{" in unit:
        unit = unit[: unit.index("{")]
    unit, slash, per = unit.partition("/")
    if unit == "1":
        return ["ratio"] if kind == "gauge" and not slash else []
    found = UNITS.get(unit, label_name(unit).strip("_"))
    if slash and per:
        found += ("_" if found else "") + "per_" + PER.get(per, label_name(per).strip("_"))
    return [found] if found else []


def attributes_of(message: Message) -> dict[str, str]:
    """Attributes as text: numbers as JSON has them, lists and maps as JSON."""
    found: dict[str, str] = {}
    for pair in _each(message, "attributes"):
        key = pair.get("key")
        if not isinstance(key, str) or not key:
            raise ProtocolError("OTLP: an attribute without a key")
        value = _plain(_part(pair, "value"), 0)
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        found[key] = text
    return found


def _plain(value: Message, depth: int) -> Any:
    if depth > otlp_message.DEPTH_MAX:
        raise ProtocolError(f"OTLP: more than {otlp_message.DEPTH_MAX} values within each other")
    for name, found in value.items():
        if name == "intValue":
            return _whole(found)
        if name == "arrayValue":
            return [_plain(one, depth + 1) for one in _each(_part(value, name), "values")]
        if name == "kvlistValue":
            pairs = _each(_part(value, name), "values")
            return {str(p.get("key", "")): _plain(_part(p, "value"), depth + 1) for p in pairs}
        if name == "bytesValue" and isinstance(found, bytes):
            return base64.b64encode(found).decode()
        if name in ("stringValue", "boolValue", "doubleValue", "bytesValue"):
            return found
    return ""


def _labels(attributes: Mapping[str, str], base: Labels) -> dict[str, str]:
    """Attributes as labels; where two names become one, their values are joined by ";"."""
    labels: dict[str, str] = {}
    for key in sorted(attributes):
        name = label_name(key)
        if name in labels:
            labels[name] += ";" + attributes[key]
        elif name != NAME_LABEL:
            labels[name] = attributes[key]
    return {**labels, **base}


# What JSON may hold -------------------------------------------------------------------------


def _part(message: Message, name: str) -> Message:
    found = message.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise ProtocolError(f"OTLP: {name} is {type(found).__name__}, not an object")
    return found


def _list(message: Message, name: str) -> list[Any]:
    found = message.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise ProtocolError(f"OTLP: {name} is {type(found).__name__}, not a list")
    return found


def _each(message: Message, name: str) -> list[Message]:
    found = _list(message, name)
    for one in found:
        if not isinstance(one, Mapping):
            raise ProtocolError(f"OTLP: {name} holds {type(one).__name__}, not objects")
    return found


def _whole(value: Any) -> int:
    """64-bit numbers are text in JSON."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise ProtocolError(f"OTLP: {value!r} is no whole number") from None


def _double(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ProtocolError(f"OTLP: {value!r} is no number") from None


def _time_ms(point: Message) -> int | None:
    """None when the point has no time."""
    return _whole(point.get("timeUnixNano", 0)) // 1_000_000 or None
