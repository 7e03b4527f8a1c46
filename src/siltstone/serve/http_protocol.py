"""Which of uvicorn's readers of HTTP/1.1 is used, and a bound on what it keeps of a request's head.

httptools (a parser in C) where it is installed: measured with remote_write requests of 2,000
samples, 1.2 ms of CPU a request instead of 1.8 with h11 (bench/metrics_http.py, "scrape"). It has
no limit for heads of its own, h11 has one of 64 KiB.
"""

from __future__ import annotations

import asyncio
from typing import Final

HEAD_SIZE_MAX: Final = 64 << 10


def protocol() -> type[asyncio.Protocol] | str:
    """For uvicorn's `http` option."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class Bounded(HttpToolsProtocol):
        """Closes a connection whose request has a head that does not end."""

        head_size = -1  # of the head that is being read; -1: none is

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.head_size >= 0:
                self.head_size += len(data)
                if self.head_size > HEAD_SIZE_MAX:
                    self.transport.close()

        def on_message_begin(self) -> None:
            self.head_size = 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self.head_size = -1
            super().on_headers_complete()

    return Bounded
