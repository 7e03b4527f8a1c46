"""OTLP metrics: both forms give the same samples; what Prometheus has no form for is told."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import protobuf as pb

from siltstone.errors import ProtocolError
from siltstone.serve.ingest import otlp, otlp_message
from siltstone.serve.ingest.rows import NAME_LABEL, TIME_MAX_MS, Row

NS = 1_544_712_660_300_000_000
MS = NS // 1_000_000


def attribute(key: str, value: str | bytes) -> bytes:
    inner = pb.block(1, value) if isinstance(value, str) else value
    return pb.block(1, key) + pb.block(2, inner)


def request(*metrics: bytes) -> bytes:
    resource = pb.block(
        1,
        pb.block(1, attribute("service.name", "shop"))
        + pb.block(1, attribute("service.namespace", "web"))
        + pb.block(1, attribute("service.instance.id", "host-1"))
        + pb.block(1, attribute("os.type", "linux")),
    )
    scope = pb.block(1, pb.block(1, "lib")) + b"".join(pb.block(2, one) for one in metrics)
    return pb.block(1, resource + pb.block(2, scope))


def point(attributes: bytes = b"", field: int = 7) -> bytes:
    found = pb.fixed64(2, NS - 5) + pb.fixed64(3, NS)
    return found + (pb.block(field, attributes) if attributes else b"")


GAUGE = (
    pb.block(1, "process.heat")
    + pb.block(2, "How hot.")
    + pb.block(3, "Cel")
    + pb.block(5, pb.block(1, point(attribute("cpu.no", pb.whole(3, 7))) + pb.double(4, 61.5)))
)
COUNTER = (
    pb.block(1, "requests")
    + pb.block(3, "1")
    + pb.block(
        7,
        pb.block(1, point() + pb.fixed64(6, -3)) + pb.whole(2, 2) + pb.whole(3, 1),
    )
)
HISTOGRAM = (
    pb.block(1, "lag")
    + pb.block(3, "s")
    + pb.block(
        9,
        pb.block(
            1,
            point(attribute("a", "b"), 9)
            + pb.fixed64(4, 6)
            + pb.double(5, 12.5)
            + pb.packed(6, [struct.pack("<Q", n) for n in (1, 2, 3)])
            + pb.packed(7, [struct.pack("<d", x) for x in (0.5, 5.0)]),
        )
        + pb.whole(2, 2),
    )
)
SUMMARY = pb.block(1, "size") + pb.block(
    11,
    pb.block(
        1,
        point()
        + pb.fixed64(4, 2)
        + pb.double(5, 3)
        + pb.block(6, pb.double(1, 0.5) + pb.double(2, 1.5)),
    ),
)
AS_JSON: dict[str, Any] = {
    "resourceMetrics": [
        {
            "resource": {
                "attributes": [
                    {"key": "service.name", "value": {"stringValue": "shop"}},
                    {"key": "service.namespace", "value": {"stringValue": "web"}},
                    {"key": "service.instance.id", "value": {"stringValue": "host-1"}},
                    {"key": "os.type", "value": {"stringValue": "linux"}},
                ]
            },
            "scopeMetrics": [
                {
                    "scope": {"name": "lib"},
                    "metrics": [
                        {"name": "process.heat", "description": "How hot.", "unit": "Cel",
                         "gauge": {"dataPoints": [
                             {"timeUnixNano": str(NS), "asDouble": 61.5, "attributes": [
                                 {"key": "cpu.no", "value": {"intValue": "7"}}]}]}},
                        {"name": "requests", "unit": "1",
                         "sum": {"aggregationTemporality": 2, "isMonotonic": True,
                                 "dataPoints": [{"timeUnixNano": NS, "asInt": "-3"}]}},
                        {"name": "lag", "unit": "s", "histogram": {
                            "aggregationTemporality": 2, "dataPoints": [
                                {"timeUnixNano": NS, "count": "6", "sum": 12.5,
                                 "bucketCounts": ["1", "2", "3"], "explicitBounds": [0.5, 5],
                                 "attributes": [{"key": "a", "value": {"stringValue": "b"}}]}]}},
                        {"name": "size", "summary": {"dataPoints": [
                            {"timeUnixNano": NS, "count": 2, "sum": 3,
                             "quantileValues": [{"quantile": 0.5, "value": 1.5}]}]}},
                    ],
                }
            ],
        }
    ]
}  # fmt: skip


def test_both_forms_give_the_same_samples() -> None:
    base = {"job": "web/shop", "instance": "host-1"}
    lag = {**base, "a": "b"}
    wanted = [
        ("process_heat_celsius", {**base, "cpu_no": "7"}, 61.5),
        ("requests_total", base, -3),
        ("lag_seconds_count", lag, 6),
        ("lag_seconds_sum", lag, 12.5),
        ("lag_seconds_bucket", {**lag, "le": "0.5"}, 1),
        ("lag_seconds_bucket", {**lag, "le": "5"}, 3),
        ("lag_seconds_bucket", {**lag, "le": "+Inf"}, 6),
        ("size_count", base, 2),
        ("size_sum", base, 3),
        ("size", {**base, "quantile": "0.5"}, 1.5),
        ("target_info", {**base, "os_type": "linux"}, 1),
    ]
    for parsed in (
        otlp.parse(request(GAUGE, COUNTER, HISTOGRAM, SUMMARY)),
        otlp.parse(json.dumps(AS_JSON).encode(), json=True),
    ):
        assert [({**labels, NAME_LABEL: name}, MS, value) for name, labels, value in wanted] == [
            tuple(row) for row in parsed.rows
        ]
        assert parsed.problems == []
        assert parsed.metadata["process_heat_celsius"]["help"] == "How hot."
        assert {name: one["type"] for name, one in parsed.metadata.items()} == {
            "process_heat_celsius": "gauge", "requests_total": "counter",
            "lag_seconds": "histogram", "size": "summary", "target_info": "gauge",
        }  # fmt: skip


def test_deltas_and_exponential_histograms_are_left_out_and_told() -> None:
    delta = pb.block(1, "d") + pb.block(
        7, pb.block(1, point() + pb.double(4, 1)) * 3 + pb.whole(2, 1)
    )
    exponential = pb.block(1, "e") + pb.block(10, pb.block(1, point()))
    parsed = otlp.parse(request(delta, exponential, COUNTER))
    assert [row.labels[NAME_LABEL] for row in parsed.rows] == ["requests_total", "target_info"]
    assert parsed.skipped == 4
    assert parsed.problems[0].startswith("d: deltas")
    assert parsed.problems[1].startswith("e: an exponential histogram")


def test_a_point_without_a_value_is_a_staleness_marker_and_without_a_time_now() -> None:
    stale = pb.block(1, "g") + pb.block(
        5, pb.block(1, point() + pb.whole(8, 1)) + pb.block(1, pb.double(4, 2))
    )
    first, second, _ = otlp.parse(request(stale)).rows
    assert struct.pack("<d", first.value) == struct.pack("<Q", 0x7FF0000000000002)
    assert (second.time_ms, second.value) == (None, 2)


@pytest.mark.parametrize(
    ("name", "unit", "kind", "full"),
    [
        ("a.b", "", "gauge", "a_b"), ("a", "1", "gauge", "a_ratio"),
        ("a", "1", "counter", "a_total"),
        ("a_total", "By", "counter", "a_bytes_total"), ("a_seconds", "s", "gauge", "a_seconds"),
        ("net", "By/s", "gauge", "net_bytes_per_second"), ("x", "{jobs}", "gauge", "x"),
        ("9.x", "furlong", "gauge", "_9_x_furlong"), ("x", "/min", "gauge", "x_per_minute"),
    ],
)  # fmt: skip
def test_names(name: str, unit: str, kind: str, full: str) -> None:
    assert otlp.full_name(name, unit, kind) == full


def test_attributes_of_every_kind() -> None:
    values = pb.block(1, pb.whole(3, 1)) + pb.block(1, pb.block(1, "x"))
    pairs = pb.block(1, attribute("k", pb.whole(2, 1)))
    attributes = [
        attribute("list", pb.block(5, values)),
        attribute("map", pb.block(6, pairs)),
        attribute("raw", pb.block(7, b"\x00\x01")),
        attribute("real", pb.double(4, 0.5)),
        attribute("minus", pb.whole(3, -2)),
        attribute("none", b""),
        attribute("a.b", "1"),
        attribute("a-b", "2"),
        attribute("__name__", "evil"),
    ]
    body = b"".join(pb.block(7, one) for one in attributes)
    metric = pb.block(1, "m") + pb.block(5, pb.block(1, pb.fixed64(3, NS) + pb.double(4, 1) + body))
    row = otlp.parse(pb.block(1, pb.block(2, pb.block(2, metric)))).rows[0]
    assert row.labels == {
        NAME_LABEL: "m", "list": '[1,"x"]', "map": '{"k":true}', "raw": "AAE=", "real": "0.5",
        "minus": "-2", "none": "", "a_b": "2;1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"\x0a", "a number is cut off"),
        (b"\x0a\x05ab", "the message is cut off"),
        (b"\x0b", "a field coded as 3"),
        (b"\x08\x01", "resourceMetrics is coded as 0"),
        (request(b"\x0a\x01\xff"), "name is not UTF-8"),
        (request(pb.block(1, "")), "a metric without a name"),
        (request(pb.block(1, "h") + pb.block(9, pb.block(1, point() + pb.packed(6, [bytes(8)])
         + pb.packed(7, [bytes(16)])) + pb.whole(2, 2))), "1 buckets with 2 bounds"),
        (request(pb.block(1, "h") + pb.block(9, pb.block(1, pb.block(6, b"123")))), "cut off"),
        (request(pb.block(1, "g") + pb.block(5, pb.block(1, pb.block(7, b"")))), "without a key"),
        (request(pb.block(1, "g") + pb.block(5, pb.block(1, pb.fixed64(3, 2**64 - 1)
         + pb.double(4, 1)))), "its unit another one"),
    ],
)  # fmt: skip
def test_malformed_messages(body: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        otlp.parse(body)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"resourceMetrics": 1}', "resourceMetrics is int, not a list"),
        ('{"resourceMetrics": [1]}', "holds int, not objects"),
        ('{"resourceMetrics": [{"resource": []}]}', "resource is list, not an object"),
        ('{"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "a", "gauge": '
         '{"dataPoints": [{"asInt": "x"}]}}]}]}]}', "'x' is no whole number"),
        ('{"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "a", "gauge": '
         '{"dataPoints": [{"asDouble": "x"}]}}]}]}]}', "'x' is no number"),
    ],
)  # fmt: skip
def test_malformed_json(body: str, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        otlp.parse(body.encode(), json=True)


def test_depth_is_bounded() -> None:
    value = pb.whole(3, 1)
    for _ in range(40):
        value = pb.block(5, pb.block(1, value))
    body = pb.block(1, pb.block(1, pb.block(1, attribute("deep", value))))
    with pytest.raises(ProtocolError, match="within each other"):
        otlp.parse(body)
    deep: dict[str, Any] = {"intValue": 1}
    for _ in range(40):
        deep = {"arrayValue": {"values": [deep]}}
    message = {"resourceMetrics": [{"resource": {"attributes": [{"key": "a", "value": deep}]}}]}
    with pytest.raises(ProtocolError, match="within each other"):
        otlp.parse(json.dumps(message).encode(), json=True)
    with pytest.raises(ProtocolError, match="not JSON"):
        otlp.parse(b"[" * 100_000, json=True)


def assert_rows(rows: list[Row]) -> None:
    """What an engine can take: labels of text with a name, a number, a time or none."""
    for row in rows:
        assert row.labels[NAME_LABEL]
        assert all(type(one) is str for pair in row.labels.items() for one in pair)
        assert type(row.value) is float
        assert row.time_ms is None or abs(row.time_ms) <= TIME_MAX_MS


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_or_read(body: bytes) -> None:
    try:
        message = otlp_message.of_protobuf(body)
    except ProtocolError:
        return
    assert set(message) <= {"resourceMetrics"}


def test_mutated_requests_never_crash(rng: random.Random) -> None:
    sound = {True: json.dumps(AS_JSON).encode(), False: request(GAUGE, COUNTER, HISTOGRAM, SUMMARY)}
    for number in range(600):
        form = number % 2 == 0
        body = bytearray(sound[form])
        for _ in range(rng.randrange(1, 4)):
            odd = b'0"{}[],x' if form else b"\x00\x01\x0a\x12\x7f\x80\xff"
            body[rng.randrange(len(body))] = rng.choice(odd)
        try:
            parsed = otlp.parse(bytes(body), json=form)
        except ProtocolError:
            continue
        assert_rows(parsed.rows)


def test_a_response_says_what_was_rejected() -> None:
    assert otlp_message.response(0, "", json=False) == b""
    assert otlp_message.response(0, "", json=True) == b"{}"
    assert otlp_message.response(300, "why", json=False) == b"\x0a\x08\x08\xac\x02\x12\x03why"
