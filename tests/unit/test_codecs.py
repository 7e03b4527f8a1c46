"""Codecs, client flags and key encoding."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymemcache.serde import pickle_serde

from siltstone import codecs
from siltstone.codecs import decode_key, decode_value, encode_key, encode_value, resolve
from siltstone.errors import ConfigError, InvalidKey, InvalidValue

NAMES = ("msgpack", "json", "raw", "pickle")

plain = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
atoms = st.text() | st.binary() | st.integers()
keys = atoms | st.recursive(st.tuples(atoms), lambda inner: st.lists(inner | atoms).map(tuple))


@pytest.mark.parametrize("name", NAMES)
@given(value=st.binary() | st.text() | st.integers())
def test_bytes_str_and_int_have_one_form_under_every_codec(name: str, value: Any) -> None:
    data, flags = encode_value(resolve(name), value)
    assert (data, flags) == encode_value(resolve("raw"), value)
    for reader in NAMES:
        found = decode_value(resolve(reader), data, flags)
        assert found == value
        assert type(found) is type(value)


@given(value=st.binary() | st.text() | st.integers())
def test_pymemcache_reads_ours_and_we_read_pymemcaches(value: Any) -> None:
    ours = encode_value(resolve("msgpack"), value)
    assert pickle_serde.deserialize(b"k", *ours) == value
    theirs = pickle_serde.serialize(b"k", value)
    theirs_bytes = theirs[0].encode() if isinstance(theirs[0], str) else theirs[0]
    assert decode_value(resolve("msgpack"), theirs_bytes, theirs[1]) == value


@pytest.mark.parametrize("name", ["msgpack", "json", "pickle"])
@given(value=plain)
def test_objects_round_trip(name: str, value: Any) -> None:
    codec = resolve(name)
    assert decode_value(codec, *encode_value(codec, value)) == value


def test_flags_are_the_published_ones() -> None:
    assert encode_value(resolve("msgpack"), b"x") == (b"x", 0)
    assert encode_value(resolve("msgpack"), "x") == (b"x", 16)
    assert encode_value(resolve("msgpack"), -12) == (b"-12", 2)
    assert encode_value(resolve("msgpack"), [1])[1] == 0x51000001
    assert encode_value(resolve("json"), [1]) == (b"[1]", 0x51000002)
    assert encode_value(resolve("pickle"), [1])[1] == 0x51000003
    assert encode_value(resolve("json"), True) == (b"true", 0x51000002)  # a bool is no int here


def test_another_codecs_values_are_read_where_that_is_safe() -> None:
    data, flags = encode_value(resolve("json"), {"a": [1, 2]})
    assert decode_value(resolve("msgpack"), data, flags) == {"a": [1, 2]}


def test_nothing_is_unpickled_unless_pickle_was_named() -> None:
    data, flags = encode_value(resolve("pickle"), {1, 2})
    assert decode_value(resolve("pickle"), data, flags) == {1, 2}
    assert decode_value(resolve("msgpack"), data, flags) == data
    assert decode_value(resolve("pickle"), pickle.dumps({1}), 1) == pickle.dumps({1})


@pytest.mark.parametrize(("data", "flags"), [(b"x", 1), (b"1.5", 2), (b"\xff", 16), (b"", 2)])
def test_foreign_flags_come_back_as_bytes(data: bytes, flags: int) -> None:
    assert decode_value(resolve("msgpack"), data, flags) == data


def test_a_padded_counter_is_a_number() -> None:
    assert decode_value(resolve("raw"), b"9 ", 2) == 9


def test_what_a_codec_cannot_take_is_an_invalid_value() -> None:
    with pytest.raises(InvalidValue, match="raw codec"):
        encode_value(resolve("raw"), [1])
    with pytest.raises(InvalidValue, match="cannot encode object"):
        encode_value(resolve("msgpack"), object())
    with pytest.raises(InvalidValue, match="cannot decode"):
        decode_value(resolve("json"), b"{", codecs.FLAGS_CODEC + 2)


def test_huge_ints_go_to_the_codec() -> None:
    huge = 1 << 20_000
    codec = resolve("pickle")
    assert decode_value(codec, *encode_value(codec, huge)) == huge
    with pytest.raises(InvalidValue):
        encode_value(resolve("msgpack"), huge)


class Reversed:
    codec_id = 200

    def encode(self, value: Any) -> bytes:
        return bytes(reversed(value.name))

    def decode(self, data: bytes) -> Any:
        return data[::-1]


class Thing:
    name = b"abc"


def test_a_codec_of_ones_own() -> None:
    codec = resolve(Reversed())
    assert encode_value(codec, Thing()) == (b"cba", 0x51000000 + 200)
    assert decode_value(codec, b"cba", 0x51000000 + 200) == b"abc"
    assert resolve(codec) is codec


@pytest.mark.parametrize("bad", ["mspack", object(), Reversed, 7])
def test_a_bad_codec_is_a_config_error(bad: Any) -> None:
    with pytest.raises(ConfigError, match="msgpack"):
        resolve(bad)


def test_a_codec_id_of_the_built_in_range_is_refused() -> None:
    codec = Reversed()
    codec.codec_id = 1
    with pytest.raises(ConfigError, match=r"128\.\.65535"):
        resolve(codec)


@given(key=keys)
def test_keys_are_reversible(key: Any) -> None:
    if key in ("", b""):
        with pytest.raises(InvalidKey):
            encode_key(key)
        return
    found = decode_key(encode_key(key), isinstance(key, str))
    assert found == key
    assert type(found) is type(key)


@given(one=keys, other=keys)
def test_different_keys_have_different_bytes(one: Any, other: Any) -> None:
    if one in ("", b"") or other in ("", b""):
        return
    same = (one.encode() if isinstance(one, str) else one) == (
        other.encode() if isinstance(other, str) else other
    )
    assert (encode_key(one) == encode_key(other)) is same


def test_str_and_bytes_share_one_space_and_ints_have_their_own() -> None:
    assert encode_key("käse") == encode_key("käse".encode()) == "käse".encode()
    assert encode_key(1) != encode_key("1")
    assert encode_key(1)[:1] == encode_key((1,))[:1] == b"\0"
    assert encode_key(b"\0i1") != encode_key(1)


@pytest.mark.parametrize("bad", [1.5, None, [1], (1.5,), "", b"", "\ud800", 1 << 9000])
def test_bad_keys(bad: Any) -> None:
    with pytest.raises(InvalidKey):
        encode_key(bad)


def test_key_limits() -> None:
    assert len(encode_key(b"k" * codecs.KEY_BYTES_MAX)) == 65536
    with pytest.raises(InvalidKey, match="65537"):
        encode_key(b"k" * (codecs.KEY_BYTES_MAX + 1))
    deep: Any = ()
    for _ in range(40):
        deep = (deep,)
    with pytest.raises(InvalidKey, match="nested"):
        encode_key(deep)


@pytest.mark.parametrize("bad", [b"\0ts", b"\0ts\x05a", b"\0tq\x01a", b"\0ti\x01x", b"\0ts\xff"])
def test_bytes_that_are_no_key_of_ours(bad: bytes) -> None:
    with pytest.raises(InvalidKey, match="not a key"):
        decode_key(bad, False)
