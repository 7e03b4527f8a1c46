"""What the `siltstone` command does with time series: asking in PromQL, checking, looking inside.

A question about a range (`--last`, or `--start` with `--end`) is answered with a chart, one about a
moment with a table. A directory is opened beside its writing process, where there is one; a
server may be any that speaks Prometheus' HTTP API.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import siltstone
from siltstone import errors
from siltstone.clock import SYSTEM_CLOCK
from siltstone.config import parse_duration
from siltstone.log.device import superblock_of

if TYPE_CHECKING:
    from siltstone.metrics.result import Result

DEFAULT_HTTP: Final = "127.0.0.1:8181"
DIRECTORY: Final = "metrics"  # in the data directory of a server
FILE: Final = "metrics"  # in its own
STEPS: Final = 120  # of a range whose step is not given: about the columns of a terminal
TIMEOUT_S: Final = 130.0  # a little more than a server gives a query


class Span(NamedTuple):
    """Unix seconds; at one moment if `step` is 0."""

    start: float
    end: float
    step: float


def directory_of(path: Path) -> Path | None:
    """The time series in a data directory: its own, or those of a server beside its cache."""
    for directory in (path, path / DIRECTORY):
        try:
            found = superblock_of(directory / FILE)
        except errors.WrongFormat:
            continue
        if found is not None and found.engine == "metrics":
            return directory
    return None


@contextmanager
def opened(path: Path) -> Iterator[siltstone.Metrics]:
    """Read-only, beside whoever writes."""
    if not path.is_dir():
        raise errors.EnvironmentFailure(f"{path}: no such directory")
    directory = directory_of(path)
    if directory is None:
        raise errors.WrongFormat(f"{path} holds no time series", path=str(path))
    with siltstone.Metrics(directory, read_only=True) as metrics:
        yield metrics


# Asking -------------------------------------------------------------------------------------


def query(
    promql: str,
    path: Annotated[
        Path | None, typer.Option("--path", help="A data directory.", show_default=False)
    ] = None,
    server: Annotated[
        str | None,
        typer.Option("--server", help=f"HOST:PORT or a URL.  [default: {DEFAULT_HTTP}]"),
    ] = None,
    last: Annotated[
        str | None, typer.Option("--last", help='The time up to now, as "5m" or "6h".')
    ] = None,
    start: Annotated[float | None, typer.Option("--start", help="First Unix second.")] = None,
    end: Annotated[
        float | None, typer.Option("--end", help="Last Unix second; alone: that moment.")
    ] = None,
    step: Annotated[
        str | None, typer.Option("--step", help='Between two values, as "15s".')
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable: the data of Prometheus' answer.")
    ] = False,
) -> int:
    """Ask time series in PromQL: a table of values now, a chart over a range."""
    span = span_of(last, start, end, step)
    if path is not None and server is not None:
        raise errors.ConfigError("--path and --server exclude each other")
    try:
        from siltstone import chart

        if path is not None:
            result = ask_directory(path, promql, span)
        else:
            result = ask_server(server or DEFAULT_HTTP, promql, span)
    except ImportError as error:
        raise errors.ConfigError(
            f"time series need pip install 'siltstone[metrics]' ({error})"
        ) from None
    if as_json:
        print(result.to_json())
        return 0
    console = Console(highlight=False)
    if result.kind == "matrix" and span.step and len(result):
        console.print(chart.of(result, console), soft_wrap=True)
    else:
        console.print(_table(result))
    return 0


def span_of(last: str | None, start: float | None, end: float | None, step: str | None) -> Span:
    """What the options mean. ConfigError says which do not go together."""
    now = SYSTEM_CLOCK.now_ms() / 1000
    if last is not None:
        if start is not None:
            raise errors.ConfigError("--last and --start exclude each other")
        end = now if end is None else end
        start = end - parse_duration(last)
    if start is None:
        if step is not None:
            raise errors.ConfigError("--step needs a range: --last 1h, or --start and --end")
        moment = now if end is None else end
        return Span(moment, moment, 0.0)
    end = now if end is None else end
    if end < start:
        raise errors.ConfigError("the range ends before it starts")
    if step is not None:
        seconds = parse_duration(step)
        if seconds <= 0:
            raise errors.ConfigError("--step: more than 0")
        return Span(start, end, seconds)
    return Span(start, end, max(round((end - start) / STEPS, 3), 0.001))


def ask_directory(path: Path, promql: str, span: Span) -> Result:
    """The answer out of a Metrics directory, or a server's data directory with one in it."""
    with opened(path) as metrics:
        if span.step:
            return metrics.query_range(promql, span.start, span.end, span.step)
        return metrics.query(promql, span.start)


# Over HTTP ----------------------------------------------------------------------------------


def ask_server(server: str, promql: str, span: Span) -> Result:
    """The answer of a server. InvalidQuery carries what it said of a query it did not take."""
    base = server if "://" in server else f"http://{server}"
    fields: dict[str, Any] = {"query": promql}
    if span.step:
        fields |= {"start": span.start, "end": span.end, "step": span.step}
    else:
        fields["time"] = span.start
    url = f"{base.rstrip('/')}/api/v1/query{'_range' if span.step else ''}"
    body = urllib.parse.urlencode(fields).encode()
    try:
        with urllib.request.urlopen(url, body, TIMEOUT_S) as reply:
            said = reply.read()
    except urllib.error.HTTPError as error:
        said = error.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise errors.EnvironmentFailure(f"no server at {base}: {error}") from None
    try:
        answer = msgspec.json.decode(said)
        if answer["status"] != "success":
            raise errors.InvalidQuery(answer["error"])
        return result_of(answer["data"])
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, errors.InvalidQuery):
            raise
        raise errors.PeerError(f"{base} did not answer as Prometheus does") from None


def result_of(data: dict[str, Any]) -> Result:
    """A Result again, out of its JSON."""
    import numpy as np

    from siltstone.metrics.labels import from_mapping
    from siltstone.metrics.result import Result

    kind, found = data["resultType"], data["result"]
    if kind == "string":
        moment = np.array([round(found[0] * 1000)], np.int64)
        return Result(kind, [], moment, np.empty((0, 1)), np.empty((0, 1), bool), found[1])
    if kind == "scalar":
        found = [{"metric": {}, "value": found}]
    rows = [row["values"] if kind == "matrix" else [row["value"]] for row in found]
    moments = sorted({round(time * 1000) for row in rows for time, _ in row})
    column = {time: place for place, time in enumerate(moments)}
    values = np.zeros((len(rows), len(moments)))
    present = np.zeros((len(rows), len(moments)), bool)
    for place, row in enumerate(rows):
        for time, text in row:
            at = column[round(time * 1000)]
            values[place, at], present[place, at] = float(text), True
    pairs = [from_mapping(row["metric"]) for row in found]
    return Result(kind, pairs, np.array(moments, np.int64), values, present)


# Shown --------------------------------------------------------------------------------------


def _table(result: Result) -> Table | str:
    from siltstone.chart import series_name
    from siltstone.metrics.numbers import number_text

    if result.kind == "string":
        return result.text
    if not len(result):
        return "no series"
    table = Table(show_edge=False)
    table.add_column("series", overflow="fold")
    table.add_column("value", justify="right")
    for labels, values, present in zip(result.labels, result.values, result.present, strict=True):
        shown = ", ".join(number_text(value) for value in values[present].tolist())
        table.add_row(Text(series_name(labels)), shown)
    return table
