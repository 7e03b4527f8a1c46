"""`siltstone import netdata` and `export netdata`."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from reference.netdata_files import Pair, array_page, decode, whole

from siltstone.cli import run
from siltstone.metrics.metrics import Metrics

ONE = uuid.UUID(int=1)
T0 = 1_700_000_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    pair = Pair()
    for n in range(3):
        page, data = array_page(ONE, T0 + 100 * n, [whole(n)] * 100)
        pair.add([page], data)
    pair.write(tmp_path / "cache" / "dbengine")
    return tmp_path / "cache"


def test_import_repeat_and_export(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, data = tmp_path / "names.json", tmp_path / "data"
    names.write_text(json.dumps({str(ONE): {"chart": "a.b", "dimension": "c"}}))
    command = ["import", "netdata", str(directory), "--into", str(data), "--names", str(names)]
    assert run(command) == 0
    assert "300 samples of 1 series" in capsys.readouterr().out
    assert run([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["samples"], said["extents_skipped"]) == (0, 3)
    with Metrics(data) as metrics:
        (series,) = metrics.select('netdata_a_b{dimension="c"}', T0, T0 + 300)
        assert series.values.tolist() == [0.0] * 100 + [1.0] * 100 + [2.0] * 100
    out = tmp_path / "out"
    command = ["export", "netdata", str(out), "--from", str(data), "--start", str(T0)]
    assert run([*command, "--end", str(T0 + 149)]) == 0
    assert "150 samples of 1 series" in capsys.readouterr().out
    assert decode(out) == {ONE: {T0 + n: float(n // 100) for n in range(150)}}
    assert run([*command, "--end", str(T0 + 149)]) == 2  # files are there already
    assert "give a new directory" in capsys.readouterr().err


def test_import_tells_damage_and_what_is_no_directory_of_netdata(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / "dbengine" / "datafile-1-0000000001.ndf"
    data = bytearray(path.read_bytes())
    data[4100] ^= 1
    path.write_bytes(data)
    into = tmp_path / "data"
    assert run(["import", "netdata", str(directory), "--into", str(into)]) == 1
    said = capsys.readouterr()
    assert "200 samples" in said.out
    assert "at 4096: its CRC-32 does not fit" in said.err
    assert run(["import", "netdata", str(tmp_path), "--into", str(tmp_path / "new")]) == 1
    assert "holds no datafile" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
