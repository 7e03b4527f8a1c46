"""Shared by all tests: one seed, and free ports."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# Deterministic by default, so that a failure repeats; HYPOTHESIS_PROFILE=explore looks further.
hypothesis.settings.register_profile(
    "repeat", derandomize=True, deadline=None, print_blob=True, max_examples=60
)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))

# Names the test that was under way to whoever finds the run dead.
RUNNING = Path(__file__).parent.parent / "build" / "running"


def pytest_runtest_logstart(nodeid: str) -> None:
    RUNNING.parent.mkdir(exist_ok=True)
    RUNNING.write_text(f"the run ended in the middle of {nodeid}\n")


def pytest_sessionfinish() -> None:
    RUNNING.unlink(missing_ok=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=1, help="seed of every random choice")
    parser.addoption("--thorough", action="store_true", help="crash suites in full: minutes")


def pytest_report_header(config: pytest.Config) -> str:
    profile = os.environ.get("HYPOTHESIS_PROFILE", "repeat")
    return f"seed: {config.getoption('seed')} (--seed N), hypothesis profile: {profile}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run; pass it on to child processes."""
    number: int = request.config.getoption("seed")
    return number


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether there is time for every moment and hundreds of rounds (make test-crash)."""
    chosen: bool = request.config.getoption("thorough")
    return chosen


@pytest.fixture
def rng(seed: int, request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that are the same in every run of this test."""
    return random.Random(f"{seed} {request.node.nodeid}")


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A function that gives a TCP port of the loopback that was free a moment ago."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return find
