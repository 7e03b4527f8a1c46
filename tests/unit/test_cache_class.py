"""`siltstone.Cache` as docs and users know it: names, defaults, types, errors, keys, values."""

from __future__ import annotations

import inspect
import pickle
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import siltstone
from siltstone import errors
from siltstone.cache.sweep import drain

SMALL: dict[str, Any] = {"ram": "4MiB", "flash": "8MiB", "segment_size": "256KiB"}


@pytest.fixture(params=["memory", "flash"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[siltstone.Cache]:
    path = tmp_path / "cache" if request.param == "flash" else None
    with siltstone.Cache(path, **SMALL) as opened:
        yield opened


# Names and signatures ------------------------------------------------------------------------

SIGNATURES = {
    "get": "(key, default=None)",
    "set": "(key, value, ttl=None, tag=None, *, expire=None)",
    "add": "(key, value, ttl=None, tag=None, *, expire=None)",
    "replace": "(key, value, ttl=None, tag=None, *, expire=None)",
    "delete": "(key)",
    "pop": "(key, default=None)",
    "incr": "(key, delta=1, default=None)",
    "decr": "(key, delta=1, default=None)",
    "append": "(key, data)",
    "prepend": "(key, data)",
    "touch": "(key, ttl=None, *, expire=None)",
    "get_with_token": "(key, default=None)",
    "compare_and_set": "(key, value, token, ttl=None, tag=None)",
    "get_many": "(keys)",
    "set_many": "(mapping, ttl=None, tag=None)",
    "delete_many": "(keys)",
    "get_or_set": "(key, function, ttl=None, tag=None, *, expire=None)",
    "memoize": "(ttl=None, tag=None, typed=False, ignore=(), *, expire=None, name=None)",
    "evict": "(tag)",
    "expire": "()",
    "clear": "()",
    "stats": "()",
    "verify": "(progress=None)",
    "flush": "()",
    "sync": "()",
    "close": "()",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str, tmp_path: Path) -> None:
    with siltstone.Cache() as cache:
        signature = inspect.signature(getattr(cache, name))
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    assert str(inspect.Signature(bare)) == SIGNATURES[name]


def test_the_constructor_s_defaults() -> None:
    parameters = inspect.signature(siltstone.Cache).parameters
    defaults = {name: parameters[name].default for name in ("path", "ram", "flash", "codec")}
    assert defaults == {"path": None, "ram": "64MiB", "flash": "1GiB", "codec": "msgpack"}


def test_it_is_a_mapping() -> None:
    with siltstone.Cache(ram="1MiB") as cache:
        assert isinstance(cache, MutableMapping)


# A mapping -----------------------------------------------------------------------------------


def test_items_come_and_go(cache: siltstone.Cache) -> None:
    cache["a"] = 1
    assert cache["a"] == 1
    assert "a" in cache
    assert "b" not in cache
    assert len(cache) == 1
    assert list(cache) == ["a"]
    assert list(cache.items()) == [("a", 1)]
    assert list(cache.values()) == [1]
    del cache["a"]
    assert len(cache) == 0
    with pytest.raises(KeyError):
        cache["a"]
    with pytest.raises(KeyError):
        del cache["a"]


def test_none_is_a_value(cache: siltstone.Cache) -> None:
    assert cache.set("n", None) is True
    assert "n" in cache
    assert cache["n"] is None
    assert cache.get("n", 7) is None
    assert cache.get("m", 7) == 7
    assert cache.get_many(["n", "m"]) == {"n": None}
    assert cache.add("n", 1) is False
    assert cache.pop("n", 7) is None
    assert cache.pop("n", 7) == 7


@pytest.mark.parametrize(
    "key",
    [
        "word", "", "with space\n", "käse", b"bytes", b"\x00zero", "\x00zero", b"\xff\xfe", 0, -5,
        1 << 200, (1, "a", b"b", (2, ())), (), ("x",) * 100, "k" * 65536, b"k" * 65536,
    ],
    ids=lambda key: repr(key)[:20],
)  # fmt: skip
def test_keys_of_all_kinds(cache: siltstone.Cache, key: Any) -> None:
    if key == "":
        with pytest.raises(errors.InvalidKey):
            cache.set(key, 1)
        return
    cache.set(key, "value")
    assert cache[key] == "value"
    assert key in cache
    (back,) = list(cache)
    assert back == key
    assert type(back) is type(key)
    assert cache.incr((key, "n") if len(repr(key)) < 1000 else "n", 2, 0) == 2
    assert cache.delete(key) is True
    assert cache.delete(key) is False


@pytest.mark.parametrize("key", ["k" * 65537, b"k" * 65537, 1.5, None, ["a"], (1.5,), "\ud800"])
def test_keys_that_are_none(cache: siltstone.Cache, key: Any) -> None:
    for use in (cache.get, cache.delete, cache.incr, lambda key: cache.set(key, 1)):
        with pytest.raises(errors.InvalidKey):
            use(key)
    with pytest.raises(ValueError):
        cache[key] = 1


def test_str_and_bytes_share_a_space(cache: siltstone.Cache) -> None:
    cache["k"] = 1
    assert cache[b"k"] == 1
    cache[b"k"] = 2
    assert list(cache) == [b"k"]
    cache[1] = "int"
    cache["1"] = "str"
    assert cache[1] == "int"
    assert cache["1"] == "str"


VALUES: list[Any] = [
    b"", b"bytes", "", "text", 0, -1, 1 << 100, True, False, 1.5, [1, "a", None], {"a": [b"b"]},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("codec", ["msgpack", "pickle"])
def test_values_come_back(value: Any, codec: str) -> None:
    with siltstone.Cache(ram="1MiB", codec=codec) as cache:
        cache["k"] = value
        assert cache["k"] == value
        assert type(cache["k"]) is type(value)
        assert cache.get_with_token("k")[0] == value
        assert cache.pop("k") == value


def test_codecs(tmp_path: Path) -> None:
    class Upper:
        def encode(self, value: Any) -> bytes:
            return repr(value).upper().encode()

        def decode(self, data: bytes) -> Any:
            return data.decode()

    with siltstone.Cache(ram="1MiB", codec=Upper()) as cache:
        cache["k"] = [1, "a"]
        assert cache["k"] == "[1, 'A']"
    with siltstone.Cache(ram="1MiB", codec="raw") as cache:
        with pytest.raises(errors.InvalidValue):
            cache["k"] = [1]
        cache["k"] = b"raw"
        assert cache["k"] == b"raw"
    with siltstone.Cache(ram="1MiB", codec="json") as cache:
        cache["k"] = {"a": [1, None]}
        assert cache["k"] == {"a": [1, None]}
    with pytest.raises(errors.ConfigError, match="unknown codec"):
        siltstone.Cache(codec="yaml")
    with siltstone.Cache(ram="1MiB") as cache, pytest.raises(errors.InvalidValue):
        cache["k"] = object()


# Storing -------------------------------------------------------------------------------------


def test_add_replace(cache: siltstone.Cache) -> None:
    assert cache.replace("k", 1) is False
    assert cache.add("k", 1) is True
    assert cache.add("k", 2) is False
    assert cache.replace("k", 3) is True
    assert cache["k"] == 3


def test_many(cache: siltstone.Cache) -> None:
    assert cache.set_many({"a": 1, "b": 2, 3: "c"}) == 3
    assert cache.get_many(["a", "b", 3, "d"]) == {"a": 1, "b": 2, 3: "c"}
    assert cache.delete_many(["a", "b", "d"]) == 2
    assert cache.get_many(iter(["a", 3])) == {3: "c"}


@pytest.mark.parametrize("ttl", [0.05, "50ms", timedelta(milliseconds=50)])
@pytest.mark.parametrize("name", ["ttl", "expire"])
def test_time_to_live(cache: siltstone.Cache, ttl: Any, name: str) -> None:
    cache.set("short", 1, **{name: ttl})
    cache.set("long", 1, **{name: "1h"})
    cache.add("added", 1, **{name: ttl})
    cache.set("touched", 1)
    assert cache.touch("touched", **{name: ttl}) is True
    assert cache.touch("missing", **{name: ttl}) is False
    cache.set("kept", 1, **{name: ttl})
    assert cache.touch("kept") is True
    until(lambda: "short" not in cache and "added" not in cache and "touched" not in cache)
    assert cache.get("short", "gone") == "gone"
    assert cache["long"] == cache["kept"] == 1


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_times_that_make_no_sense(cache: siltstone.Cache) -> None:
    for ttl in ("soon", float("nan"), "-5s", [1]):
        with pytest.raises(errors.ConfigError):
            cache.set("k", 1, ttl=ttl)
    cache["k"] = 1
    assert cache.set("k", 2, ttl=0) is True
    assert "k" not in cache
    assert cache.set("k", 2, ttl=-1) is True
    assert "k" not in cache


@pytest.mark.parametrize("flash", ["0", "8MiB"])
def test_expire_removes_at_once(tmp_path: Path, flash: str) -> None:
    with siltstone.Cache(tmp_path, **{**SMALL, "flash": flash}, workers=0) as cache:
        for number in range(50):
            cache.set(number, "x", ttl=1)
        cache["kept"] = 1
        cache.engine.set_clock(cache._clock.now_ms() + 2000)
        assert cache.expire() == 50
        assert len(cache) == 1
        assert cache.expire() == 0


@pytest.mark.parametrize(("least", "there"), [("2s", True), ("60s", False)])
def test_what_expires_soon_never_goes_to_flash(tmp_path: Path, least: str, there: bool) -> None:
    with siltstone.Cache(tmp_path, **SMALL, low_ttl_min=least, workers=0) as cache:
        cache.set("soon", 1, ttl=30)
        cache.set("later", 1, ttl=90)
        drain(cache.engine)
        assert ("soon" in cache) is there
        found = cache._get_meta("later")
        assert found is not None
        assert found[4], "not on flash"


def test_for_ever(cache: siltstone.Cache) -> None:
    cache.set("k", 1, ttl=float("inf"))
    assert cache["k"] == 1
    assert cache.ttl("k") is None


def test_what_was_cleared_does_not_count(cache: siltstone.Cache) -> None:
    cache.update({number: number for number in range(300)})
    cache.clear()
    assert len(cache) == 0
    assert cache.stats()["curr_items"] == 0


@pytest.mark.parametrize("tag", [5, b"t", "\ud800"])
def test_a_tag_is_text(cache: siltstone.Cache, tag: Any) -> None:
    with pytest.raises(errors.InvalidKey, match="a tag"):
        cache.set("k", 1, tag=tag)
    with pytest.raises(errors.InvalidKey, match="a tag"):
        cache.evict(tag)


@pytest.mark.parametrize("data", ["text", 5, None, [1]])
def test_only_bytes_are_joined_on(cache: siltstone.Cache, data: Any) -> None:
    cache["k"] = b"ab"
    for join in (cache.append, cache.prepend):
        with pytest.raises(errors.InvalidValue, match="only bytes"):
            join("k", data)
    assert cache["k"] == b"ab"


@pytest.mark.parametrize("delta", [1.5, "1", None])
def test_counting_is_in_whole_numbers(cache: siltstone.Cache, delta: Any) -> None:
    cache["k"] = 1
    with pytest.raises(errors.NotANumber, match="not a whole number"):
        cache.incr("k", delta)
    with pytest.raises(errors.NotANumber, match="not a whole number"):
        cache.incr("missing", default=2.5)  # type: ignore[arg-type]
    assert cache["k"] == 1
    assert cache.incr("k", True) == 2


# Numbers and bytes ---------------------------------------------------------------------------


def test_incr_and_decr(cache: siltstone.Cache) -> None:
    with pytest.raises(KeyError):
        cache.incr("n")
    with pytest.raises(KeyError):
        cache.decr("n")
    assert cache.incr("n", default=10) == 11
    assert cache.incr("n", 5) == 16
    assert cache.decr("n", 20) == -4
    assert cache["n"] == -4
    assert cache.incr("n", 3) == -1
    assert cache.incr("n") == 0
    assert cache.incr("n", -7) == -7
    assert cache.decr("m", 3, default=0) == -3
    cache["big"] = (1 << 64) - 1
    assert cache.incr("big") == 1 << 64
    assert cache.decr("big") == (1 << 64) - 1
    assert cache.incr("big", 1 << 70) == (1 << 70) + (1 << 64) - 1
    cache["text"] = "abc"
    with pytest.raises(errors.NotANumber):
        cache.incr("text")
    with pytest.raises(ValueError):
        cache.decr("text")
    assert cache["text"] == "abc"


def test_incr_keeps_the_time_to_live(cache: siltstone.Cache) -> None:
    cache.set("n", 1, ttl=0.05)
    assert cache.incr("n") == 2
    assert cache.decr("n", 5) == -3
    until(lambda: "n" not in cache)
    assert cache.get("n") is None


def test_incr_by_many_threads_counts_each(cache: siltstone.Cache) -> None:
    cache["n"] = 0
    cache["m"] = 0

    def count() -> None:
        for _ in range(300):
            cache.incr("n")
            cache.decr("m")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache["n"] == 1200
    assert cache["m"] == -1200


def test_append_and_prepend(cache: siltstone.Cache) -> None:
    assert cache.append("b", b"x") is False
    cache["b"] = b"2"
    assert cache.append("b", b"3") is True
    assert cache.prepend("b", b"1") is True
    assert cache["b"] == b"123"


@pytest.mark.parametrize("value", [{"a": 1}, [1], None, 1.5])
def test_nothing_is_joined_on_to_what_a_codec_made(cache: siltstone.Cache, value: Any) -> None:
    cache["encoded"] = value
    for join in (cache.append, cache.prepend):
        with pytest.raises(errors.InvalidValue, match="only bytes and str"):
            join("encoded", b"x")
    assert cache["encoded"] == value


@pytest.mark.parametrize("token", ["x", 1.0, -1, 1 << 64, True])
def test_what_is_no_token(cache: siltstone.Cache, token: Any) -> None:
    cache["k"] = 1
    with pytest.raises(errors.InvalidValue, match="get_with_token"):
        cache.compare_and_set("k", 2, token)
    assert cache["k"] == 1
    cache.close()
    with pytest.raises(errors.Closed), cache:
        pass


def test_tokens(cache: siltstone.Cache) -> None:
    assert cache.get_with_token("k") == (None, None)
    assert cache.get_with_token("k", 7) == (7, None)
    assert cache.compare_and_set("k", 1, None) is True
    assert cache.compare_and_set("k", 2, None) is False
    value, token = cache.get_with_token("k")
    assert value == 1
    assert isinstance(token, int)
    cache["k"] = 3
    assert cache.compare_and_set("k", 4, token) is False
    _, token = cache.get_with_token("k")
    assert cache.compare_and_set("k", 5, token, ttl="1h") is True
    assert cache["k"] == 5
    del cache["k"]
    assert cache.compare_and_set("k", 6, token) is False


# The whole cache -----------------------------------------------------------------------------


def test_iteration_while_it_changes(cache: siltstone.Cache) -> None:
    kept = {f"kept:{number}" for number in range(500)}
    for key in kept:
        cache[key] = 1
    seen = []
    for number, key in enumerate(cache):
        seen.append(key)
        cache[f"new:{number}"] = "x" * 50
        cache.delete(f"new:{number // 2}")
    assert sorted(key for key in seen if key in kept) == sorted(kept)


def test_clear(cache: siltstone.Cache) -> None:
    cache.set_many(dict.fromkeys(range(3000), "x" * 500))
    cache.clear()
    assert 5 not in cache
    assert list(cache) == []
    cache["a"] = 1
    assert cache["a"] == 1


def test_large_values_are_cut_into_parts(tmp_path: Path) -> None:
    options = {"flash": "128MiB", "item_size_max": "48MiB"}
    with siltstone.Cache(tmp_path, ram="128MiB", **options) as cache:
        large = bytes(range(256)) * (10 << 12)
        cache["large"] = large
        for number in range(40):
            cache[number] = bytes(3 << 20)
        assert cache.get("large") in (large, None)
        assert cache.get(39) == bytes(3 << 20)
    with siltstone.Cache(ram="1MiB") as cache, pytest.raises(errors.TooLarge):
        cache["k"] = bytes(2 << 20)


def test_flash_holds_more_than_ram(tmp_path: Path) -> None:
    with siltstone.Cache(tmp_path, ram="2MiB", flash="16MiB") as cache:
        for number in range(6000):
            cache[f"key:{number}"] = b"%d." % number * 200
        cache.flush()
        cache.sync()
        for number in range(0, 6000, 7):
            assert cache[f"key:{number}"] == b"%d." % number * 200
        assert cache.stats()["items_flash"] > 3000
        assert cache.verify().ok
        assert cache.verify().records >= 6000
        assert cache.pop("key:1") == b"1." * 200
        assert cache.append("key:2", b"!") is True
        assert cache["key:2"] == b"2." * 200 + b"!"


def test_flash_0_and_no_path_are_ram_only(tmp_path: Path) -> None:
    for cache in (siltstone.Cache(tmp_path, ram="2MiB", flash=0), siltstone.Cache(ram="2MiB")):
        with cache:
            for number in range(8000):
                cache[number] = bytes(500)
            assert 0 < len(cache) < 4000
            assert cache.stats()["evictions"] > 4000
            cache.flush()
            cache.sync()
            assert cache.verify().ok


def test_statistics(cache: siltstone.Cache) -> None:
    cache["a"] = 1
    cache.get("a")
    cache.get("b")
    stats = cache.stats()
    assert stats["get_hits"] == 1
    assert stats["get_misses"] == 1
    assert stats["curr_items"] == stats["total_items"] == 1
    assert stats["limit_maxbytes"] == 4 << 20


def test_other_names_that_a_mapping_has(cache: siltstone.Cache) -> None:
    assert cache.setdefault("a", 1) == 1
    assert cache.setdefault("a", 2) == 1
    cache.update({"b": 2}, c=3)
    assert sorted(cache.keys()) == ["a", "b", "c"]
    assert cache.ttl("a") is None
    assert cache.ttl("missing") is None
    cache.set("d", 1, ttl=100)
    left = cache.ttl("d")
    assert left is not None
    assert 98 < left <= 101
    assert cache.volume() > 0


# Closing -------------------------------------------------------------------------------------


def test_use_after_close(cache: siltstone.Cache) -> None:
    cache["a"] = 1
    keys = iter(cache)
    cache.close()
    cache.close()
    assert cache.closed
    uses: list[Callable[[], Any]] = [
        lambda: cache["a"], lambda: cache.get("a"), lambda: cache.set("a", 1), lambda: len(cache),
        lambda: "a" in cache, lambda: list(cache), lambda: cache.stats(), lambda: cache.clear(),
        lambda: cache.evict("t"), lambda: cache.expire(), lambda: cache.flush(),
        lambda: cache.sync(), lambda: cache.verify(), lambda: cache.get_or_set("a", int),
        lambda: cache.incr("a"), lambda: cache.delete("a"), lambda: next(keys),
        lambda: cache.set("a", 1, tag="t"), lambda: cache.volume(), lambda: cache.ttl("a"),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(errors.Closed):
            use()
    assert "closed" in repr(cache)


def test_close_while_others_are_inside(tmp_path: Path) -> None:
    for number in range(5):
        cache = siltstone.Cache(tmp_path / str(number), ram="3MiB", flash="8MiB")
        ready = threading.Barrier(4)
        wrong: list[BaseException] = []

        def work(
            seed: int,
            cache: siltstone.Cache = cache,
            ready: threading.Barrier = ready,
            wrong: list[BaseException] = wrong,
        ) -> None:
            ready.wait()
            number = seed
            try:
                while True:
                    number += 1
                    cache[number % 500] = bytes(number % 7000)
                    cache.get((number * 7) % 500)
            except errors.Closed:
                pass
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        ready.wait()
        time.sleep(0.03)
        cache.close()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_pickled_by_path(tmp_path: Path) -> None:
    with siltstone.Cache(tmp_path, **SMALL) as cache:
        cache["a"] = 1
        with pickle.loads(pickle.dumps(cache)) as other:
            assert other["a"] == 1
            other["b"] = 2
        assert cache["b"] == 2
    with siltstone.Cache(ram="1MiB") as cache, pytest.raises(errors.ConfigError, match="path"):
        pickle.dumps(cache)


def test_settings_that_do_not_exist() -> None:
    with pytest.raises(errors.ConfigError, match="did you mean 'item_age'"):
        siltstone.Cache(item_ago=3)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.KeyMissing, KeyError),
        (errors.InvalidKey, ValueError),
        (errors.TooLarge, ValueError),
        (errors.NotANumber, ValueError),
        (errors.Closed, ValueError),
        (errors.Busy, TimeoutError),
        (errors.Busy, OSError),
        (errors.OutOfMemory, MemoryError),
        (errors.Locked, OSError),
        (errors.DeviceFailed, OSError),
        (errors.Corruption, OSError),
    ],
)
def test_errors_are_also_the_builtin_that_fits(error: type, builtin: type) -> None:
    assert issubclass(error, builtin)
    assert issubclass(error, errors.SiltstoneError)
