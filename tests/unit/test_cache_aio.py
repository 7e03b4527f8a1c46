"""The asyncio face of the cache: the plain one's results, and the loop is never held up."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

import siltstone
from siltstone import aio, errors


def test_everything_awaited(tmp_path: Path) -> None:
    async def use() -> None:
        async with aio.Cache(tmp_path, ram="32MiB", flash="64MiB") as cache:
            assert await cache.set("a", {"x": [1, 2.5, None]}, tag="t")
            assert await cache.get("a") == {"x": [1, 2.5, None]}
            assert await cache.get("none", 7) == 7
            assert await cache.contains("a")
            assert await cache.count() == 1
            assert not await cache.add("a", 1)
            assert await cache.replace("a", 5)
            assert await cache.incr("a", 3) == 8
            assert await cache.decr("a", 10) == -2
            value, token = await cache.get_with_token("a")
            assert value == -2
            assert await cache.compare_and_set("a", "new", token)
            assert not await cache.compare_and_set("a", "newer", token)
            assert await cache.append("a", b"er")
            assert await cache.prepend("a", b"re")
            assert await cache.pop("a") == "renewer"
            assert await cache.setdefault("b", 1) == 1
            await cache.update({"c": 2}, d=3)
            assert await cache.set_many({"e": 4, "f": 5}, ttl=100, tag="t") == 2
            assert 99 < await cache.ttl("e") <= 100
            assert await cache.touch("e")
            assert await cache.ttl("e") is None
            assert await cache.get_many(["b", "c", "nothing"]) == {"b": 1, "c": 2}
            assert sorted([key async for key in cache]) == ["b", "c", "d", "e", "f"]
            assert {key: value async for key, value in cache.items()}["f"] == 5
            assert sorted([value async for value in cache.values()]) == [1, 2, 3, 4, 5]
            assert await cache.evict("t") >= 2
            assert await cache.delete_many(["b", "c", "nothing"]) == 2
            assert await cache.delete("d")
            await cache.flush()
            await cache.sync()
            assert await cache.expire() == 2  # what was evicted by its tag
            assert (await cache.verify()).ok
            assert (await cache.stats())["get_hits"] >= 1
            await cache.clear()
        with pytest.raises(errors.Closed):
            await cache.get("a")
        with pytest.raises(errors.Closed):
            await cache.set("a", 1)

    asyncio.run(use())


def test_what_is_in_memory_is_read_by_the_loop_itself_and_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def use() -> None:
        async with aio.Cache(None) as cache:
            await cache.set("a", 1)
            before = await cache.stats()

            def refuse(*_: Any) -> None:
                raise AssertionError("a thread was asked")

            with monkeypatch.context() as patched:
                patched.setattr(asyncio, "to_thread", refuse)
                assert await cache.get("a") == 1
                assert await cache.get("b", "none") == "none"
            after = await cache.stats()
            for name in ("get_hits", "get_misses"):
                assert after[name] == before[name] + 1

    asyncio.run(use())


def test_what_is_on_flash_is_read_by_a_thread(tmp_path: Path) -> None:
    async def use() -> None:
        options: dict[str, Any] = {"ram": "32MiB", "flash": "256MiB", "codec": "raw"}
        async with aio.Cache(tmp_path, **options) as cache:
            values = {f"{number}": b"%08d" % number * 512 for number in range(20_000)}
            await cache.set_many(values)
            await cache.flush()
            assert (await cache.stats())["items_flash"] > 1_000
            before = await cache.stats()
            found = await asyncio.gather(*[cache.get(f"{number}") for number in range(2_000)])
            assert [value for value in found if value is not None] == [
                values[f"{number}"] for number, value in enumerate(found) if value is not None
            ]
            hits = sum(value is not None for value in found)
            after = await cache.stats()
            assert hits > 1_000
            assert after["get_flash_hits"] > before["get_flash_hits"]
            assert after["get_hits"] - before["get_hits"] == hits

    asyncio.run(use())


def test_many_tasks_compute_once() -> None:
    calls: list[str] = []

    async def slowly() -> str:
        calls.append("async")
        await asyncio.sleep(0.01)
        return "value"

    def plainly() -> str:
        assert threading.current_thread() is not threading.main_thread()
        calls.append("plain")
        return "other"

    async def use() -> None:
        async with aio.Cache(None) as cache:
            found = await asyncio.gather(*[cache.get_or_set("k", slowly) for _ in range(20)])
            assert found == ["value"] * 20
            assert await cache.get_or_set("l", plainly, ttl=60) == "other"
            assert await cache.get_or_set("m", lambda: slowly(), expire=60) == "value"
            assert 59 < await cache.ttl("m") <= 60
            assert calls == ["async", "plain", "async"]
            with pytest.raises(ZeroDivisionError):
                await cache.get_or_set("n", lambda: 1 // 0)
            assert await cache.get_or_set("n", lambda: 3) == 3  # the lease was given back

    asyncio.run(use())


def test_memoized_functions_become_coroutine_functions() -> None:
    calls: list[int] = []
    cache = aio.Cache(None)

    @cache.memoize(ttl=10)
    async def double(number: int) -> int:
        calls.append(number)
        return 2 * number

    @cache.memoize(name="triple")
    def triple(number: int) -> int:
        calls.append(number)
        return 3 * number

    async def use() -> None:
        async with cache:
            assert [await double(2), await double(2)] == [4, 4]
            assert [await triple(2), await triple(2)] == [6, 6]
            assert await cache.get(double.__cache_key__(2)) == 4
            assert await double.__wrapped__(5) == 10
            assert calls == [2, 2, 5]

    with pytest.raises(errors.ConfigError, match="takes brackets"):
        cache.memoize(lambda: 1)  # type: ignore[arg-type]
    asyncio.run(use())


def test_one_path_with_and_without_asyncio(tmp_path: Path) -> None:
    async def use() -> None:
        cache = await aio.Cache(tmp_path)
        with siltstone.Cache(tmp_path) as plain:
            plain["a"] = 1
            assert await cache.get("a") == 1
        await cache.close()
        await cache.close()
        unused = aio.Cache(tmp_path / "never")
        await unused.close()
        assert not (tmp_path / "never").exists()
        with pytest.raises(errors.ConfigError):
            await aio.Cache(tmp_path, ram="none")

    asyncio.run(use())
