"""`siltstone import netdata`, `export netdata`, `import diskcache`: other programs' files.

Promises: progress on stderr where a person watches; an import that was interrupted goes on where
it was, and one that is repeated changes nothing; exit code 1 when something could not be read.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TimeRemainingColumn,
)

from siltstone import errors
from siltstone.cache.cache import Cache
from siltstone.cache.existing import existing_options

PROBLEMS_SHOWN = 20
FLASH_MIN = 1 << 30

import_app = typer.Typer(help="Take over the data of other programs.", no_args_is_help=True)
export_app = typer.Typer(help="Write data for other programs.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
NamesOption = Annotated[
    Path | None,
    typer.Option("--names", help="Labels of Netdata's metrics: JSON, {uuid: {label: value}}."),
]


@import_app.command("netdata")
def import_netdata(
    directory: Annotated[Path, typer.Argument(help="Netdata's dbengine, or the one above it.")],
    into: Annotated[Path, typer.Option("--into", help="Data directory of the time series.")],
    names: NamesOption = None,
    tier: Annotated[
        int | None, typer.Option("--tier", help="Netdata's tier.  [default: the finest]")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Import Netdata's files. Interrupted or repeated, it goes on where it was."""
    with _needs_metrics(directory):
        from siltstone.metrics import netdata
        from siltstone.metrics.metrics import Metrics
    labels = None if names is None else netdata.read_names(names)
    if not netdata.is_store(directory):
        netdata.open(directory)  # says what is missing, before anything is created
    with Metrics(into) as metrics, _progress(directory, DownloadColumn()) as progress:
        report = metrics.import_netdata(directory, labels, tier=tier, progress=progress)
        metrics.sync()
    _say(report, as_json, f"{report.samples} samples of {report.series} series into {into}")
    return 0 if report.ok else 1


@import_app.command("diskcache")
def import_diskcache(
    directory: Annotated[Path, typer.Argument(help="A directory of diskcache 5.")],
    into: Annotated[Path, typer.Option("--into", help="Data directory of the cache.")],
    unpickle: Annotated[
        bool, typer.Option("--unpickle", help="Trust it: run what its pickles say.")
    ] = False,
    ram: Annotated[str | None, typer.Option("--ram", help='Memory limit, "64MiB".')] = None,
    flash: Annotated[
        str | None, typer.Option("--flash", help="Flash.  [default: twice the directory, or 1GiB]")
    ] = None,
    codec: Annotated[
        str, typer.Option("--codec", help="What encodes objects: msgpack, json or pickle.")
    ] = "msgpack",
    as_json: JsonOption = False,
) -> int:
    """Import diskcache's items. Plain data only, unless told to trust what is pickled."""
    from siltstone.adapters import diskcache

    diskcache.databases_of(directory)  # says what is missing, before anything is created
    if (into / "lock").is_file():
        if ram is not None or flash is not None:
            raise errors.ConfigError(f"{into} is a cache and has its sizes: no --ram, no --flash")
        options = existing_options(into)
    else:
        room = max(FLASH_MIN, 2 * diskcache.bytes_in(directory))
        options = {"path": into, "ram": ram or "64MiB", "flash": flash or room}
    count = MofNCompleteColumn()
    with Cache(codec=codec, **options) as cache, _progress(directory, count) as progress:
        report = diskcache.import_directory(directory, cache, unpickle=unpickle, progress=progress)
        cache.sync()
    _say(report, as_json, f"{report.items} items into {into}; {report.expired} had expired")
    return 0 if report.ok else 1


@export_app.command("netdata")
def export_netdata(
    directory: Annotated[Path, typer.Argument(help="A new directory, for Netdata's files.")],
    source: Annotated[Path, typer.Option("--from", help="Data directory of the time series.")],
    start: Annotated[float, typer.Option("--start", help="First Unix second.")],
    end: Annotated[float, typer.Option("--end", help="Last Unix second.")],
    as_json: JsonOption = False,
) -> int:
    """Write samples as Netdata's files: whole seconds, 7 digits."""
    with _needs_metrics(directory):
        from siltstone.metrics import netdata_write
        from siltstone.metrics.metrics import EngineSource, Metrics
    with Metrics(source, read_only=True) as metrics:
        report = netdata_write.export(
            EngineSource(metrics.engine), directory, round(start * 1000), round(end * 1000)
        )
    _say(
        report, as_json,
        f"{report.samples} samples of {report.series} series into {directory}; "
        f"{report.left_out} did not fit the format",
    )  # fmt: skip
    return 0


@contextmanager
def _needs_metrics(directory: Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise errors.ConfigError(
            f"{directory}: time series need pip install 'siltstone[metrics]' ({error})"
        ) from None


@contextmanager
def _progress(
    directory: Path, count: ProgressColumn
) -> Iterator[Callable[[int, int], None] | None]:
    """A function of (done, of) that draws on stderr; None where nobody watches."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = ("{task.description}", BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"reading {directory}", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _say(report: Any, as_json: bool, text: str) -> None:
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(dataclasses.asdict(report))).decode())
        return
    print(text)
    problems = getattr(report, "problems", [])
    for problem in problems[:PROBLEMS_SHOWN]:
        print(problem, file=sys.stderr)
    if len(problems) > PROBLEMS_SHOWN:
        print(f"and {len(problems) - PROBLEMS_SHOWN} more (--json lists all)", file=sys.stderr)
