"""Real processes with a page cache, really killed: whole batches, all that were durable."""

from __future__ import annotations

import random

import pageskill
import pytest
from lives import life

import siltstone

pytestmark = [pytest.mark.crash, pytest.mark.slow]


@pytest.mark.parametrize("durability", ["none", "sync"])
def test_kill_in_a_loop(tmp_path, durability, seed, thorough):
    rng = random.Random(f"{seed} pages {durability}")
    said = [b""] * pageskill.PAGES
    done, ids = 0, -1
    for _ in range(150 if thorough else 5):
        told = life(
            pageskill.__file__, str(tmp_path), durability, reports=rng.choice([0, 1, 5, 40])
        )
        with siltstone.PageCache(tmp_path, pageskill.Joined(), **pageskill.SMALL) as pages:
            assert pages._pages.recovery.problems == []
            pids = pageskill.first(pages)
            n = int(pages.get(pids[0])[0])
            assert n >= told
            for number in range(done + 1, n + 1):
                pageskill.apply(said, number)
            done = n
            assert [pages.get(pid)[0] for pid in pids[1:]] == said
            identity = pages.generate_id()
            assert identity > ids
            ids = identity
            assert pages.verify().ok
            pages._pages.check_invariants()
            live = sum(map(len, said))
            assert pages.stats()["used_bytes"] <= 2 * live + 24 * 65536
    assert done > 0
