"""Requests as text: Prometheus and OpenMetrics, Influx lines, Graphite, statsd."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary
from prometheus_client import exposition as theirs
from prometheus_client.openmetrics import exposition as open_theirs
from prometheus_client.parser import text_string_to_metric_families

from siltstone.errors import ConfigError, ProtocolError, TooLarge
from siltstone.serve.ingest import graphite, influx, prometheus_text, rows, statsd
from siltstone.serve.ingest.rows import NAME_LABEL, Parsed


def found(parsed: Parsed) -> list[tuple[str, dict[str, str], int | None, float]]:
    out = []
    for labels, time_ms, value in parsed.rows:
        rest = {name: text for name, text in labels.items() if name != NAME_LABEL}
        out.append((labels[NAME_LABEL], rest, time_ms, value))
    return out


# Prometheus ---------------------------------------------------------------------------------

EXAMPLE = rb"""
# HELP http_requests_total The total number\nof \\ requests.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total{method="post",code="400",}    3 1395066363000
# Escaping in label values:
msdos_file{path="C:\\DIR\\FILE.TXT",error="Cannot find \"FILE\"\n} # x"} 1.458255915e9
metric_without_timestamp_and_labels 12.47
	something_weird {problem="division by zero"} +Inf -3982045
empty{}NaN
"""


def test_the_text_format() -> None:
    parsed = prometheus_text.parse(EXAMPLE)
    got = found(parsed)
    assert got[:-1] == [
        ("http_requests_total", {"method": "post", "code": "200"}, 1395066363000, 1027),
        ("http_requests_total", {"method": "post", "code": "400"}, 1395066363000, 3),
        ("msdos_file", {"path": r"C:\DIR\FILE.TXT", "error": 'Cannot find "FILE"\n} # x'}, None,
         1.458255915e9),
        ("metric_without_timestamp_and_labels", {}, None, 12.47),
        ("something_weird", {"problem": "division by zero"}, -3982045, math.inf),
    ]  # fmt: skip
    assert math.isnan(got[-1][3])
    said = {"type": "counter", "help": "The total number\nof \\ requests.", "unit": ""}
    assert parsed.metadata == {"http_requests_total": said}


def test_columns_share_the_ids_of_series() -> None:
    parsed = prometheus_text.parse(b'a{b="1"} 1 5\na{b="2"} 2\na{b="1"} 3 6\n')
    asked: list[dict[str, str]] = []
    columns = parsed.columns(lambda labels: asked.append(dict(labels)) or len(asked), 99)
    assert asked == [{NAME_LABEL: "a", "b": "1"}, {NAME_LABEL: "a", "b": "2"}]
    assert columns.ids.tolist() == [1, 2, 1]
    assert columns.times.tolist() == [5, 99, 6]
    assert columns.values.tolist() == [1, 2, 3]


def test_openmetrics() -> None:
    text = b"""# TYPE foo histogram
