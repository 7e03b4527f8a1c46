"""What `stats` and its subcommands print: memcached's names and order, then our own.

Owns the mapping of names and nothing else: counters of the cache come from `Cache.stats()`, those
of connections from `ServerCounters`. Called by Control, in the server's thread.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from siltstone import __version__
from siltstone.clock import Clock
from siltstone.serve.settings import Settings

PROTOCOL_VERSION: Final = "1.6.18"

Rows = list[tuple[str, Any]]

# In memcached's order. A name that neither the server nor the cache knows is printed as 0: tools
# look for it, and there is nothing of the kind here (slab pages, crawler threads ...).
GENERAL: Final = """
pid uptime time version siltstone_version libevent pointer_size rusage_user rusage_system
max_connections curr_connections total_connections rejected_connections connection_structures
response_obj_oom response_obj_count response_obj_bytes read_buf_count read_buf_bytes
read_buf_bytes_free read_buf_oom reserved_fds cmd_get cmd_set cmd_flush cmd_touch cmd_meta
get_hits get_misses get_expired get_flushed FLASH delete_misses delete_hits incr_misses incr_hits
decr_misses decr_hits cas_misses cas_hits cas_badval touch_hits touch_misses store_too_large
store_no_memory auth_cmds auth_errors idle_kicks bytes_read bytes_written limit_maxbytes
accepting_conns listen_disabled_num time_in_listen_disabled_us threads conn_yields
hash_power_level hash_bytes hash_is_expanding slab_reassign_rescues slab_reassign_chunk_rescues
slab_reassign_evictions_nomem slab_reassign_inline_reclaim slab_reassign_busy_items
slab_reassign_busy_deletes slab_reassign_running slabs_moved lru_crawler_running
lru_crawler_starts lru_maintainer_juggles malloc_fails log_worker_dropped log_worker_written
log_watcher_skipped log_watcher_sent log_watchers EXTSTORE unexpected_napi_ids
round_robin_fallback bytes curr_items total_items slab_global_page_pool expired_unfetched
evicted_unfetched evicted_active evictions reclaimed crawler_reclaimed crawler_items_checked
lrutail_reflocked moves_to_cold moves_to_warm moves_within_lru direct_reclaims lru_bumps_dropped
""".split()

GENERAL_FLASH: Final = """
get_extstore get_aborted_extstore get_oom_extstore recache_from_extstore miss_from_extstore
badcrc_from_extstore
""".split()

GENERAL_EXTSTORE: Final = """
extstore_compact_lost extstore_compact_rescues extstore_compact_skipped extstore_page_allocs
extstore_page_evictions extstore_page_reclaims extstore_pages_free extstore_pages_used
extstore_objects_evicted extstore_objects_read extstore_objects_written extstore_objects_used
extstore_bytes_evicted extstore_bytes_written extstore_bytes_read extstore_bytes_used
extstore_bytes_fragmented extstore_limit_maxbytes extstore_io_queue
""".split()

ITEM_CLASS: Final = """
number number_hot number_warm number_cold age_hot age_warm age mem_requested evicted
evicted_nonzero evicted_time outofmemory tailrepairs reclaimed expired_unfetched evicted_unfetched
evicted_active crawler_reclaimed crawler_items_checked lrutail_reflocked moves_to_cold
moves_to_warm moves_within_lru direct_reclaims hits_to_hot hits_to_warm hits_to_cold hits_to_temp
""".split()

SLAB_CLASS: Final = """
chunk_size chunks_per_page total_pages total_chunks used_chunks free_chunks free_chunks_end
get_hits cmd_set delete_hits incr_hits decr_hits cas_hits cas_badval touch_hits
""".split()

# Names of `stats settings` in memcached's order; "-" is filled in, the rest has no meaning here.
SETTINGS: Final = tuple(
    (name, value)
    for name, _, value in (
        row.partition("=")
        for row in """
        maxbytes=- maxconns=- tcpport=- udpport=0 inter=- verbosity=- oldest=0 evictions=on
        domain_socket=- umask=- shutdown_command=- growth_factor=1.25 chunk_size=48 num_threads=-
        num_threads_per_udp=1 stat_key_prefix=: detail_enabled=- reqs_per_event=20 cas_enabled=yes
        tcp_backlog=- binding_protocol=- auth_enabled_sasl=no auth_enabled_ascii=no
        item_size_max=- maxconns_fast=yes hashpower_init=0 slab_reassign=no slab_automove=0
        slab_automove_ratio=0.80 slab_automove_window=30 slab_chunk_max=524288 lru_crawler=yes
        lru_crawler_sleep=100 lru_crawler_tocrawl=0 tail_repair_time=0 flush_enabled=-
        dump_enabled=- hash_algorithm=siphash lru_maintainer_thread=no lru_segmented=no
        hot_lru_pct=20 warm_lru_pct=40 hot_max_factor=0.20 warm_max_factor=2.00 temp_lru=no
        temporary_ttl=61 idle_timeout=- watcher_logbuf_size=262144 worker_logbuf_size=65536
        read_buf_mem_limit=- track_sizes=no inline_ascii_response=no ssl_enabled=-
        num_napi_ids=(null) memory_file=(null)
        """.split()
    )
)

# `stats reset` starts these at zero again; the rest are states, not counts.
STATES: Final = frozenset(
    """
    bytes curr_items limit_maxbytes extstore_pages_free extstore_pages_used extstore_objects_used
    extstore_bytes_used extstore_bytes_fragmented extstore_limit_maxbytes extstore_io_queue
    hash_bytes hash_power_level threads
    """.split()
)

# memcached shows flash items as small headers and tells items in memory by their class. Tools sum
# `number` over classes from 3 up to see what is not on flash yet.
CLASS_FLASH: Final = 1
CLASS_MEMORY: Final = 5


@dataclass(slots=True)
class ServerCounters:
    """What the server counts itself."""

    started_ms: int = 0
    connections: int = 0
    connections_total: int = 0
    rejected: int = 0
    idle_kicks: int = 0
    yields: int = 0
    crawls: int = 0
    flushes: int = 0


def general(
    stats: Mapping[str, Any],
    counters: ServerCounters,
    settings: Settings,
    clock: Clock,
    bytes_read: int,
    bytes_written: int,
) -> Rows:
    """The rows of plain `stats`."""
    now_ms = clock.now_ms()
    used = resource.getrusage(resource.RUSAGE_SELF)
    own = {
        "pid": os.getpid(),
        "uptime": max(0, now_ms - counters.started_ms) // 1000,
        "time": now_ms // 1000,
        "version": PROTOCOL_VERSION,
        "siltstone_version": __version__,
        "libevent": "none",
        "pointer_size": 64,
        "rusage_user": f"{used.ru_utime:.6f}",
        "rusage_system": f"{used.ru_stime:.6f}",
        "max_connections": settings.connections_max,
        "curr_connections": counters.connections,
        "total_connections": counters.connections_total,
        "rejected_connections": counters.rejected,
        "connection_structures": counters.connections,
        "idle_kicks": counters.idle_kicks,
        "bytes_read": bytes_read,
        "bytes_written": bytes_written,
        "accepting_conns": 1,
        "threads": settings.threads,
        "conn_yields": counters.yields,
        "lru_crawler_starts": counters.crawls,
        "cmd_flush": counters.flushes,
    }
    with_flash = bool(stats.get("extstore_limit_maxbytes"))
    names: list[str] = []
    for name in GENERAL:
        if name == "FLASH":
            names += GENERAL_FLASH if with_flash else []
        elif name == "EXTSTORE":
            names += GENERAL_EXTSTORE if with_flash else []
        elif name != "idle_kicks" or settings.idle_timeout:
            names.append(name)
    rows: Rows = [(name, own[name] if name in own else stats.get(name, 0)) for name in names]
    known = {*names, *GENERAL_FLASH, *GENERAL_EXTSTORE}
    rows += [
        (name, value)
        for name, value in stats.items()
        if name not in known and isinstance(value, (int, float, str))
    ]
    return rows


def items(stats: Mapping[str, Any]) -> Rows:
    """`stats items`: two classes, items on flash and items in memory."""
    rows: Rows = []
    shared = {
        "evicted": stats.get("evictions", 0),
        "mem_requested": stats.get("bytes", 0),
        **{name: stats.get(name, 0) for name in ITEM_CLASS if name in stats},
    }
    for number, count, values in (
        (CLASS_FLASH, stats.get("items_flash", 0), {}),
        (CLASS_MEMORY, stats.get("items_ram", 0), shared),
    ):
        if count:
            values = {**values, "number": count, "number_cold": count}
            rows += [(f"items:{number}:{name}", values.get(name, 0)) for name in ITEM_CLASS]
    return rows


def slabs(stats: Mapping[str, Any]) -> Rows:
    """`stats slabs`: the arena's frames as one class; there are no slabs."""
    used = stats.get("bytes", 0)
    limit = stats.get("limit_maxbytes", 0)
    count = stats.get("curr_items", 0)
    values = {
        "chunk_size": used // count if count else 0,
        "chunks_per_page": 1,
        "total_pages": count,
        "total_chunks": count,
        "used_chunks": count,
        **{name: stats.get(name, 0) for name in SLAB_CLASS[7:]},
    }
    rows: Rows = [(f"{CLASS_MEMORY}:{name}", values.get(name, 0)) for name in SLAB_CLASS]
    rows.append(("active_slabs", 1))
    rows.append(("total_malloced", limit))
    return rows


