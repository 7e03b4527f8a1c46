"""A life of a committing process: it says on stdout what is durable, line by line, until killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def life(script: str, *arguments: str, reports: int) -> int:
    """Run the script, kill it after so many reports; the last commit that it called durable."""
    child = subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE)
    assert child.stdout is not None
    told = 0
    try:
        for number, line in enumerate(child.stdout):
            told = int(line.split()[-1])
            if number >= reports:
                break
        os.kill(child.pid, signal.SIGKILL)
        told = max([told, *(int(line) for line in child.stdout if line.endswith(b"\n"))])
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    return told
