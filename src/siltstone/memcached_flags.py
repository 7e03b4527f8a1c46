"""memcached's own command line: flags and `-o` suboptions as a memcached user types them.

Promises: what memcached takes is taken, what it refuses is refused with its message and exit
code; where memcached crashes, or silently starts without flash, there is a clear line instead.
Called by `siltstone memcached`, before any thread exists. Starts nothing and opens nothing.
"""

from __future__ import annotations

import getopt
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from siltstone.config import GIB, KIB, MIB, SEGMENTS_MIN, CacheSettings
from siltstone.errors import ConfigError
from siltstone.serve.settings import Settings

EXIT_FAILURE: Final = 1  # what cannot be parsed
EXIT_USAGE: Final = 64  # sizes or protocols that do not go together
EXIT_NO_USER: Final = 67
EXIT_OS: Final = 71  # no socket

AGE_NEVER: Final = 0xFFFFFFFF
STREAMS: Final = 4  # write buffers that memcached would allocate outside -m
PAGE_UNIT: Final = 2 * MIB
PAGES_MAX: Final = 65536


class Refused(ConfigError):
    """memcached would print this on stderr and exit with `code`."""

    def __init__(self, message: str, code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class MemcachedOptions:
    """What was asked for, in memcached's units; `extended` holds the `-o` values by name."""

    port: int = 11211
    unix_socket: str | None = None
    unix_mask: int = 0o700
    listen: list[str] = field(default_factory=list)
    memory_mb: int = 64
    evictions: bool = True
    connections: int = 1024
    threads: int = 4
    item_size_max: int = MIB
    verbosity: int = 0
    daemon: bool = False
    pidfile: str | None = None
    user: str | None = None
    cas: bool = True
    backlog: int = 1024
    reqs_per_event: int = 20
    protocol: str = "auto"
    flush: bool = True
    dump: bool = True
    watch: bool = True
    shutdown: bool = False
    prefix_delimiter: str | None = None
    udp_port: int = 0
    tls: bool = False
    growth_factor: float = 1.25
    chunk_size: int = 48
    extended: dict[str, Any] = field(default_factory=dict)
    paths: list[tuple[str, int, str]] = field(default_factory=list)  # path, bytes, as typed
    action: str = "serve"  # or "help", "version", "license"


def parse(arguments: Sequence[str]) -> MemcachedOptions:
    """The options of a command line; Refused carries memcached's message and exit code."""
    options = MemcachedOptions()
    long_names = [long + ("=" if takes else "") for _, (long, takes, _) in _FLAGS.items()]
    short_names = "".join(flag + (":" if takes else "") for flag, (_, takes, _) in _FLAGS.items())
    try:
        pairs, _ = getopt.gnu_getopt(list(arguments), short_names, long_names)
    except getopt.GetoptError as error:
        raise Refused(f'{_getopt_text(error)}\nIllegal argument "?"') from None
    by_long = {f"--{long}": apply for long, _, apply in _FLAGS.values()}
    for name, value in pairs:
        apply = by_long[name] if name.startswith("--") else _FLAGS[name[1:]][2]
        apply(options, value)
        if options.action != "serve":
            return options
    _check_together(options)
    return options


def _getopt_text(error: getopt.GetoptError) -> str:
    short = len(error.opt) == 1
    if "requires argument" in error.msg:
        what = f"option requires an argument -- '{error.opt}'"
        return "memcached: " + (what if short else f"option '--{error.opt}' requires an argument")
    if short:
        return f"memcached: invalid option -- '{error.opt}'"
    if "unique prefix" in error.msg:
        return f"memcached: option '--{error.opt}' is ambiguous"
    return f"memcached: unrecognized option '--{error.opt}'"


# Values -------------------------------------------------------------------------------------


def leading_int(text: str) -> int:
    """The number a text starts with, else 0: how memcached reads most of its flags."""
    match = re.match(r"\s*([+-]?\d+)", text)
    return int(match[1]) if match else 0


def leading_float(text: str) -> float:
    match = re.match(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", text)
    return float(match[1]) if match else 0.0


def whole_number(text: str, bits: int = 32) -> int | None:
    """An unsigned number and nothing else, else None."""
    if not re.fullmatch(r"\s*\+?\d+\s*", text):
        return None
    return min(int(text), (1 << bits) - 1)


# Flags --------------------------------------------------------------------------------------

Apply = Callable[[MemcachedOptions, str], None]


def _put(name: str, value: Any) -> Apply:
    return lambda options, _: setattr(options, name, value)


def _put_text(name: str) -> Apply:
    return lambda options, text: setattr(options, name, text)


def _put_number(name: str, low: int | None = None, message: str = "") -> Apply:
    def apply(options: MemcachedOptions, text: str) -> None:
        number = leading_int(text)
        if low is not None and number < low:
            raise Refused(message)
        setattr(options, name, number)

    return apply


def _unsupported(what: str) -> Apply:
    def apply(options: MemcachedOptions, text: str) -> None:
        raise Refused(f"siltstone does not support {what}")

    return apply


def _ignore(options: MemcachedOptions, text: str) -> None:
    """It tunes what siltstone has no counterpart for, and changes no answer."""


def _port(options: MemcachedOptions, text: str) -> None:
    port = leading_int(text)
    if not -1 <= port <= 65535:
        raise Refused(f"ERROR: Invalid port number {port}.", EXIT_USAGE)
    options.port = port


def _udp_port(options: MemcachedOptions, text: str) -> None:
    port = leading_int(text)
    if not 0 <= port <= 65535:
        raise Refused(f"ERROR: Invalid port number {port}.", EXIT_USAGE)
    options.udp_port = port


def _unix_mask(options: MemcachedOptions, text: str) -> None:
    match = re.match(r"\s*[0-7]+", text)
    options.unix_mask = int(match[0], 8) if match else 0


def _listen(options: MemcachedOptions, text: str) -> None:
    options.listen.extend(address for address in text.split(",") if address)


def _verbose(options: MemcachedOptions, text: str) -> None:
    options.verbosity += 1


def _factor(options: MemcachedOptions, text: str) -> None:
    options.growth_factor = leading_float(text)
    if options.growth_factor <= 1.0:
        raise Refused("Factor must be greater than 1")


def _item_size(options: MemcachedOptions, text: str) -> None:
    unit = {"k": KIB, "m": MIB}.get(text[-1:].lower(), 1)
    options.item_size_max = leading_int(text) * unit


def _protocol(options: MemcachedOptions, text: str) -> None:
    if text not in ("auto", "ascii", "binary"):
        raise Refused(
            f"Invalid value for binding protocol: {text}\n"
            " -- should be one of auto, binary, or ascii",
            EXIT_USAGE,
        )
    options.protocol = text


def _napi(options: MemcachedOptions, text: str) -> None:
    if leading_int(text) <= 0:
        raise Refused("Maximum number of NAPI IDs must be greater than 0")


def _extended(options: MemcachedOptions, text: str) -> None:
    for part in text.split(",") if text else ():
        name, equals, value = part.partition("=")
        suboption = _SUBOPTIONS.get(name)
        if suboption is None:
            raise Refused(f'Illegal suboption "{part}"')
        suboption(options, value if equals else None)


# flag: long name, takes a value, what it does
_FLAGS: Final[dict[str, tuple[str, bool, Apply]]] = {
    "a": ("unix-mask", True, _unix_mask),
    "A": ("enable-shutdown", False, _put("shutdown", True)),
    "Z": ("enable-ssl", False, _put("tls", True)),
    "p": ("port", True, _port),
    "s": ("unix-socket", True, _put_text("unix_socket")),
    "U": ("udp-port", True, _udp_port),
    "m": ("memory-limit", True, _put_number("memory_mb")),
    "M": ("disable-evictions", False, _put("evictions", False)),
    "c": ("conn-limit", True,
          _put_number("connections", 1, "Maximum connections must be greater than 0")),
    "k": ("lock-memory", False, _ignore),
    "h": ("help", False, _put("action", "help")),
    "i": ("license", False, _put("action", "license")),
    "V": ("version", False, _put("action", "version")),
    "r": ("enable-coredumps", False, _ignore),
    "v": ("verbose", False, _verbose),
    "d": ("daemon", False, _put("daemon", True)),
    "l": ("listen", True, _listen),
    "u": ("user", True, _put_text("user")),
    "P": ("pidfile", True, _put_text("pidfile")),
    "f": ("slab-growth-factor", True, _factor),
    "n": ("slab-min-size", True,
          _put_number("chunk_size", 1, "Chunk size must be greater than 0")),
    "t": ("threads", True,
          _put_number("threads", 1, "Number of threads must be greater than 0")),
    "D": ("delimiter", True, _put_text("prefix_delimiter")),
    "L": ("enable-largepages", False, _ignore),
    "R": ("max-reqs-per-event", True, _put_number("reqs_per_event")),
    "C": ("disable-cas", False, _put("cas", False)),
    "b": ("listen-backlog", True, _put_number("backlog")),
    "B": ("protocol", True, _protocol),
    "I": ("max-item-size", True, _item_size),
    "S": ("enable-sasl", False, _unsupported("SASL (-S)")),
    "F": ("disable-flush-all", False, _put("flush", False)),
    "X": ("disable-dumping", False, _put("dump", False)),
    "W": ("disable-watch", False, _put("watch", False)),
    "Y": ("auth-file", True, _unsupported("authentication (-Y)")),
    "e": ("memory-file", True, _unsupported("a memory file (-e); ext_path keeps values on flash")),
    "o": ("extended", True, _extended),
    "N": ("napi-ids", True, _napi),
}  # fmt: skip

# Suboptions ---------------------------------------------------------------------------------

Suboption = Callable[[MemcachedOptions, str | None], None]


def _needs(name: str, value: str | None, numeric: bool = False) -> str:
    if value is None:
        raise Refused(f"Missing {'numeric argument for ' if numeric else ''}{name}"
                      f"{'' if numeric else ' argument'}")  # fmt: skip
    return value


def _sub_number(name: str, bits: int = 32) -> Suboption:
    def apply(options: MemcachedOptions, value: str | None) -> None:
        number = whole_number(_needs(name, value), bits)
        if number is None:
            raise Refused(f"could not parse argument to {name}")
        options.extended[name] = number

    return apply


def _sub_fraction(name: str) -> Suboption:
    def apply(options: MemcachedOptions, value: str | None) -> None:
        text = _needs(name, value)
        try:
            options.extended[name] = float(text)
        except ValueError:
            raise Refused(f"could not parse argument to {name}") from None

    return apply


def _sub_positive(name: str, message: str, high: float | None = None) -> Suboption:
    def apply(options: MemcachedOptions, value: str | None) -> None:
        number = leading_float(_needs(name, value))
        if number <= 0 or (high is not None and (number < 1 or number >= high)):
            raise Refused(message)
        options.extended[name] = number

    return apply


def _sub_loose(name: str, numeric: bool = False) -> Suboption:
    def apply(options: MemcachedOptions, value: str | None) -> None:
        options.extended[name] = leading_int(_needs(name, value, numeric))

    return apply


def _sub_switch(name: str, value: Any = True) -> Suboption:
    def apply(options: MemcachedOptions, _: str | None) -> None:
        options.extended[name] = value

    return apply


def _sub_text(name: str) -> Suboption:
    def apply(options: MemcachedOptions, value: str | None) -> None:
        options.extended[name] = _needs(name, value)

    return apply


def _sub_choice(name: str, choices: int) -> Suboption:
    """A number below `choices`."""

    def apply(options: MemcachedOptions, value: str | None) -> None:
        number = whole_number(_needs(name, value))
        if number is None or number >= choices:
            raise Refused(f"Invalid {name}. Use help to see valid options.")
        options.extended[name] = number

    return apply


def _sub_key_format(options: MemcachedOptions, value: str | None) -> None:
    if leading_int(_needs("ssl_keyformat", value)) != 1 and value != "PEM":
        raise Refused("siltstone reads keys in PEM only (ssl_keyformat)")


def _sub_path(options: MemcachedOptions, value: str | None) -> None:
    if value is None:
        raise Refused("missing argument to ext_path, ie: ext_path=/d/file:5G")
    # A colon may be in the path; the size is what follows the last one that a size can follow.
    match = re.fullmatch(r"(.+?):(\d+)([A-Za-z]*)(?::([A-Za-z]\w*))?", value)
    unit = {"m": MIB, "g": GIB, "t": 1024 * GIB, "p": 1024 * 1024 * GIB}.get(
        match[3].lower() if match else ""
    )
    if match is None or unit is None:
        raise Refused(
            "must supply size to ext_path, ie: ext_path=/f/e:64m (M|G|T|P supported)\n"
            "failed to parse ext_path argument"
        )
    if match[4] not in (None, "default"):
        known = ("compact", "lowttl", "chunked", "coldcompact", "old")
        problem = (
            "ext_path only presently supports the default bucket"
            if match[4] in known
            else f"Unknown extstore bucket: {match[4]}"
        )
        raise Refused(f"{problem}\nfailed to parse ext_path argument")
    if int(match[2]) == 0:
        raise Refused("supplied ext_path has zero size, cannot use", EXIT_USAGE)
    options.paths.append((match[1], int(match[2]) * unit, value))


def _sub_hashpower(options: MemcachedOptions, value: str | None) -> None:
    power = leading_int(_needs("hashpower", value, numeric=True))
    if power < 12:
        raise Refused(f"Initial hashtable multiplier of {power} is too low")
    if power > 32:
        raise Refused(
            f"Initial hashtable multiplier of {power} is too high\n"
            'Choose a value based on "STAT hash_power_level" from a running instance'
        )


def _sub_tail_repair(options: MemcachedOptions, value: str | None) -> None:
    if leading_int(_needs("tail_repair_time", value, numeric=True)) < 10:
        raise Refused("Cannot set tail_repair_time to less than 10 seconds")


def _sub_hash_algorithm(options: MemcachedOptions, value: str | None) -> None:
    if _needs("hash_algorithm", value) not in ("jenkins", "murmur3", "xxh3"):
        raise Refused("Unknown hash_algorithm option (jenkins, murmur3, xxh3)")


def _sub_crawler_sleep(options: MemcachedOptions, value: str | None) -> None:
    sleep = leading_int(_needs("lru_crawler_sleep", value))
    if not 0 <= sleep <= 1_000_000:
        raise Refused("LRU crawler sleep must be between 0 and 1 second")
    options.extended["lru_crawler_sleep"] = sleep


def _sub_crawler_tocrawl(options: MemcachedOptions, value: str | None) -> None:
    number = whole_number(_needs("lru_crawler_tocrawl", value))
    if number is None:
        raise Refused("lru_crawler_tocrawl takes a numeric 32bit value")
    options.extended["lru_crawler_tocrawl"] = number


def _sub_automove(options: MemcachedOptions, value: str | None) -> None:
    mode = 1 if value is None else leading_int(value)
    if not 0 <= mode <= 2:
        raise Refused("slab_automove must be between 0 and 2")
    options.extended["slab_automove"] = mode


def _sub_slab_sizes(options: MemcachedOptions, value: str | None) -> None:
    sizes = [leading_int(part) for part in _needs("slab_sizes", value).split("-")]
    for before, size in zip([0, *sizes], sizes, strict=False):
        if size < 48 or size > 512 * KIB:
            raise Refused(f"slab size {size} is out of valid range", EXIT_USAGE)
        if size <= before + 8:
            raise Refused(f"slab size {size} cannot be lower than or equal to a "
                          f"previous class size", EXIT_USAGE)  # fmt: skip


_SWITCHES: Final = (
    "maxconns_fast", "lru_crawler", "slab_reassign", "lru_maintainer", "lru_segmented",
    "modern", "no_modern", "track_sizes", "drop_privileges", "hashexpand",
)  # fmt: skip

_SUBOPTIONS: Final[dict[str, Suboption]] = {
    **{name: _sub_switch(name) for name in _SWITCHES},
    **{
        f"no_{name}": _sub_switch(name, False)
        for name in ("maxconns_fast", "lru_crawler", "slab_reassign", "lru_maintainer",
                     "drop_privileges", "hashexpand")
    },
    "ext_path": _sub_path,
    "ext_page_size": _sub_number("ext_page_size"),
    "ext_wbuf_size": _sub_number("ext_wbuf_size"),
    "ext_threads": _sub_number("ext_threads"),
    "ext_io_depth": _sub_number("ext_io_depth"),
    "ext_item_size": _sub_number("ext_item_size"),
    "ext_item_age": _sub_number("ext_item_age"),
    "ext_low_ttl": _sub_number("ext_low_ttl"),
    "ext_recache_rate": _sub_number("ext_recache_rate"),
    "ext_compact_under": _sub_number("ext_compact_under"),
    "ext_drop_under": _sub_number("ext_drop_under"),
    "ext_max_sleep": _sub_number("ext_max_sleep"),
    "ext_max_frag": _sub_fraction("ext_max_frag"),
    "ext_drop_unread": _sub_switch("ext_drop_unread"),
    "slab_automove_freeratio": _sub_fraction("slab_automove_freeratio"),
    "slab_automove_ratio": _sub_fraction("slab_automove_ratio"),
    "slab_automove_window": _sub_number("slab_automove_window"),
    "slab_automove": _sub_automove,
    "slab_sizes": _sub_slab_sizes,
    "slab_chunk_max": _sub_number("slab_chunk_max"),
    "hashpower": _sub_hashpower,
    "tail_repair_time": _sub_tail_repair,
    "hash_algorithm": _sub_hash_algorithm,
    "lru_crawler_sleep": _sub_crawler_sleep,
    "lru_crawler_tocrawl": _sub_crawler_tocrawl,
    "read_buf_mem_limit": _sub_number("read_buf_mem_limit"),
    "hot_lru_pct": _sub_positive("hot_lru_pct", "hot_lru_pct must be > 1 and < 80", 80),
    "warm_lru_pct": _sub_positive("warm_lru_pct", "warm_lru_pct must be > 1 and < 80", 80),
    "hot_max_factor": _sub_positive("hot_max_factor", "hot_max_factor must be > 0"),
    "warm_max_factor": _sub_positive("warm_max_factor", "warm_max_factor must be > 0"),
    "temporary_ttl": _sub_loose("temporary_ttl"),
    "idle_timeout": _sub_loose("idle_timeout", numeric=True),
    "watcher_logbuf_size": _sub_number("watcher_logbuf_size"),
    "worker_logbuf_size": _sub_number("worker_logbuf_size"),
    "ssl_chain_cert": _sub_text("ssl_chain_cert"),
    "ssl_key": _sub_text("ssl_key"),
    "ssl_keyformat": _sub_key_format,
    "ssl_ca_cert": _sub_text("ssl_ca_cert"),
    "ssl_ciphers": _sub_text("ssl_ciphers"),
    "ssl_verify_mode": _sub_choice("ssl_verify_mode", 4),
    "ssl_min_version": _sub_choice("ssl_min_version", 4),
    "ssl_wbuf_size": _sub_number("ssl_wbuf_size"),
    "ssl_session_cache": _sub_switch("ssl_session_cache"),
    "ssl_kernel_tls": _sub_switch("ssl_kernel_tls"),
    "resp_obj_mem_limit": lambda options, value: None,
    "sock_cookie_id": lambda options, value: None,
}  # fmt: skip

# What must go together ----------------------------------------------------------------------


def _check_together(options: MemcachedOptions) -> None:
    extended = options.extended
    if options.reqs_per_event <= 0:
        raise Refused("Number of requests per event must be greater than 0")
    if extended.get("hot_lru_pct", 20) + extended.get("warm_lru_pct", 40) > 80:
        raise Refused("hot_lru_pct + warm_lru_pct cannot be more than 80% combined", EXIT_USAGE)
    if options.item_size_max < KIB:
        raise Refused("Item max size cannot be less than 1024 bytes.", EXIT_USAGE)
    if options.item_size_max > options.memory_mb * MIB // 2:
        raise Refused("Cannot set item size limit higher than 1/2 of memory max.", EXIT_USAGE)
    if options.item_size_max > GIB:
        raise Refused("Cannot set item size limit higher than a gigabyte.", EXIT_USAGE)
    if options.udp_port:
        raise Refused(
            "Cannot use UDP with extstore enabled (-U 0 to disable)"
            if options.paths
            else "siltstone does not support UDP (-U 0 to disable)",
            EXIT_USAGE,
        )
    if options.paths:
        _check_flash(options)


def _check_flash(options: MemcachedOptions) -> None:
    page, buffer = _page_bytes(options), _buffer_bytes(options)
    for name, size in (("ext_page_size", page), ("ext_wbuf_size", buffer)):
        if size == 0:
            raise Refused(f"{name} must be greater than 0")
    if options.item_size_max > buffer:
        raise Refused(
            f"-I (item_size_max: {options.item_size_max}) cannot be larger than "
            f"ext_wbuf_size: {buffer}",
            EXIT_USAGE,
        )
    failed = "Failed to initialize external storage: "
    if page % buffer:
        raise Refused(failed + "page_size must be divisible by wbuf_size")
    if page % PAGE_UNIT or buffer % PAGE_UNIT:
        raise Refused(failed + "page_size and wbuf_size must be divisible by 1024*1024*2")
    for _, size, text in options.paths:
        if size < page:
            raise Refused(
                f"ext_path={text} holds no page of {page // MIB}m: give it more room or set "
                "a smaller ext_page_size",
                EXIT_USAGE,
            )
    if sum(size // page for _, size, _ in options.paths) >= PAGES_MAX:
        raise Refused(
            failed + "page_count must total to < 65536. Increase page_size or lower path sizes"
        )


def _page_bytes(options: MemcachedOptions) -> int:
    return int(options.extended.get("ext_page_size", 64)) * MIB


def _buffer_bytes(options: MemcachedOptions) -> int:
    return int(options.extended.get("ext_wbuf_size", 4)) * MIB


def cache_settings(options: MemcachedOptions) -> CacheSettings:
    """The same as a cache's settings: private memory, flash files that start empty.

    Write buffers come on top of -m, as in memcached. memcached runs on a single page; here a
    page that would be one of too few is cut into several segments.
    """
    extended = options.extended
    values: dict[str, Any] = {
        "arena": "private",
        "codec": "raw",
        "ram": options.memory_mb * MIB,
        "item_size_max": options.item_size_max,
        "evict": options.evictions,
        "cas": options.cas,
    }
    if options.paths:
        page, buffer = _page_bytes(options), _buffer_bytes(options)
        files = [(Path(path), size // page * page) for path, size, _ in options.paths]
        segment = page
        while sum(size for _, size in files) // segment < 2 * SEGMENTS_MIN and segment > MIB:
            segment //= 2
        while segment % min(buffer, segment):
            segment //= 2
        cut = page // segment
        values |= {
            "files": files,
            "segment_size": segment,
            "buffer_size": min(buffer, segment),
            "buffers": STREAMS * buffer,
            "ram": options.memory_mb * MIB + STREAMS * buffer,
            "workers": max(1, extended.get("ext_threads", 1)),
            "item_size_min": extended.get("ext_item_size", 512),
            "low_ttl": extended.get("ext_low_ttl", 0),
            "recache_rate": extended.get("ext_recache_rate", 2000),
            "max_fragmentation": min(max(extended.get("ext_max_frag", 0.8), 0.0), 1.0),
            "drop_unread": extended.get("ext_drop_unread", False),
        }
        if extended.get("ext_item_age", AGE_NEVER) != AGE_NEVER:
            values["item_age"] = extended["ext_item_age"]
        for name in ("compact_under", "drop_under"):
            if f"ext_{name}" in extended:
                values[name] = extended[f"ext_{name}"] * cut
    return CacheSettings(**values)


def server_settings(options: MemcachedOptions) -> Settings:
    """Where to listen, what is allowed, and what `stats settings` prints of the rest."""
    tcp = options.unix_socket is None and options.port != 0
    return Settings(
        listen=tuple(options.listen or ["127.0.0.1"]) if tcp else (),
        port=max(options.port, 0),  # here 0 is any free one
        unix_socket=None if options.unix_socket is None else Path(options.unix_socket),
        unix_mode=options.unix_mask & 0o777,
        protocol=options.protocol,
        backlog=max(options.backlog, 1),
        connections_max=options.connections,
        idle_timeout=max(options.extended.get("idle_timeout", 0), 0),
        item_size_max=options.item_size_max,
        allow_shutdown=options.shutdown,
        allow_flush=options.flush,
        allow_dump=options.dump,
        allow_watch=options.watch,
        prefix_delimiter=options.prefix_delimiter,
        verbosity=options.verbosity,
        threads=options.threads,
        shown=shown_settings(options),
        **(tls_settings(options.extended) if options.tls else {}),
    )


def tls_settings(extended: Mapping[str, Any]) -> dict[str, Any]:
    """Of -Z. TLS 1.0 and 1.1 are not to be had any more: 1.2 is the least."""
    if "ssl_chain_cert" not in extended:
        raise Refused("Error loading the certificate chain: -Z needs -o ssl_chain_cert=FILE",
                      EXIT_USAGE)  # fmt: skip
    return {
        "tls_certificate": Path(extended["ssl_chain_cert"]),
        "tls_key": Path(extended["ssl_key"]) if "ssl_key" in extended else None,
        "tls_client_ca": Path(extended["ssl_ca_cert"]) if "ssl_ca_cert" in extended else None,
        # once, memcached's 3, is a server's require
        "tls_verify": ("none", "request", "require", "require")[extended.get("ssl_verify_mode", 0)],
        "tls_ciphers": extended.get("ssl_ciphers", ""),
        "tls_version_min": "1.3" if extended.get("ssl_min_version") == 3 else "1.2",
    }


def shown_settings(options: MemcachedOptions) -> dict[str, str]:
    """The rows of `stats settings` that repeat what was asked for."""
    extended = options.extended

    def yes(value: object) -> str:
        return "yes" if value else "no"

    rows: dict[str, object] = {
        "evictions": "on" if options.evictions else "off",
        "cas_enabled": yes(options.cas),
        "growth_factor": f"{options.growth_factor:.2f}",
        "chunk_size": options.chunk_size,
        "stat_key_prefix": options.prefix_delimiter or ":",
        "reqs_per_event": options.reqs_per_event,
        "maxconns_fast": yes(extended.get("maxconns_fast", True)),
        "track_sizes": yes(extended.get("track_sizes")),
    }
    if options.paths:
        pages = sum(size // _page_bytes(options) for _, size, _ in options.paths)
        rows |= {
            "ext_item_size": extended.get("ext_item_size", 512),
            "ext_item_age": extended.get("ext_item_age", AGE_NEVER),
            "ext_low_ttl": extended.get("ext_low_ttl", 0),
            "ext_recache_rate": extended.get("ext_recache_rate", 2000),
            "ext_wbuf_size": _buffer_bytes(options),
            "ext_compact_under": extended.get("ext_compact_under", pages // 4),
            "ext_drop_under": extended.get("ext_drop_under", pages // 4),
            "ext_max_sleep": extended.get("ext_max_sleep", 1_000_000),
            "ext_max_frag": f"{extended.get('ext_max_frag', 0.8):.2f}",
            "slab_automove_freeratio": f"{extended.get('slab_automove_freeratio', 0.01):.3f}",
            "ext_drop_unread": yes(extended.get("ext_drop_unread")),
        }
    return {name: str(value) for name, value in rows.items()}
