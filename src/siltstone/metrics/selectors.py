"""Selectors as people write them: `name{label="value"}`, or matchers, or nothing for all."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import promql_parser as parser

from siltstone.errors import InvalidValue
from siltstone.metrics.source import NAME_LABEL, Matcher

OPERATORS = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}


def matchers_of(match: str | Sequence[Matcher] | None) -> list[Matcher]:
    """The matchers of a selector. InvalidValue says what is wrong with it."""
    if match is None:
        return []
    return list(_parsed(match) if isinstance(match, str) else match)


@functools.lru_cache(256)  # callers ask the same again and again: 1 us instead of 10 to 25
def _parsed(match: str) -> tuple[Matcher, ...]:
    try:
        found = parser.parse(match)
    except ValueError as error:
        raise InvalidValue(f"{match!r} is no selector: {error}") from None
    if not isinstance(found, parser.VectorSelector) or found.offset or found.at:
        raise InvalidValue(f'{match!r} is no selector: write name{{label="value"}}')
    matchers = [Matcher(NAME_LABEL, "=", found.name)] if found.name else []
    for one in found.matchers.matchers:
        matchers.append(Matcher(one.name, OPERATORS[str(one.op).split(".")[-1]], one.value))
    if found.matchers.or_matchers:
        raise InvalidValue(f"{match!r}: give alternatives in several calls, or as one pattern")
    return tuple(matchers)
