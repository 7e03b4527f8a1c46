"""What the `siltstone` command does with stores: reading, writing, looking inside, copying.

Reading opens a store beside its writing process, where there is one. Keys and values on the command
line are stored as typed; what is not text in UTF-8 is shown as Python writes bytes, and as
{"base64": ...} with --json. Results go to stdout, progress to a terminal's stderr.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import siltstone
from siltstone import errors
from siltstone.config import format_size
from siltstone.log.device import superblock_of
from siltstone.store.face import Tree
from siltstone.store.snapshot import SnapshotTree

FINE, WRONG = 0, 1

StoreOption = Annotated[
    Path | None, typer.Option("--store", help="A store's data directory.", show_default=False)
]
TreeOption = Annotated[str, typer.Option("--tree", help="A tree of the store by name.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
StoreArgument = Annotated[Path, typer.Argument(help="A store's data directory.")]
Records = Tree | SnapshotTree


def is_store(path: Path) -> bool:
    """Whether a directory holds a store (of any format version: opening it will say)."""
    try:
        found = superblock_of(path / "data")
    except errors.WrongFormat:
        return (path / "data").is_file()
    return found is not None and found.engine == "store"


@contextmanager
def opened(path: Path, *, write: bool = False) -> Iterator[siltstone.Store]:
    """The store in a directory that holds one; nothing is created."""
    if not path.is_dir():
        raise errors.EnvironmentFailure(f"{path}: no such directory")
    if not (path / "data").is_file():
        raise errors.WrongFormat(f"{path} holds no store", path=str(path))
    with siltstone.Store(path, read_only=not write) as store:
        yield store


def tree_of(store: siltstone.Store, name: str) -> Tree:
    if name and name not in store.trees():
        raise errors.KeyMissing(f"there is no tree {name!r}; there are {store.trees()}")
    return store.tree(name) if name else store


# Records --------------------------------------------------------------------------------------


def bytes_of(argument: str) -> bytes:
    """What was typed, as it was typed: arguments need not be text in UTF-8."""
    return argument.encode("utf-8", "surrogateescape")


def shown(data: bytes) -> str:
    """Text as it is, other bytes as Python writes them."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return repr(data)
    return text if text.isprintable() else repr(data)


def as_json(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode())


def get(path: Path, key: str, tree: str, json: bool) -> int:
    """Print a value; exit code 1 if there is none."""
    with opened(path) as store:
        value = tree_of(store, tree).get(bytes_of(key))
    if value is None:
        raise errors.KeyMissing(f"{key!r} is not in the store")
    if json:
        print_json({"key": as_json(bytes_of(key)), "value": as_json(value)})
    else:
        sys.stdout.buffer.write(value + (b"\n" if sys.stdout.isatty() else b""))
        sys.stdout.flush()
    return FINE


def put(path: Path, key: str, value: str, tree: str) -> int:
    """Store a value durably; - reads bytes from stdin. Makes the store when there is none."""
    with siltstone.Store(path, durability="sync") as store:
        target = store.tree(tree) if tree else store
        if value != "-":
            target[bytes_of(key)] = bytes_of(value)
            return FINE
        with target.open(bytes_of(key), "wb") as file:
            while chunk := sys.stdin.buffer.read(1 << 20):
                file.write(chunk)
    return FINE


def delete(path: Path, key: str, tree: str) -> int:
    with opened(path, write=True) as store:
        there = tree_of(store, tree).delete(bytes_of(key), durable=True)
    if not there:
        raise errors.KeyMissing(f"{key!r} is not in the store")
    return FINE


def keys(path: Path, prefix: str, limit: int | None, tree: str, json: bool) -> int:
    with opened(path) as store:
        found = tree_of(store, tree).keys(prefix=bytes_of(prefix), limit=limit)
        if json:
            print_json([as_json(key) for key in found])
        else:
            for key in found:
                print(shown(key))
    return FINE


def scan(
    path: Annotated[
        Path, typer.Option("--store", help="A store's data directory.", show_default=False)
    ],
    start: Annotated[str | None, typer.Option("--start", help="The lower end.")] = None,
    stop: Annotated[str | None, typer.Option("--stop", help="The upper end, excluded.")] = None,
    prefix: Annotated[str | None, typer.Option("--prefix", help="Keys that start so.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="From the upper end down.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1)] = None,
    tree: TreeOption = "",
    json: JsonOption = False,
) -> None:
    """Print the records of a range, one a line: key, tab, value. With --json one object a line."""
    bounds: dict[str, Any] = {
        name: None if text is None else bytes_of(text)
        for name, text in (("start", start), ("stop", stop), ("prefix", prefix))
    }
    with opened(path) as store:
        found = tree_of(store, tree).items(**bounds, reverse=reverse, limit=limit)
        for key, value in found:
            if json:
                record = {"key": as_json(key), "value": as_json(value)}
                print(msgspec.json.encode(record).decode())
            else:
                print(shown(key), shown(value), sep="\t")


# Looking inside -------------------------------------------------------------------------------


def stats(path: Path) -> dict[str, Any]:
    with opened(path) as store:
        return store.stats()


