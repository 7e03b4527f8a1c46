"""Prometheus' text format 0.0.4 and OpenMetrics 1.0, read.

    # HELP http_requests_total What the metric counts.
    # TYPE http_requests_total counter
    http_requests_total{method="post",code="200"} 1027 1395066363000

A request with any malformed line is refused whole, as Prometheus refuses a scrape; the error names
the line. OpenMetrics has times in seconds, exemplars (passed over), and ends with "# EOF": without
that the text was cut off. Pure functions, any thread.
"""

from __future__ import annotations

import re
from typing import Final

from siltstone.errors import ProtocolError
from siltstone.serve.ingest.rows import NAME_LABEL, Labels, Parsed, lines_of, number, problem

_NAME: Final = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
# A quoted value may hold "}", "#" and spaces: the groups are disjoint, so matching is linear.
_SAMPLE: Final = re.compile(
    rf"({_NAME}[ \t]*(?:\{{(?:[^\"}}]|\"(?:[^\"\\]|\\.)*\")*\}})?)[ \t]*"
    r"(?:([^ \t#]+)(?:[ \t]+([^ \t#]+))?[ \t]*(#.*)?)?"
)
_LABEL: Final = re.compile(
    r"[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*\"((?:[^\"\\]|\\.)*)\"[ \t]*(,|\})"
)
_META: Final = re.compile(rf"#[ \t]+(HELP|TYPE|UNIT)[ \t]+({_NAME})(?:[ \t]+(.*))?")
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED: Final = {"n": "\n", '"': '"', "\\": "\\"}
KINDS: Final = {
    "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset", "unknown",
    "untyped",
}  # fmt: skip


def parse(
    body: bytes, *, openmetrics: bool = False, known: dict[str, Labels] | None = None
) -> Parsed:
    """The samples and metadata of a text. ProtocolError names the line that is malformed.

    `known`: labels by the text that stands for them, kept by who reads the same series again.
    """
    parsed = Parsed()
    known = {} if known is None else known
    ended = False
    for count, line in enumerate(lines_of(body), 1):
        line = line.rstrip("\r") if openmetrics else line.strip(" \t\r")
        if not line:
            continue
        if ended:
            raise problem(count, "something behind # EOF", line)
        if line[0] == "#":
            ended = openmetrics and line == "# EOF"
            _metadata(line, count, parsed)
            continue
        if not _repeated(line, parsed, known):
            _sample(line, count, parsed, known, openmetrics)
    if openmetrics and not ended:
        raise ProtocolError("no # EOF at the end: the text was cut off")
    return parsed


def _metadata(line: str, count: int, parsed: Parsed) -> None:
    match = _META.fullmatch(line)
    if match is None:
        return  # any other comment
    what, name, text = match[1].lower(), match[2], match[3] or ""
    if what == "type":
        if text not in KINDS:
            raise problem(count, f"{text!r} is no type of a metric", line)
        text = "unknown" if text == "untyped" else text
    parsed.tell(name, what, _unescaped(text) if what == "help" else text)


def _repeated(line: str, parsed: Parsed, known: dict[str, Labels]) -> bool:
    """A known series, one space, and a number: nearly every line of a target that was asked
    before. False: it is another one, and nothing was read."""
    series, _, value = line.rpartition(" ")
    labels = known.get(series)
    if labels is None:
        return False
    try:
        parsed.add(labels, None, number(value))
    except ValueError:
        return False
    return True


def _sample(
    line: str, count: int, parsed: Parsed, known: dict[str, Labels], openmetrics: bool
) -> None:
    match = _SAMPLE.fullmatch(line)
    if match is None:
        raise problem(count, "neither a sample nor a comment", line)
    series, value, time, exemplar = match.groups()
    if value is None:
        raise problem(count, "a sample without a value", line)
    if exemplar and not openmetrics:
        raise problem(count, "only OpenMetrics has exemplars", line)
    labels = known.get(series)
    if labels is None:
        labels = known[series] = _labels(series, count, line)
    try:
        found = number(value)
    except ValueError:
        raise problem(count, f"{value!r} is no number", line) from None
    try:
        time_ms = None if time is None else round(number(time) * 1000) if openmetrics else int(time)
    except (ValueError, OverflowError):
        raise problem(count, f"{time!r} is no time", line) from None
    try:
        parsed.add(labels, time_ms, found)
    except ProtocolError as error:
        raise problem(count, str(error), line) from None


def _labels(series: str, count: int, line: str) -> Labels:
    name, brace, rest = series.partition("{")
    labels = {NAME_LABEL: name.rstrip(" \t")}
    if not brace:
        return labels
    at = 0
    while rest[at:].strip(" \t") != "}":
        match = _LABEL.match(rest, at)
        if match is None:
            raise problem(count, f"labels that make no sense from {rest[at : at + 20]!r} on", line)
        label, value, end = match.groups()
        if label in labels:
            raise problem(count, f"the label {label!r} twice", line)
        labels[label] = _unescaped(value) if "\\" in value else value
        at = match.end()
        if end == "}":
            break
    return labels


def _unescaped(text: str) -> str:
    """A backslash before anything else than n, a quote or itself stands for itself."""
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[0]), text)
