"""Values of many sizes in little RAM: large ones lie in parts, and emptying frames moves those."""

import random

import pytest

import siltstone

SIZE_MAX = 512 << 10


def _value(key: int, turn: int) -> bytes:
    source = random.Random(key)
    size = int(2 ** source.uniform(6, 19))
    return (b"%d %d " % (key, turn) * (size // 4 + 1))[:size]


@pytest.mark.slow
@pytest.mark.parametrize("ram_mib", [4, 8, 16])
def test_overwriting_mixed_sizes_ends_and_keeps_what_it_says(ram_mib: int) -> None:
    # With 16 MiB this once went round for ever: parts of over half a frame were moved from frame
    # to frame, each move freeing one and taking one.
    keys, turns = 40 * ram_mib, 10
    source = random.Random(ram_mib)
    latest: dict[int, int] = {}
    with siltstone.Cache(None, ram=f"{ram_mib}MiB", flash=0, codec="raw") as cache:
        for turn in range(turns * keys):
            key = source.randrange(keys)
            cache.set(b"key %d" % key, _value(key, turn))
            latest[key] = turn
        assert cache.verify().ok
        found = 0
        for key, turn in latest.items():
            value = cache.get(b"key %d" % key)
            if value is not None:
                assert value == _value(key, turn)
                found += len(value)
        assert found > 0.5 * (ram_mib << 20)
