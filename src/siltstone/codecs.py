"""Values and keys as bytes: the codecs, the client flags, and the encoding of keys.

Promises: bytes, str and int values have the same form whatever the codec, so that embedded users
and memcached clients share them; `decode_value` never unpickles unless the codec was named
"pickle"; `encode_key` is one to one up to str/bytes, which share one space. Pure functions, called
by the caches' faces from any thread.

Client flags: bytes 0, int 2 (ASCII decimal), str 16 (UTF-8), else 0x51000000 + codec id.
Flags that nobody here knows come back as bytes.

Key bytes:

    str, bytes      as they are (UTF-8); only if they start with 0x00:  00 'b' bytes
    int             00 'i' ASCII decimal
    tuple           00 't' element*     element := kind byte, varint size, bytes
                    kinds: 's' str, 'b' bytes, 'i' int, 't' tuple (elements again)
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

import msgspec

from siltstone.errors import ConfigError, InvalidKey, InvalidValue

FLAGS_BYTES: Final = 0
FLAGS_INT: Final = 2
FLAGS_STR: Final = 16
FLAGS_CODEC: Final = 0x5100_0000

KEY_BYTES_MAX: Final = 64 * 1024
CUSTOM_CODEC_ID: Final = 255
CODEC_ID_MAX: Final = 0xFFFF

# An int beyond this goes to the codec: Python refuses decimal text above 4,300 digits.
_INT_BITS_MAX: Final = 8192
# Deep enough for any sane key, far from the recursion limit.
_TUPLE_DEPTH_MAX: Final = 32

Key: TypeAlias = "str | bytes | int | tuple[Key, ...]"


def is_encoded(flags: int) -> bool:
    """Whether a codec made the value, so that only it can read it."""
    return flags & ~CODEC_ID_MAX == FLAGS_CODEC


@runtime_checkable
class ValueCodec(Protocol):
    """What a codec of one's own must have. An attribute `codec_id` (128..65535) is optional."""

    def encode(self, value: Any, /) -> bytes: ...

    def decode(self, data: bytes, /) -> Any: ...


class Codec(NamedTuple):
    """A resolved codec; `flags` marks the values that only it can read."""

    name: str
    flags: int
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


def _refuse(value: object) -> bytes:
    raise InvalidValue(
        f"the raw codec takes bytes, str and int, not {type(value).__name__}: "
        'encode it yourself, or open the cache with codec="msgpack"'
    )


def _pickle(value: object) -> bytes:
    return pickle.dumps(value, protocol=5)


_BUILT_IN: Final[dict[str, Codec]] = {
    "raw": Codec("raw", FLAGS_CODEC, _refuse, bytes),
    "msgpack": Codec(
        "msgpack",
        FLAGS_CODEC + 1,
        msgspec.msgpack.Encoder().encode,
        msgspec.msgpack.Decoder().decode,
    ),
    "json": Codec(
        "json", FLAGS_CODEC + 2, msgspec.json.Encoder().encode, msgspec.json.Decoder().decode
    ),
    "pickle": Codec("pickle", FLAGS_CODEC + 3, _pickle, pickle.loads),
}
# Readable under any codec: what decodes them can do no more than build plain objects.
_SAFE: Final = {_BUILT_IN[name].flags: _BUILT_IN[name] for name in ("msgpack", "json")}


def resolve(codec: str | ValueCodec | Codec) -> Codec:
    """The codec that a name or an object with encode and decode stands for."""
    if isinstance(codec, Codec):
        return codec
    if isinstance(codec, str):
        if codec not in _BUILT_IN:
            raise ConfigError(
                f"unknown codec {codec!r}: use one of {', '.join(_BUILT_IN)}, "
                "or an object with encode(value) and decode(data)"
            )
        return _BUILT_IN[codec]
    if not isinstance(codec, ValueCodec) or isinstance(codec, type):
        raise ConfigError(
            f"a codec is a name ({', '.join(_BUILT_IN)}) or an object with encode(value) "
            f"and decode(data), not {codec!r}"
        )
    codec_id = getattr(codec, "codec_id", CUSTOM_CODEC_ID)
    if not isinstance(codec_id, int) or not 128 <= codec_id <= CODEC_ID_MAX:
        raise ConfigError(f"codec_id must be 128..{CODEC_ID_MAX}, not {codec_id!r}")
    return Codec(type(codec).__name__, FLAGS_CODEC + codec_id, codec.encode, codec.decode)


def encode_value(codec: Codec, value: Any) -> tuple[bytes, int]:
    """(bytes, client flags) of `value`; InvalidValue if the codec cannot take it."""
    kind = type(value)
    if kind is bytes:
        return value, FLAGS_BYTES
    if kind is str:
        try:
            return value.encode(), FLAGS_STR
        except UnicodeEncodeError:
            pass  # lone surrogates: not UTF-8, perhaps the codec can (pickle does)
    elif kind is int:
        if value.bit_length() <= _INT_BITS_MAX:
            return b"%d" % value, FLAGS_INT
    elif kind is bytearray or kind is memoryview:
        return bytes(value), FLAGS_BYTES
    return encoded(codec, value), codec.flags


