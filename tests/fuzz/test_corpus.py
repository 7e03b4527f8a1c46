"""Every input that a fuzzer ever kept, again; and the fuzzer itself for a moment where it is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import session

INPUTS = sorted(session.CORPUS.iterdir())


@pytest.mark.parametrize("path", INPUTS, ids=[path.name for path in INPUTS])
def test_replay(path: Path) -> None:
    session.one_input(path.read_bytes())


def test_there_is_a_corpus() -> None:
    assert len(INPUTS) >= 50


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_the_fuzzer_runs(tmp_path: Path) -> None:
    command = [sys.executable, session.__file__, "-runs=2000", "-seed=1", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
