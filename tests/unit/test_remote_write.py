"""remote_write: what was sent is what comes out, and what is malformed gives nothing."""

from __future__ import annotations

import math
import random
import struct

import cramjam
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import protobuf

from siltstone.errors import ConfigError, InvalidValue, LimitReached, ProtocolError, TooLarge
from siltstone.serve.remote_write import Decoder, labels_of


class Registry:
    """Ids in the order of asking."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []

    def __call__(self, labels: dict[str, str]) -> int:
        self.asked.append(labels)
        return len(self.asked) - 1


def decoder() -> tuple[Decoder, Registry]:
    registry = Registry()
    return Decoder(registry), registry


UP = {"__name__": "up", "instance": "localhost:9090", "job": "prometheus"}


def test_a_request_becomes_columns() -> None:
    one, registry = decoder()
    body = protobuf.series(UP, [(1000, 1.5), (2000, -0.0)])
    body += protobuf.series({**UP, "job": "b"}, [(0, 0.0)])
    body += protobuf.series(UP, [(-5, math.inf)])
    batch = one.decode(bytes(cramjam.snappy.compress_raw(body)))
    assert batch.ids.tolist() == [0, 0, 1, 0]
    assert batch.times.tolist() == [1000, 2000, 0, -5]
    assert batch.values.tolist() == [1.5, -0.0, 0.0, math.inf]
    assert registry.asked == [UP, {**UP, "job": "b"}]
    assert (batch.series, batch.exemplars, batch.histograms, batch.metadata) == (3, 0, 0, {})
    assert one.series_known == 2
    # known series are not asked for again, until told
    one.decode_plain(body)
    assert len(registry.asked) == 2
    one.forget()
    assert one.decode_plain(body).ids.tolist() == [2, 2, 3, 2]
    assert one.forgotten == 1


def test_the_bits_of_a_staleness_marker_survive() -> None:
    one, _ = decoder()
    (stale,) = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))
    batch = one.decode_plain(protobuf.series(UP, [(1, stale)]))
    assert batch.values.view(np.uint64).tolist() == [0x7FF0000000000002]


def test_what_is_not_kept_is_counted_and_what_is_unknown_passed_over() -> None:
    one, _ = decoder()
    labels = protobuf.label("__name__", "up")
    body = protobuf.block(1, labels + protobuf.block(3, b"x") + protobuf.block(4, b"yy") * 2)
    more = protobuf.double(9, 1) + protobuf.whole(10, 3) + protobuf.block(11, "?")
    more += protobuf.varint(12 << 3 | 5) + b"four"
    inner = protobuf.block(2, protobuf.double(1, 7) + protobuf.whole(2, 5) + more)
    body += protobuf.block(1, labels + inner) + more
    body += protobuf.block(
        3,
        protobuf.whole(1, 1) + protobuf.block(2, "up_total") + protobuf.block(4, "Says.") + more,
    )
    batch = one.decode_plain(body + protobuf.block(3, protobuf.whole(1, 99)))
    assert (batch.exemplars, batch.histograms) == (1, 2)
    assert batch.values.tolist() == [7]
    assert batch.metadata["up_total"] == {"type": "counter", "help": "Says.", "unit": ""}
    assert batch.metadata[""]["type"] == "unknown"


def test_labels_that_do_not_lie_together() -> None:
    one, registry = decoder()
    sample = protobuf.sample(1, 2)
    body = protobuf.label("a", "1") + sample + protobuf.label("b", "2") + sample
    batch = one.decode_plain(protobuf.block(1, body + protobuf.label("c", "3")))
    assert registry.asked == [{"a": "1", "b": "2", "c": "3"}]
    assert batch.ids.tolist() == [0, 0]


def test_the_dictionary_is_bounded() -> None:
    registry = Registry()
    one = Decoder(registry, series_max=3)
    for n in range(10):
        one.decode_plain(protobuf.series({"n": str(n)}, [(1, 1)]))
        assert one.series_known <= 3
    assert one.forgotten == 3
    with pytest.raises(ConfigError):
        Decoder(registry, series_max=0)


labels = st.dictionaries(
    st.text(min_size=1, max_size=9), st.text(max_size=9), min_size=1, max_size=4
)
samples = st.lists(
    st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)), max_size=20
)


@given(st.lists(st.tuples(labels, samples), max_size=8))
def test_round_trip(written: list[tuple[dict[str, str], list[tuple[int, float]]]]) -> None:
    one, registry = decoder()
    body = b"".join(protobuf.series(*one) for one in written)
    for batch in (one.decode(cramjam.snappy.compress_raw(body)), one.decode_plain(body)):
        rows = zip(batch.ids.tolist(), batch.times.tolist(), batch.values.tolist(), strict=True)
        found = [(registry.asked[number], time, value) for number, time, value in rows]
        assert found == [(own, time, value) for own, many in written for time, value in many]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"\x0a", "a length beyond the end"),
        (b"\x0a\x05abc", "a length beyond the end"),
        (b"\x80", "a field cut off"),
        (b"\xff" * 11, "a field cut off"),
        (b"\x03", "a field that makes no sense"),
        (b"\x00\x01", "a field that makes no sense"),
        (b"\x79abc", "a field that makes no sense"),
        (protobuf.block(1, b"\x08\x01"), "a field of a series that makes no sense"),
        (protobuf.block(1, protobuf.label("a", "b") + b"\x12\x02\x09\x01"), "a sample"),
        (protobuf.block(1, protobuf.label("a", "b") + b"\x12\x01\x10"), "a sample"),
        (protobuf.block(1, protobuf.label("a", "b") + b"\x12\x01\x13"), "a sample"),
        (protobuf.block(1, protobuf.sample(1, 1)), "a series without labels"),
        (protobuf.block(1, protobuf.label("", "b") + protobuf.sample(1, 1)), "without a name"),
        (protobuf.series({"a": "b"}, []) + protobuf.block(1, protobuf.label("a", "b") * 2
         + protobuf.sample(1, 1)), "'a' twice"),
        (protobuf.block(1, protobuf.block(1, b"\x0a\x01\xff") + protobuf.sample(1, 1)), "not UTF-"),
        (protobuf.block(1, protobuf.block(1, b"\x08\x01") + protobuf.sample(1, 1)), "a label that"),
        (protobuf.block(3, b"\x80"), "metadata cut off"),
        (protobuf.block(3, b"\x08"), "metadata cut off"),
        (protobuf.block(3, b"\x0b"), "metadata that makes no sense"),
    ],
)  # fmt: skip
def test_malformed_messages_are_refused_with_the_place(body: bytes, text: str) -> None:
    one, _ = decoder()
    with pytest.raises(ProtocolError, match=f"{text}.*at byte [0-9]+ of the message"):
        one.decode_plain(body)


def test_bodies_that_are_not_snappy_or_too_large() -> None:
    one = Decoder(Registry(), body_bytes_max=1000)
    for body in (
        b"",
        b"\xff" * 20,
        b"\x0a\x01",
        bytes(cramjam.snappy.compress_raw(b"x" * 100))[:-1],
    ):
        with pytest.raises(ProtocolError, match="not snappy"):
            one.decode(bytes(body))
    with pytest.raises(TooLarge, match="1001 bytes unpacked are more than 1000"):
        one.decode(bytes(cramjam.snappy.compress_raw(bytes(1001))))
    with pytest.raises(TooLarge):  # 4 GiB promised by five bytes
        one.decode(b"\xff\xff\xff\xff\x0f" + b"a" * 10)
    assert len(one.decode(bytes(cramjam.snappy.compress_raw(b""))).ids) == 0


def test_what_resolve_says_reaches_the_caller() -> None:
    def refuse(labels: dict[str, str]) -> int:
        raise TooLarge("a million series are enough")

    one = Decoder(refuse)
    with pytest.raises(TooLarge, match="enough"):
        one.decode_plain(protobuf.series(UP, [(1, 1)]))
    assert one.series_known == 0


@given(st.binary(max_size=80))
def test_any_bytes_are_refused_or_read(body: bytes) -> None:
    one, registry = decoder()
    try:
        batch = one.decode_plain(body)
        labels_of(body)
    except ProtocolError:
        return
    assert len(batch.ids) == len(batch.times) == len(batch.values)
    assert all(identity < len(registry.asked) for identity in batch.ids.tolist())


def test_mutated_requests_never_crash(rng: random.Random) -> None:
    one, _ = decoder()
    sound = b"".join(
        protobuf.series({**UP, "n": str(n)}, [(1000 * m, m) for m in range(n)]) for n in range(9)
    )
    for _ in range(3000):
        body = bytearray(sound)
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(len(body))] = rng.choice([0, 1, 0x0A, 0x12, 0x7F, 0x80, 0xFF])
        body = body[: rng.randrange(len(body)) if rng.randrange(2) else None]
        try:
            batch = one.decode_plain(bytes(body))
        except ProtocolError:
            continue
        assert len(batch.ids) == len(batch.times) == len(batch.values)


@given(st.lists(st.lists(st.integers(0, 15), max_size=12), max_size=8), st.integers(1, 20))
def test_any_order_of_series_gives_each_its_own_id(
    requests: list[list[int]], series_max: int
) -> None:
    """Labels of one series are the beginning of another's, and the order changes all the time."""
    registry = Registry()
    one = Decoder(registry, series_max=series_max)
    for request in requests:
        body = b""
        for number in request:
            names = "abcd"[: 1 + number % 4]
            labels = {"__name__": "x", **{name: str(number // 4) for name in names}}
            body += protobuf.series(labels, [(number + 1, number + 0.5), (number + 2, 1.0)])
        batch = one.decode_plain(body)
        assert batch.times.tolist() == [n + more for n in request for more in (1, 2)]
        assert batch.values.tolist() == [value for n in request for value in (n + 0.5, 1.0)]
        for number, id in zip(request, batch.ids.tolist()[::2], strict=True):
            names = "abcd"[: 1 + number % 4]
            expected = {"__name__": "x", **{name: str(number // 4) for name in names}}
            assert registry.asked[id] == expected
        assert one.series_known <= series_max


def test_known_series_with_unusual_samples() -> None:
    """Each is read as it was the first time, when nothing was expected yet."""
    labels = b"".join(protobuf.label(*pair) for pair in sorted(UP.items()))
    usual = protobuf.double(1, 1.5) + protobuf.whole(2, 7)
    for fields, expected in (
        ([usual], [(7, 1.5)]),
        ([protobuf.whole(2, 7) + protobuf.double(1, 1.5)], [(7, 1.5)]),
        ([usual, protobuf.whole(2, 8), usual], [(7, 1.5), (8, 0.0), (7, 1.5)]),
        ([protobuf.double(1, 1.5) + protobuf.whole(2, -1)], [(-1, 1.5)]),
        ([usual + protobuf.whole(2, 9)], [(9, 1.5)]),
        ([usual + protobuf.block(9, "x" * 200)], [(7, 1.5)]),
    ):
        one, registry = decoder()
        body = protobuf.block(1, labels + b"".join(protobuf.block(2, one) for one in fields))
        for _ in range(3):
            batch = one.decode_plain(body)
            found = list(zip(batch.times.tolist(), batch.values.tolist(), strict=True))
            assert found == expected
            assert batch.series == 1
        assert registry.asked == [UP]
        exemplar = protobuf.block(1, labels + protobuf.block(2, usual) + protobuf.block(3, "e"))
        batch = one.decode_plain(exemplar)
        assert (batch.ids.tolist(), batch.exemplars) == ([0], 1)
        # labels behind the samples belong to the series too
        more = protobuf.label("z", "1")
        batch = one.decode_plain(protobuf.block(1, labels + protobuf.block(2, usual) + more))
        assert registry.asked[batch.ids[0]] == {**UP, "z": "1"}
        # and a known one without samples is none
        assert one.decode_plain(protobuf.block(1, labels)).ids.tolist() == []


def test_a_known_series_that_is_cut_off_is_malformed() -> None:
    one, _ = decoder()
    body = protobuf.series(UP, [(7, 1.5), (8, 2.5)])
    one.decode_plain(body)
    for size in range(1, len(body)):
        with pytest.raises(ProtocolError):
            one.decode_plain(body[:size])
        # the same, with lengths that agree: the series itself ends too early
        inner = protobuf.series(UP, [(7, 1.5)])[2:]
        with pytest.raises(ProtocolError):
            one.decode_plain(protobuf.block(1, inner + body[2 : 2 + size % 3 + 1]))
    assert one.decode_plain(body).times.tolist() == [7, 8]


def test_a_smaller_message_sees_nothing_of_the_larger_one_before() -> None:
    one, _ = decoder()
    for count in (5000, 1, 0, 3):
        samples = [(n + 1, float(n)) for n in range(count)]
        body = protobuf.series(UP, samples)
        batch = one.decode(bytes(cramjam.snappy.compress_raw(body)))
        assert batch.times.tolist() == [time for time, _ in samples]


def test_a_series_that_is_refused_is_left_out_and_told() -> None:
    def resolve(labels: dict[str, str]) -> int:
        if labels["__name__"] == "full":
            raise LimitReached("series_max allows no more")
        if labels["__name__"] == "bad":
            raise InvalidValue("no name")
        return len(labels["__name__"])

    one = Decoder(resolve)
    parts = [protobuf.series({"__name__": name}, [(1, 1.0)]) for name in ("a", "full", "bad", "bb")]
    for _ in range(2):
        batch = one.decode_plain(b"".join(parts))
        assert batch.ids.tolist() == [1, 2]
        assert (batch.series, batch.refused) == (4, 2)
        assert batch.refusal == "series_max allows no more"
