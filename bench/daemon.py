"""The servers under test as child processes: memcached and siltstone, started with the same flags.

Each is pinned to the server's core from its first instruction, listens on a free loopback port,
and is stopped by SIGTERM at the end of its block. `Daemon.load` runs the load generator against
it from the other core and adds what the server spent.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import harness
from bench.compiler import generator

MEMCACHED = "memcached"
START_S = 20


def command_of(name: str) -> list[str]:
    if name == harness.OURS:
        beside = Path(sys.executable).with_name("siltstone")
        program = str(beside) if beside.exists() else shutil.which("siltstone")
        if program is None:
            raise RuntimeError("the siltstone command is not installed")
        return [program, "memcached"]
    program = shutil.which(MEMCACHED) or "/usr/bin/memcached"
    if not Path(program).exists():
        raise RuntimeError("memcached is not installed (Debian: apt install memcached)")
    return [program, *(["-u", "nobody"] if os.geteuid() == 0 else [])]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Daemon:
    name: str
    process: subprocess.Popen[bytes]
    address: tuple[str, int]

    def load(self, operation: str, **options: Any) -> dict[str, float]:
        """One run of the generator; its report with what the server spent added: `cpu_us` (an
        operation), `busy` (of its core), and how busy the generator was."""
        with harness.pinned(harness.cores()[1]):
            before, own = harness.cpu_seconds(self.process.pid), time.thread_time()
            result: dict[str, float] = generator().run(self.address, operation, **options)
            spent = harness.cpu_seconds(self.process.pid) - before
            result["generator_busy"] = (time.thread_time() - own) / result["seconds"]
        result["cpu_us"] = spent / max(result["operations"], 1) * 1e6
        result["busy"] = spent / result["seconds"]
        return result

    def statistics(self, group: str = "") -> dict[str, str]:
        """The reply of `stats`, as text."""
        with socket.create_connection(self.address, timeout=10) as link:
            link.sendall(f"stats {group}".strip().encode() + b"\r\n")
            reply = b""
            while not reply.endswith((b"END\r\n", b"RESET\r\n", b"ERROR\r\n")):
                piece = link.recv(1 << 16)
                if not piece:
                    break
                reply += piece
        lines = [line.split(" ", 2) for line in reply.decode().splitlines()]
        return {line[1]: line[2] for line in lines if line[0] == "STAT" and len(line) == 3}

    def answers(self) -> bool:
        try:
            return bool(self.statistics())
        except OSError:
            return False


@contextlib.contextmanager
def running(name: str, *flags: str) -> Iterator[Daemon]:
    """`name` is "memcached" or "siltstone"; flags are memcached's."""
    port = free_port()
    command = [*command_of(name), "-p", str(port), "-l", "127.0.0.1", "-U", "0", *flags]
    with tempfile.TemporaryFile() as said, contextlib.ExitStack() as stack:
        with harness.pinned(harness.cores()[0]):
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        daemon = Daemon(name, process, ("127.0.0.1", port))
        stack.callback(_stop, process)
        up = harness.wait_for(lambda: process.poll() is not None or daemon.answers(), START_S)
        if not up or process.poll() is not None:
            said.seek(0)
            raise RuntimeError(f"{name} did not start: {said.read().decode()[-2000:]}")
        yield daemon


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def pair(settings: harness.Settings, flags: Mapping[str, Sequence[str]]) -> Iterator[list[Daemon]]:
    """Both servers up at the same time, each with its own flags; only the peer if so asked."""
    names = [MEMCACHED] if settings.peers_only else [harness.OURS, MEMCACHED]
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running(name, *flags[name])) for name in names]
