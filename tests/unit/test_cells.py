"""Memory of nodes: what is taken stays apart, and goes back to the system when nobody needs it."""

from __future__ import annotations

import itertools
import os
import random
import threading

import pytest

from siltstone.log.workers import WorkerPool
from siltstone.store.page_trial import Cell, cells, prepare_cells

CHUNK_BYTES = 1 << 21
CELL_MAX = (1 << 14) + 64


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 192, 193, 1088, 1089, 4160, 4161, CELL_MAX])
def test_a_cell_is_large_enough_and_not_much_larger(size: int):
    cell = Cell(size)
    assert size <= cell.size <= max(size + 192, size * 9 / 8 + 1)
    assert cell.address % 64 == 0
    assert Cell(cell.size).size == cell.size


def test_sizes_rise():
    sizes = [Cell(size).size for size in range(CELL_MAX + 3000)]
    assert sizes == sorted(sizes)


def test_what_is_in_a_cell_stays():
    rng = random.Random(1)
    held: dict[int, Cell] = {}
    for turn in range(20_000):
        place = rng.randrange(700)
        cell = held.pop(place, None)
        if cell is not None:
            assert cell.content() == bytes([place % 256]) * cell.size
        if turn < 15_000:
            held[place] = Cell(
                rng.choice([100, 900, 4000, 4700, 9000, 16_000, 20_000]), place % 256
            )
    spans = sorted((cell.address, cell.address + cell.size) for cell in held.values())
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_cells_are_used_again():
    first = Cell(3000)
    address = first.address
    del first
    assert Cell(3000).address == address


def test_memory_goes_back():
    mapped, used = cells()
    held = [Cell(5000) for _ in range(2000)]
    assert cells()[1] == used + sum(cell.size for cell in held)
    assert cells()[0] >= mapped + 2000 * 5000 - 2 * CHUNK_BYTES
    del held
    assert cells()[1] == used
    assert cells()[0] <= mapped + CHUNK_BYTES


def test_memory_is_there_before_it_is_wanted():
    held = [Cell(5000) for _ in range(1000)]  # several chunks: this is no small store
    waited = 0
    with WorkerPool(1) as pool:
        for _ in range(2000):
            prepare_cells(pool)
            done = threading.Event()
            pool.submit(done.set)
            done.wait()
            mapped, used = cells()
            held.append(Cell(5000))
            waited += cells()[0] - mapped
    assert waited == 0
    assert mapped - used < 3 * CHUNK_BYTES  # and not more than that
    prepare_cells(pool)  # a closed pool: nothing
    del held
    assert cells()[0] <= mapped


def test_a_small_store_has_nothing_ahead():
    with WorkerPool(1) as pool:
        for _ in range(10):
            before = cells()
            prepare_cells(pool)
    assert cells() == before


def test_room_of_one_size_serves_another():
    held = [Cell(5000) for _ in range(2000)]
    mapped = cells()[0]
    del held
    small = [Cell(1000) for _ in range(9000)]
    assert cells()[0] <= mapped + CHUNK_BYTES
    assert len({cell.address for cell in small}) == len(small)


def test_large_ones_are_not_kept_here():
    before = cells()
    cell = Cell(CELL_MAX + 1, 7)
    assert cells() == before
    assert cell.content() == b"\x07" * cell.size


def test_a_forked_child_has_memory_of_its_own():
    held = [Cell(5000, 3) for _ in range(100)]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert cells() == (0, 0)
            own = [Cell(5000, 4) for _ in range(100)]
            theirs = {cell.address for cell in held}
            assert not theirs & {cell.address for cell in own}
            mine = cells()
            held.clear()  # the parent's: nothing happens
            assert cells() == mine
            assert all(cell.content() == b"\x04" * cell.size for cell in own)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(cell.content() == b"\x03" * cell.size for cell in held)
