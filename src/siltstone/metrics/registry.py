"""The series that are known at the moment: keys, ids, and which labels which of them has.

Known are live series (they have samples in memory or were written to lately) and those of the
segments whose index is loaded. An id is a number of this process, never used for another series;
on the medium a series is its key. Not thread-safe: the engine's lock is held in every call.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from siltstone.errors import InvalidValue
from siltstone.metrics.keys import labels_of
from siltstone.metrics.labels import Labels, condition
from siltstone.metrics.source import Matcher

Ids = npt.NDArray[np.uint32]
_NONE: Ids = np.empty(0, np.uint32)
# Of answers that are kept, since dashboards ask the same again and again: reading and sorting the
# labels of 1,000 series takes 10 ms.
SERIES_KEPT: Final = 100_000


@dataclass(frozen=True)
class Matched:
    """Series by their sorted labels; not to be changed."""

    ids: Ids
    labels: Sequence[Mapping[str, str]]
    pairs: Sequence[Labels]


@functools.lru_cache(256)
def value_test(op: str, value: str) -> Callable[[str], bool]:
    """Whether a label's value satisfies the matcher."""
    if op not in ("=", "!=", "=~", "!~"):
        raise InvalidValue(f"{op!r} is no matcher: =, !=, =~ or !~")
    return condition(Matcher("", op, value))


class Registry:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._values: dict[str, dict[str, list[int]]] = {}
        self._all: Ids | None = _NONE
        self._answers: OrderedDict[tuple[Matcher, ...], Matched] = OrderedDict()
        self._answers_size = 0

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, key: bytes) -> int:
        """Its id; 0 = unknown."""
        return self._ids.get(key, 0)

    def key(self, id: int) -> bytes:
        return self._keys[id]

    def labels(self, id: int) -> dict[str, str]:
        return labels_of(self._keys[id])

    def add(self, key: bytes, id: int) -> None:
        assert key not in self._ids
        self._ids[key] = id
        self._keys[id] = key
        self._changed()
        for name, value in labels_of(key).items():
            self._values.setdefault(name, {}).setdefault(value, []).append(id)

    def remove(self, ids: Iterable[int]) -> None:
        """They are not known any more."""
        gone = set(ids)
        if not gone:
            return
        touched: set[tuple[str, str]] = set()
        for id in gone:
            key = self._keys.pop(id)
            del self._ids[key]
            touched.update(labels_of(key).items())
        self._changed()
        for name, value in touched:
            left = [id for id in self._values[name][value] if id not in gone]
            if left:
                self._values[name][value] = left
            else:
                del self._values[name][value]
                if not self._values[name]:
                    del self._values[name]

    @property
    def all(self) -> Ids:
        if self._all is None:
            self._all = np.sort(np.fromiter(self._keys, np.uint32, len(self._keys)))
        return self._all

    def _changed(self) -> None:
        self._all = None
        self._answers.clear()
        self._answers_size = 0

    def select(self, matchers: Sequence[Matcher]) -> Matched:
        """The series that satisfy all matchers, by their labels; kept for the next time."""
        asked = tuple(matchers)
        answer = self._answers.pop(asked, None)
        if answer is None:
            answer = self._sorted(self.match(matchers))
            self._answers_size += 1 + answer.ids.size
        self._answers[asked] = answer
        while self._answers_size > SERIES_KEPT and len(self._answers) > 1:
            _, oldest = self._answers.popitem(last=False)
            self._answers_size -= 1 + oldest.ids.size
        return answer

    def _sorted(self, ids: Ids) -> Matched:
        labels = [labels_of(self._keys[id]) for id in ids.tolist()]
        pairs = [tuple(one.items()) for one in labels]  # a key has them by name
        order = sorted(range(len(pairs)), key=pairs.__getitem__)
        if not order:
            return Matched(_NONE, [], [])
        return Matched(ids[order], [labels[n] for n in order], [pairs[n] for n in order])

    def match(self, matchers: Sequence[Matcher]) -> Ids:
        """The ids of the series that satisfy all matchers, rising."""
        found: Ids | None = None
        # Those that need a label are selective, so they go first.
        for matcher in sorted(matchers, key=lambda one: value_test(one.op, one.value)("")):
            test = value_test(matcher.op, matcher.value)
            values = self._values.get(matcher.name, {})
            if matcher.op == "=" and matcher.value:
                some = self._having([values.get(matcher.value, [])])
                found = some if found is None else np.intersect1d(found, some, True)
            elif not test(""):
                some = self._having([ids for value, ids in values.items() if test(value)])
                found = some if found is None else np.intersect1d(found, some, True)
            else:
                without = self._having([ids for value, ids in values.items() if not test(value)])
                found = np.setdiff1d(self.all if found is None else found, without, True)
            if found.size == 0:
                return _NONE
        return self.all if found is None else found

    def _having(self, lists: list[list[int]]) -> Ids:
        total = sum(len(ids) for ids in lists)
        found = np.fromiter((id for ids in lists for id in ids), np.uint32, total)
        found.sort()
        return found

    def names(self, ids: Ids | None = None) -> list[str]:
        """Names of labels that any of these series has."""
        return sorted(name for name in self._values if ids is None or self._any(name, ids))

    def values(self, name: str, ids: Ids | None = None) -> list[str]:
        values = self._values.get(name, {})
        if ids is None:
            return sorted(values)
        wanted = set(ids.tolist())
        return sorted(value for value, has in values.items() if not wanted.isdisjoint(has))

    def sizes(self) -> dict[str, dict[str, int]]:
        """Of each label's name and value, how many series have it."""
        return {
            name: {value: len(ids) for value, ids in values.items()}
            for name, values in self._values.items()
        }

    def _any(self, name: str, ids: Ids) -> bool:
        wanted = set(ids.tolist())
        return any(not wanted.isdisjoint(has) for has in self._values[name].values())
