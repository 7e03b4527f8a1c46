"""The asyncio face: the same results as the plain one, and the loop is never held up."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

import siltstone
from siltstone import aio, errors
from siltstone.aio import face
from siltstone.aio import store as aio_store
from siltstone.store import snapshot, transaction


def test_everything_awaited(tmp_path: Path) -> None:
    async def use() -> None:
        async with aio.Store(tmp_path / "store") as store:
            await store.set(b"a", b"1", durable=True)
            assert await store.get(b"a") == b"1"
            assert await store.contains(b"a")
            assert await store.count() == 1
            async with store.batch() as batch:
                for number in range(600):
                    batch[b"%03d" % number] = b"v"
            assert [key async for key in store.keys(b"100", limit=2)] == [b"100", b"101"]
            assert len([key async for key in store]) == 601
            async with store.snapshot() as snapshot:
                await store.delete(b"a")
                assert await snapshot.get(b"a") == b"1"
            users = await store.tree("users")
            await users.set(b"u", b"1")
            async with store.transaction() as transaction:
                part = await transaction.tree("users")
                assert await part.get(b"u") == b"1"
                transaction[b"b"] = b"2"
            assert await store.get(b"b") == b"2"
            with pytest.raises(errors.Conflict):  # noqa: PT012
                async with store.transaction() as transaction:
                    await transaction.get(b"b")
                    await store.set(b"b", b"3")
                    transaction[b"c"] = b"4"
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                async with store.batch() as batch:
                    batch[b"never"] = b""
                    raise ZeroDivisionError
            assert not await store.contains(b"never")
            assert (await store.verify()).ok
        with pytest.raises(errors.Closed):
            await store.get(b"a")

    asyncio.run(use())


def test_watching_while_tasks_write() -> None:
    async def use() -> list[bytes]:
        async with aio.Store(None) as store:
            watch = store.watch()

            async def write(number: int) -> None:
                await store.set(b"%d" % number, b"v")

            writing = asyncio.gather(*[write(number) for number in range(20)])
            found = []
            async for event in watch:
                found.append(event.key)
                if len(found) == 20:
                    watch.close()
            await writing
            return found

    assert sorted(asyncio.run(use())) == sorted(b"%d" % number for number in range(20))


def test_large_values_are_streamed(tmp_path: Path) -> None:
    async def use() -> None:
        store = await aio.Store(tmp_path / "store")
        async with store.open(b"large", "wb") as file:
            for _ in range(10):
                await file.write(bytes(100_000))
        async with store.open(b"large") as file:
            await file.seek(999_990)
            assert (len(await file.read()), await file.tell()) == (10, 1_000_000)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with store.open(b"never", "wb") as file:
                await file.write(b"half")
                raise ZeroDivisionError
        assert not await store.contains(b"never")
        with pytest.raises(errors.KeyMissing):
            await store.open(b"never").__aenter__()
        await store.close()

    asyncio.run(use())


def test_the_first_call_opens(tmp_path: Path) -> None:
    async def use() -> None:
        store = aio.Store(tmp_path / "store")
        assert not (tmp_path / "store").exists()
        await asyncio.gather(*[store.set(b"%d" % number, b"v") for number in range(8)])
        assert await store.count() == 8
        await store.close()
        await store.close()
        with pytest.raises(errors.Closed):
            await store.get(b"1")
        unused = aio.Store(tmp_path / "other")
        await unused.close()
        assert not (tmp_path / "other").exists()
        with pytest.raises(errors.ConfigError):
            await aio.Store(tmp_path / "other", durability="always")

    asyncio.run(use())


def test_the_names_of_the_plain_store() -> None:
    def names(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    plain = siltstone.Store
    inner = {"pages", "root", "step", "tick"}
    assert names(plain) - inner <= names(aio.Store)
    assert names(snapshot.Snapshot) - inner - {"name"} <= names(aio_store.Snapshot)
    assert names(transaction.TransactionTree) - inner - {"changes", "name"} <= names(
        aio_store.Transacted
    )


def test_transacting_coroutines_and_functions() -> None:
    async def use() -> None:
        async with aio.Store(None) as store:
            await store.set(b"n", b"0")
            tries = []

            async def add(transaction: aio_store.Transacted) -> bytes:
                found = await transaction.get(b"n")
                if len(tries) < 2:
                    await store.set(b"n", b"%d" % (int(found) + 10))
                tries.append(found)
                transaction.set(b"n", b"%d" % (int(found) + 1))
                return b"done"

            assert await store.transact(add) == b"done"
            assert tries == [b"0", b"10", b"20"]
            assert await store.get(b"n") == b"21"
            tries.clear()
            with pytest.raises(errors.Conflict):
                await store.transact(add, 2)
            await store.transact(lambda plain: plain.set(b"n", b"5"), durable=True)
            assert await store.get_many([b"n", b"m"]) == {b"n": b"5"}
            with pytest.raises(errors.InvalidValue):
                await store.transact(None)  # type: ignore[arg-type]

    asyncio.run(use())


def test_large_values_of_trees_and_snapshots() -> None:
    async def use() -> None:
        async with aio.Store(None) as store:
            tree = await store.tree("t")
            async with tree.open(b"k", "wb", durable=True) as file:
                await file.write(b"x" * 100_000)
            async with store.snapshot() as moment:
                await tree.delete(b"k")
                part = await moment.tree("t")
                async with part.open(b"k") as file:
                    assert len(await file.read()) == 100_000
            assert (tree.name, store.name, store.was_recovered) == ("t", "", False)
            assert store.size_on_disk > 0

    asyncio.run(use())


def test_closing_waits_for_opening_without_the_loop() -> None:
    opening, go_on = threading.Event(), threading.Event()

    class Slow:
        def __init__(self) -> None:
            opening.set()
            go_on.wait()

        def close(self) -> None:
            closed.append(self)

    closed: list[Slow] = []

    async def use() -> None:
        later = face.OpenedLater("store", Slow)
        first = asyncio.ensure_future(asyncio.to_thread(later._plain))
        await asyncio.to_thread(opening.wait)
        closing = asyncio.ensure_future(later.close())
        await asyncio.sleep(0)
        go_on.set()  # the loop runs while close() waits
        await closing
        assert closed == [await first]

    asyncio.run(use())
