"""Runs all benches or the named ones and writes what they say to bench/results/.

Each bench runs in a fresh process, so that none inherits another's heap and a crash costs one
bench. Results are one JSON file (every sample) and one Markdown table with the same name.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import importlib
import json
import multiprocessing
import statistics
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench import disturbance, machine
from bench.harness import Settings

BENCHES = (
    "server",
    "flash",
    "load",
    "memory",
    "embedded",
    "spill",
    "processes",
    "churn",
    "restart",
    "hitratio",
    "metrics",
    "metrics_http",
    "store",
)
RESULTS = Path(__file__).with_name("results")


# One bench ------------------------------------------------------------------------------------


def measure(name: str, settings: Settings) -> dict[str, Any]:
    """Run one bench; whatever it raises becomes its `error`."""
    module, _, part = name.partition(".")
    bench = importlib.import_module(f"bench.{module}")
    settings = dataclasses.replace(settings, part=part)
    report: dict[str, Any] = {"bench": name, "title": bench.TITLE, "rows": [], "error": ""}
    began = time.monotonic()
    try:
        report["rows"] = [row.as_json() for row in bench.run(settings)]
    except Exception as error:
        traceback.print_exc()
        report["error"] = f"{type(error).__name__}: {error}"
    report["seconds"] = round(time.monotonic() - began, 1)
    report["others"] = disturbance.shares
    return report


def measure_apart(name: str, settings: Settings) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure, name, settings).result()
        except concurrent.futures.process.BrokenProcessPool:
            return {
                "bench": name,
                "title": name,
                "rows": [],
                "seconds": 0.0,
                "others": [],
                "error": "the process that ran it died",
            }


# The report -----------------------------------------------------------------------------------


def number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def samples(row: dict[str, Any], side: str) -> str:
    """Median, and in brackets the best of several."""
    values = row[side]
    if not values:
        return "-"
    text = number(statistics.median(values))
    if len(values) > 1:
        best = min(values) if row["smaller_is_better"] else max(values)
        text += f" ({number(best)})"
    return text


def ratio(row: dict[str, Any]) -> str:
    if not (row["peer"] and row["compare"]) or row["value"] is None:
        return "-"
    return f"{row['value']:.2f}" + (" (tie)" if row["tie"] else "")


def target(row: dict[str, Any]) -> str:
    if row["target"] is None:
        return "-"
    unit = " x" if row["peer"] and row["compare"] else ""
    return ("<= " if row["at_most"] else ">= ") + f"{row['target']:g}{unit}"


def others(bench: dict[str, Any]) -> str:
    """How much of the machine others had, in words."""
    shares = bench["others"]
    return (
        f"other programs had {statistics.median(shares):.0%} of the cores during the median "
        f"measurement, {max(shares):.0%} during the worst"
    )


HEADER = ("what", "unit", "siltstone", "peer", "of peer", "ratio", "target", "verdict", "beside")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    beside = "; ".join(f"{name} {value}" for name, value in row["notes"].items())
    return (
        row["name"],
        row["unit"],
        samples(row, "ours"),
        row["peer"] or "-",
        samples(row, "theirs"),
        ratio(row),
        target(row),
        row["verdict"],
        beside,
    )


def markdown(report: dict[str, Any]) -> str:
    lines = [f"# Benchmarks, {report['date']}" + (" (quick)" if report["quick"] else ""), ""]
    for title in ("machine", "versions"):
        what = ", ".join(f"{name} {value}" for name, value in report[title].items())
        lines += [f"- {title}: {what}"]
    lines += ["- numbers: median (best) of alternating rounds; pairs are siltstone / peer", ""]
    for bench in report["benches"]:
        lines += [f"## {bench['bench']}: {bench['title']}", ""]
        if bench["error"]:
            lines += [f"Failed: {bench['error']}", ""]
        if bench["others"]:
            lines += [others(bench).capitalize() + ".", ""]
        if bench["rows"]:
            lines += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
            lines += ["| " + " | ".join(cells(row)) + " |" for row in bench["rows"]] + [""]
    return "\n".join(lines)


def show(bench: dict[str, Any]) -> None:
    print(f"\n{bench['bench']}: {bench['title']} ({bench['seconds']:.0f} s)", flush=True)
    if bench["error"]:
        print(f"  FAILED: {bench['error']}", flush=True)
    if bench["others"]:
        print(f"  {others(bench)}", flush=True)
    for row in bench["rows"]:
        what, unit, ours, peer, theirs, quotient, goal, verdict, beside = cells(row)
        against = f" | {peer} {theirs} | ratio {quotient}" if row["peer"] else ""
        print(f"  {what}: {ours} {unit}{against} | target {goal} {verdict}", flush=True)
        if beside:
            print(f"      {beside}", flush=True)


def write(report: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    stem = report["date"].replace(" UTC", "").replace(" ", "-").replace(":", "")
    if [bench["bench"] for bench in report["benches"]] != list(BENCHES):
        stem += "".join("-" + bench["bench"].replace(".", "-") for bench in report["benches"])
    path: Path = folder / (stem + ("-quick" if report["quick"] else ""))
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(report))
    return path.with_suffix(".md")


# The command ----------------------------------------------------------------------------------


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; or a part: store.get"
    )
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--rounds", type=int, default=0, help="alternating rounds (5; quick: 3)")
    parser.add_argument("--items", type=int, default=0, help="items of the restart bench")
    parser.add_argument("--peers-only", action="store_true", help="measure only the peers")
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Settings.scratch,
        help="where data files go: a directory on the disk to be measured",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    chosen = parser.parse_args(argv)
    unknown = [name for name in chosen.names if name.partition(".")[0] not in BENCHES]
    if unknown:
        parser.error(f"no bench called {unknown[0]!r}; there are {', '.join(BENCHES)}")
    return chosen


def _expanded(names: Iterable[str]) -> Iterator[str]:
    """A bench with parts is its parts, so that each has a fresh process."""
    for name in names:
        module = importlib.import_module(f"bench.{name.partition('.')[0]}")
        parts = getattr(module, "PARTS", ())
        yield from (f"{name}.{part}" for part in parts) if parts and "." not in name else (name,)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: all ran (targets met or not); 1: something failed to run."""
    chosen = arguments(argv)
    settings = Settings(
        chosen.quick,
        chosen.rounds or (3 if chosen.quick else 5),
        chosen.peers_only,
        chosen.items,
        scratch=chosen.scratch,
    )
    report = machine.describe() | {"quick": chosen.quick, "rounds": settings.rounds, "benches": []}
    for name in _expanded(chosen.names or BENCHES):
        report["benches"].append(measure_apart(name, settings))
        show(report["benches"][-1])
    print(f"\nwritten: {write(report, chosen.out)}")
    rows = [row for bench in report["benches"] for row in bench["rows"]]
    missed = [row["name"] for row in rows if row["verdict"] == "MISSED"]
    if missed:
        print(f"missed targets: {', '.join(missed)}")
    return 1 if any(bench["error"] for bench in report["benches"]) else 0


if __name__ == "__main__":
    sys.exit(main())
