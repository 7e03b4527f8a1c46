"""Label sets as the evaluator keeps them, and the conditions on them.

A label set is a tuple of (name, value) pairs in order of the names: hashable, and comparing two
of them gives Prometheus' order. A label with an empty value is one that is not there.
Patterns are RE2's, as in Prometheus, and must match the whole value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache

import re2

from siltstone.errors import InvalidQuery
from siltstone.metrics.source import NAME_LABEL, Matcher

Labels = tuple[tuple[str, str], ...]

LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
NO_LABELS: Labels = ()


def from_mapping(labels: Mapping[str, str]) -> Labels:
    return tuple(sorted((name, value) for name, value in labels.items() if value))


def get(labels: Labels, name: str) -> str:
    for key, value in labels:
        if key == name:
            return value
    return ""


def keep(labels: Labels, names: Collection[str]) -> Labels:
    return tuple(pair for pair in labels if pair[0] in names)


def drop(labels: Labels, names: Collection[str]) -> Labels:
    return tuple(pair for pair in labels if pair[0] not in names)


def without_name(labels: Labels) -> Labels:
    return tuple(pair for pair in labels if pair[0] != NAME_LABEL)


def replace(labels: Labels, changes: Iterable[tuple[str, str]]) -> Labels:
    """With the given labels set; an empty value removes one."""
    merged = dict(labels)
    merged.update(changes)
    return from_mapping(merged)


def text(labels: Labels) -> str:
    """As Prometheus writes a label set in its messages."""
    inside = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in labels)
    return "{" + inside + "}"


# Conditions ---------------------------------------------------------------------------------


def _options() -> re2.Options:
    options = re2.Options()
    options.log_errors = False
    return options


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re2._Regexp:
    """A pattern in RE2's syntax; raises `InvalidQuery` where it is none."""
    try:
        return re2.compile(pattern, _options())
    except re2.error as error:
        raise InvalidQuery(f"invalid regular expression {pattern!r}: {error}") from None


def condition(matcher: Matcher) -> Callable[[str], bool]:
    """Whether a value (missing: "") satisfies the matcher."""
    wanted = matcher.value
    if matcher.op == "=":
        return lambda value: value == wanted
    if matcher.op == "!=":
        return lambda value: value != wanted
    full = compile_pattern(wanted).fullmatch
    if matcher.op == "=~":
        return lambda value: full(value) is not None
    if matcher.op == "!~":
        return lambda value: full(value) is None
    raise InvalidQuery(f"unknown matching operator {matcher.op!r}; there are =, !=, =~ and !~")


def predicate(matchers: Sequence[Matcher]) -> Callable[[Mapping[str, str]], bool]:
    """Whether a label set satisfies all `matchers`; for sources that look at every series."""
    conditions = [(matcher.name, condition(matcher)) for matcher in matchers]

    def satisfied(labels: Mapping[str, str]) -> bool:
        return all(holds(labels.get(name, "")) for name, holds in conditions)

    return satisfied
