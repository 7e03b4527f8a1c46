"""Types and help texts of metrics: kept over restarts, bounded, and never a reason not to start."""

from __future__ import annotations

from pathlib import Path

import pytest

from siltstone.errors import DeviceFailed
from siltstone.log.foreign import NewFile
from siltstone.serve import metadata
from siltstone.serve.loop import LoopThread
from siltstone.serve.metadata import NAMES_MAX, TEXT_MAX, About, Metadata, MetadataKeeper


def test_what_is_saved_is_there_again(tmp_path: Path) -> None:
    file = tmp_path / "metadata"
    one = Metadata(file)
    assert not one.save()  # nothing to save
    assert not file.exists()
    one.note("b", "counter", help='Says\n"it".', unit="seconds")
    one.note("a", "strange", help="x" * 2 * TEXT_MAX)
    assert one.save()
    assert not one.save()
    one.note("b", "counter", help='Says\n"it".', unit="seconds")
    assert not one.save()  # nothing new
    again = Metadata(file)
    assert list(again.items()) == [
        ("a", About("unknown", "x" * TEXT_MAX)),
        ("b", About("counter", 'Says\n"it".', "seconds")),
    ]
    again.note("b", "gauge")
    assert again.save()
    assert dict(Metadata(file).items())["b"] == About("gauge")
    assert [path.name for path in tmp_path.iterdir()] == ["metadata"]


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "NAMES_MAX", 2)
    one = Metadata()
    for name in "abc":
        one.note(name, "gauge")
    one.note("a", "counter")
    assert [(name, about.type) for name, about in one.items()] == [("a", "counter"), ("b", "gauge")]
    assert not one.save()  # there is no file
    assert NAMES_MAX > 2


def test_a_damaged_file_is_told_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "metadata"
    one = Metadata(file)
    one.note("a", "gauge", help="h")
    one.save()
    whole = file.read_bytes()
    for bit in range(len(whole) * 8):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        assert not Metadata(file).items()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert not Metadata(file).items()
    assert len(caplog.records) == len(whole) * 9
    again = Metadata(file)
    again.note("b", "gauge")
    assert again.save()
    assert list(dict(Metadata(file).items())) == ["b"]


def test_a_full_disk_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "metadata"
    one = Metadata(file)
    one.note("a", "gauge")
    one.save()
    append, full = NewFile.append, [True]

    def failing(self: NewFile, data: bytes) -> None:
        append(self, data[:10])
        if full[0]:
            raise DeviceFailed(28, "no space left")
        append(self, data[10:])

    monkeypatch.setattr(NewFile, "append", failing)
    one.note("b", "gauge")
    with pytest.raises(DeviceFailed):
        one.save()
    assert list(dict(Metadata(file).items())) == ["a"]
    keeper = LoopThread([MetadataKeeper(one, seconds=3600)])
    keeper.start()
    keeper.stop()
    assert "not saved: " in caplog.text
    full[0] = False
    assert one.save()  # still to be saved
    assert list(dict(Metadata(file).items())) == ["a", "b"]


def test_it_is_saved_every_few_seconds_and_at_the_stop(tmp_path: Path) -> None:
    one = Metadata(tmp_path / "metadata")
    thread = LoopThread([MetadataKeeper(one, seconds=3600)])
    thread.start()
    one.note("a", "gauge")
    thread.stop()
    assert list(dict(Metadata(tmp_path / "metadata").items())) == ["a"]
