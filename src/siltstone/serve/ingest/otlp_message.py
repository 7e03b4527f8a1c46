"""OTLP's ExportMetricsServiceRequest as plain dictionaries, of protobuf or JSON; its response.

The names are those of OTLP's JSON form (opentelemetry.io, "OTLP specification"), so that both
forms give the same. Unknown fields are passed over. ProtocolError for what is malformed; depth and
lengths are bounded by the body. Pure functions, any thread.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import msgspec

from siltstone.codecs import varint
from siltstone.errors import ProtocolError

DEPTH_MAX: Final = 24  # messages within messages; values of attributes may hold values
VARINT, FIXED64, BLOCK, FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """A field's name, what it holds (a scalar or the name of a message), and whether it repeats."""

    name: str
    kind: str
    repeated: bool = False


SCALARS: Final = {
    "text": BLOCK, "bytes": BLOCK, "double": FIXED64, "fixed64": FIXED64, "sfixed64": FIXED64,
    "bool": VARINT, "int": VARINT,
}  # fmt: skip
_FIXED: Final = {"double": "<d", "fixed64": "<Q", "sfixed64": "<q"}
_POINT: Final = {
    2: Field("startTimeUnixNano", "fixed64"),
    3: Field("timeUnixNano", "fixed64"),
}
MESSAGES: Final[dict[str, dict[int, Field]]] = {
    "Request": {1: Field("resourceMetrics", "ResourceMetrics", True)},
    "ResourceMetrics": {
        1: Field("resource", "Resource"),
        2: Field("scopeMetrics", "ScopeMetrics", True),
    },
    "Resource": {1: Field("attributes", "KeyValue", True)},
    "ScopeMetrics": {1: Field("scope", "Scope"), 2: Field("metrics", "Metric", True)},
    "Scope": {1: Field("name", "text"), 2: Field("version", "text")},
    "Metric": {
        1: Field("name", "text"),
        2: Field("description", "text"),
        3: Field("unit", "text"),
        5: Field("gauge", "Gauge"),
        7: Field("sum", "Sum"),
        9: Field("histogram", "Histogram"),
        10: Field("exponentialHistogram", "Unread"),
        11: Field("summary", "Summary"),
    },
    "Unread": {},
    "Gauge": {1: Field("dataPoints", "NumberPoint", True)},
    "Sum": {
        1: Field("dataPoints", "NumberPoint", True),
        2: Field("aggregationTemporality", "int"),
        3: Field("isMonotonic", "bool"),
    },
    "Histogram": {
        1: Field("dataPoints", "HistogramPoint", True),
        2: Field("aggregationTemporality", "int"),
    },
    "Summary": {1: Field("dataPoints", "SummaryPoint", True)},
    "NumberPoint": {
        **_POINT,
        4: Field("asDouble", "double"),
        6: Field("asInt", "sfixed64"),
        7: Field("attributes", "KeyValue", True),
        8: Field("flags", "int"),
    },
    "HistogramPoint": {
        **_POINT,
        4: Field("count", "fixed64"),
        5: Field("sum", "double"),
        6: Field("bucketCounts", "fixed64", True),
        7: Field("explicitBounds", "double", True),
        9: Field("attributes", "KeyValue", True),
        10: Field("flags", "int"),
    },
    "SummaryPoint": {
        **_POINT,
        4: Field("count", "fixed64"),
        5: Field("sum", "double"),
        6: Field("quantileValues", "Quantile", True),
        7: Field("attributes", "KeyValue", True),
        8: Field("flags", "int"),
    },
    "Quantile": {1: Field("quantile", "double"), 2: Field("value", "double")},
    "KeyValue": {1: Field("key", "text"), 2: Field("value", "AnyValue")},
    "AnyValue": {
        1: Field("stringValue", "text"),
        2: Field("boolValue", "bool"),
        3: Field("intValue", "int"),
        4: Field("doubleValue", "double"),
        5: Field("arrayValue", "Values"),
        6: Field("kvlistValue", "Pairs"),
        7: Field("bytesValue", "bytes"),
    },
    "Values": {1: Field("values", "AnyValue", True)},
    "Pairs": {1: Field("values", "KeyValue", True)},
}


def of_json(body: bytes) -> dict[str, Any]:
    """The request in OTLP's JSON form; its numbers may still be text."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"OTLP: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ProtocolError("OTLP: not a JSON object")
    return found


def of_protobuf(body: bytes) -> dict[str, Any]:
    """The request in protobuf's form."""
    return _message(memoryview(body), "Request", 0)


def _message(data: memoryview, kind: str, depth: int) -> dict[str, Any]:
    if depth > DEPTH_MAX:
        raise ProtocolError(f"OTLP: more than {DEPTH_MAX} messages within each other")
    fields, found, at = MESSAGES[kind], dict[str, Any](), 0
    while at < len(data):
        tag, at = _varint(data, at)
        value, at = _value(data, at, tag & 7)
        field = fields.get(tag >> 3)
        if field is None:
            continue
        if field.repeated:
            found.setdefault(field.name, []).extend(_repeated(field, tag & 7, value, depth))
        else:
            found[field.name] = _single(field, tag & 7, value, depth)
    return found


def _single(field: Field, wire: int, value: Any, depth: int) -> Any:
    if wire != SCALARS.get(field.kind, BLOCK):
        raise ProtocolError(f"OTLP: {field.name} is coded as {wire}")
    if field.kind not in SCALARS:
        return _message(value, field.kind, depth + 1)
    if field.kind == "text":
        try:
            return str(value, "utf-8")
        except UnicodeDecodeError:
            raise ProtocolError(f"OTLP: {field.name} is not UTF-8") from None
    if field.kind == "bytes":
        return bytes(value)
    if field.kind == "bool":
        return value != 0
    if field.kind == "int":
        return value - (1 << 64) if value >> 63 else value
    return struct.unpack(_FIXED[field.kind], value)[0]


def _repeated(field: Field, wire: int, value: Any, depth: int) -> list[Any]:
    """One more, or of numbers as many as are packed in a block."""
    if field.kind in _FIXED and wire == BLOCK:
        if len(value) % 8:
            raise ProtocolError(f"OTLP: {field.name} is cut off")
        return list(struct.unpack(f"<{len(value) // 8}{_FIXED[field.kind][1]}", value))
    return [_single(field, wire, value, depth)]


def _value(data: memoryview, at: int, wire: int) -> tuple[Any, int]:
    """What follows a tag: a number, or the bytes of it."""
    if wire == VARINT:
        return _varint(data, at)
    size = {FIXED64: 8, FIXED32: 4}.get(wire)
    if wire == BLOCK:
        size, at = _varint(data, at)
    if size is None:
        raise ProtocolError(f"OTLP: a field coded as {wire}")
    if size > len(data) - at:
        raise ProtocolError("OTLP: the message is cut off")
    return data[at : at + size], at + size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    found = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        found |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return found & ((1 << 64) - 1), at
    raise ProtocolError("OTLP: a number is cut off")


def response(rejected: int, message: str, *, json: bool) -> bytes:
    """An ExportMetricsServiceResponse; empty when all was taken."""
    if not rejected:
        return b"{}" if json else b""
    if json:
        partial = {"rejectedDataPoints": str(rejected), "errorMessage": message}
        return msgspec.json.encode({"partialSuccess": partial})
    text = message.encode()
    partial_success = b"\x08" + varint(rejected) + b"\x12" + varint(len(text)) + text
    return b"\x0a" + varint(len(partial_success)) + partial_success
