"""memcached's command line: the same flags, messages and exit codes as memcached itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from siltstone.config import GIB, KIB, MIB
from siltstone.memcached_flags import Refused, cache_settings, parse, server_settings
from siltstone.memcached_help import HELP

FLASH = "ext_path=/tmp/siltstone-no-such-folder/f:64m"
USAGE_PATH = (
    "must supply size to ext_path, ie: ext_path=/f/e:64m (M|G|T|P supported)\n"
    "failed to parse ext_path argument"
)
INIT = "Failed to initialize external storage: "
ILLEGAL = '\nIllegal argument "?"'

# arguments, what is printed, exit code: as memcached 1.6.18 has it
SAME = [
    ("-o bogus", 'Illegal suboption "bogus"', 1),
    ("-o bogus=3,ext_path", 'Illegal suboption "bogus=3"', 1),
    ("-o ,,", 'Illegal suboption ""', 1),
    ("-o no_ext_path", 'Illegal suboption "no_ext_path"', 1),
    ("-o proxy_config=x", 'Illegal suboption "proxy_config=x"', 1),
    ("-o ext_path", "missing argument to ext_path, ie: ext_path=/d/file:5G", 1),
    ("-o ext_path=/tmp/f", USAGE_PATH, 1),
    ("-o ext_path=:64m", USAGE_PATH, 1),
    ("-o ext_path=/tmp/f:", USAGE_PATH, 1),
    (
        "-o ext_path=/tmp/f:64m:foo",
        "Unknown extstore bucket: foo\nfailed to parse ext_path argument",
        1,
    ),
    (
        "-o ext_path=/tmp/f:64m:compact",
        "ext_path only presently supports the default bucket\nfailed to parse ext_path argument",
        1,
    ),
    (f"-o ext_page_size=3,{FLASH}", INIT + "page_size must be divisible by wbuf_size", 1),
    (f"-o ext_wbuf_size=3,{FLASH}", INIT + "page_size must be divisible by wbuf_size", 1),
    (
        f"-o ext_page_size=1,ext_wbuf_size=1,{FLASH}",
        INIT + "page_size and wbuf_size must be divisible by 1024*1024*2",
        1,
    ),
    (f"-I 5m -o {FLASH}", "-I (item_size_max: 5242880) cannot be larger than "
     "ext_wbuf_size: 4194304", 64),
    (f"-U 11311 -o {FLASH}", "Cannot use UDP with extstore enabled (-U 0 to disable)", 64),
    *[
        (f"-o {name}", f"Missing {name} argument", 1)
        for name in ("ext_page_size", "ext_threads", "slab_automove_freeratio", "hash_algorithm",
                     "temporary_ttl", "worker_logbuf_size", "read_buf_mem_limit",
                     "slab_automove_window", "slab_automove_ratio")
    ],
    *[
        (f"-o {name}", f"Missing numeric argument for {name}", 1)
        for name in ("hashpower", "tail_repair_time", "idle_timeout")
    ],
    *[
        (f"-o {name}={value}", f"could not parse argument to {name}", 1)
        for name, value in (
            ("ext_page_size", "x"), ("ext_page_size", "-1"), ("ext_page_size", "64m"),
            ("ext_page_size", ""), ("ext_item_size", "1k"), ("ext_wbuf_size", "x"),
            ("ext_threads", "x"), ("ext_io_depth", "x"), ("ext_item_age", ""),
            ("ext_low_ttl", "x"), ("ext_recache_rate", "x"), ("ext_compact_under", "x"),
            ("ext_drop_under", "x"), ("ext_max_frag", "x"), ("ext_max_sleep", "x"),
            ("slab_automove_freeratio", "x"), ("watcher_logbuf_size", "x"),
            ("read_buf_mem_limit", "x"),
        )
    ],
    ("-o hashpower=5", "Initial hashtable multiplier of 5 is too low", 1),
    ("-o hash_algorithm=md5", "Unknown hash_algorithm option (jenkins, murmur3, xxh3)", 1),
    ("-o tail_repair_time=5", "Cannot set tail_repair_time to less than 10 seconds", 1),
    ("-o lru_crawler_sleep=2000000", "LRU crawler sleep must be between 0 and 1 second", 1),
    ("-o lru_crawler_tocrawl=x", "lru_crawler_tocrawl takes a numeric 32bit value", 1),
    ("-o hot_lru_pct=0", "hot_lru_pct must be > 1 and < 80", 1),
    ("-o hot_lru_pct=90", "hot_lru_pct must be > 1 and < 80", 1),
    ("-o hot_lru_pct=50,warm_lru_pct=50",
     "hot_lru_pct + warm_lru_pct cannot be more than 80% combined", 64),
    ("-o hot_max_factor=0", "hot_max_factor must be > 0", 1),
    ("-o slab_automove=9", "slab_automove must be between 0 and 2", 1),
    ("-o slab_sizes=x", "slab size 0 is out of valid range", 64),
    ("-p 70000", "ERROR: Invalid port number 70000.", 64),
    ("-p", "memcached: option requires an argument -- 'p'" + ILLEGAL, 1),
    ("-z", "memcached: invalid option -- 'z'" + ILLEGAL, 1),
    ("--bogus", "memcached: unrecognized option '--bogus'" + ILLEGAL, 1),
    ("-c 0", "Maximum connections must be greater than 0", 1),
    ("-c x", "Maximum connections must be greater than 0", 1),
    ("-t 0", "Number of threads must be greater than 0", 1),
    ("-R 0", "Number of requests per event must be greater than 0", 1),
    ("-f 1", "Factor must be greater than 1", 1),
    ("-n 0", "Chunk size must be greater than 0", 1),
    ("-B foo", "Invalid value for binding protocol: foo\n"
     " -- should be one of auto, binary, or ascii", 64),
    ("-I 100", "Item max size cannot be less than 1024 bytes.", 64),
    ("-I 33m", "Cannot set item size limit higher than 1/2 of memory max.", 64),
    ("-m 1", "Cannot set item size limit higher than 1/2 of memory max.", 64),
    ("-I 1025m -m 4096", "Cannot set item size limit higher than a gigabyte.", 64),
    ("-N 0", "Maximum number of NAPI IDs must be greater than 0", 1),
]  # fmt: skip

# Where memcached 1.6.18 crashes, or starts without flash and says nothing, or can do more.
OURS = [
    (
        "-o ext_page_size=2,ext_wbuf_size=2,ext_path=/tmp/siltstone-no-such-folder/f:200g",
        INIT + "page_count must total to < 65536. Increase page_size or lower path sizes",
        1,
    ),
    ("-o ext_path=/tmp/f:0m", "supplied ext_path has zero size, cannot use", 64),
    ("-o ext_path=/tmp/f:64x", USAGE_PATH, 1),
    ("-o ext_path=/tmp/f:1GB", USAGE_PATH, 1),
    (f"-o ext_page_size=0,{FLASH}", "ext_page_size must be greater than 0", 1),
    (f"-o ext_wbuf_size=0,{FLASH}", "ext_wbuf_size must be greater than 0", 1),
    ("-o ext_path=/tmp/f:10m", "holds no page of 64m", 64),
    ("-o slab_chunk_max=x", "could not parse argument to slab_chunk_max", 1),
    ("-o slab_sizes", "Missing slab_sizes argument", 1),
    ("-U 11311", "does not support UDP", 64),
    ("-U 99999", "ERROR: Invalid port number 99999.", 64),
    ("-S", "does not support SASL", 1),
    ("-o ssl_chain_cert", "Missing ssl_chain_cert argument", 1),
    ("-o ssl_verify_mode=9", "Invalid ssl_verify_mode. Use help to see valid options.", 1),
    ("-o ssl_min_version=9", "Invalid ssl_min_version. Use help to see valid options.", 1),
    ("-Z -o ssl_keyformat=2,ssl_chain_cert=c", "PEM only", 1),
    ("-Y /f", "does not support authentication", 1),
    ("-e /f", "does not support a memory file", 1),
]


@pytest.mark.parametrize(("line", "message", "code"), SAME)
def test_refused_as_memcached_does(line: str, message: str, code: int) -> None:
    with pytest.raises(Refused) as caught:
        parse(line.split())
    assert (str(caught.value), caught.value.code) == (message, code)


def memcached_version() -> str:
    program = shutil.which("memcached")
    if not program:
        return ""
    return subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif("1.6.18" not in memcached_version(), reason="memcached 1.6.18 is not here")
def test_the_table_above_is_what_memcached_does() -> None:
    for line, message, code in SAME:
        ran = subprocess.run(
            ["memcached", "-u", "root", "-l", "127.0.0.1", *line.split()],
            capture_output=True, text=True, timeout=5,
        )  # fmt: skip
        assert (ran.returncode, (ran.stdout + ran.stderr).strip("\n")) == (code, message), line


@pytest.mark.parametrize(("line", "message", "code"), OURS)
def test_refused_with_a_clear_line(line: str, message: str, code: int) -> None:
    with pytest.raises(Refused) as caught:
        parse(line.split())
    assert caught.value.code == code
    assert message in str(caught.value)


def test_flags_are_read() -> None:
    options = parse(
        "-p 0 -s /tmp/s -a 0770 -m 100 -M -c 10 -t 2 -I 2m -vv -d -P /p -u nobody -C -b 5 -F -X "
        "-A -R 7 -l 127.0.0.1,::1 -l localhost:99 -U 0 -B ascii -f 1.5 -n 64 -k -r -L -W".split()
    )
    assert (options.port, options.unix_socket, options.unix_mask) == (0, "/tmp/s", 0o770)
    assert (options.memory_mb, options.evictions, options.connections) == (100, False, 10)
    assert (options.item_size_max, options.verbosity, options.daemon) == (2 * MIB, 2, True)
    assert (options.pidfile, options.user, options.cas, options.backlog) == (
        "/p", "nobody", False, 5,
    )  # fmt: skip
    assert not options.flush
    assert not options.dump
    assert not options.watch
    assert options.shutdown
    assert options.listen == ["127.0.0.1", "::1", "localhost:99"]


def test_long_names_and_their_abbreviations() -> None:
    options = parse(["--port=5", "--memory-limit", "70", "--enable-shut", "--extended=modern"])
    assert (options.port, options.memory_mb, options.shutdown) == (5, 70, True)


def test_information_is_asked_for() -> None:
    assert parse(["-h", "-p", "70000"]).action == "help"
    assert parse(["--version"]).action == "version"
    for word in ("ext_path", "unix-socket", "ext_item_size"):
        assert word in HELP
    assert "enable-ssl" in HELP
    for word in ("enable-sasl", "proxy_config"):  # tools look for these
        assert word not in HELP
    assert max(len(line) for line in HELP.splitlines()) <= 100


def test_tls() -> None:
    settings = server_settings(
        parse("-Z -o ssl_chain_cert=/c,ssl_key=/k,ssl_min_version=3".split())
    )
    assert (settings.tls_certificate, settings.tls_key) == (Path("/c"), Path("/k"))
    assert (settings.tls_version_min, settings.tls_verify) == ("1.3", "none")
    strict = "-Z -l notls:127.0.0.1:1,::1 -o ssl_chain_cert=/c,ssl_verify_mode=2,ssl_ca_cert=/a"
    settings = server_settings(parse(strict.split()))
    assert (settings.tls_verify, settings.tls_client_ca) == ("require", Path("/a"))
    assert settings.listen == ("notls:127.0.0.1:1", "::1")
    # without -Z they are taken and mean nothing, as with memcached
    assert server_settings(parse(["-o", "ssl_chain_cert=/c"])).tls_certificate is None
    with pytest.raises(Refused, match="Error loading the certificate chain") as caught:
        server_settings(parse(["-Z"]))
    assert caught.value.code == 64


def test_memory_only() -> None:
    settings = cache_settings(parse("-m 100 -I 4k".split()))
    assert (settings.ram, settings.flash, settings.item_size_max) == (100 * MIB, 0, 4 * KIB)


def test_flash_options_become_settings() -> None:
    settings = cache_settings(
        parse(
            [
                "-m", "64", "-o",
                "ext_page_size=8,ext_wbuf_size=2,ext_threads=3,ext_item_size=100,ext_item_age=5,"
                "ext_low_ttl=60,ext_recache_rate=10,ext_compact_under=4,ext_drop_under=2,"
                "ext_max_frag=0.5,ext_drop_unread,ext_path=/a:b/f:1G,ext_path=/c/g:260m:default",
            ]
        )
    )  # fmt: skip
    assert settings.files == ((Path("/a:b/f"), GIB), (Path("/c/g"), 256 * MIB))
    assert (settings.segment_size, settings.buffer_size) == (8 * MIB, 2 * MIB)
    assert settings.ram == 64 * MIB + 4 * 2 * MIB  # buffers come on top, as in memcached
    assert (settings.item_age, settings.low_ttl, settings.workers) == (5, 60, 3)
    assert (settings.compact_under, settings.drop_under) == (4, 2)
    assert settings.drop_unread


@pytest.mark.parametrize("size", [64, 128, 256])
def test_few_pages_are_cut_into_enough_segments(size: int) -> None:
    settings = cache_settings(parse(["-o", f"ext_path=/f:{size}m,ext_compact_under=1"]))
    assert settings.flash == size * MIB
    assert settings.segments >= 16
    assert settings.segment_size % settings.buffer_size == 0
    assert settings.compact_under == 64 * MIB // settings.segment_size


def test_one_page_of_the_smallest_size_works() -> None:
    settings = cache_settings(parse(["-o", "ext_page_size=8,ext_wbuf_size=2,ext_path=/f:8m"]))
    assert settings.segments >= 8
