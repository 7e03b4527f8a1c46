"""Answers in gzip, for clients that say they read it.

Small answers are sent as they are, and so is what nobody would win by: only text and JSON is
compressed, at the fastest level, in a thread when it is much. Answers that come in pieces are left
alone. An ASGI application around another one.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from typing import Final

from siltstone.serve.http import Asgi, Message, Receive, Send

SIZE_MIN: Final = 4096  # below it fits few packets anyway
THREAD_SIZE_MIN: Final = 128 << 10  # compressing takes a millisecond and more
_TEXT: Final = re.compile(rb"application/json|text/|image/svg")
_NOT: Final = re.compile(r";\s*q=0(?:\.0*)?\s*$")


def compressed(app: Asgi) -> Asgi:
    """The same application, which compresses."""

    async def compressing(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not reads_gzip(scope["headers"]):
            await app(scope, receive, send)
            return
        started: Message = {}

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = message
                return
            if started:
                head, started = started, {}
                if not message.get("more_body") and worth_it(head, message.get("body", b"")):
                    head, message = await _smaller(head, message)
                await send(head)
            await send(message)

        await app(scope, receive, sending)

    return compressing


def reads_gzip(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether Accept-Encoding has it, not with a weight of 0."""
    reads: dict[str, bool] = {}
    for name, value in headers:
        if name == b"accept-encoding":
            for coding in value.decode("latin-1").lower().split(","):
                reads[coding.partition(";")[0].strip()] = _NOT.search(coding) is None
    return reads.get("gzip", reads.get("*", False))


def worth_it(head: Message, body: bytes) -> bool:
    """Whether an answer is text, large enough, and not encoded already."""
    names = {name.lower(): value for name, value in head.get("headers", ())}
    return (
        len(body) >= SIZE_MIN
        and b"content-encoding" not in names
        and _TEXT.match(names.get(b"content-type", b"")) is not None
    )


async def _smaller(head: Message, message: Message) -> tuple[Message, Message]:
    body = message["body"]
    if len(body) < THREAD_SIZE_MIN:
        packed = _packed(body)
    else:
        packed = await asyncio.get_running_loop().run_in_executor(None, _packed, body)
    headers = [
        (name, value)
        for name, value in head["headers"]
        if name.lower() not in (b"content-length", b"etag", b"accept-ranges")
    ]
    headers += [
        (b"content-encoding", b"gzip"),
        (b"content-length", b"%d" % len(packed)),
        (b"vary", b"Accept-Encoding"),
    ]
    return {**head, "headers": headers}, {**message, "body": packed}


def _packed(body: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    return packer.compress(body) + packer.flush()
