"""The judge: generated PromQL, answered by us and by a live Prometheus 2.42 on the same samples.

The seed is fixed and printed with each failure; PROMQL_SEED and PROMQL_COUNT in the environment
ask for others and for more.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheusrig import Prometheus, prometheus
from promqlgenerator import BEGIN_MS, LENGTH_MS, Generator, data
from promqlrig import MemorySource

from siltstone.errors import InvalidQuery, QueryFailed, SiltstoneError
from siltstone.metrics import promql
from siltstone.metrics.numbers import number_text

SEED = int(os.environ.get("PROMQL_SEED", "42"))
COUNT = int(os.environ.get("PROMQL_COUNT", "400"))
DEPTH = 3

# Functions whose last bits differ between two mathematics libraries, and sums whose order
# Prometheus leaves to chance.
TOLERANCE = 1e-9
# Which two series of a group an error names, where they come in no order.
PAIR = re.compile(r"match group .* on the|: \[.*\];")


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with prometheus(tmp_path_factory.mktemp("prometheus")) as server:
        server.fill(data(SEED), BEGIN_MS)
        yield server


@pytest.fixture(scope="module")
def source() -> MemorySource:
    return MemorySource(data(SEED))


def same_number(ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    a, b = float(ours), float(theirs)
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12)


def samples(row: dict[str, Any]) -> list[list[Any]]:
    return row["values"] if "values" in row else [row["value"]]


def difference(ours: dict[str, Any], theirs: dict[str, Any], ordered: bool) -> str:
    """What is wrong with our answer; "" if nothing. A matrix of a range is sorted by itself."""
    if ours.get("status") != theirs.get("status"):
        return "one is an error"
    if ours["status"] == "error":
        if ours["errorType"] != theirs["errorType"]:
            return "another type of error"
        if ours["errorType"] != "execution":
            return ""
        texts = [one["error"] if ordered else PAIR.sub("", one["error"]) for one in (ours, theirs)]
        return "another error" if texts[0] != texts[1] else ""
    mine, wanted = ours["data"], theirs["data"]
    if mine["resultType"] != wanted["resultType"]:
        return "another type"
    if mine["resultType"] == "scalar":
        fits = same_number(mine["result"][1], wanted["result"][1])
        return "" if fits and mine["result"][0] == wanted["result"][0] else "another value"
    if mine["resultType"] == "string":
        return "" if mine["result"] == wanted["result"] else "another value"
    mine_rows, wanted_rows = mine["result"], wanted["result"]
    if not ordered:
        mine_rows = sorted(mine_rows, key=lambda row: sorted(row["metric"].items()))
        wanted_rows = sorted(wanted_rows, key=lambda row: sorted(row["metric"].items()))
    if [row["metric"] for row in mine_rows] != [row["metric"] for row in wanted_rows]:
        return "other labels, or another order"
    for one, other in zip(mine_rows, wanted_rows, strict=True):
        if [at for at, _ in samples(one)] != [at for at, _ in samples(other)]:
            return f"other times in {one['metric']}"
        for (at, value), (_, expected) in zip(samples(one), samples(other), strict=True):
            if not same_number(value, expected):
                return f"{one['metric']} at {at}: {value}, expected {expected}"
    return ""


def answer(ask: Any, *arguments: Any) -> dict[str, Any]:
    try:
        result = ask(*arguments)
    except SiltstoneError as error:
        kinds = ((InvalidQuery, "bad_data"), (QueryFailed, "execution"))
        kind = next((text for cls, text in kinds if isinstance(error, cls)), "internal")
        return {"status": "error", "errorType": kind, "error": str(error)}
    return {"status": "success", "data": json.loads(result.to_json())}


# Where Prometheus' own order is one of a Go map's, or of an unstable sort.
UNORDERED = re.compile(r"histogram_quantile|sort|topk|bottomk|count_values|\[\w+:\w*\]")
# Which of equal values are among the largest is then left to chance too.
CHANCE = re.compile(r"(?:topk|bottomk) (?:\w+ \([^()]*\) )?\([^(){]*, *[\w ]*\(")


def report(query: str, wrong: str, ours: object, theirs: object) -> str:
    return f"{query}: {wrong}\n  ours   {str(ours)[:600]}\n  theirs {str(theirs)[:600]}"


def compare(peer: Prometheus, source: MemorySource, query: str, at_ms: int) -> str:
    ours = answer(promql.query, source, query, at_ms)
    theirs = peer.ask("/api/v1/query", query=query, time=f"{at_ms / 1000:.3f}")
    wrong = difference(ours, theirs, not UNORDERED.search(query))
    if wrong:
        return report(f"{query}\n  at {at_ms}", wrong, ours, theirs)
    return ""


def compare_range(
    peer: Prometheus, source: MemorySource, query: str, start_ms: int, end_ms: int, step_ms: int
) -> str:
    ours = answer(promql.query_range, source, query, start_ms, end_ms, step_ms)
    theirs = peer.ask(
        "/api/v1/query_range", query=query, start=f"{start_ms / 1000:.3f}",
        end=f"{end_ms / 1000:.3f}", step=number_text(step_ms / 1000),
    )  # fmt: skip
    wrong = difference(ours, theirs, False)
    if wrong:
        return report(f"{query}\n  {start_ms}..{end_ms} by {step_ms}", wrong, ours, theirs)
    return ""


def test_generated_queries_have_prometheus_answers(peer: Prometheus, source: MemorySource) -> None:
    generator = Generator(SEED)
    failures = []
    for number in range(COUNT):
        query = generator.vector(1 + number % DEPTH)
        chance = generator.chance
        start_ms = BEGIN_MS + chance.randrange(LENGTH_MS // 1000) * 1000
        failures.append(compare(peer, source, query, start_ms))
        if CHANCE.search(query):
            continue
        step_ms = chance.choice([15_000, 30_000, 60_000, 73_000, 7_500])
        end_ms = min(start_ms + step_ms * chance.randrange(1, 30), BEGIN_MS + LENGTH_MS)
        failures.append(compare_range(peer, source, query, start_ms, end_ms, step_ms))
    failures = [failure for failure in failures if failure]
    assert not failures, f"seed {SEED}: {len(failures)} of {2 * COUNT} differ\n\n" + "\n\n".join(
        failures[:20]
    )