def _yes(value: Any) -> str:
    return "yes" if value else "no"


def settings_rows(stats: Mapping[str, Any], settings: Settings, detail: bool) -> Rows:
    """`stats settings`. What has no meaning here is shown as memcached's default."""
    own = {
        "maxbytes": stats.get("limit_maxbytes", 0),
        "maxconns": settings.connections_max,
        "tcpport": settings.port,
        "inter": ",".join(settings.listen) or "NULL",
        "verbosity": settings.verbosity,
        "domain_socket": settings.unix_socket or "NULL",
        "umask": f"{settings.unix_mode:o}",
        "shutdown_command": _yes(settings.allow_shutdown),
        "num_threads": settings.threads,
        "detail_enabled": _yes(detail),
        "tcp_backlog": settings.backlog,
        "binding_protocol": {"auto": "auto-negotiate"}.get(settings.protocol, settings.protocol),
        "item_size_max": settings.item_size_max,
        "flush_enabled": _yes(settings.allow_flush),
        "dump_enabled": _yes(settings.allow_dump),
        "idle_timeout": int(settings.idle_timeout),
        "ssl_enabled": _yes(settings.tls_certificate is not None),
        "read_buf_mem_limit": settings.buffered_max,
    }
    shown = {name: own.get(name, usual) for name, usual in SETTINGS}
    shown.update(settings.shown)
    return list(shown.items())


def since(stats: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Counts since the last `stats reset`; states are left alone."""
    return {
        name: value - baseline[name]
        if isinstance(value, (int, float)) and name in baseline and name not in STATES
        else value
        for name, value in stats.items()
    }


def lines(rows: Iterable[tuple[str, Any]]) -> bytes:
    """The wire form, END included."""
    text = "".join(f"STAT {name} {value}\r\n" for name, value in rows)
    return (text + "END\r\n").encode()