def encoded(codec: Codec, value: Any) -> bytes:
    """What the codec makes of `value`, whatever its type; InvalidValue if it cannot take it."""
    try:
        data = codec.encode(value)
    except InvalidValue:
        raise
    except Exception as error:
        name = type(value).__name__
        raise InvalidValue(f"codec {codec.name} cannot encode {name}: {error}") from error
    if type(data) is not bytes:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise InvalidValue(f"codec {codec.name} returned {type(data).__name__}, not bytes")
        data = bytes(data)
    return data


def decode_value(codec: Codec, data: bytes, flags: int) -> Any:
    """The value of `data`; flags of another codec are obeyed where that is safe, else bytes."""
    if flags == FLAGS_BYTES:
        return data
    if flags == codec.flags:
        return decoded(codec, data)
    if flags == FLAGS_STR:
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data  # another client's flag 16
    if flags == FLAGS_INT:
        digits = data.rstrip(b" ")  # decr pads in place
        if digits.removeprefix(b"-").isdigit() and len(digits) < 4300:
            return int(digits)
        return data
    safe = _SAFE.get(flags)
    return data if safe is None else decoded(safe, data)


def decoded(codec: Codec, data: bytes) -> Any:
    """What the codec makes of bytes that it encoded; InvalidValue if it cannot."""
    try:
        return codec.decode(data)
    except Exception as error:
        raise InvalidValue(
            f"codec {codec.name} cannot decode these {len(data)} bytes: {error}"
        ) from error


# Keys ---------------------------------------------------------------------------------------


def encode_key(key: Key) -> bytes:
    """The key's bytes; InvalidKey for another type, an empty key, or more than 64 KiB."""
    if isinstance(key, str):
        data = _utf8(key)
        if data[:1] == b"\0":
            data = b"\0b" + data
    elif isinstance(key, bytes):
        data = bytes(key) if key[:1] != b"\0" else b"\0b" + key
    elif isinstance(key, int):
        data = b"\0i" + _decimal(key)
    elif isinstance(key, tuple):
        data = b"\0t" + _encode_elements(key, 1)
    else:
        raise InvalidKey(f"a key is str, bytes, int or a tuple of these, not {type(key).__name__}")
    if not data:
        raise InvalidKey("a key must not be empty")
    if len(data) > KEY_BYTES_MAX:
        raise InvalidKey(f"key of {len(data)} bytes: the limit is {KEY_BYTES_MAX}")
    return data


def decode_key(data: bytes, is_str: bool) -> Key:
    """The key that `encode_key` made `data` from; `is_str`: it was a str."""
    if data[:1] == b"\0":
        kind, rest = data[1:2], data[2:]
        if kind == b"i" and _is_decimal(rest):
            return int(rest)
        if kind == b"t":
            return _decode_elements(rest, data)
        if kind == b"b":
            data = rest
    return data.decode("utf-8", "surrogateescape") if is_str else data


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidKey(f"a str key must be encodable as UTF-8: {error}") from None


def _decimal(number: int) -> bytes:
    if number.bit_length() > _INT_BITS_MAX:
        raise InvalidKey(f"an int key has at most {_INT_BITS_MAX} bits")
    return b"%d" % number


def _is_decimal(data: bytes) -> bool:
    return data.removeprefix(b"-").isdigit() and len(data) < 4300


def _encode_elements(elements: tuple[Any, ...], depth: int) -> bytes:
    if depth > _TUPLE_DEPTH_MAX:
        raise InvalidKey(f"a tuple key is nested at most {_TUPLE_DEPTH_MAX} deep")
    out = []
    for element in elements:
        if isinstance(element, str):
            kind, data = b"s", _utf8(element)
        elif isinstance(element, bytes):
            kind, data = b"b", bytes(element)
        elif isinstance(element, int):
            kind, data = b"i", _decimal(element)
        elif isinstance(element, tuple):
            kind, data = b"t", _encode_elements(element, depth + 1)
        else:
            raise InvalidKey(
                f"a tuple key holds str, bytes, int and tuples, not {type(element).__name__}"
            )
        out.append(kind + varint(len(data)) + data)
    return b"".join(out)


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; as protobuf's of a number from 0 on."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _decode_elements(data: bytes, whole: bytes) -> tuple[Key, ...]:
    elements: list[Key] = []
    place = 0
    while place < len(data):
        kind = data[place : place + 1]
        size, place = _read_varint(data, place + 1, whole)
        body = data[place : place + size]
        place += size
        if len(body) != size:
            raise InvalidKey(f"not a key that siltstone made: {whole[:40]!r}")
        elements.append(_decode_element(kind, body, whole))
    return tuple(elements)


def _read_varint(data: bytes, place: int, whole: bytes) -> tuple[int, int]:
    size = shift = 0
    while place < len(data):
        byte = data[place]
        place += 1
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return size, place
        shift += 7
    raise InvalidKey(f"not a key that siltstone made: {whole[:40]!r}")


def _decode_element(kind: bytes, body: bytes, whole: bytes) -> Key:
    if kind == b"s":
        return body.decode("utf-8", "surrogateescape")
    if kind == b"b":
        return body
    if kind == b"i" and _is_decimal(body):
        return int(body)
    if kind == b"t":
        return _decode_elements(body, whole)
    raise InvalidKey(f"not a key that siltstone made: {whole[:40]!r}")
