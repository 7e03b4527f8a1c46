"""A small Metrics in memory, and what brings samples into it: for whatever serves time series."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def metrics() -> Iterator[Any]:
    from metricsrig import SEGMENT, opened

    from siltstone.log.device import MemoryDevice

    with opened(MemoryDevice(48, SEGMENT, engine="metrics")) as metrics:
        yield metrics


@pytest.fixture
def sink(metrics: Any) -> Any:
    from siltstone.serve.metadata import Metadata
    from siltstone.serve.sink import Sink

    return Sink(metrics, Metadata())
