"""The public page cache: pointers, batches, roots, ids, memory, compression, forks, read-only."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

import siltstone
from siltstone.errors import (
    Closed,
    ConfigError,
    Conflict,
    ForkedProcess,
    InvalidKey,
    InvalidValue,
    KeyMissing,
    Locked,
    Outdated,
    ReadOnly,
    SiltstoneError,
)
from siltstone.store.pages import PageCache


class Joined:
    def merge(self, fragments: Sequence[bytes]) -> bytes:
        return b"".join(fragments)


class Numbers:
    """Fragments are lists of numbers."""

    def merge(self, fragments: Sequence[list[int]]) -> list[int]:
        return [number for fragment in fragments for number in fragment]

    def size(self, fragment: list[int]) -> int:
        return 8 * len(fragment)

    def encode(self, fragment: list[int]) -> bytes:
        return b",".join(b"%d" % number for number in fragment)

    def decode(self, data: bytes) -> list[int]:
        return [int(part) for part in data.split(b",") if part]


@pytest.fixture
def pages(tmp_path: Path):
    with PageCache(tmp_path / "p", Joined(), segment_size=65536) as opened:
        yield opened


def test_the_name_is_public() -> None:
    assert siltstone.PageCache is PageCache


def test_fragments_become_one(pages: PageCache) -> None:
    pid, first = pages.allocate(b"a")
    second = pages.link(pid, first, b"b")
    assert pages.get(pid) == (b"ab", second)
    assert pages.fragments(pid) == [b"a", b"b"]
    third = pages.replace(pid, second, b"c")
    assert pages.get(pid) == (b"c", third)
    with pytest.raises(Outdated) as caught:
        pages.link(pid, second, b"d")
    assert caught.value.actual == third
    assert pages.link(pid, caught.value.actual, b"d") != third


def test_materializer_of_objects(tmp_path: Path) -> None:
    with PageCache(tmp_path, Numbers()) as pages:
        pid, ptr = pages.allocate([1, 2])
        pages.link(pid, ptr, [3])
        assert pages.get(pid)[0] == [1, 2, 3]
        assert pages.fragments(pid) == [[1, 2], [3]]


def test_long_chains_are_merged_and_pointers_stay(pages: PageCache) -> None:
    pid, ptr = pages.allocate(b"")
    for number in range(200):
        ptr = pages.link(pid, ptr, bytes([number]))
        assert len(pages.fragments(pid)) <= 11
    assert pages.get(pid) == (bytes(range(200)), ptr)


def test_garbage_collection_is_no_change(pages: PageCache) -> None:
    pointers = {}
    for _ in range(300):
        pid, ptr = pages.allocate(os.urandom(700))
        pointers[pid] = ptr
    for pid in list(pointers)[::2]:
        pages.free(pid, pointers.pop(pid))
    assert pages.collect_garbage() > 0
    for pid, ptr in pointers.items():
        assert pages.get(pid)[1] == ptr
        pages.link(pid, ptr, b"still good")
    pages._pages.check_invariants()


@pytest.mark.parametrize("pid", [0, 1, -5, True, "2"])
def test_numbers_that_are_no_pages(pages: PageCache, pid: int) -> None:
    with pytest.raises(InvalidKey):
        pages.get(pid)


def test_unknown_and_freed_pages(pages: PageCache) -> None:
    for pid in (2, 99, 10**9, 1 << 50):
        with pytest.raises(KeyMissing, match=str(pid)):
            pages.get(pid)
    pid, ptr = pages.allocate(b"a")
    pages.free(pid, ptr)
    for call in (lambda: pages.free(pid, ptr), lambda: pages.link(pid, ptr, b"x")):
        with pytest.raises(KeyMissing):
            call()


def test_wrong_arguments(pages: PageCache) -> None:
    pid, ptr = pages.allocate(b"a")
    other, _ = pages.allocate(b"b")
    with pytest.raises(InvalidValue, match="is bytes"):
        pages.allocate("text")
    with pytest.raises(InvalidValue, match="pointer"):
        pages.link(other, ptr, b"x")
    with pytest.raises(InvalidKey):
        pages.root("")
    with pytest.raises(ConfigError):
        PageCache(None, Joined(), cache="10 potatoes")
    with pytest.raises(InvalidValue, match="merge"):
        PageCache(None, object())
    assert pages.get(pid)[0] == b"a"


def test_batches_count_together(pages: PageCache) -> None:
    pid, ptr = pages.allocate(b"a")
    with pages.batch():
        other, inner = pages.allocate(b"x")
        inner = pages.link(other, inner, b"y")
        ptr = pages.link(pid, ptr, b"b")
        assert pages.get(pid)[0] == b"ab"
        assert pages.compare_and_set_root("top", None, other)
    assert pages.get(other) == (b"xy", inner)
    assert pages.get(pid) == (b"ab", ptr)
    assert pages.root("top") == other
    gone = 0

    def give_up() -> None:
        nonlocal gone
        with pages.batch():
            gone, _ = pages.allocate(b"z")
            pages.free(pid, ptr)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        give_up()
    assert pages.get(pid) == (b"ab", ptr)
    with pytest.raises(KeyMissing):
        pages.get(gone)


def test_a_batch_that_met_another_change_is_refused(pages: PageCache) -> None:
    pid, ptr = pages.allocate(b"a")

    def meanwhile() -> None:
        pages.link(pid, ptr, b"other")

    def mine() -> None:
        with pages.batch():
            pages.link(pid, ptr, b"mine")
            thread = threading.Thread(target=meanwhile)
            thread.start()
            thread.join()

    with pytest.raises(Conflict):
        mine()
    assert pages.get(pid)[0] == b"aother"


def test_a_batch_larger_than_all_buffers(tmp_path: Path) -> None:
    settings = {"segment_size": 16384, "buffer_size": 4096, "buffers": 2, "workers": 0}
    with PageCache(tmp_path, Joined(), **settings) as pages, pages.batch():
        made = [pages.allocate(bytes([n % 256]) * 3000)[0] for n in range(60)]
    with PageCache(tmp_path, Joined(), **settings) as pages:
        assert [pages.get(pid)[0][:1] for pid in made] == [bytes([n % 256]) for n in range(60)]


def test_ids_never_repeat(tmp_path: Path) -> None:
    seen: set[int] = set()
    for _ in range(5):
        with PageCache(tmp_path, Joined(), id_interval=7) as pages:
            for _ in range(20):
                number = pages.generate_id()
                assert number not in seen
                seen.add(number)


def test_memory_is_bounded(tmp_path: Path) -> None:
    with PageCache(tmp_path, Joined(), cache="256KiB", background=False) as pages:
        for number in range(2000):
            pages.allocate(number.to_bytes(2, "little") * 500)
        pages.checkpoint()
        for pid in range(2, 2002):
            assert pages.get(pid)[0] == (pid - 2).to_bytes(2, "little") * 500
            assert pages.stats()["cache_bytes"] < 512 * 1024
        assert pages.stats()["cache_misses"] > 1000


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compression(tmp_path: Path, compression: str) -> None:
    try:
        pages = PageCache(tmp_path, Joined(), compression=compression)
    except ConfigError as error:
        pytest.skip(str(error))
    with pages:
        pid, ptr = pages.allocate(b"again and " * 5000)
        pages.link(pid, ptr, os.urandom(100))
        before = pages.get(pid)[0]
        assert pages.stats()["pages_written_bytes"] < 5000
    with PageCache(tmp_path, Joined()) as pages:  # readable whatever the setting
        assert pages.get(pid)[0] == before


def test_threads_that_link_to_one_page(pages: PageCache) -> None:
    pid, _ = pages.allocate(b"")

    def work(mark: bytes) -> None:
        for _ in range(100):
            ptr = pages.get(pid)[1]
            while True:
                try:
                    pages.link(pid, ptr, mark)
                    break
                except Outdated as error:
                    ptr = error.actual

    threads = [threading.Thread(target=work, args=(mark,)) for mark in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = pages.get(pid)[0]
    assert [said.count(mark) for mark in (b"a", b"b", b"c")] == [100, 100, 100]


def test_one_writer_and_readers_beside_it(tmp_path: Path) -> None:
    with PageCache(tmp_path, Joined()) as pages:
        pid, ptr = pages.allocate(b"a")
        pages.sync()
        with PageCache(tmp_path, Joined(), read_only=True) as reader:
            assert reader.get(pid)[0] == b"a"
            pages.link(pid, ptr, b"b")
            assert reader.get(pid)[0] == b"a"
            with pytest.raises(ReadOnly):
                reader.allocate(b"no")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        other = PageCache(tmp_path, Joined())
        os.write(write, b"x")
        os.read(read, 0)
        threading.Event().wait(30)
        del other
        os._exit(0)
    try:
        os.read(read, 1)
        with pytest.raises(Locked, match=str(child)):
            PageCache(tmp_path, Joined())
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_a_forked_child_may_not(pages: PageCache) -> None:
    pid, _ = pages.allocate(b"a")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            pages.get(pid)
        except ForkedProcess:
            pages.close()
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pages.get(pid)[0] == b"a"


def test_closed(tmp_path: Path) -> None:
    pages = PageCache(tmp_path, Joined())
    pid, ptr = pages.allocate(b"a")
    pages.close()
    pages.close()
    for call in (
        lambda: pages.get(pid),
        lambda: pages.link(pid, ptr, b"x"),
        lambda: pages.root("r"),
        pages.generate_id,
        pages.sync,
        pages.checkpoint,
        pages.verify,
    ):
        with pytest.raises(Closed):
            call()


def test_stable_positions(pages: PageCache) -> None:
    pages.allocate(b"a")
    position = pages.position
    pages.make_stable(position)
    assert pages.stable_position >= position


def test_deleting_most_makes_the_file_small(tmp_path: Path) -> None:
    with PageCache(tmp_path, Joined(), segment_size=65536) as pages:
        made = [pages.allocate(os.urandom(2000)) for _ in range(2000)]
        pages.sync()
        large = pages.size_on_disk
        for pid, ptr in made[100:]:
            pages.free(pid, ptr)
        live = 100 * 2000
    size = sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir())
    assert large > 4_000_000
    assert size <= 1.4 * live + 4 * 65536


def test_idle_pages_write_nothing(tmp_path: Path) -> None:
    # no workers: they may still be filling the next segments with zeros when `before` is read
    with PageCache(tmp_path, Joined(), background=False, workers=0) as pages:
        pages.allocate(b"a")
        pages.sync()
        while pages._pages.step():
            pass
        before = pages.stats()["written_bytes"]
        for _ in range(20):
            pages._pages.tick()
            assert not pages._pages.step()
        assert pages.stats()["written_bytes"] == before


def test_two_caches_of_one_path_in_one_process(tmp_path: Path) -> None:
    with PageCache(tmp_path, Joined()), pytest.raises(SiltstoneError):
        PageCache(tmp_path, Joined())
