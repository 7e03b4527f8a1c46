"""Builds bench/generator.pyx when it is first needed, into a cache folder named by its contents.

The generator is a tool of the benches, not a part of siltstone, so it is not in the package's
build: two commands (Cython, then the C compiler that Python itself was built with) are enough.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

SOURCE = Path(__file__).with_name("generator.pyx")
CACHE = SOURCE.parent.parent / "build" / "bench"


def _compile(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    c_file = target.with_suffix(f".{os.getpid()}.c")
    library = target.with_suffix(f".{os.getpid()}.so")
    translate = [sys.executable, "-m", "cython", "-3", str(SOURCE), "-o", str(c_file)]
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
    build = [compiler, "-O2", "-fPIC", "-shared", "-w", "-D_GNU_SOURCE", "-fno-strict-aliasing"]
    build += ["-I", sysconfig.get_path("include"), str(c_file), "-o", str(library)]
    for command in (translate, build):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"building the load generator failed:\n{done.stdout}{done.stderr}")
    c_file.unlink()
    library.replace(target)  # whole or not at all: another run may be building it too


@functools.cache
def generator() -> ModuleType:
    """The compiled module: `run`, `key_of`, `value_of` (see generator.pyx)."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    target = CACHE / digest / f"generator{suffix}"
    if not target.exists():
        _compile(target)
    spec = importlib.util.spec_from_file_location("generator", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
