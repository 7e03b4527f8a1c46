"""The asyncio face: the same results as the plain one, and the loop is never held up."""

from __future__ import annotations

import asyncio

import pytest

from siltstone import aio, errors


def test_everything_awaited(tmp_path):
    async def use() -> None:
        async with await aio.Store.open(tmp_path / "store") as store:
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


def test_watching_while_tasks_write():
    async def use() -> list[bytes]:
        async with await aio.Store.open(None) as store:
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
