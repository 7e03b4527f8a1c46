"""The queue of remote_write on disk: order, restarts, limits, damage, full disks."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path

import pytest

from siltstone.errors import DeviceFailed, EnvironmentFailure
from siltstone.log.foreign import NewFile
from siltstone.serve import outbox
from siltstone.serve.outbox import HEAD, MAGIC, Outbox, left_behind

MIB = 1 << 20
SMALL = 64 << 10  # the smallest file


def taken(box: Outbox, samples_max: int = 1 << 30, size_max: int = 1 << 30) -> list[bytes]:
    found = box.take(samples_max, size_max)
    return found.messages


def test_messages_come_in_order_until_a_limit(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "q", size_max=MIB)
    assert taken(box) == []
    for number in range(6):
        box.add(b"%d" % number, 10)
    assert box.samples == 60
    found = box.take(25, 1 << 20)
    assert (found.messages, found.samples, box.samples) == ([b"0", b"1"], 20, 40)
    assert taken(box, samples_max=1) == [b"2"]  # one at least
    assert taken(box, size_max=2) == [b"3", b"4"]
    assert taken(box) == [b"5"]
    assert taken(box) == []
    box.add(b"6", 1)
    assert taken(box) == [b"6"]
    box.close()


def test_a_restart_finds_what_is_not_sent(tmp_path: Path) -> None:
    box = Outbox(tmp_path, size_max=MIB)
    for number in range(5):
        box.add(b"%d" % number, 1)
    assert taken(box, samples_max=2) == [b"0", b"1"]
    box.done()
    assert taken(box, samples_max=1) == [b"2"]
    # killed: "2" was not answered
    again = Outbox(tmp_path, size_max=MIB)
    assert again.samples == 3
    again.add(b"5", 1)
    assert taken(again) == [b"2", b"3", b"4"]
    again.done()
    assert taken(again) == [b"5"]
    again.done()
    again.close()
    last = Outbox(tmp_path, size_max=MIB)
    assert (taken(last), last.samples, last.dropped) == ([], 0, 0)
    assert list(tmp_path.iterdir()) == []
    box.close()


def test_files_go_when_they_are_sent(tmp_path: Path) -> None:
    box = Outbox(tmp_path, size_max=MIB)
    for _ in range(10):
        box.add(bytes(SMALL), 1)
    assert len(list(tmp_path.glob("*.queue"))) == 10
    for left in range(10, 0, -1):
        assert taken(box) == [bytes(SMALL)]
        assert len(list(tmp_path.glob("*.queue"))) == left
        box.done()
    box.close()
    Outbox(tmp_path, size_max=MIB).close()
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_are_dropped_and_counted_only_beyond_the_limit(tmp_path: Path) -> None:
    box = Outbox(tmp_path, size_max=MIB)
    message = bytes(SMALL - len(MAGIC) - HEAD.size)
    for number in range(16):
        box.add(message[:-1] + bytes([number]), 5)
    assert (box.size, box.dropped, box.samples) == (MIB, 0, 80)
    box.add(message[:-1] + b"x", 5)
    assert (box.dropped, box.samples) == (5, 80)
    assert box.size <= MIB
    assert taken(box)[0][-1] == 1
    # what is being sent is not counted as lost with its file
    box.add(message, 5)
    assert (box.dropped, box.samples) == (5, 80)
    box.done()  # its file is gone
    assert taken(box)[0][-1] == 2
    box.close()
    small = Outbox(tmp_path, size_max=MIB // 2)
    assert small.size <= MIB // 2
    assert small.dropped + small.samples == 80
    small.close()


def model_step(rng: random.Random, box: Outbox, model: deque[bytes], number: int) -> None:
    if rng.random() < 0.6:
        message = b"%d." % number + bytes(rng.choice((0, 100, 30_000)))
        box.add(message, 1)
        model.append(message)
    else:
        found = taken(box, samples_max=rng.randrange(1, 5))
        assert found == [model[n] for n in range(len(found))]
        assert bool(found) == bool(model)
        box.done()
        for _ in found:
            model.popleft()


def test_any_history_with_restarts(tmp_path: Path, rng: random.Random) -> None:
    box, model = Outbox(tmp_path, size_max=1 << 30), deque[bytes]()
    box.file_size = SMALL
    for number in range(400):
        model_step(rng, box, model, number)
        assert box.samples == len(model)
        if rng.random() < 0.1:
            if rng.random() < 0.5:
                box.close()
            box = Outbox(tmp_path, size_max=1 << 30)
            box.file_size = SMALL
            assert box.samples == len(model)
    while model:
        model_step(rng, box, model, 0)
    assert box.dropped == box.damaged == 0
    box.close()


@pytest.mark.parametrize("cut", [1, 3, 5, HEAD.size + 2])
def test_a_torn_end_costs_what_was_torn(tmp_path: Path, cut: int) -> None:
    box = Outbox(tmp_path, size_max=MIB)
    for number in range(3):
        box.add(b"%03d" % number, 1)
    box.close()
    (file,) = tmp_path.glob("*.queue")
    file.write_bytes(file.read_bytes()[:-cut])
    again = Outbox(tmp_path, size_max=MIB)
    assert again.damaged == 1
    again.add(b"new", 1)
    assert taken(again) == [b"000", b"001"]
    assert taken(again) == [b"new"]
    again.close()


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    box = Outbox(tmp_path, size_max=MIB)
    box.add(b"first", 1)
    box.add(b"second", 1)
    box.close()
    (file,) = tmp_path.glob("*.queue")
    whole = file.read_bytes()
    for bit in range(len(whole) * 8):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        again = Outbox(tmp_path, size_max=MIB)
        found = taken(again)
        assert found in ([], [b"first"])
        assert again.damaged == 1
        again.close()
        for name in tmp_path.iterdir():
            name.unlink()
        file.write_bytes(whole)


def test_damage_while_it_is_open_loses_the_rest_of_a_file_and_counts_it(tmp_path: Path) -> None:
    box = Outbox(tmp_path, size_max=MIB)
    box.add(b"first", 1)
    box.add(b"second", 2)
    box.add(b"third", 3)
    (file,) = tmp_path.glob("*.queue")
    data = file.read_bytes().replace(b"second", b"sECOND")
    file.write_bytes(data)
    assert taken(box) == [b"first"]
    assert (box.damaged, box.dropped, box.samples) == (1, 5, 0)
    box.done()
    box.add(b"fourth", 4)
    assert taken(box) == [b"fourth"]
    box.close()


def test_a_damaged_note_of_what_is_sent_sends_again(tmp_path: Path) -> None:
    box = Outbox(tmp_path, size_max=MIB)
    box.add(b"a", 1)
    box.add(b"b", 1)
    assert taken(box, samples_max=1) == [b"a"]
    box.done()
    box.close()
    (note,) = tmp_path.glob("*.sent")
    note.write_bytes(b"\xff" + note.read_bytes()[1:] + b"xyz")
    again = Outbox(tmp_path, size_max=MIB)
    assert taken(again) == [b"a", b"b"]
    again.done()
    again.close()
    assert Outbox(tmp_path, size_max=MIB).samples == 0


def test_a_full_disk_tears_no_other_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, full = NewFile.append, [False]

    def failing(self: NewFile, data: bytes) -> None:
        if full[0]:
            append(self, data[: len(data) // 2])
            raise DeviceFailed(28, "no space left")
        append(self, data)

    monkeypatch.setattr(outbox.NewFile, "append", failing)
    box = Outbox(tmp_path, size_max=MIB)
    box.add(b"before", 1)
    full[0] = True
    with pytest.raises(DeviceFailed):
        box.add(b"during", 1)
    assert taken(box) == [b"before"]
    box.done()  # cannot be noted, which costs a second sending after a kill
    full[0] = False
    box.add(b"after", 1)
    assert taken(box) == [b"after"]
    box.done()
    box.close()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailure):
        Outbox(tmp_path / "file", size_max=MIB)


def test_queues_that_nobody_sends_are_found(tmp_path: Path) -> None:
    assert left_behind(tmp_path / "none", set()) == []
    for name in ("b", "a", "kept"):
        Outbox(tmp_path / name, size_max=MIB).close()
    assert left_behind(tmp_path, {"kept", "new"}) == ["a", "b"]
