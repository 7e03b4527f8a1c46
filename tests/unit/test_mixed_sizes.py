"""A load of mixed sizes at full speed: while flash has room nothing is lost and nothing refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import siltstone


@pytest.mark.slow
def test_small_and_large_values_together(tmp_path: Path, rng: random.Random) -> None:
    # Large items lie over many frames, and go while no free frame is left to copy them to.
    sizes = [min(1_000_000, int(rng.lognormvariate(8.5, 1.8))) for _ in range(3000)]
    content = rng.randbytes(1_010_000)
    with siltstone.Cache(tmp_path / "c", ram="8MiB", flash="256MiB", codec="raw") as cache:
        for number, size in enumerate(sizes):
            cache[number] = content[number : number + size]
            if number % 7 == 0:
                del cache[number]
        for number, size in enumerate(sizes):
            expected = None if number % 7 == 0 else content[number : number + size]
            assert cache.get(number) == expected
        assert cache.stats()["evictions"] == 0
