"""The engine against a dict: every operation, with memory to spare and with far too little.

With memory to spare the engine must agree with the dict in everything. Under pressure an item may
be gone, and then stays gone; what is there must still be right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from cacherig import STARTED_MS, engine_of, flash_engine_of
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from siltstone.cache.invariants import check_invariants
from siltstone.cache.sweep import drain
from siltstone.cache.trial import Options as O
from siltstone.cache.trial import execute, find

EVICTIONS = 24  # COUNT_EVICTIONS
KEY_SIZES = [1, 2, 9, 40, 250, 251, 3000, 4096, 20000, 65536]
# By names, which are shorter to print: the size in bytes, or a number.
KEYS = {f"{size} B": bytes([97 + number]) * size for number, size in enumerate(KEY_SIZES)} | {
    f"key {number}": b"key %d" % number for number in range(30)
}
SIZES = st.one_of(
    st.integers(0, 40),
    st.integers(0, 2000),
    st.sampled_from([511, 512, 4000, 4072, 4096, 8168, 8192, 30_000, 60_000]),
    st.sampled_from([90_000, 100_000, 250_000]),
    st.integers(0, 250_000),
)
TTLS = st.sampled_from([0, 0, 0, 1, 900, 1000, 1001, 60_000, 3_600_000, 9 * 366 * 86_400_000, -1])
KEY = st.sampled_from(sorted(KEYS))
REFUSED = (O.NO_MEMORY, O.TOO_LARGE)


@dataclass
class Item:
    """What the engine should know about a key."""

    value: bytes
    cas: int
    client_flags: int = 0
    expire_ms: int = 0
    fetched: bool = False
    stale: bool = False
    won: bool = False


class Model(RuleBasedStateMachine):
    """Rules in the engine's words. `exact`: nothing may ever be missing."""

    exact = True
    evictions = 0
    delay_ms = 800
    limit = 48 << 20
    shards = 4
    frame_bytes = 8192

    def __init__(self) -> None:
        super().__init__()
        self.items: dict[str, Item] = {}
        self.now = STARTED_MS
        self.steps = 0
        self.others: set[int] = set()
        self.refused = 0

    @initialize()
    def start(self) -> None:
        self.engine = engine_of(self.limit, shards=self.shards, frame_bytes=self.frame_bytes)
        if not self.exact:
            for number in range(90):  # full from the start
                execute(self.engine, O.SET, b"other %d" % number, value_of(number, 10_000))

    # What is known ----------------------------------------------------------------------

    def known(self, key: str) -> Item | None:
        item = self.items.get(key)
        if item is not None and item.expire_ms and item.expire_ms <= self.now:
            del self.items[key]
            return None
        return item

    def absolute(self, ttl: int) -> int:
        return self.now + ttl if ttl > 0 else ttl

    def run(self, op: int, key: str, value: bytes = b"", **fields: Any) -> tuple[int, Any]:
        """The operation, and what was there before it as far as the engine still knows."""
        if not self.exact and self.known(key) is not None:
            # it may have been evicted; if it is there it must be right
            self.look(key, no_bump=True)
        status, reply = execute(self.engine, op, KEYS[key], value, **fields)
        if status in (O.NO_MEMORY, O.TOO_LARGE):
            assert not self.exact or status == O.TOO_LARGE
            self.refused += 1
            if op == O.SET:
                self.items.pop(key, None)
        return status, reply

    def look(self, key: str, no_bump: bool = False) -> Item | None:
        item, found = self.known(key), find(self.engine, KEYS[key], no_bump)
        if found is None:
            assert item is None or not self.exact, f"lost {key}"
            self.items.pop(key, None)
            return None
        assert item is not None, f"came back: {key}"
        value, meta = found
        assert value == item.value
        assert meta["cas"] == item.cas
        assert meta["client_flags"] == item.client_flags
        assert meta["expire_ms"] == item.expire_ms
        assert (meta["stale"], meta["lost"]) == (item.stale, item.won)
        assert meta["fetched"] == item.fetched
        item.fetched = item.fetched or not no_bump
        return item

    def put(self, key: str, reply: dict[str, Any], value: bytes, flags: int, until: int) -> None:
        if until < 0:
            self.items.pop(key, None)
        else:
            self.items[key] = Item(value, reply["cas"], flags, until)

    # Rules ------------------------------------------------------------------------------

    @rule(key=KEY)
    def get(self, key: str) -> None:
        self.look(key)

    @rule(key=KEY, size=SIZES, byte=st.integers(0, 255), flags=st.integers(0, 9), ttl=TTLS,
          op=st.sampled_from(["SET", "SET", "SET", "ADD", "REPLACE"]))  # fmt: skip
    def store(self, key: str, size: int, byte: int, flags: int, ttl: int, op: str) -> None:
        value = value_of(byte, size)
        status, reply = self.run(
            getattr(O, op), key, value, client_flags=flags, expire_ms=self.absolute(ttl)
        )
        if status in REFUSED:
            return
        there = self.known(key) is not None
        if op == "SET" or (op == "ADD") != there:
            assert status == O.OK
            self.put(key, reply, value, flags, self.absolute(ttl))
        else:
            assert status == O.NOT_STORED

    @rule(key=KEY, size=SIZES, byte=st.integers(0, 255), ttl=TTLS, right=st.booleans())
    def compare_and_set(self, key: str, size: int, byte: int, ttl: int, right: bool) -> None:
        item = self.known(key)
        cas = item.cas if item and right else 10**12
        value = value_of(byte, size)
        status, reply = self.run(
            O.SET, key, value, options=O.CAS, cas=cas, expire_ms=self.absolute(ttl)
        )
        if status in REFUSED:
            return
        if self.known(key) is None:
            assert status == O.MISS
        elif not right:
            assert status == O.EXISTS
        else:
            assert status == O.OK
            self.put(key, reply, value, 0, self.absolute(ttl))

    @rule(key=KEY, size=SIZES, byte=st.integers(0, 255), before=st.booleans())
    def extend(self, key: str, size: int, byte: int, before: bool) -> None:
        value = value_of(byte, size)
        status, reply = self.run(O.PREPEND if before else O.APPEND, key, value)
        item = self.known(key)
        if status in REFUSED:
            return
        if item is None:
            assert status == O.NOT_STORED
        else:
            assert status == O.OK
            item.value = value + item.value if before else item.value + value
            item.cas, item.stale, item.won = reply["cas"], False, False
            item.fetched = False  # a new value, as memcached has it

    @rule(key=KEY, options=st.sampled_from(["", "WANT_VALUE"]))
    def delete(self, key: str, options: str) -> None:
        status, reply = self.run(O.DELETE, key, options=getattr(O, options, 0))
        item = self.known(key)
        assert status == (O.MISS if item is None else O.OK)
        if item is not None and options:
            assert reply["value"] == item.value
        self.items.pop(key, None)

    @rule(key=KEY, delta=st.sampled_from([0, 1, 9, 10**6, 2**64 - 1]), incr=st.booleans(),
          vivify=st.booleans(), ttl=TTLS)  # fmt: skip
    def number(self, key: str, delta: int, incr: bool, vivify: bool, ttl: int) -> None:
        status, reply = self.run(
            O.INCR if incr else O.DECR, key, delta=delta, initial=17,
            options=O.VIVIFY if vivify else 0, vivify_expire_ms=self.absolute(ttl),
        )  # fmt: skip
        item = self.known(key)
        if status in REFUSED:
            return
        if item is None:
            assert status == (O.OK if vivify else O.MISS)
            if vivify:
                assert (reply["number"], reply["created"]) == (17, True)
                self.put(key, reply, b"17", 0, self.absolute(ttl))
            return
        text = item.value.rstrip(b" ")
        if not text.isdigit() or len(item.value) > 32 or int(text) >= 1 << 64:
            assert status == O.NOT_NUMBER
            return
        result = (int(text) + delta) % (1 << 64) if incr else max(0, int(text) - delta)
        assert (status, reply["number"]) == (O.OK, result)
        item.value = str(result).encode().ljust(len(item.value))
        item.cas, item.stale, item.won = reply["cas"], False, False

    @rule(key=KEY, digits=st.integers(0, 2**64 - 1), ttl=TTLS)
    def store_number(self, key: str, digits: int, ttl: int) -> None:
        status, reply = self.run(
            O.SET, key, b"%d" % digits, expire_ms=self.absolute(ttl), client_flags=2
        )
        if status == O.OK:
            self.put(key, reply, b"%d" % digits, 2, self.absolute(ttl))

    @rule(key=KEY, ttl=TTLS)
    def touch(self, key: str, ttl: int) -> None:
        status, _ = self.run(O.TOUCH, key, expire_ms=self.absolute(ttl))
        item = self.known(key)
        if status in REFUSED:
            return
        assert status == (O.MISS if item is None else O.OK)
        if item is not None:
            item.expire_ms = self.absolute(ttl)
            if ttl < 0:
                del self.items[key]

    @rule(key=KEY, drop=st.booleans(), invalidate=st.booleans(), ttl=TTLS)
    def mark(self, key: str, drop: bool, invalidate: bool, ttl: int) -> None:
        """md with I and x."""
        if not drop and not invalidate:
            return
        options = (O.DROP_VALUE if drop else 0) | (O.INVALIDATE if invalidate else 0)
        if ttl > 0:
            options |= O.TOUCH_TTL
        status, reply = self.run(O.DELETE, key, options=options, expire_ms=self.absolute(ttl))
        item = self.known(key)
        if status in REFUSED:
            return
        assert status == (O.MISS if item is None else O.OK)
        if item is None:
            return
        item.cas = reply["cas"]
        if ttl > 0:
            item.expire_ms = self.absolute(ttl)
        if drop:
            item.value, item.client_flags = b"", 0
        if invalidate:
            item.stale, item.won = True, False

    @rule(key=KEY, below=st.sampled_from([0, 30_000, 10**9]), vivify=st.booleans(), ttl=TTLS,
          want=st.booleans(), touch=st.booleans(), token=st.sampled_from([0, 5]))  # fmt: skip
    def meta_get(self, key: str, below: int, vivify: bool, ttl: int, want: bool, touch: bool,
                 token: int) -> None:  # fmt: skip
        options = (O.WIN if below else 0) | (O.WANT_VALUE if want else 0)
        options |= (O.VIVIFY if vivify else 0) | (O.TOUCH_TTL if touch else 0)
        options |= O.CAS_NEW if token else 0
        until = self.absolute(ttl)
        status, reply = self.run(
            O.META_GET, key, options=options, win_below_ms=below, vivify_expire_ms=until,
            expire_ms=until, cas_new=token,
        )  # fmt: skip
        item = self.known(key)
        if status in REFUSED:
            return
        if item is None:
            assert status == (O.OK if vivify else O.MISS)
            if vivify:
                assert (reply["created"], reply["won"]) == (True, True)
                self.put(key, reply, b"", 0, until)
                if until >= 0:
                    self.items[key].won = True
            return
        assert status == O.OK
        if want:
            assert reply["value"] == item.value
        near = below and item.expire_ms and item.expire_ms - self.now < below
        win = not item.won and (item.stale or bool(near))
        assert (reply["won"], reply["stale"], reply["lost"]) == (win, item.stale, item.won)
        item.won, item.fetched = item.won or win, True
        item.cas = token or item.cas
        if touch:
            item.expire_ms = until
            if until < 0:
                del self.items[key]

    @rule(ms=st.sampled_from([1, 500, 1000, 30_000, 3_700_000]))
    def time_passes(self, ms: int) -> None:
        self.now += ms
        self.engine.set_clock(self.now)

    @rule(delay=st.sampled_from([0, 0, 1]))
    @precondition(lambda self: self.steps % 16 == 0)
    def flush(self, delay: int) -> None:
        self.engine.flush_at(self.now + delay * self.delay_ms)
        self.now += delay * self.delay_ms
        self.engine.set_clock(self.now)
        self.items.clear()
        self.others.clear()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for key in KEYS:
                self.look(key, no_bump=True)
            check_invariants(self.engine)
            type(self).evictions += self.engine.counters()[EVICTIONS]

    def check_invariants(self, settings: Any, *args: Any, **names: Any) -> None:
        """Hypothesis calls this after every step."""
        super().check_invariants(settings, *args, **names)
        self.steps += 1
        if hasattr(self, "engine"):
            check_invariants(self.engine)
            if self.exact:
                totals = self.engine.totals()
                assert totals["items_ram"] + totals["items_flash"] >= sum(
                    self.known(key) is not None for key in list(self.items)
                )


