"""tools/need.py: what a build needs is said once, and what is missing in one line."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent.parent / "tools" / "need.py"


def test_this_machine_can_build() -> None:
    ran = subprocess.run([sys.executable, TOOL], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


def test_requirements_come_from_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOOL.parent.parent)
    wanted = runpy.run_path(str(TOOL))["requirements"](["test"])
    names = {name.split(">")[0].split("<")[0] for name in wanted}
    assert {"meson-python", "Cython", "ninja", "msgspec", "typer", "rich", "pytest"} <= names
    assert "lmdb" not in names


def test_an_old_python_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert "3.11 or newer; this is 3.9" in runpy.run_path(str(TOOL))["problem"]()


def test_a_missing_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    assert "apt install gcc" in runpy.run_path(str(TOOL))["problem"]()
