"""Processes that share a cache are killed at any instruction while others go on."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from killrig import Rig

from siltstone.cache.engine import geometry

pytestmark = [pytest.mark.crash, pytest.mark.slow]

KILLS = int(os.environ.get("SILTSTONE_KILLS", "120"))


@pytest.mark.parametrize("workers", [2, 0], ids=["threads", "nobody leads"])
def test_kill_9_at_any_instruction(tmp_path: Path, rng: random.Random, workers: int) -> None:
    rig = Rig(tmp_path / "cache", rng, settings={"workers": workers})
    rig.kill_often(KILLS)
    stats = rig.settle()
    threads = 2 if workers else 1  # a worker's own, and the one for background work
    inside = rig.kills_inside * geometry(stats["limit_maxbytes"])[0]
    assert stats["shards_reset"] <= threads * rig.kills + inside
    assert rig.kills_inside > 0
    assert stats["bad_offsets"] == stats["flash_bad_checksums"] == 0