# UNIT foo_seconds seconds
foo_bucket{le="+Inf"} 17 1520879607.789 # {trace_id="K",x="}"} 9.8 1520879607.7
foo_count 17
# EOF
"""
    parsed = prometheus_text.parse(text, openmetrics=True)
    assert found(parsed) == [
        ("foo_bucket", {"le": "+Inf"}, 1520879607789, 17),
        ("foo_count", {}, None, 17),
    ]
    assert parsed.metadata["foo_seconds"]["unit"] == "seconds"
    with pytest.raises(ProtocolError, match="cut off"):
        prometheus_text.parse(text[:-6], openmetrics=True)
    with pytest.raises(ProtocolError, match="line 6: something behind # EOF"):
        prometheus_text.parse(text + b"a 1\n", openmetrics=True)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("up", "a sample without a value"),
        ("up x", "'x' is no number"),
        ("up 1_0", "'1_0' is no number"),
        ("up 1 2.5", "'2.5' is no time"),
        ("up 1 2 3", "neither a sample nor a comment"),
        ("1up 1", "neither a sample"),
        ('{a="b"} 1', "neither a sample"),
        ('up{a="b} 1', "is no number|neither"),
        ('up{a="b"c="d"} 1', "labels that make no sense from 'a=\"b\"c"),
        ('up{,} 1', "labels that make no sense"),
        ('up{1="b"} 1', "labels that make no sense"),
        ('up{a="1",a="2"} 1', "the label 'a' twice"),
        ('up{__name__="x"} 1', "the label '__name__' twice"),
        ('up 1 # {a="b"} 1', "only OpenMetrics has exemplars"),
        ("# TYPE up toy", "'toy' is no type"),
        ("up 1 99999999999999", "is its unit another one"),
    ],
)  # fmt: skip
def test_malformed_lines_are_refused_with_their_number(line: str, text: str) -> None:
    with pytest.raises(ProtocolError, match=f"^line 3: .*({text})"):
        prometheus_text.parse(b"# fine\nfine 1\n" + line.encode() + b"\nfine 2\n")


def test_text_that_is_not_utf_8() -> None:
    with pytest.raises(ProtocolError, match="line 2: not UTF-8"):
        prometheus_text.parse(b"a 1\nb\xff 1\n")


names = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,8}", fullmatch=True)
label_names = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_]{0,5}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8"), max_size=12)
samples = st.tuples(
    names,
    st.dictionaries(label_names, texts, max_size=3),
    st.none() | st.integers(0, 2**42),
    st.floats(allow_nan=False),
)


@given(st.lists(samples, max_size=8))
def test_what_is_written_is_read(
    written: list[tuple[str, dict[str, str], int | None, float]],
) -> None:
    escape = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
    lines = []
    for name, labels, time, value in written:
        inner = ",".join(f'{key}="{text.translate(escape)}"' for key, text in labels.items())
        lines.append(f"{name}{{{inner}}} {value!r} {'' if time is None else time}\n")
    body = "".join(lines)
    assert found(prometheus_text.parse(body.encode())) == written
    # and another parser sees the same (it takes times for seconds, and CR for the end of a line)
    if "\r" not in body and "\x85" not in body:
        others = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(body)
            for sample in family.samples
        ]
        if len(body.splitlines()) == len(written):
            assert others == [(name, labels, value) for name, labels, _, value in written]


def test_what_prometheus_own_client_prints() -> None:
    registry = CollectorRegistry()
    Counter("jobs", "Jobs.", ["kind"], registry=registry).labels('a"\\\n').inc(3)
    Gauge("heat", "Heat.", registry=registry).set(-2.5)
    Histogram("lag_seconds", "Lag.", registry=registry).observe(0.3)
    Summary("size_bytes", "Size.", registry=registry).observe(7)
    for render, openmetrics in (
        (theirs.generate_latest, False), (open_theirs.generate_latest, True),
    ):  # fmt: skip
        parsed = prometheus_text.parse(render(registry), openmetrics=openmetrics)
        by_name = {(name, labels.get("le")): value for name, labels, _, value in found(parsed)}
        assert by_name["jobs_total", None] == 3
        assert by_name["heat", None] == -2.5
        assert by_name["lag_seconds_bucket", "+Inf"] == 1
        assert by_name["size_bytes_sum", None] == 7
        assert {"kind": 'a"\\\n'} in [labels for _, labels, _, _ in found(parsed)]


# Influx -------------------------------------------------------------------------------------


def test_influx_lines() -> None:
    parsed = influx.parse(
        rb"""# comment
weather,location=us-midwest,season=summer temperature=82,wind=3i 1465839830100400200
wea\,th\ er,loc\=ation=us\ mid\,west hot=t,note="too, \"hot\" = 1",n=5u
disk-1 _used=1e3 -1

