"""PromQL, query by query: every script against our evaluator, and against a live Prometheus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheusrig import Prometheus, prometheus

from conformance.promqlscript import Case, Script, scripts
from siltstone.errors import SiltstoneError
from siltstone.metrics import promql
from siltstone.metrics.numbers import number_text

SCRIPTS = list(scripts())
CASES = [(script, case) for script in SCRIPTS for case in script.cases]
BEFORE_ALL_MS = -1000


def ours(script: Script, case: Case) -> dict[str, Any]:
    start_ms, end_ms, step_ms = case.times_ms
    try:
        if step_ms:
            result = promql.query_range(script.source(), case.query, start_ms, end_ms, step_ms)
        else:
            result = promql.query(script.source(), case.query, start_ms)
    except SiltstoneError as error:
        return {"status": "error", "error": str(error)}
    return {"status": "success", "data": json.loads(result.to_json())}


def theirs(peer: Prometheus, case: Case) -> dict[str, Any]:
    start, end, step = (number_text(time / 1000) for time in case.times_ms)
    if case.times_ms[2]:
        return peer.ask("/api/v1/query_range", query=case.query, start=start, end=end, step=step)
    return peer.ask("/api/v1/query", query=case.query, time=start)


@pytest.mark.parametrize(("script", "case"), CASES, ids=[case.title for _, case in CASES])
def test_our_answer(script: Script, case: Case) -> None:
    assert case.expected, f"{case.title}: no expectation"
    case.check(ours(script, case))


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.name for script in SCRIPTS])
def test_the_answer_of_prometheus(script: Script, tmp_path: Path) -> None:
    """The scripts say what Prometheus 2.42 answers, but where they say that it differs."""
    with prometheus(tmp_path) as peer:
        peer.fill(script.series, BEFORE_ALL_MS)
        for case in script.cases:
            if case.differs:
                continue
            answer = theirs(peer, case)
            if answer["status"] == "error" and answer["errorType"] == "bad_data":
                # the parsers' words differ, that it is an error does not
                assert case.expected[0].startswith("error "), case.title
            else:
                case.check(answer)
