"""`siltstone inspect` and `verify` on a directory of Netdata's files."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from reference.netdata_files import Pair, array_page, whole

from siltstone.cli import run

ONE = uuid.UUID(int=1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    pair = Pair()
    for n in range(3):
        page, data = array_page(ONE, 1_700_000_000 + n, [whole(n)])
        pair.add([page], data)
    pair.write(tmp_path / "dbengine")
    return tmp_path


def damage(directory: Path) -> None:
    path = directory / "dbengine" / "datafile-1-0000000001.ndf"
    data = bytearray(path.read_bytes())
    data[4100] ^= 1
    path.write_bytes(data)


def test_inspect_tells_files_series_and_times(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = directory / "names"
    names.write_text(json.dumps({str(ONE): {"chart": "system.cpu", "dimension": "user"}}))
    assert run(["inspect", str(directory), "--all", "--names", str(names)]) == 0
    said = capsys.readouterr().out
    assert "1 series" in said
    assert "2023-11-14" in said
    assert "no damage seen" in said
    assert "system.cpu" in said.replace("\n", "")
    assert run(["inspect", str(directory), "--all", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (tier,) = said["tiers"]
    assert (tier["points"], tier["extents"], tier["first_ms"]) == (3, 3, 1_700_000_000_000)
    assert said["list"][0]["labels"]["uuid"] == str(ONE)


def test_verify_finds_damage(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(directory)]) == 0
    assert "all is well" in capsys.readouterr().out
    damage(directory)
    assert run(["verify", str(directory), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert said["problems"][0].endswith("at 4096: its CRC-32 does not fit")


def test_inspect_lists_the_first_problems(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / "dbengine" / "journalfile-1-0000000001.njf"
    path.write_bytes(path.read_bytes() + b"\xff" * 4096 * 30)
    assert run(["inspect", str(directory)]) == 0
    said = capsys.readouterr().out
    assert "30 problems; what they name reads as gaps:" in said
    assert "and 10 more" in said
    assert run(["inspect", str(directory / "dbengine"), "--names", str(path)]) == 2
    assert "is not JSON" in capsys.readouterr().err
