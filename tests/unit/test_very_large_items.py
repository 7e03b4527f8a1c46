"""Values above an eighth of RAM: straight to flash, in parts, by the same rules."""

from pathlib import Path

import pytest

import siltstone

RAM = "16MiB"


@pytest.fixture
def cache(tmp_path: Path):
    with siltstone.Cache(
        tmp_path / "cache", ram=RAM, flash="64MiB", codec="raw", item_size_max="8MiB"
    ) as cache:
        yield cache


def _value(fill: int, size: int = 5_000_000) -> bytes:
    return bytes([fill]) * size


def test_set_get_delete(cache: siltstone.Cache) -> None:
    cache["a"] = _value(1)
    assert cache["a"] == _value(1)
    assert "a" in cache
    cache["a"] = _value(2, 6_000_000)
    assert cache["a"] == _value(2, 6_000_000)
    del cache["a"]
    assert "a" not in cache


def test_add_replace_and_tokens_follow_their_rules(cache: siltstone.Cache) -> None:
    assert cache.add("a", _value(1))
    assert not cache.add("a", _value(2))
    assert not cache.replace("b", _value(2))
    value, token = cache.get_with_token("a")
    assert value == _value(1)
    assert cache.compare_and_set("a", _value(3), token)
    assert not cache.compare_and_set("a", _value(4), token)
    assert cache["a"] == _value(3)


def test_the_oldest_go_when_flash_is_full(cache: siltstone.Cache) -> None:
    for fill in range(20):
        cache[f"k{fill}"] = _value(fill)
    # room is made ahead of the next writer, so one more may go while we look
    found = {fill: cache.get(f"k{fill}") for fill in range(19, -1, -1)}
    kept = [fill for fill, value in found.items() if value is not None]
    assert kept == list(range(19, 19 - len(kept), -1))
    assert all(found[fill] == _value(fill) for fill in kept)
    assert len(kept) >= 8


def test_above_item_size_max_is_refused_and_set_removes_the_former_value(
    cache: siltstone.Cache,
) -> None:
    cache["a"] = b"small"
    with pytest.raises(siltstone.errors.TooLarge):
        cache["a"] = _value(1, 9_000_000)
    assert "a" not in cache


def test_without_flash_an_eighth_of_ram_is_the_most() -> None:
    with (
        siltstone.Cache(None, ram=RAM, codec="raw", item_size_max="8MiB") as cache,
        pytest.raises(siltstone.errors.TooLarge),
    ):
        cache["a"] = _value(1)