@contextmanager
def progress_of(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with (done, of); draws a bar when a person watches."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def verify(path: Path, json: bool) -> int:
    """Check everything; exit code 1 if something is wrong."""
    problems: list[str] = []
    records = 0
    try:
        with opened(path) as store, progress_of("verifying") as progress:
            report = store.verify(progress)
            problems, records = list(report.problems), report.records
    except errors.Corruption as error:
        problems.append(str(error))
    if json:
        print_json({"ok": not problems, "problems": problems, "records": records})
    else:
        for problem in problems:
            print(problem)
        verdict = f"{len(problems)} problems" if problems else "all is well"
        print(f"{path}: {verdict}, {records:,} records")
    return WRONG if problems else FINE


def inspect(path: Path, details: bool, json: bool) -> int:
    """Trees with their records, and what the file is made of."""
    with opened(path) as store:
        trees = {"": len(store)} | {name: len(store.tree(name)) for name in store.trees()}
        values = store.stats()
        segments = store.segments() if details else []
        size = store.size_on_disk
    if json:
        print_json({"trees": trees, "size_on_disk": size, "stats": values, "segments": segments})
        return FINE
    out = Console(highlight=False)
    table = Table("tree", "records", show_edge=False)
    table.columns[1].justify = "right"
    for name, count in trees.items():
        table.add_row(name or "(the store's own)", f"{count:,}")
    out.print(table, "", f"{path}: {size:,} bytes ({format_size(size)})", markup=False)
    if details:
        out.print(_segment_table(segments))
    return FINE


def _segment_table(segments: list[dict[str, Any]]) -> Table:
    names = ("slot", "version", "state", "filled_bytes", "live_bytes")
    table = Table(*names, show_edge=False)
    for segment in segments:
        table.add_row(*(str(segment.get(name, "")) for name in names))
    return table


# Copies ---------------------------------------------------------------------------------------


def backup(
    path: StoreArgument,
    target: Annotated[Path, typer.Argument(help="A directory that is made.")],
) -> None:
    """Copy a store to a new directory, as of one moment. A writing process may go on meanwhile."""
    with opened(path) as store, progress_of("copying") as progress:
        store.backup(target, progress)
    print(f"{target}: a store of {_count(target):,} records")


def restore(
    source: Annotated[Path, typer.Argument(help="What `siltstone backup` made.")],
    path: Annotated[Path, typer.Argument(help="The data directory to make.")],
) -> None:
    """Check a backup, and copy it to a new data directory."""
    with opened(source) as store, progress_of("restoring") as progress:
        report = store.verify()
        if not report.ok:
            raise errors.Corruption(
                f"{source}: {report.problems[0]} ({len(report.problems)} problems): "
                "not restored; siltstone verify lists them"
            )
        store.backup(path, progress)
    print(f"{path}: a store of {_count(path):,} records")


def repair(
    path: StoreArgument,
    target: Annotated[Path, typer.Argument(help="A directory that is made.")],
    json: JsonOption = False,
) -> int:
    """Make a new store of all that can be read of a damaged one, which stays as it is.

    Exit code 1 if something was lost: what it is is said.
    """
    if not path.is_dir():
        raise errors.EnvironmentFailure(f"{path}: no such directory")
    with progress_of("salvaging") as progress:
        report = siltstone.Store.repair(path, target, progress)
    if json:
        print_json({"ok": report.ok, "records": report.records, "problems": report.problems})
        return FINE if report.ok else WRONG
    for problem in report.problems:
        print(problem)
    print(f"{target}: a store of {report.records:,} records in {report.trees} trees")
    return FINE if report.ok else WRONG


def _count(path: Path) -> int:
    with opened(path) as store:
        return sum(len(tree_of(store, name)) for name in ("", *store.trees()))


def dump(
    path: StoreArgument,
    file: Annotated[
        typer.FileBinaryWrite, typer.Argument(help="Where to; - is stdout.", show_default=False)
    ],
) -> None:
    """Write all records of a store to a file that later versions read, too."""
    target: BinaryIO = file
    with opened(path) as store:
        count = store.dump(target)
    print(f"{count:,} records", file=sys.stderr)


def load(
    path: StoreArgument,
    file: Annotated[
        typer.FileBinaryRead, typer.Argument(help="A dump; - is stdin.", show_default=False)
    ],
) -> None:
    """Set all records of a dump; the store is made when there is none."""
    source: BinaryIO = file
    with siltstone.Store(path) as store:
        count = store.load(source)
    print(f"{count:,} records", file=sys.stderr)


def add_to(app: typer.Typer) -> None:
    """The commands that only stores have."""
    for command in (scan, backup, restore, repair, dump, load):
        app.command(command.__name__)(command)


# Measuring ------------------------------------------------------------------------------------


def bench(path: Path | None, items: int, value_bytes: int) -> list[Any]:
    """Sets, gets, a scan and deletes, one thread; in a temporary store unless a path is given."""
    from siltstone import load as measuring

    with siltstone.Store(path) as store:
        return measuring.of_store(store, items, value_bytes)
