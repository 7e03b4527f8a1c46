"""Real processes, really killed: what they called durable is there, and nothing half done."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import storekill
from lives import life
from storerig import contents

import siltstone
from siltstone import errors

pytestmark = [pytest.mark.crash, pytest.mark.slow]

SCRIPT = Path(storekill.__file__)


@pytest.mark.parametrize("durability", ["interval", "sync"])
def test_kill_in_a_loop(tmp_path, durability, seed, thorough):
    """Each life starts from what the one before left; after each kill the store holds exactly the
    commits up to some n, not fewer than were durable. The file does not grow with the kills."""
    rng = random.Random(f"{seed} kill {durability}")
    path = tmp_path / "store"
    model: dict[str, dict[bytes, bytes]] = {"": {}, "users": {}}
    done = 0
    for _ in range(150 if thorough else 5):
        told = life(
            storekill.__file__, str(path), durability, "150", reports=rng.choice([0, 1, 5, 40])
        )
        with siltstone.Store(path, **storekill.SMALL) as store:
            n = int(store.get(storekill.NUMBER, b"0"))
            assert n >= told
            for number in range(done + 1, n + 1):
                storekill.apply(model, number)
            done = n
            found = contents(store)
            assert found[""] == model[""]
            assert found.get("users", {}) == model["users"]
            assert store.verify().problems == []
            assert len(store) == len(model[""])
            size = store.size_on_disk
        live = sum(len(k) + len(v) for pairs in model.values() for k, v in pairs.items())
        assert size <= 2 * live + 24 * 65536
    assert done > 0


def test_the_lock_is_named_and_gone_after_a_kill(tmp_path):
    path = tmp_path / "store"
    child = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(path), "interval", "100"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        child.stdout.readline()
        with pytest.raises(errors.Locked, match=f"pid {child.pid}"):
            siltstone.Store(path, **storekill.SMALL)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    with siltstone.Store(path, **storekill.SMALL) as store:
        assert store.verify().ok