x value=-0.5,f=F 1
""",
        database="home",
    )
    assert parsed.problems == []
    assert parsed.skipped == 1
    home = {"db": "home"}
    assert found(parsed) == [
        ("weather_temperature", {**home, "location": "us-midwest", "season": "summer"},
         1465839830100, 82),
        ("weather_wind", {**home, "location": "us-midwest", "season": "summer"}, 1465839830100, 3),
        ("wea_th_er_hot", {**home, "loc_ation": "us mid,west"}, None, 1),
        ("wea_th_er_n", {**home, "loc_ation": "us mid,west"}, None, 5),
        ("disk_1__used", home, -1, 1000),
        ("x_value", home, 0, -0.5),
        ("x_f", home, 0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "ms"),
    [("", 1500), ("n", 1500), ("u", 1_500_000), ("ms", 1_500_000_000)],
)
def test_influx_precisions(precision: str, ms: int) -> None:
    assert influx.parse(b"a b=1 1500000000", precision=precision).rows[0].time_ms == ms
    assert influx.parse(b"a b=1 15", precision="m").rows[0].time_ms == 900_000
    with pytest.raises(ConfigError, match="use one of"):
        influx.parse(b"", precision="y")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("a", "no fields"),
        ("a,b=c", "no fields"),
        ("a b", "a field that makes no sense"),
        ("a b=", "a field that makes no sense"),
        ('a b="x', "a field that makes no sense"),
        ("a b=1,", "a field that makes no sense"),
        ("a b=1 x", "'x' is no time"),
        ("a b=1 1 2", "'1 2' is no time"),
        ("a b=x", "'x' is no value"),
        ("a b=1.5i", "'1.5i' is no value"),
        (",b=c d=1", "no measurement"),
        ("a,b d=1", "'b' is no tag"),
        ("a,=c d=1", "'=c' is no tag"),
        ("a,b=1,b=2 d=1", "the tag 'b' twice"),
        ("a b=1,c=2 99999999999999999999999", "is its unit another one"),
    ],
)
def test_bad_influx_lines_leave_the_others(line: str, text: str) -> None:
    parsed = influx.parse(f'a ok=1,skip="s"\n{line}\na ok=2'.encode())
    assert [row.value for row in parsed.rows] == [1, 2]
    assert parsed.skipped == 1
    (problem,) = parsed.problems
    assert problem.startswith("line 2: ")
    assert text in problem


# Graphite -----------------------------------------------------------------------------------


def test_graphite_lines() -> None:
    parsed = graphite.parse(
        b"servers.web1.cpu 12.5 1465839830\n"
        b"disk.used;host=web 1\r\n\n"
        b"disk.used;host=web;dev=sda 1 -1\n"
        b"1st\t2\t1.5\n"
        b"gone nan 5\n"
        b"bad\n"
        b"bad x 1\nbad 1 x\nbad 1 2 3\n;a=b 1 1\na;b 1 1\na;b=1;b=2 1 1\na\xff 1 1\na 1 1e300\n"
    )
    assert found(parsed) == [
        ("servers_web1_cpu", {}, 1465839830000, 12.5),
        ("disk_used", {"host": "web"}, None, 1),
        ("disk_used", {"host": "web", "dev": "sda"}, None, 1),
        ("_1st", {}, 1500, 2),
    ]
    assert parsed.skipped == 1
    assert [text.split(":")[0] for text in parsed.problems] == [f"line {n}" for n in range(7, 16)]


# statsd -------------------------------------------------------------------------------------


def test_statsd_gathers_until_it_is_flushed() -> None:
    one = statsd.Gatherer()
    assert one.take(b"hits:1|c\nhits:2|c|@0.5\nroom.heat:20|g\nroom.heat:-3|g\n") == []
    assert one.take(b"hits:1|c|#env:prod,fast\nusers:ann|s\nusers:bob|s\nusers:ann|s") == []
    assert one.take(b"lag:1:2:3:4|ms|c:abc|T123\nlag:10|ms|@0.5") == []
    assert found(one.flush(7)) == [
        ("hits", {}, 7, 5),
        ("hits", {"env": "prod", "fast": "true"}, 7, 1),
        ("room_heat", {}, 7, 17),
        ("users", {}, 7, 2),
        ("lag_count", {}, 7, 6),
        ("lag_sum", {}, 7, 30),
        ("lag", {"quantile": "0.5"}, 7, 3),
        ("lag", {"quantile": "0.9"}, 7, 10),
        ("lag", {"quantile": "0.99"}, 7, 10),
    ]
    assert one.take(b"hits:1|c") == []
    assert found(one.flush(8)) == [
        ("hits", {}, 8, 6),
        ("hits", {"env": "prod", "fast": "true"}, 8, 1),
        ("room_heat", {}, 8, 17),
        ("users", {}, 8, 0),
        ("lag_count", {}, 8, 6),
        ("lag_sum", {}, 8, 30),
    ]
    assert one.series == 5


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("a", "not name:value"), ("a:1", "not name:value"), (":1|c", "not name:value"),
        ("a:1|x", "'x' is no type"), ("a:z|c", "'z' is no number"), ("a:inf|c", "is no number"),
        ("a:1|c|@0", "a rate of 0"), ("a:1|c|@2", "a rate of 2"), ("a:1|c|?", "neither rate"),
        ("a:1|c|#:x", "is no tag"),
    ],
)  # fmt: skip
def test_bad_statsd_lines_leave_the_others(line: str, text: str) -> None:
    one = statsd.Gatherer()
    (problem,) = one.take(f"ok:1|c\n{line}\nok:1|c".encode())
    assert problem.startswith("line 2: ")
    assert text in problem
    assert found(one.flush(1)) == [("ok", {}, 1, 2)]


def test_statsd_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statsd, "VALUES_MAX", 5)
    one = statsd.Gatherer(series_max=2)
    lines = [f"t:{n}|ms\nu:{n}|s" for n in range(10)]
    assert one.take("\n".join(lines).encode()) == []
    assert "2 series are known: no room" in one.take(b"more:1|c")[0]
    values = {name: value for name, labels, _, value in found(one.flush(1)) if not labels}
    assert values == {"u": 5, "t_count": 10, "t_sum": 45}


# All of them --------------------------------------------------------------------------------


def by_statsd(body: bytes) -> list[rows.Row]:
    one = statsd.Gatherer()
    one.take(body)
    return one.flush(1).rows


PARSERS: list[Callable[[bytes], list[rows.Row]]] = [
    lambda body: prometheus_text.parse(body).rows,
    lambda body: prometheus_text.parse(body, openmetrics=True).rows,
    lambda body: influx.parse(body).rows,
    lambda body: graphite.parse(body).rows,
    by_statsd,
]
SEEDS = [
    EXAMPLE,
    EXAMPLE + b"# EOF\n",
    b'a\\ b,c=d e=1,f="g h" 5\n',
    b"a.b;c=d 1 2\n",
    b"a:1|c|@0.1|#b:c\n",
]


@pytest.mark.parametrize("number", range(len(PARSERS)))
def test_any_bytes_give_rows_or_an_error(number: int, rng: random.Random) -> None:
    for _ in range(400):
        body = bytearray(SEEDS[number])
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(body))
            body[at : at + rng.randrange(3)] = rng.choice(
                [b"\xff", b'"', b"\\", b" ", b"\n", b"#{", b"=,"]
            )
        try:
            taken = PARSERS[number](bytes(body))
        except ProtocolError:
            continue
        for row in taken:
            assert row.labels[rows.NAME_LABEL]
            assert all(type(one) is str for pair in row.labels.items() for one in pair)
            assert type(row.value) is float


@pytest.mark.parametrize("number", range(len(PARSERS)))
def test_long_hostile_lines_take_no_long_time(number: int) -> None:
    for text in (
        b"a" * 200_000,
        b'a{b="' + b"\\" * 200_001,
        b"a," * 50_000,
        b"a b=" * 50_000,
        b"a{" + b'"",' * 60_000,
        b"a:" + b"1:" * 100_000,
        b" " * 200_000 + b"x",
    ):
        try:
            PARSERS[number](text)
        except ProtocolError:
            continue


def test_too_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROWS_MAX", 2)
    with pytest.raises(TooLarge, match="more than 2 samples"):
        prometheus_text.parse(b"a 1\na 2\na 3\n")
