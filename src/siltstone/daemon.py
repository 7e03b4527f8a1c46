"""Running the memcached server as a process: logging, background, user, pid file, exit code.

Called by `siltstone serve` and `siltstone memcached` in the main thread; returns the exit code
when the server has stopped. What the server does with connections is serve/server.py's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import siltstone
from siltstone import memcached_flags
from siltstone.config import CacheSettings, names_of
from siltstone.errors import ConfigError, EnvironmentFailure, SiltstoneError
from siltstone.memcached_flags import EXIT_FAILURE, EXIT_NO_USER, EXIT_OS, EXIT_USAGE, Refused
from siltstone.memcached_help import HELP
from siltstone.serve import server
from siltstone.serve.http_settings import HttpSettings
from siltstone.serve.sections import inputs
from siltstone.serve.settings import Settings
from siltstone.serve.statistics import PROTOCOL_VERSION

log = logging.getLogger("siltstone")

LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def run_server(sections: Mapping[str, Any], verbose: int, load: Callable[[], Any]) -> int:
    """`siltstone serve`: until SIGTERM, SIGINT or SIGUSR1. `sections`: settings by section, which
    `load` reads again at SIGHUP."""
    settings: Settings = sections["memcached"]
    _log_to_stderr(max(verbose, settings.verbosity) + 1)
    with open_cache(sections["cache"]) as cache, _monitored(cache, sections, load) as ready:
        server.run(cache, settings, ready=ready)
    return 0


@contextmanager
def _monitored(
    cache: siltstone.Cache, sections: Mapping[str, Any], load: Callable[[], Any]
) -> Iterator[Callable[[server.Server], None]]:
    """What opens the time series and the HTTP port once the memcached port is there."""
    opened: list[Any] = []

    def hang_up() -> None:
        for monitoring in opened:
            monitoring.reloader.request()

    def ready(_: server.Server) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up)
        monitoring = _open_monitoring(cache, sections, load)
        if monitoring is not None:
            opened.append(monitoring)

    try:
        yield ready
    finally:
        for monitoring in opened:
            monitoring.close()


def _open_monitoring(
    cache: siltstone.Cache, sections: Mapping[str, Any], load: Callable[[], Any]
) -> Any:
    http: HttpSettings = sections["http"]
    if http.address is None and not inputs(sections):
        return None
    try:
        from siltstone.serve.monitoring import open_monitoring
    except ImportError as error:
        text = f"HTTP needs the package {error.name}: pip install 'siltstone[server,metrics]'"
        if http.chosen or inputs(sections):
            raise ConfigError(f"{text}, or --http off") from None
        log.warning("%s; going on without", text)
        return None
    return open_monitoring(cache, sections, sections["cache"].path, load=load)


def open_cache(settings: CacheSettings) -> siltstone.Cache:
    """A cache with exactly these settings."""
    return siltstone.Cache(**{name: getattr(settings, name) for name in names_of(settings)})


def run_memcached(arguments: Sequence[str]) -> int:
    """`siltstone memcached`: memcached's flags, messages and exit codes."""
    try:
        options = memcached_flags.parse(arguments)
        if options.action != "serve":
            print(_information(options.action))
            return 0
        settings = memcached_flags.server_settings(options)
        cache_settings = memcached_flags.cache_settings(options)
        _become(options.user)
    except Refused as error:
        print(error, file=sys.stderr)
        return error.code
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILURE
    pidfile = Path(options.pidfile).absolute() if options.pidfile else None
    if options.daemon:
        _into_background()
    _log_to_stderr(options.verbosity)
    if pidfile and not _note_pid(pidfile):
        pidfile = None
    try:
        return _serve_memcached(cache_settings, settings)
    finally:
        if pidfile:
            pidfile.unlink(missing_ok=True)


def _note_pid(pidfile: Path) -> bool:
    """A pid file that cannot be written stops no server, as with memcached."""
    try:
        pidfile.write_text(f"{os.getpid()}\n")
    except OSError as error:
        reason = f"Could not open the pid file {pidfile} for writing: {error.strerror}"
        print(reason, file=sys.stderr)
        return False
    return True


def _serve_memcached(cache_settings: CacheSettings, settings: Settings) -> int:
    try:
        cache = open_cache(cache_settings)
    except SiltstoneError as error:
        if cache_settings.files:
            print(f"Failed to initialize external storage: {error}", file=sys.stderr)
        else:
            print(error, file=sys.stderr)
        return EXIT_FAILURE
    with cache:
        try:
            server.run(cache, settings)
        except EnvironmentFailure as error:
            print(error, file=sys.stderr)
            return EXIT_OS
        except ConfigError as error:
            print(error, file=sys.stderr)
            return EXIT_USAGE
    return 0


def _information(action: str) -> str:
    if action == "help":
        return f"memcached {PROTOCOL_VERSION}\n{HELP}"
    if action == "license":
        return f"siltstone {siltstone.__version__}, MIT licence"
    return f"memcached {PROTOCOL_VERSION}"


def _log_to_stderr(verbosity: int) -> None:
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its starts and stops are ours
    logging.basicConfig(
        stream=sys.stderr,
        level=LEVELS[min(verbosity, len(LEVELS) - 1)],
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


def _become(user: str | None) -> None:
    """Root gives up its rights for `user`; anyone else stays who they are."""
    if user is None or os.geteuid() != 0:
        return
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise Refused(f"can't find the user {user} to switch to", EXIT_NO_USER) from None
    if entry.pw_uid == 0:
        return
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def _into_background() -> None:
    """A process of its own session without a terminal; the caller returns at once."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)
