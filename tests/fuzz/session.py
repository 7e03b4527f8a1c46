"""A fuzz target for atheris: python tests/fuzz/session.py [-max_total_time=60].

The first byte says how the rest is cut, the second when everything moves to flash. What must
hold: the session never raises and holds bounded memory, and pieces do not change the replies.
Inputs that find something new are kept in tests/fuzz/corpus; every test run replays them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from backend import FlashBackend, make_session

from siltstone.serve.memcache import Session

CORPUS = Path(__file__).parent / "corpus"
BUFFERED_MAX = 4 << 20
BACKEND = FlashBackend()


def play(session: Session, pieces: list[bytes], flash_every: int) -> bytes:
    reply = b""
    for number, piece in enumerate(pieces):
        if flash_every and number % flash_every == 0:
            BACKEND.to_flash()
        reply += session.feed(piece)
        for _ in range(10_000):
            if not (session.pending or session.paused):
                break
            session.submit(None, None)
            reply += session.resume()
        assert not session.pending
        assert session.buffered <= BUFFERED_MAX
        if session.closing:
            break
    return reply


def one_input(data: bytes) -> None:
    """Fails by an exception."""
    if len(data) < 3:
        return
    size, flash, data = data[0] + 1, data[1] % 8, data[2:]
    BACKEND.flush_at(1)
    play(make_session(BACKEND), [data[i : i + size] for i in range(0, len(data), size)], flash)
    BACKEND.flush_at(1)
    session = make_session(BACKEND)
    whole = play(session, [data], 0)
    if session.closing or any(word in data for word in (b"stats", b"dump", b"flush_all")):
        return  # these tell of what was before, of time, or end the conversation
    # a session that is not closed still answers, once what it is owed is paid
    assert not whole or whole.endswith(b"\n") or b"VALUE" in whole


def main() -> None:
    import atheris

    atheris.Setup([*sys.argv, str(CORPUS)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
