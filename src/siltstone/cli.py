"""The `siltstone` command: servers, reading and writing items, looking into a cache, measuring.

Promises: exit code 0 fine, 1 something was found wrong or could not be done, 2 wrong usage; errors
are one line on stderr; each reading command has `--json`. Runs in the process's main thread.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

import siltstone
from siltstone import (
    codecs,
    config,
    errors,
    metrics_commands,
    segment_map,
    store_commands,
    top,
    transfer,
)
from siltstone.cache.existing import existing_options
from siltstone.client import MemcachedClient
from siltstone.clock import SYSTEM_CLOCK
from siltstone.serve.sections import OWNERS
from siltstone.store_commands import StoreOption, TreeOption

FINE, WRONG, USAGE = 0, 1, 2
DEFAULT_SERVER = "127.0.0.1:11211"
_MISSING = object()

app = typer.Typer(
    name="siltstone",
    help="Python data that outgrows RAM, kept on local flash.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(transfer.import_app, name="import")
app.add_typer(transfer.export_app, name="export")
out = Console(highlight=False)

PathOption = Annotated[
    Path | None, typer.Option("--path", help="A cache's data directory (opens the cache).")
]
ServerOption = Annotated[
    str | None,
    typer.Option("--server", help=f"HOST:PORT or a Unix socket.  [default: {DEFAULT_SERVER}]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DirectoryArgument = Annotated[Path, typer.Argument(help="A data directory.")]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point: runs a command and ends the process with its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal need not speak UTF-8
    sys.exit(run(arguments))


def run(arguments: Sequence[str]) -> int:
    """One command; returns the exit code and prints errors as one line."""
    if arguments and arguments[0] == "memcached":  # its flags are memcached's, -h included
        from siltstone.daemon import run_memcached

        return run_memcached(arguments[1:])
    try:
        return int(app(list(arguments), standalone_mode=False) or FINE)
    except errors.ConfigError as error:
        return _fail(str(error), USAGE)
    except (errors.SiltstoneError, OSError) as error:
        return _fail(_one_line(error), WRONG)
    except KeyboardInterrupt:
        return 130
    except UnicodeEncodeError as error:
        return _fail(f"{error.object!r} is no text in UTF-8", USAGE)
    except typer.Abort:
        return WRONG
    except Exception as error:
        # the usage errors of typer's command parser, wherever a version keeps their classes
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()  # empty: the help was printed instead
        return _fail(f"{message} (siltstone --help)", USAGE) if message else USAGE


def _fail(message: str, code: int) -> int:
    print("siltstone:", message.replace("\n", " "), file=sys.stderr)
    return code


def _one_line(error: Exception) -> str:
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return str(error) or type(error).__name__


def _print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode())


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(siltstone.__version__)
        raise typer.Exit(FINE)


# Servers ------------------------------------------------------------------------------------


@app.command("serve")
def serve(
    file: Annotated[
        Path | None, typer.Option("--config", help="Settings file (TOML).", show_default=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Data directory.", show_default=False)
    ] = None,
    memcached: Annotated[
        str | None,
        typer.Option("--memcached", help="HOST:PORT or a Unix socket, several with commas."),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option("--http", help="HOST:PORT of Prometheus' API and the dashboard, or off."),
    ] = None,
    ram: Annotated[str | None, typer.Option("--ram", help='Memory limit, "64MiB".')] = None,
    flash: Annotated[str | None, typer.Option("--flash", help='Flash, "1GiB".')] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="Any setting: SECTION.NAME=VALUE, repeatable."),
    ] = None,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Say more on stderr.")
    ] = 0,
) -> int:
    """Run the server in the foreground: a cache over the memcached protocol, metrics over HTTP."""
    flags = _flags(setting, data=data, memcached=memcached, http=http, ram=ram, flash=flash)
    settings = _load(file, flags)
    from siltstone.daemon import run_server

    return run_server(settings, verbose, lambda: _load(file, flags))


@app.command("memcached", context_settings={"ignore_unknown_options": True})
def memcached_command(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> int:
    """Run a drop-in for memcached, with memcached's own flags (-h lists them)."""
    from siltstone.daemon import run_memcached

    return run_memcached(arguments or [])


def _flags(
    settings: list[str] | None,
    *,
    data: Path | None = None,
    memcached: str | None = None,
    http: str | None = None,
    ram: str | None = None,
    flash: str | None = None,
) -> dict[str, dict[str, Any]]:
    flags: dict[str, dict[str, Any]] = {}
    for text in settings or []:
        name, equals, value = text.partition("=")
        section, dot, key = name.partition(".")
        if not equals or not dot:
            raise errors.ConfigError(f"--set {text}: write SECTION.NAME=VALUE, as cache.workers=4")
        flags.setdefault(section, {})[key] = value
    for section, key, given in (
        ("cache", "path", data),
        ("cache", "ram", ram),
        ("cache", "flash", flash),
        ("memcached", "listen", _listed(memcached, unix=False)),
        ("memcached", "unix_socket", _listed(memcached, unix=True)),
        ("http", "listen", http),
    ):
        if given is not None:
            flags.setdefault(section, {})[key] = given
    return flags


