"""Relabelling: rules that rewrite label sets or drop them, as Prometheus' relabel_configs.

Names and meaning are Prometheus' (docs: "Configuration", relabel_config): a rule joins the values
of its source labels, matches all of that against an RE2 pattern, and acts. `$1`, `${1}` and `$name`
in a replacement are what the pattern's groups found; `$$` is a dollar. A label that becomes empty
is gone. Pure functions of rules and labels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from siltstone.config import Kind, nearest
from siltstone.errors import ConfigError, InvalidQuery

if TYPE_CHECKING:
    import re2

_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
# A target label that may have parts of what was matched in it.
_TARGET: Final = re.compile(r"(?:(?:[a-zA-Z_]|\$(?:\{\w+\}|\w+))+\w*)+", re.ASCII)
_VARIABLE: Final = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))", re.ASCII)
_DEFAULT: Final = "(.*)"
_ALONE: Final = frozenset({"labeldrop", "labelkeep"})  # these take a pattern and nothing else
_EQUAL: Final = frozenset({"keepequal", "dropequal"})  # these take no pattern
_NAMING: Final = frozenset({"lowercase", "uppercase", "hashmod"}) | _EQUAL


@dataclass(frozen=True)
class Rule:
    """One of relabel_configs; the fields are its keys. ConfigError where it makes no sense."""

    source_labels: tuple[str, ...] = ()
    separator: str = ";"
    target_label: str = ""
    regex: str = _DEFAULT
    modulus: int = 0
    replacement: str = "$1"
    action: str = "replace"

    def __post_init__(self) -> None:
        action = self.action
        if action not in ACTIONS:
            raise ConfigError(f"there is no action {action!r}{nearest(action, ACTIONS)}")
        _ = self.pattern  # refuses what is none
        if action in _NAMING | {"replace"} and not self.target_label:
            raise ConfigError(f"the action {action} needs a target_label")
        if action == "replace" and not _TARGET.fullmatch(self.target_label):
            raise ConfigError(f"{self.target_label!r} is no target_label")
        if action in _NAMING and not _NAME.fullmatch(self.target_label):
            raise ConfigError(f"the target_label {self.target_label!r} is no name of a label")
        if action == "labelmap" and not _TARGET.fullmatch(self.replacement):
            raise ConfigError(f"the replacement {self.replacement!r} makes no name of a label")
        if action == "hashmod" and self.modulus < 1:
            raise ConfigError("the action hashmod needs a modulus of 1 or more")
        changed = {one.name for one in fields(self) if getattr(self, one.name) != one.default} - {
            "action"
        }
        allowed = {"regex"} if action in _ALONE else {"source_labels", "target_label"}
        if action in _ALONE | _EQUAL and changed - allowed:
            wrong = ", ".join(sorted(changed - allowed))
            raise ConfigError(f"the action {action} takes no {wrong}")

    @cached_property
    def pattern(self) -> re2._Regexp:
        try:  # here, so that settings can be read where time series cannot
            from siltstone.metrics.labels import compile_pattern
        except ImportError as error:
            raise ConfigError(
                f"relabelling needs pip install 'siltstone[metrics]' ({error})"
            ) from None
        try:
            return compile_pattern(self.regex)
        except InvalidQuery as error:
            raise ConfigError(f"the regex {self.regex!r}: {error}") from None

    def joined(self, labels: Mapping[str, str]) -> str:
        return self.separator.join(labels.get(name, "") for name in self.source_labels)


def relabelled(labels: Mapping[str, str], rules: Sequence[Rule]) -> dict[str, str] | None:
    """The labels after all rules; None: one of them drops the set."""
    found = {name: value for name, value in labels.items() if value}
    for rule in rules:
        if not ACTIONS[rule.action](rule, found):
            return None
    return found


# Actions: change `labels`; False drops them ---------------------------------------------------


def _put(labels: dict[str, str], name: str, value: str) -> bool:
    if value:
        labels[name] = value
    else:
        labels.pop(name, None)
    return True


def _replace(rule: Rule, labels: dict[str, str]) -> bool:
    match = rule.pattern.fullmatch(rule.joined(labels))
    if match is None:
        return True
    target = _expanded(rule.target_label, match)
    if not _NAME.fullmatch(target):
        return True
    return _put(labels, target, _expanded(rule.replacement, match))


def _keep(rule: Rule, labels: dict[str, str]) -> bool:
    return rule.pattern.fullmatch(rule.joined(labels)) is not None


def _drop(rule: Rule, labels: dict[str, str]) -> bool:
    return rule.pattern.fullmatch(rule.joined(labels)) is None


def _keep_equal(rule: Rule, labels: dict[str, str]) -> bool:
    return labels.get(rule.target_label, "") == rule.joined(labels)


def _drop_equal(rule: Rule, labels: dict[str, str]) -> bool:
    return not _keep_equal(rule, labels)


def _lower(rule: Rule, labels: dict[str, str]) -> bool:
    return _put(labels, rule.target_label, rule.joined(labels).lower())


def _upper(rule: Rule, labels: dict[str, str]) -> bool:
    return _put(labels, rule.target_label, rule.joined(labels).upper())


def _hash(rule: Rule, labels: dict[str, str]) -> bool:
    digest = hashlib.md5(rule.joined(labels).encode(), usedforsecurity=False).digest()
    number = int.from_bytes(digest[8:], "big")  # the last 8 bytes, as Prometheus
    return _put(labels, rule.target_label, str(number % rule.modulus))


def _map(rule: Rule, labels: dict[str, str]) -> bool:
    for name, value in list(labels.items()):
        match = rule.pattern.fullmatch(name)
        if match is not None:
            _put(labels, _expanded(rule.replacement, match), value)
    return True


def _drop_labels(rule: Rule, labels: dict[str, str]) -> bool:
    for name in [name for name in labels if rule.pattern.fullmatch(name) is not None]:
        del labels[name]
    return True


def _keep_labels(rule: Rule, labels: dict[str, str]) -> bool:
    for name in [name for name in labels if rule.pattern.fullmatch(name) is None]:
        del labels[name]
    return True


ACTIONS: Final[dict[str, Callable[[Rule, dict[str, str]], bool]]] = {
    "replace": _replace, "keep": _keep, "drop": _drop, "keepequal": _keep_equal,
    "dropequal": _drop_equal, "lowercase": _lower, "uppercase": _upper, "hashmod": _hash,
    "labelmap": _map, "labeldrop": _drop_labels, "labelkeep": _keep_labels,
}  # fmt: skip


def _expanded(template: str, match: Any) -> str:
    """The template with what its variables stand for; one that the pattern does not have is ""."""

    def of(variable: re.Match[str]) -> str:
        name = variable[1] or variable[2]
        if name is None:
            return "$"
        try:
            return match.group(int(name) if name.isdecimal() else name) or ""
        except (IndexError, KeyError):
            return ""

    return _VARIABLE.sub(of, template)


# In settings ---------------------------------------------------------------------------------


def _rules(value: Any) -> tuple[Rule, ...]:
    if not value:
        return ()
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise ConfigError(f'{value!r} are no rules: [{{ action = "drop", regex = "..." }}]')
    return tuple(_rule(number, one) for number, one in enumerate(value, 1))


def _rule(number: int, value: Any) -> Rule:
    if isinstance(value, Rule):
        return value
    kinds = {one.name: type(one.default) for one in fields(Rule)}
    try:
        if not isinstance(value, Mapping):
            raise ConfigError(f'{value!r} is none: {{ action = "drop", regex = "..." }}')
        given = dict(value)
        for name, one in given.items():
            if name not in kinds:
                raise ConfigError(f"there is no {name!r} in one{nearest(name, kinds)}")
            if kinds[name] is tuple and isinstance(one, list | tuple):
                if not all(isinstance(label, str) and _NAME.fullmatch(label) for label in one):
                    raise ConfigError(f"{name} is {one!r}: names of labels")
                given[name] = tuple(one)
            elif type(one) is not kinds[name]:
                wanted = "a list" if kinds[name] is tuple else f"a {kinds[name].__name__}"
                raise ConfigError(f"{name} is {one!r}, not {wanted}")
        if isinstance(given.get("action"), str):
            given["action"] = given["action"].lower()
        return Rule(**given)
    except ConfigError as error:
        raise ConfigError(f"rule {number}: {error}") from None


def _shown(rules: Sequence[Rule]) -> str:
    return "; ".join(
        " ".join(
            f"{one.name}={getattr(rule, one.name)!r}"
            for one in fields(rule)
            if getattr(rule, one.name) != one.default
        )
        for rule in rules
    )


RULES: Final = Kind("rules", _rules, _shown)
