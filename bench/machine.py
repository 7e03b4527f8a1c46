"""What was measured, on what: versions and machine kind. No host names, no paths."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("siltstone", "cachetools", "diskcache", "lmdb", "rocksdict", "uvloop", "Cython")


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.split(":", 1)[1].strip()
    return ""


def kind() -> dict[str, str]:
    """CPU model, cores, memory, kernel."""
    memory_kib = int(_field("/proc/meminfo", "MemTotal").split()[0])
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory_kib / 2**20:.0f} GiB",
        "kernel": re.split(r"[^\d.]", platform.release())[0],
    }


def versions() -> dict[str, str]:
    """Ours and the peers'; what is not installed is left out."""
    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    memcached = _output("memcached", "-V").split()
    if memcached:
        found["memcached"] = memcached[-1]
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _output("git", "rev-parse", "--short=10", "HEAD")
    if commit:
        found["commit"] = commit + ("+" if _output("git", "status", "--porcelain", "src") else "")
    return found


def describe() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    return {"date": f"{now:%Y-%m-%d %H:%M} UTC", "machine": kind(), "versions": versions()}