def _listed(addresses: str | None, *, unix: bool) -> str | None:
    """The addresses with a slash (Unix sockets), or the others; None if nothing was given."""
    if addresses is None:
        return None
    chosen = [part.strip() for part in addresses.split(",") if ("/" in part) is unix]
    if unix and len(chosen) > 1:
        raise errors.ConfigError("--memcached: one Unix socket at most")
    return ",".join(chosen) or (None if unix else "")


def _load(file: Path | None, flags: dict[str, dict[str, Any]]) -> dict[str, Any]:
    named = os.environ.get("SILTSTONE_CONFIG")
    file = file or (Path(named) if named else None)
    return config.load(
        OWNERS,
        file=file,
        environ=os.environ,
        flags=flags,
    )


@app.command("check-config")
def check_config(
    file: Annotated[
        Path | None, typer.Argument(help="Settings file (TOML).", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a settings file and the environment; print every setting as it would be used."""
    settings = _load(file, {})
    values = {
        section: [config.shown(one) for one in value]
        if isinstance(value, tuple)
        else config.shown(value)
        for section, value in settings.items()
    }
    if as_json:
        _print_json(values)
        return
    for section, value in settings.items():
        several = isinstance(value, tuple)
        for one in value if several else [value]:
            table = Table(
                title=Text(f"[[{section}]]" if several else f"[{section}]"),  # no markup
                title_justify="left",
                show_edge=False,
            )
            for column in ("setting", "value", "limits", "meaning"):
                table.add_column(column, overflow="fold")
            texts = config.shown(one)
            for row in config.describe(type(one)):
                table.add_row(row.name, texts[row.name], row.limits, row.text)
            out.print(table, "", markup=False)


# Items --------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[siltstone.Cache]:
    """The cache in a directory that holds one; nothing is created."""
    if not path.is_dir():
        raise errors.EnvironmentFailure(f"{path}: no such directory")
    cache = siltstone.Cache(**existing_options(path))
    try:
        yield cache
    finally:
        cache.close()


@contextmanager
def _netdata(path: Path, names: Path | None) -> Iterator[Any]:
    """(view, the module that renders it) of a directory of Netdata's."""
    try:
        from siltstone import netdata_map
        from siltstone.metrics import netdata
    except ImportError as error:
        raise errors.ConfigError(
            f"{path} holds Netdata's files: pip install 'siltstone[metrics]' reads them ({error})"
        ) from None
    with netdata.open(path, names=None if names is None else netdata.read_names(names)) as view:
        yield view, netdata_map


def _is_netdata(path: Path) -> bool:
    patterns = ("datafile-1-*.ndf", "dbengine/datafile-1-*.ndf", "dbengine-tier?/datafile-1-*.ndf")
    return any(any(path.glob(pattern)) for pattern in patterns)


store_commands.add_to(app)
app.command()(metrics_commands.query)


def _where(path: Path | None, server: str | None, store: Path | None = None) -> str | None:
    if store is not None and (path is not None or server is not None):
        raise errors.ConfigError("--store excludes --path and --server")
    if path is not None and server is not None:
        raise errors.ConfigError("--path and --server exclude each other")
    return None if path is not None else server or DEFAULT_SERVER


def _cache_key(argument: str) -> codecs.Key:
    """Text, or the bytes that were typed when they are no text in UTF-8."""
    key = store_commands.bytes_of(argument)
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


@app.command("get")
def get(
    key: str,
    path: PathOption = None,
    server: ServerOption = None,
    store: StoreOption = None,
    tree: TreeOption = "",
    as_json: JsonOption = False,
) -> int:
    """Print a value: bytes and text as they are, objects as JSON."""
    address = _where(path, server, store)
    if store is not None:
        return store_commands.get(store, key, tree, as_json)
    if address is not None:
        with MemcachedClient(address) as client:
            found = client.get(store_commands.bytes_of(key))
        value = codecs.decode_value(codecs.resolve("raw"), *found[:2]) if found else _MISSING
    else:
        assert path is not None
        with _opened(path) as cache:
            value = cache.get(_cache_key(key), _MISSING)
    if value is _MISSING:
        return _fail(f"{key!r} is not in the cache", WRONG)
    if as_json:
        named = store_commands.as_json(store_commands.bytes_of(key))
        _print_json({"key": named, "type": type(value).__name__, **_json_value(value)})
    elif isinstance(value, bytes):
        sys.stdout.buffer.write(value + (b"\n" if sys.stdout.isatty() else b""))
        sys.stdout.flush()
    elif isinstance(value, str):
        print(value)
    else:
        _print_json(value)
    return FINE


def _json_value(value: Any) -> dict[str, Any]:
    if not isinstance(value, bytes):
        return {"value": value}
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


@app.command("set")
def set_value(
    key: str,
    value: Annotated[str, typer.Argument(help="Text; - reads bytes from stdin.")],
    ttl: Annotated[
        str | None, typer.Option("--ttl", help='Time to live: seconds, "5m", "500ms".')
    ] = None,
    kind: Annotated[
        str, typer.Option("--type", help="What the text is: str, bytes, int or json.")
    ] = "str",
    path: PathOption = None,
    server: ServerOption = None,
    store: StoreOption = None,
    tree: TreeOption = "",
) -> None:
    """Store a value."""
    address = _where(path, server, store)
    if store is not None:
        if ttl is not None:
            raise errors.ConfigError("--ttl: records of a store do not expire")
        store_commands.put(store, key, value, tree)
        return
    stored = sys.stdin.buffer.read() if value == "-" else _typed(value, kind)
    seconds = None if ttl is None else config.parse_duration(ttl)
    if address is None:
        assert path is not None
        with _opened(path) as cache:
            cache.set(_cache_key(key), stored, ttl=seconds)
        return
    data, flags = codecs.encode_value(codecs.resolve("json"), stored)
    whole = 0 if seconds is None else -(-config.duration_ms(seconds) // 1000) or -1
    with MemcachedClient(address) as client:
        client.set(store_commands.bytes_of(key), data, flags, whole)


def _typed(text: str, kind: str) -> Any:
    readers: dict[str, Callable[[str], Any]] = {
        "str": str,
        "bytes": str.encode,
        "int": int,
        "json": msgspec.json.decode,
    }
    if kind not in readers:
        raise errors.ConfigError(f"--type {kind}: use one of {', '.join(readers)}")
    try:
        return readers[kind](text)
    except ValueError as error:
        raise errors.ConfigError(f"{text!r} is no {kind}: {error}") from None


@app.command("delete")
def delete(
    key: str,
    path: PathOption = None,
    server: ServerOption = None,
    store: StoreOption = None,
    tree: TreeOption = "",
) -> int:
    """Delete an item; exit code 1 if there was none."""
    address = _where(path, server, store)
    if store is not None:
        return store_commands.delete(store, key, tree)
    if address is None:
        assert path is not None
        with _opened(path) as cache:
            found = cache.delete(_cache_key(key))
    else:
        with MemcachedClient(address) as client:
            found = client.delete(store_commands.bytes_of(key))
    return FINE if found else _fail(f"{key!r} is not in the cache", WRONG)


@app.command("keys")
def keys(
    prefix: Annotated[str, typer.Option("--prefix", help="Only keys that start so.")] = "",
    limit: Annotated[int | None, typer.Option("--limit", min=1)] = None,
    path: PathOption = None,
    server: ServerOption = None,
    store: StoreOption = None,
    tree: TreeOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the keys, one a line; keys that are no text as Python writes them."""
    address = _where(path, server, store)
    if store is not None:
        store_commands.keys(store, prefix, limit, tree, as_json)
        return
    if address is None:
        assert path is not None
        with _opened(path) as cache:
            _list_keys(map(_key_text, cache), prefix, limit, as_json)
    else:
        with MemcachedClient(address) as client:
            _list_keys(map(_key_text, client.keys()), prefix, limit, as_json)


def _key_text(key: codecs.Key) -> str:
    if isinstance(key, bytes):
        try:
            return key.decode()
        except UnicodeDecodeError:
            return repr(key)
    return key if isinstance(key, str) else repr(key)


def _list_keys(found: Iterator[str], prefix: str, limit: int | None, as_json: bool) -> None:
    chosen = islice((key for key in found if key.startswith(prefix)), limit)
    if as_json:
        _print_json(list(chosen))
        return
    for key in chosen:
        print(key if key.isprintable() else repr(key))


# Looking inside -----------------------------------------------------------------------------


@app.command("stats")
def stats(
    group: Annotated[
        str, typer.Argument(help="memcached's groups (settings, items, ...); server only.")
    ] = "",
    path: PathOption = None,
    server: ServerOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the statistics."""
    address = _where(path, server, store)
    values: dict[str, Any]
    if store is not None:
        values = store_commands.stats(store)
    elif address is None:
        assert path is not None
        with _opened(path) as cache:
            values = dict(cache.stats())
    else:
        with MemcachedClient(address) as client:
            values = dict(client.stats(group))
    if as_json:
        _print_json({name: top.number_of(value) for name, value in values.items()})
        return
    table = Table(show_header=False, show_edge=False)
    table.add_column("name")
    table.add_column("value", justify="right", overflow="fold")
    for name, value in _flat(values):
        table.add_row(name, str(value))
    out.print(table, markup=False)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@app.command("top")
def top_command(
    path: PathOption = None,
    server: ServerOption = None,
    interval: Annotated[
        str, typer.Option("--interval", "-n", help='Time between looks: seconds, "500ms".')
    ] = "1s",
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="End after so many.  [default: Ctrl-C]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each look.")] = False,
) -> None:
    """Watch what a cache is doing: rates of all that changes, Ctrl-C ends it."""
    address, seconds = _where(path, server), config.parse_duration(interval)
    if seconds <= 0:
        raise errors.ConfigError(f"--interval {interval}: use more than 0 seconds")
    source: Any = _opened(path) if path is not None else MemcachedClient(address or DEFAULT_SERVER)
    with source as watched:
        looks = top.looks(watched.stats, seconds, count, SYSTEM_CLOCK)
        if as_json:
            for look in looks:
                print(msgspec.json.encode(look.as_json()).decode(), flush=True)
            return
        with Live(console=out, auto_refresh=False, screen=out.is_terminal) as screen:
            for look in looks:
                screen.update(top.render(look, max(out.height - 5, 1)), refresh=True)


@app.command("inspect")
def inspect(
    path: DirectoryArgument,
    details: Annotated[
        bool, typer.Option("--all", help="A row for each segment, or for each series.")
    ] = False,
    names: Annotated[
        Path | None,
        typer.Option("--names", help="Labels of Netdata's metrics: JSON, {uuid: {label: value}}."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the flash of a cache, or of time series, a cell a segment; a store's trees too.

    Of a directory of Netdata's files: tiers, files, series, time ranges, damage.
    """
    if store_commands.is_store(path):
        store_commands.inspect(path, details, as_json)
        return
    if _is_netdata(path):
        with _netdata(path, names) as (view, netdata_map):
            if as_json:
                _print_json(netdata_map.as_json(view, details=details))
            else:
                out.print(netdata_map.render(view, details=details))
        return
    if metrics_commands.directory_of(path) == path:
        with metrics_commands.opened(path) as metrics:
            rows = metrics.segments()
    else:
        with _opened(path) as cache:
            rows = cache.segments()
    segments = segment_map.segments_of(rows, SYSTEM_CLOCK.now_ms())
    if as_json:
        _print_json(segment_map.as_json(segments))
    elif segments:
        out.print(segment_map.render(segments, details=details))
    else:
        out.print("no flash: this cache lives in memory alone")


@app.command("verify")
def verify(path: DirectoryArgument, as_json: JsonOption = False) -> int:
    """Read and check everything; exit code 1 if something is wrong. Works beside a server."""
    if store_commands.is_store(path):
        return store_commands.verify(path, as_json)
    problems = [str(problem) for problem in _problems(path)]
    if as_json:
        _print_json({"ok": not problems, "problems": problems})
    else:
        for problem in problems:
            print(problem)
        print(f"{path}: {f'{len(problems)} problems' if problems else 'all is well'}")
    return WRONG if problems else FINE


def _problems(path: Path) -> Iterator[Any]:
    """What is wrong in a directory of Netdata's, of time series, of a cache; a server's has two."""
    if _is_netdata(path):
        with _netdata(path, None) as (view, _):
            yield from view.verify().problems
        return
    series = metrics_commands.directory_of(path)
    if series is not None:
        with metrics_commands.opened(series) as metrics:
            yield from metrics.verify().problems
    if series != path:
        with _opened(path) as cache:
            yield from cache.verify().problems


@app.command("bench")
def bench(
    what: Annotated[str, typer.Argument(help="cache or store.")] = "cache",
    items: Annotated[int, typer.Option("--items", min=1)] = 100_000,
    size: Annotated[str, typer.Option("--size", help="Bytes of a value.")] = "100",
    path: PathOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure sets and gets: against a server, or embedded (in memory unless --path is given)."""
    from siltstone import load

    value_bytes = config.parse_size(size)
    if what not in ("cache", "store") or (what == "store" and server is not None):
        raise errors.ConfigError(f"bench {what}: measures a cache (also of a server) or a store")
    if what == "store":
        results = store_commands.bench(path, items, value_bytes)
    elif server is not None:
        _where(path, server)
        results = load.against_server(server, items, value_bytes)
    elif path is not None:
        with _opened(path) as cache:
            results = load.embedded(cache, items, value_bytes)
    else:
        with siltstone.Cache(ram=load.ram_for(items, value_bytes), codec="raw") as cache:
            results = load.embedded(cache, items, value_bytes)
    if as_json:
        _print_json([result._asdict() for result in results])
    else:
        out.print(load.table(results, items, value_bytes))


if __name__ == "__main__":
    main()
