"""The memcached server's settings: where it listens, and the limits of what clients may hold.

Promises: as `config.py`: a settings object that exists is valid. The session reads three limits,
the server the rest; `shown` is what `stats settings` prints beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from siltstone.config import (
    COUNT,
    DURATION,
    KIB,
    MIB,
    MODE,
    PATH,
    SIZE,
    SWITCH,
    TEXT,
    Kind,
    SettingsBase,
    setting,
)
from siltstone.errors import ConfigError

PORT: Final = 11211
PROTOCOLS: Final = ("auto", "ascii", "binary")
PLAIN: Final = "notls:"  # before an address that is served without TLS


def _addresses(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, Iterable):
        raise ConfigError(f'{value!r} is no list of addresses: ["127.0.0.1:11211", "[::1]:11211"]')
    found = tuple(str(part) for part in value if part)
    for part in found:
        split_address(part.removeprefix(PLAIN), PORT)
    return found


ADDRESSES: Final = Kind("addresses", _addresses, ",".join)


def split_address(text: str, port: int) -> tuple[str, int]:
    """host, host:port, [v6], [v6]:port, bare v6. Port 0 or -1: any free one."""
    host, colon, number = text.rpartition(":")
    if text.startswith("[") and "]" in text:
        host, _, rest = text[1:].partition("]")
        colon, number = rest[:1], rest[1:]
        if rest and colon != ":":
            raise ConfigError(f"{text!r} is no address: write [address]:port")
    elif not colon or ":" in host:
        host, colon, number = text, "", ""
    if colon:
        try:
            port = int(number)
        except ValueError:
            raise ConfigError(f"{text!r} is no address: {number!r} is no port") from None
    if not -1 <= port <= 65535:
        raise ConfigError(f"{text!r} is no address: ports end at 65535")
    return ("" if host == "*" else host), max(port, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(SettingsBase):
    """Of one memcached server."""

    section = "memcached"

    listen: tuple[str, ...] = setting(
        ("127.0.0.1",),
        ADDRESSES,
        "host, host:port, [v6]:port; port 0: a free one; none: no TCP; notls:HOST: never TLS",
    )
    port: int = setting(PORT, COUNT, "of addresses without one", low=-1, high=65535)
    unix_socket: Path | None = setting(None, PATH, "Unix socket to listen on")
    unix_mode: int = setting(0o700, MODE, "its permissions", low=0, high=0o777)
    protocol: str = setting(
        "auto", TEXT, "auto: a connection's first byte says which", choices=PROTOCOLS
    )
    tls_certificate: Path | None = setting(
        None, PATH, "certificate chain (PEM); given: TCP connections are TLS"
    )
    tls_key: Path | None = setting(None, PATH, "its key (PEM), where it is not in the same file")
    tls_client_ca: Path | None = setting(None, PATH, "whose certificates clients may show (PEM)")
    tls_verify: str = setting(
        "none", TEXT, "certificates of clients", choices=("none", "request", "require")
    )
    tls_ciphers: str = setting("", TEXT, "OpenSSL's list of ciphers; empty: its own")
    tls_version_min: str = setting("1.2", TEXT, "of TLS", choices=("1.2", "1.3"))
    backlog: int = setting(1024, COUNT, "connections waiting to be accepted", low=1)
    connections_max: int = setting(1024, COUNT, "clients at a time; more are refused", low=1)
    idle_timeout: float = setting(
        0, DURATION, "connections silent for so long are closed; 0: never"
    )
    close_timeout: float = setting(5, DURATION, "what a graceful stop waits for clients to read")
    item_size_max: int = setting(MIB, SIZE, "largest item, memcached's overhead included", low=KIB)
    line_size_max: int = setting(
        16 * MIB, SIZE, "longest line of a get with many keys", low=2 * KIB
    )
    output_size_max: int = setting(
        MIB, SIZE, "unsent output of a connection at which it is read no further", low=4 * KIB
    )
    buffered_max: int = setting(
        256 * MIB, SIZE, "memory of all connections' buffers; beyond it large values are refused"
    )
    receive_size: int = setting(128 * KIB, SIZE, "bytes received at a time", low=4 * KIB)
    read_threads: int = setting(4, COUNT, "threads for flash reads", low=1, high=256)
    reads_in_flight_max: int = setting(
        256, COUNT, "flash reads of all connections at a time", low=1
    )
    allow_shutdown: bool = setting(False, SWITCH, "take the shutdown command")
    allow_flush: bool = setting(True, SWITCH, "take flush_all")
    allow_dump: bool = setting(True, SWITCH, "take metadump and cachedump")
    allow_watch: bool = setting(True, SWITCH, "no effect: watch is not supported")
    prefix_delimiter: str | None = setting(
        None, TEXT, "ends the prefix of a key; given: operations are counted by prefix"
    )
    verbosity: int = setting(0, COUNT, "what is logged", low=0)
    threads: int = setting(1, COUNT, "shown by stats: one loop serves all connections", low=1)
    shown: Mapping[str, str] = field(default_factory=dict)

    def derive(self) -> None:
        if self.tls_certificate is None:
            for name in ("tls_key", "tls_client_ca", "tls_ciphers"):
                if getattr(self, name):
                    self.refuse(name, "there is no TLS without tls_certificate")
        if self.tls_verify != "none" and self.tls_client_ca is None:
            self.refuse("tls_verify", "say in tls_client_ca who signs the certificates of clients")