class Crowded(Model):
    """An arena for a few hundred KiB of items: eviction in nearly every step."""

    exact = False
    limit = 1 << 20
    shards = 2
    frame_bytes = 4096

    @rule(first=st.integers(0, 400), count=st.integers(1, 60), size=st.integers(0, 12_000))
    def crowd(self, first: int, count: int, size: int) -> None:
        """Others come, and what of them is there is right."""
        for number in range(first, first + count):
            key = b"other %d" % number
            found = find(self.engine, key)
            assert found is not None or not self.exact or number not in self.others
            assert found is None or found[0] == value_of(number % 251, len(found[0]))
            self.others.add(number)
            status, _ = execute(self.engine, O.SET, key, value_of(number % 251, size))
            assert status == O.OK


class Flash(Crowded):
    """Far too little RAM, and flash with room for everything: nothing may be missing."""

    exact = True
    evictions = 0
    delay_ms = 60_000
    drained = 0

    @initialize()
    def start(self) -> None:
        self.engine = flash_engine_of(
            1 << 20, segments=40, segment_bytes=1 << 20, buffer_bytes=1 << 17, shards=2,
            frame_bytes=4096,
        )  # fmt: skip
        self.engine.configure(recache_rate=3)
        for number in range(90):
            execute(self.engine, O.SET, b"other %d" % number, value_of(number, 10_000))

    def absolute(self, ttl: int) -> int:
        # On flash time is whole seconds, and what lives for less than two never goes there.
        return self.now + (ttl + 59_999) // 60_000 * 60_000 if ttl > 0 else ttl

    @rule(minutes=st.sampled_from([1, 2, 70]))
    def time_passes(self, minutes: int) -> None:  # type: ignore[override]
        self.now += minutes * 60_000
        self.engine.set_clock(self.now)

    @rule()
    def all_to_flash(self) -> None:
        drain(self.engine)
        totals = self.engine.totals()
        assert totals["items_ram"] == 0
        type(self).drained += totals["items_flash"]

    @rule(key=KEY)
    def get_often(self, key: str) -> None:
        """Hot on flash: taken up again."""
        for _ in range(8):
            self.look(key)


def value_of(byte: int, size: int) -> bytes:
    """No two of them alike, also not shifted against each other."""
    step = (byte * 7919 + 1) % 65521 or 1
    block = (step * 0x9E3779B97F4A7C15).to_bytes(16, "little") + bytes(range(byte, 256))
    return (block * (size // len(block) + 1))[:size]


@pytest.mark.slow
@pytest.mark.parametrize("machine", [Model, Crowded, Flash], ids=lambda machine: machine.__name__)
def test_the_engine_agrees_with_a_dict(machine: type[Model]) -> None:
    run_state_machine_as_test(machine, settings=settings(stateful_step_count=60, deadline=None))
    assert (machine.evictions > 0) != machine.exact
    assert machine is not Flash or Flash.drained > 1000
