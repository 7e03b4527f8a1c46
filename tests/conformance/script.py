r"""Conformance scripts: plain text files of requests and the replies that must follow.

    # a comment; blank lines separate
    == a name                   begins a case (its keys are gone before it)
    <- differs: why             memcached 1.6.18 answers otherwise (a defect, or newer); not asked
    <- whole                    only delivered in one piece (what counts is what is pipelined)
    > set a 0 0 1               a request line, CRLF is added
    > x
    < STORED                    a reply line, CRLF is added
    < /HD c\d+/                 a reply line by regular expression
    < (nothing)                 no reply at all
    < (closed)                  and the connection is closed

In requests and replies \xNN is a byte and {K*251} repeats; at the end of a request line \n$ leaves
out the CR, \$ the line's end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"
CLOSED = "(closed)"
NOTHING = "(nothing)"
# seconds since: the clock may tick between two commands
TIME_SINCE = re.compile(rb"( l|\\ l|la=|la\\=)(\d+)")
TIME_LEFT = re.compile(rb"( t|\\ t|exp=|exp\\=)(\d+)")


@dataclass(slots=True)
class Case:
    """One case of a script."""

    file: str
    name: str
    differs: str = ""
    whole: bool = False
    request: bytearray = field(default_factory=bytearray)
    replies: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.file}: {self.name}"

    @property
    def closed(self) -> bool:
        return CLOSED in self.replies

    def pattern(self, rounded: bool = False) -> re.Pattern[bytes]:
        """`rounded`: times left may be a second longer, as on flash."""
        parts = []
        for line in self.replies:
            if line in (CLOSED, NOTHING):
                continue
            if len(line) > 1 and line.startswith("/") and line.endswith("/"):
                parts.append(line[1:-1].encode())
            else:
                parts.append(re.escape(expand(line)))
            parts.append(rb"\r\n")
        parts = [TIME_SINCE.sub(_or_one_more, part) for part in parts]
        if rounded:
            parts = [TIME_LEFT.sub(_or_one_more, part) for part in parts]
        return re.compile(b"".join(parts), re.DOTALL)

    def check(self, reply: bytes, how: str, rounded: bool = False) -> None:
        assert self.pattern(rounded).fullmatch(reply), (
            f"{self.title} ({how})\nsent     {bytes(self.request)[:500]!r}\n"
            f"expected {self.replies}\ngot      {reply[:1000]!r}"
        )


def _or_one_more(match: re.Match[bytes]) -> bytes:
    return b"%b(?:%b|%d)" % (match[1], match[2], int(match[2]) + 1)


def expand(text: str) -> bytes:
    """\\xNN and {text*count}."""
    text = re.sub(r"\{([^{}*]+)\*(\d+)\}", lambda match: match[1] * int(match[2]), text)
    return re.sub(
        rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), text.encode("latin-1")
    )


def request_line(text: str) -> bytes:
    if text.endswith("\\$"):
        return expand(text[:-2])
    if text.endswith("\\n$"):
        return expand(text[:-3]) + b"\n"
    return expand(text) + b"\r\n"


def read(path: Path) -> Iterator[Case]:
    """The cases of a file."""
    case: Case | None = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        mark, _, rest = line.partition(" ")
        if line.startswith("#") or not line.strip():
            continue
        if mark == "==":
            if case is not None:
                yield case
            case = Case(path.stem, rest)
            continue
        assert case is not None, f"{path}:{number}: no case yet"
        if mark == ">":
            case.request += request_line(rest)
        elif mark == "<":
            case.replies.append(rest)
        elif mark == "<-" and rest == "whole":
            case.whole = True
        elif mark == "<-" and rest.startswith("differs: "):
            case.differs = rest.removeprefix("differs: ")
        else:
            raise AssertionError(f"{path}:{number}: {line!r}")
    if case is not None:
        yield case


def all_cases() -> list[Case]:
    return [case for path in sorted(SCRIPTS.glob("*.txt")) for case in read(path)]
