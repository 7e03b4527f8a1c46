"""A small memcached client for the command line: meta protocol over one blocking socket.

Owns its socket. Speaks to siltstone and to memcached 1.6 alike. Applications use a full client
(pymemcache, for one). One thread at a time.
"""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from typing import Self
from urllib.parse import unquote_to_bytes

from siltstone.errors import EnvironmentFailure, InvalidKey, PeerError, TooLarge

KEY_BYTES_MAX = 250
TIMEOUT_S = 10.0
REPLY_BYTES = 1 << 16


class MemcachedClient:
    """One connection to HOST:PORT, or to the Unix socket at a path."""

    def __init__(self, address: str, timeout: float = TIMEOUT_S) -> None:
        self.address = address
        try:
            self._socket = _connect(address, timeout)
        except (OSError, ValueError) as error:
            raise EnvironmentFailure(f"no server at {address}: {error}") from None
        self._buffer = bytearray()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, key: bytes) -> tuple[bytes, int, int] | None:
        """(value, client flags, seconds left or -1), or None."""
        reply = self._ask(b"mg %s v f t%s" % _key(key))
        if reply[0] == b"EN":
            return None
        if reply[0] != b"VA":
            raise self._unexpected(reply)
        data = self._take(int(reply[1]) + 2)[:-2]
        marks = {mark[:1]: mark[1:] for mark in reply[2:]}
        return data, int(marks.get(b"f", b"0")), int(marks.get(b"t", b"-1"))

    def set(self, key: bytes, value: bytes, flags: int = 0, ttl: int = 0) -> None:
        wire, base64_flag = _key(key)
        head = b"ms %s %d F%d T%d%s\r\n" % (wire, len(value), flags, ttl, base64_flag)
        self._send(head + value + b"\r\n")
        reply = self._reply()
        if reply[0] != b"HD":
            raise self._unexpected(reply)

    def delete(self, key: bytes) -> bool:
        reply = self._ask(b"md %s%s" % _key(key))
        if reply[0] not in (b"HD", b"NF"):
            raise self._unexpected(reply)
        return reply[0] == b"HD"

    def stats(self, group: str = "") -> dict[str, str]:
        self._send(f"stats {group}".strip().encode() + b"\r\n")
        found = {}
        while (line := self._line()) != b"END":
            word, _, rest = line.partition(b" ")
            if word != b"STAT":
                raise self._unexpected([line])
            name, _, value = rest.partition(b" ")
            found[name.decode()] = value.decode("utf-8", "replace")
        return found

    def keys(self) -> Iterator[bytes]:
        """Every key, by `lru_crawler metadump all`, in no order."""
        self._send(b"lru_crawler metadump all\r\n")
        while (line := self._line()) != b"END":
            if line.startswith(b"key="):
                yield unquote_to_bytes(line[4:].split(b" ")[0])
            elif line != b"OK":
                raise self._unexpected([line])

    # The wire -------------------------------------------------------------------------------

    def _ask(self, line: bytes) -> list[bytes]:
        self._send(line + b"\r\n")
        return self._reply()

    def _reply(self) -> list[bytes]:
        return self._line().split(b" ")

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise EnvironmentFailure(f"{self.address}: {error}") from None

    def _fill(self) -> None:
        try:
            data = self._socket.recv(REPLY_BYTES)
        except OSError as error:
            raise EnvironmentFailure(f"{self.address}: {error}") from None
        if not data:
            raise EnvironmentFailure(f"{self.address}: the server closed the connection")
        self._buffer += data

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            self._fill()
        line = bytes(self._buffer[:end]).rstrip(b"\r")
        del self._buffer[: end + 1]
        return line

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _unexpected(self, reply: list[bytes]) -> Exception:
        line = b" ".join(reply)
        text = line.decode("utf-8", "replace")
        if line.startswith(b"SERVER_ERROR object too large"):
            return TooLarge(f"{self.address}: {text}")
        if line.startswith(b"SERVER_ERROR"):
            return EnvironmentFailure(f"{self.address}: {text}")
        return PeerError(f"{self.address} answered: {text}")


def parse_address(text: str, default_port: int = 11211) -> tuple[str, int]:
    """(host, port) of "host:port", "[::1]:port", "host" or "port"."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = (text, str(default_port)) if not text.isdigit() else ("127.0.0.1", text)
    if not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is no address: write HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def _connect(address: str, timeout: float) -> socket.socket:
    if "/" in address:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        try:
            connection.connect(address)
        except OSError:
            connection.close()
            raise
        return connection
    connection = socket.create_connection(parse_address(address), timeout)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _key(key: bytes) -> tuple[bytes, bytes]:
    """(key as sent, flags for it): what a text line cannot carry goes as base64."""
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise InvalidKey(f"a memcached key has 1 to {KEY_BYTES_MAX} bytes, not {len(key)}")
    if min(key) <= 32 or 127 in key:
        return base64.b64encode(key), b" b"
    return key, b""
