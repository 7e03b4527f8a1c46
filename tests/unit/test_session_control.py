"""The rare commands: statistics, dumps, limits, settings while running."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backend import MemoryBackend
from fakes import ManualClock

import siltstone
from siltstone.errors import Busy, ConfigError
from siltstone.serve.backend import CacheBackend
from siltstone.serve.control import Control, ItemInfo, SegmentInfo
from siltstone.serve.memcache import Session, item_class, item_size
from siltstone.serve.settings import Settings
from siltstone.serve.statistics import GENERAL, GENERAL_EXTSTORE, GENERAL_FLASH, ITEM_CLASS


def made(**settings: Any) -> tuple[MemoryBackend, Control, Session]:
    backend, checked = MemoryBackend(), Settings(**settings)
    control = Control(backend, checked, clock=ManualClock())
    return backend, control, Session(backend.engine, control, checked)


def rows(reply: bytes) -> dict[str, str]:
    lines = reply.decode().split("\r\n")
    assert lines[-2:] == ["END", ""]
    assert all(line.startswith("STAT ") for line in lines[:-2])
    return dict(line.split(" ", 2)[1:] for line in lines[:-2])  # type: ignore[misc]


# Statistics ---------------------------------------------------------------------------------


def test_stats_have_memcached_names_in_its_order_and_count() -> None:
    _, _, session = made()
    session.feed(b"set a 0 0 1\r\n1\r\nget a b c\r\nincr a 1\r\ndelete a\r\ntouch b 1\r\nmg z\r\n")
    session.feed(b"flush_all\r\nflush_all 100\r\nflush_all x\r\n")
    found = rows(session.feed(b"stats\r\n"))
    names = [name for name in GENERAL if name not in ("FLASH", "EXTSTORE", "idle_kicks")]
    assert list(found)[: len(names)] == names
    assert found["version"] == "1.6.18"
    assert found["siltstone_version"] == siltstone.__version__
    expected = {"cmd_get": 4, "cmd_set": 1, "cmd_touch": 1, "cmd_meta": 1, "get_hits": 1,
                "get_misses": 3, "incr_hits": 1, "delete_hits": 1, "touch_misses": 1,
                "cmd_flush": 2, "curr_items": 0, "max_connections": 1024}  # fmt: skip
    assert {name: int(found[name]) for name in expected} == expected


def test_stats_reset_starts_counts_again_and_leaves_states() -> None:
    _, control, session = made()
    session.feed(b"set a 0 0 1\r\nx\r\nget a a\r\n")
    control.counters.connections = 3
    assert session.feed(b"stats reset\r\n") == b"RESET\r\n"
    session.feed(b"get a\r\n")
    found = rows(session.feed(b"stats\r\n"))
    assert (found["cmd_get"], found["get_hits"], found["cmd_set"]) == ("1", "1", "0")
    assert (found["curr_items"], found["curr_connections"]) == ("1", "3")


def test_stats_settings() -> None:
    _, _, session = made(item_size_max="2MiB", allow_flush=False, shown={"num_threads": "4"})
    found = rows(session.feed(b"stats settings\r\n"))
    assert found["item_size_max"] == str(2 << 20)
    assert found["flush_enabled"] == "no"
    assert found["num_threads"] == "4"
    assert list(found)[:3] == ["maxbytes", "maxconns", "tcpport"]


def test_a_prefix_delimiter_switches_detail_on() -> None:
    _, _, session = made(prefix_delimiter="/")
    session.feed(b"set a/b 0 0 1\r\nx\r\nget a/b c:d\r\n")
    assert session.feed(b"stats detail dump\r\n") == b"PREFIX a get 1 hit 1 set 1 del 0\r\nEND\r\n"
    found = rows(session.feed(b"stats settings\r\n"))
    assert found["detail_enabled"] == "yes"


def test_stats_items_and_slabs() -> None:
    _, _, session = made()
    assert session.feed(b"stats items\r\n") == b"END\r\n"
    session.feed(b"set a 0 0 1\r\nx\r\nset b 0 0 1\r\nx\r\n")
    found = rows(session.feed(b"stats items\r\n"))
    assert found["items:5:number"] == "2"
    assert [name.rpartition(":")[2] for name in found] == ITEM_CLASS
    assert rows(session.feed(b"stats slabs\r\n"))["5:used_chunks"] == "2"


def test_stats_extstore_lists_pages() -> None:
    backend, _, session = made()
    backend.pages = [SegmentInfo(7, 1000, 2), SegmentInfo(0, 0, 0)]
    found = rows(session.feed(b"stats extstore\r\n"))
    assert found == {"0:version": "7", "0:bytes": "1000", "0:bucket": "2", "0:free_bucket": "0",
                     "1:version": "0", "1:bytes": "0", "1:bucket": "0",
                     "1:free_bucket": "0"}  # fmt: skip


def test_stats_conns() -> None:
    _, control, session = made()
    control.connections = lambda: [{"number": 9, "addr": "tcp:1", "state": "conn_read"}]
    found = rows(session.feed(b"stats conns\r\n"))
    assert found == {"9:addr": "tcp:1", "9:state": "conn_read"}


def test_prefixes_are_bounded() -> None:
    _, control, session = made()
    session.feed(b"stats detail on\r\n")
    for number in range(200):
        session.feed(b"".join(b"get p%d:x\r\n" % (number * 100 + k) for k in range(100)))
    assert len(control.prefixes) == 10_000


# Dumps --------------------------------------------------------------------------------------

ITEMS = [
    ItemInfo(b"a", 1, 0, 5, 0, 1_700_000_000_000, False, False),
    ItemInfo(b"b c%", 100, 7, 6, 1_700_000_060_000, 1_700_000_001_500, True, True),
    ItemInfo(b"\x00\x01", 600_000, 0, 7, 0, 1_700_000_000_000, False, False),
]


def test_metadump() -> None:
    backend, _, session = made()
    backend.items = ITEMS
    assert session.feed(b"lru_crawler metadump all\r\n") == (
        b"key=a exp=-1 la=1700000000 cas=5 fetch=no cls=1 size=61\n"
        b"key=b%20c%25 exp=1700000060 la=1700000001 cas=6 fetch=yes cls=4 size=167\n"
        b"key=%00%01 exp=-1 la=1700000000 cas=7 fetch=no cls=39 size=600061\nEND\r\n"
    )
    assert session.feed(b"lru_crawler metadump 4\r\n").count(b"\n") == 2
    assert session.feed(b"lru_crawler mgdump hash\r\n") == (
        b"OK\r\nmg a\r\nmg YiBjJQ== b\r\nmg AAE= b\r\nEN\r\n"
    )


def test_a_large_dump_is_sent_in_pieces() -> None:
    backend, _, session = made(output_size_max="64KiB")
    backend.items = [ITEMS[0]._replace(key=b"k%06d" % number) for number in range(20_000)]
    reply = session.feed(b"lru_crawler metadump all\r\nversion\r\n")
    assert session.paused
    assert len(reply) < 200_000
    while session.paused:
        piece = session.resume()
        assert len(piece) < 200_000
        reply += piece
    assert reply.count(b"key=k") == 20_000
    assert reply.endswith(b"END\r\nVERSION 1.6.18\r\n")


def test_a_dump_that_fails_in_the_middle_closes() -> None:
    backend, _, session = made()

    def broken() -> Iterator[ItemInfo]:
        yield ITEMS[0]
        raise Busy("a shard is held")

    backend.scan = broken  # type: ignore[method-assign]
    session.feed(b"lru_crawler metadump all\r\nversion\r\n")
    assert session.closing


def test_cachedump() -> None:
    backend, _, session = made()
    backend.items = ITEMS
    assert session.feed(b"stats cachedump 1 0\r\n") == b"ITEM a [1 b; 0 s]\r\nEND\r\n"
    assert session.feed(b"stats cachedump 4 5\r\n") == (
        b"ITEM b c% [100 b; 1700000060 s]\r\nEND\r\n"
    )


def test_dumps_may_be_forbidden() -> None:
    _, _, session = made(allow_dump=False)
    assert session.feed(b"lru_crawler metadump all\r\n") == b"ERROR metadump not allowed\r\n"
    assert session.feed(b"stats cachedump 1 1\r\n") == (
        b"CLIENT_ERROR stats cachedump not allowed\r\n"
    )


@pytest.mark.parametrize(
    ("size", "number"), [(48, 1), (96, 1), (97, 2), (192, 4), (82792, 31), (600_062, 39)]
)
def test_classes_are_memcached_s(size: int, number: int) -> None:
    assert item_class(size) == number


def test_sizes_are_memcached_s() -> None:
    assert item_size(1, 0, 1) == 61
    assert item_size(2, 5, 100) == 165


# Changing things ----------------------------------------------------------------------------


def test_flush_all_with_a_delay_comes_when_it_is_due() -> None:
    backend, control, session = made()
    flushed: list[int] = []
    backend.flush_at = flushed.append  # type: ignore[method-assign]
    now = control.clock.now_ms()
    assert session.feed(b"flush_all 100\r\nflush_all 1800000000\r\nflush_all -1\r\n") == (
        b"OK\r\n" * 3
    )
    assert flushed == [now + 100_000, 1_800_000_000_000, 1]


def test_flush_all_may_be_forbidden() -> None:
    _, _, session = made(allow_flush=False)
    assert session.feed(b"flush_all\r\n") == b"CLIENT_ERROR flush_all not allowed\r\n"


def test_the_memory_limit() -> None:
    backend, _, session = made()
    assert session.feed(b"cache_memlimit 64\r\n") == b"OK\r\n"
    assert backend.ram == 64 << 20

    def refuse(ram: int) -> None:
        raise ConfigError("too much")

    backend.resize = refuse  # type: ignore[method-assign]
    assert session.feed(b"cache_memlimit 64\r\n").startswith(b"MEMLIMIT_ADJUST_FAILED ")


def test_flash_settings() -> None:
    backend, _, session = made()
    lines = (b"item_size 100", b"item_age 5", b"low_ttl 9", b"recache_rate 3", b"max_sleep 1",
             b"compact_under 2", b"drop_under 4", b"max_frag 0.5", b"drop_unread 1")  # fmt: skip
    for line in lines:
        assert session.feed(b"extstore " + line + b"\r\n") == b"OK\r\n"
    assert dict(backend.tuned) == {
        "item_size_min": 100, "item_age": 5, "low_ttl": 9, "recache_rate": 3, "compact_under": 2,
        "drop_under": 4, "max_fragmentation": 0.5, "drop_unread": 1,
    }  # fmt: skip


def test_verbosity_sets_what_is_logged() -> None:
    logger = logging.getLogger("siltstone")
    before = logger.level
    _, _, session = made()
    try:
        for level, expected in ((b"0", logging.WARNING), (b"1", logging.INFO), (b"9", 10)):
            assert session.feed(b"verbosity " + level + b"\r\n") == b"OK\r\n"
            assert logger.level == expected
    finally:
        logger.setLevel(before)


def test_shutdown_when_it_is_allowed() -> None:
    for line, graceful in ((b"shutdown\r\n", False), (b"shutdown graceful\r\n", True)):
        _, control, session = made(allow_shutdown=True)
        asked: list[bool] = []
        control.shutdown = asked.append
        assert session.feed(b"shutdown now\r\n") == b"CLIENT_ERROR invalid shutdown mode\r\n"
        assert session.feed(b"version\r\n" + line + b"version\r\n") == b"VERSION 1.6.18\r\n"
        assert session.closing
        assert asked == [graceful]


def test_a_command_that_breaks_answers_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    backend, _, session = made()

    def broken() -> dict[str, Any]:
        raise RuntimeError("a bug")

    backend.stats = broken  # type: ignore[method-assign]
    assert session.feed(b"stats\r\nversion\r\n") == (
        b"SERVER_ERROR internal error\r\nVERSION 1.6.18\r\n"
    )
    assert "a bug" in caplog.text


# A real cache behind it ---------------------------------------------------------------------


def test_over_a_cache_with_flash(tmp_path: Path) -> None:
    settings = Settings()
    with siltstone.Cache(tmp_path / "c", ram="8MiB", flash="16MiB", codec="raw") as cache:
        control = Control(CacheBackend(cache), settings)
        session = Session(cache.engine, control, settings)
        for number in range(12_000):
            data = b"%06d" % number + b"v" * 1000
            assert session.feed(b"set k%d 3 0 1006\r\n%b\r\n" % (number, data)) == b"STORED\r\n"
        found = rows(session.feed(b"stats\r\n"))
        assert set(GENERAL_FLASH) | set(GENERAL_EXTSTORE) <= set(found)
        assert int(found["extstore_objects_written"]) > 1000
        assert int(found["extstore_pages_used"]) > 0
        assert int(found["curr_items"]) == len(cache)
        assert int(rows(session.feed(b"stats items\r\n"))["items:1:number"]) > 1000
        assert "0:version" in rows(session.feed(b"stats extstore\r\n"))
        dump = session.feed(b"lru_crawler metadump all\r\n")
        while session.paused:
            dump += session.resume()
        assert dump.count(b"key=k") > 11_000
        assert session.feed(b"extstore item_age 60\r\nextstore max_frag 0.5\r\n") == b"OK\r\nOK\r\n"
        assert session.feed(b"flush_all\r\nget k1\r\n") == b"OK\r\nEND\r\n"
        assert session.feed(b"cache_memlimit 8\r\n") == b"OK\r\n"
        assert rows(session.feed(b"stats\r\n"))["limit_maxbytes"] == str(8 << 20)
