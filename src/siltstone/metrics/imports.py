"""Importing Netdata's files into an engine: samples of any age, and marks of how far it came."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from siltstone.metrics import netdata
from siltstone.metrics.keys import key_of
from siltstone.metrics.netdata_import import ImportReport, run
from siltstone.metrics.state import MARKED, Mark, pack

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine


class EngineSink:
    """What netdata_import.py gives samples to."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def extend(
        self,
        labels: Mapping[str, str],
        times: npt.NDArray[np.int64],
        values: npt.NDArray[np.float64],
    ) -> None:
        engine = self._engine
        id = engine.live_id(key_of(labels, engine.limits))
        engine.head.extend(id, np.ascontiguousarray(times), np.ascontiguousarray(values), True)

    def mark(self, key: str) -> int:
        return self._engine.marks.get(key, 0)

    def set_mark(self, key: str, value: int) -> None:
        engine = self._engine
        with engine.work:
            engine.head.flush()  # the mark's record stands behind what it speaks of
            engine.append(MARKED, pack(Mark(key, value)))
            engine.marks[key] = value
            engine.log.sync()


def import_netdata(
    engine: Engine,
    directory: str | os.PathLike[str],
    names: Mapping[Any, Mapping[str, str]] | None,
    *,
    tier: int | None,
    progress: Callable[[int, int], None] | None,
) -> ImportReport:
    with netdata.open(directory, names=names) as view:
        return run(view, EngineSink(engine), tier=tier, progress=progress)
