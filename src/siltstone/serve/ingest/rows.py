"""What the parsers of requests give: samples with their labels, and what was wrong.

Row: labels with the name under "__name__", a time in Unix milliseconds or None for "now", a value.
Rows of one series may share one mapping, which is never changed afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from siltstone.errors import InvalidValue, LimitReached, ProtocolError, TooLarge

NAME_LABEL: Final = "__name__"
ROWS_MAX: Final = 1 << 20  # of a request
TEXT_SHOWN: Final = 60
# Times beyond these are mistakes of unit, as everywhere in siltstone: 2^33 s, the year 2242.
TIME_MAX_MS: Final = (1 << 33) * 1000

_NOT_OF_LABELS: Final = re.compile(r"[^a-zA-Z0-9_]")
_NOT_OF_METRICS: Final = re.compile(r"[^a-zA-Z0-9_:]")

Labels = Mapping[str, str]


class Row(NamedTuple):
    """One sample."""

    labels: Labels
    time_ms: int | None
    value: float


class Columns(NamedTuple):
    """An id, a time and a value a sample: what an engine takes in one call."""

    ids: npt.NDArray[np.uint32]
    times: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


@dataclass
class Parsed:
    """The samples of a request. `problems`: sentences about lines that were left out, where the
    protocol lets the others stand; `skipped`: what is no number (text, unknown kinds)."""

    rows: list[Row] = field(default_factory=list)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: int = 0

    def add(self, labels: Labels, time_ms: int | None, value: float) -> None:
        """Another row. TooLarge beyond ROWS_MAX; ProtocolError for a time of the wrong unit."""
        if len(self.rows) >= ROWS_MAX:
            raise TooLarge(f"more than {ROWS_MAX} samples: send less at a time")
        if time_ms is not None and abs(time_ms) > TIME_MAX_MS:
            raise ProtocolError(f"a time of {time_ms} ms: is its unit another one?")
        self.rows.append(Row(labels, time_ms, value))

    def tell(self, name: str, what: str, text: str) -> None:
        """Metadata: `what` is "type", "help" or "unit"."""
        known = self.metadata.setdefault(name, {"type": "unknown", "help": "", "unit": ""})
        known[what] = text

    def columns(
        self, resolve: Callable[[Labels], int], now_ms: int, refused: list[str] | None = None
    ) -> Columns:
        """The rows for an engine; `resolve` is asked once for each mapping of labels.

        A series that it refuses is an error, or left out and told in `refused`, where there is one.
        """
        known: dict[int, int | None] = {}
        ids, rows = [], []
        for row in self.rows:
            own = id(row.labels)  # the rows keep the mapping alive
            if own not in known:
                known[own] = _resolved(resolve, row.labels, refused)
            found = known[own]
            if found is not None:
                ids.append(found)
                rows.append(row)
        times = [now_ms if row.time_ms is None else row.time_ms for row in rows]
        values = np.array([row.value for row in rows], np.float64)
        return Columns(np.array(ids, np.uint32), np.array(times, np.int64), values)


def _resolved(
    resolve: Callable[[Labels], int], labels: Labels, refused: list[str] | None
) -> int | None:
    try:
        return resolve(labels)
    except (InvalidValue, LimitReached) as error:
        if refused is None:
            raise
        refused.append(str(error))
        return None


def label_name(text: str) -> str:
    """A name that a label may have: other characters become "_"."""
    name = _NOT_OF_LABELS.sub("_", text)
    return name if name[:1] not in "0123456789" else "_" + name


def metric_name(text: str) -> str:
    """A name that a metric may have: other characters become "_"."""
    name = _NOT_OF_METRICS.sub("_", text)
    return name if name[:1] not in "0123456789" else "_" + name


def number(text: str) -> float:
    """A decimal number, NaN or an infinity; ValueError for what only Python takes for one."""
    if "_" in text or not text.isascii():
        raise ValueError(f"{text!r} is no number")
    return float(text)


def lines_of(body: bytes) -> list[str]:
    """The lines of a text in UTF-8; ProtocolError names the line that is none."""
    try:
        return body.decode().split("\n")
    except UnicodeDecodeError as error:
        raise problem(body.count(b"\n", 0, error.start) + 1, "not UTF-8", "") from None


def problem(line: int, what: str, text: str) -> ProtocolError:
    """An error that says where and what, and shows the front of the line."""
    shown = f": {shortened(text)!r}" if text else ""
    return ProtocolError(f"line {line}: {what}{shown}")


def shortened(text: str) -> str:
    return text if len(text) <= TEXT_SHOWN else text[:TEXT_SHOWN] + "..."
