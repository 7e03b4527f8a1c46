"""`make demo`: both jobs at once. The cache takes its files; Metrics records the machine meanwhile.

Exit code 0 only if nothing was missing and nothing was wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from siltstone import chart
from siltstone.demo import files, machine


def main(argv: Sequence[str] | None = None) -> int:
    """Both jobs; returns the exit code."""
    job = files.Job()
    parser = argparse.ArgumentParser(prog="siltstone.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--ram", default=job.ram)
    parser.add_argument("--flash", default=job.flash)
    parser.add_argument("--times", type=int, default=job.times, help="so many times the memory")
    parser.add_argument("--folder", type=Path, action="append", help="other input than Python's")
    arguments = parser.parse_args(argv)
    job = files.Job(arguments.ram, arguments.flash, arguments.times, arguments.folder or ())
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="siltstone-demo-") as name:
        recorder = machine.Recorder(Path(name, "metrics"))
        with recorder:
            outcome = files.run(job, console)
        console.print(files.table(outcome))
        recorded = recorder.read_back()
    console.print(machine.table(recorded))
    console.print("\n[bold]what this machine's processors did meanwhile[/]")
    console.print(chart.of(recorded.cores, console, y_label="cores"), soft_wrap=True)
    if outcome.misses or outcome.wrong or recorded.lost:
        console.print(
            f"FAILED: {outcome.misses} misses, {outcome.wrong} wrong values, "
            f"{recorded.lost} samples lost"
        )
        return 1
    console.print("every byte came back, before and after the restart; so did every sample")
    return 0


if __name__ == "__main__":
    sys.exit(main())
