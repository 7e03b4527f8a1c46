"""Parameters of HTTP requests, as Prometheus' API takes them: from the query string or a form.

Promises: what a parameter cannot mean is a `BadParameter` with the text that Prometheus' clients
know; nothing is guessed. Called by the handlers in `prometheus.py`, in the event loop's thread.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import parse_qs, urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from siltstone.errors import PeerError, ProtocolError

FORM = "application/x-www-form-urlencoded"
LIMIT_DIGITS_MAX = 18  # of `limit`: an int64
FORM_BYTES_MAX = 1 << 20  # of queries: longer than any that a person or a dashboard writes
SECONDS_MAX = float(1 << 33)
# As Prometheus: the earliest and the latest time that a query may name, for "all there is".
MIN_TIME = "-9223309901257974"
MAX_TIME = "9223309901257974"

_DURATION = re.compile(
    r"(?:(\d+)y)?(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?"
)
_UNIT_SECONDS = (365 * 86400.0, 7 * 86400.0, 86400.0, 3600.0, 60.0, 1.0, 0.001)


Handler = Callable[[Request], Awaitable[Response]]


class BadParameter(PeerError, ValueError):
    """A parameter that is missing or cannot be read."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f'invalid parameter "{name}": {problem}')


class BodyTooLarge(PeerError, ValueError):
    """A request body above the limit; the text says which."""


class UnknownKind(PeerError, ValueError):
    """A body in a form that is not read here; senders take another one then (status 415)."""


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, at most `limit` bytes of it; BodyTooLarge as soon as it is more."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise BodyTooLarge(f"the body is larger than {limit} bytes: send less at a time")
            parts.append(part)
    except ClientDisconnect:
        raise ProtocolError("the body ends too early") from None
    return b"".join(parts)


def own_site(handler: Handler) -> Handler:
    """A handler that changes something, for programs and for pages of this server: browsers send
    some requests to other sites without asking these, and name the page's as `Origin`."""

    async def checked(request: Request) -> Response:
        origin = request.headers.get("origin")
        if origin is not None and _host_of(origin) != request.headers.get("host"):
            raise ProtocolError(f"a page of {origin} cannot write here")
        return await handler(request)

    return checked


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # brackets that hold no address
        return ""


def query_parameters(request: Request) -> dict[str, list[str]]:
    """Those of the query string alone: where the body is data, though curl calls it a form."""
    text = request.scope["query_string"].decode("utf-8", "replace")
    return parse_qs(text, keep_blank_values=True)


async def parameters(request: Request) -> Mapping[str, list[str]]:
    """Those of the query string, behind those of a form."""
    found = query_parameters(request)
    if request.method == "POST":
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == FORM:
            body = await read_body(request, FORM_BYTES_MAX)
            form = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
            found = {name: form.get(name, []) + found.get(name, []) for name in {*form, *found}}
    return found


def first(found: Mapping[str, Sequence[str]], name: str) -> str:
    """The first value of a parameter, "" without one."""
    values = found.get(name)
    return values[0] if values else ""


def time_of(found: Mapping[str, Sequence[str]], name: str, default: float | None = None) -> float:
    """Unix seconds of a number or an RFC 3339 time; without a default it must be there."""
    text = first(found, name)
    if not text and default is not None:
        return default
    seconds = _number(text)
    if seconds is None:
        seconds = _timestamp(text)
    if text == MIN_TIME:
        seconds = -SECONDS_MAX
    elif text == MAX_TIME:
        seconds = SECONDS_MAX
    if seconds is None or not math.isfinite(seconds):
        raise BadParameter(name, f'cannot parse "{text}" to a valid timestamp')
    return min(max(seconds, -SECONDS_MAX), SECONDS_MAX)


def duration_of(
    found: Mapping[str, Sequence[str]], name: str, default: float | None = None
) -> float:
    """Seconds of a number or of a duration as in PromQL: 1h30m, 15s, 500ms."""
    text = first(found, name)
    if not text and default is not None:
        return default
    seconds = _number(text)
    if seconds is None:
        match = _DURATION.fullmatch(text) if text else None
        if match is None:
            raise BadParameter(name, f'cannot parse "{text}" to a valid duration')
        seconds = sum(
            float(count) * unit
            for count, unit in zip(match.groups(), _UNIT_SECONDS, strict=True)
            if count
        )
    if not math.isfinite(seconds) or abs(seconds) > SECONDS_MAX:
        raise BadParameter(name, f'cannot parse "{text}" to a valid duration. It overflows int64')
    return seconds


def time_text(ms: int) -> str:
    """RFC 3339, as Prometheus tells times that are no samples'."""
    moment = datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def limit_of(found: Mapping[str, Sequence[str]]) -> int:
    """`limit`: how many results at the most; 0 is no limit."""
    text = first(found, "limit")
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > LIMIT_DIGITS_MAX:
        raise BadParameter("limit", f'cannot parse "{text}": a whole number, 0 for no limit')
    return int(text)


def _number(text: str) -> float | None:
    if not text.isascii() or "_" in text or text.strip() != text:  # Python reads more than Go
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _timestamp(text: str) -> float | None:
    if "T" not in text.upper():
        return None
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return time.timestamp() if time.tzinfo is not None else None
