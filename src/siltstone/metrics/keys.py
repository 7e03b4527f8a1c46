"""Labels: what identifies a series. Checking them, and their bytes.

A series' *key* is its labels sorted by name, each as size (2 bytes, little-endian), name, size,
value; it stands in the journal, in segments and as the name in memory, so that a series has the
same identity everywhere and for ever. The metric's name is the label `__name__`. A label with an
empty value is no label. Pure functions.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from siltstone.errors import InvalidValue
from siltstone.metrics.source import NAME_LABEL

_SIZE: Final = struct.Struct("<H")
_LABEL_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_METRIC_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
SIZE_MAX: Final = 65535


@dataclass(frozen=True)
class Limits:
    """What a label set may be at most; bytes are of UTF-8."""

    labels: int = 64
    name_bytes: int = 256
    value_bytes: int = 2048
    key_bytes: int = 8192


def key_of(labels: Mapping[str, str], limits: Limits = Limits()) -> bytes:
    """The key of these labels; InvalidValue says which label is wrong, and why."""
    parts = []
    try:
        names = sorted(labels)
    except TypeError:  # names of several types
        names = list(labels)
    for name in names:
        value = labels[name]
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidValue(f"labels are text: {name!r}={value!r}")
        if value:
            parts.append(_packed(name, value, limits))
    if not parts:
        raise InvalidValue("a series has at least one label, its name for one")
    if len(parts) > limits.labels:
        raise InvalidValue(f"{len(parts)} labels: at most {limits.labels}")
    key = b"".join(parts)
    if len(key) > limits.key_bytes:
        raise InvalidValue(f"labels of {len(key)} bytes: at most {limits.key_bytes}")
    return key


def _packed(name: str, value: str, limits: Limits) -> bytes:
    pattern = _LABEL_NAME
    if name == NAME_LABEL and not _METRIC_NAME.fullmatch(value):
        raise InvalidValue(f"{value!r} is no metric name: {_METRIC_NAME.pattern}")
    if not pattern.fullmatch(name):
        raise InvalidValue(f"{name!r} is no label name: {pattern.pattern}")
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise InvalidValue(f"the value of label {name} is no valid text: {value!r}") from None
    if len(name) > limits.name_bytes:
        raise InvalidValue(f"the label name {name[:40]}... has over {limits.name_bytes} bytes")
    if len(encoded) > limits.value_bytes:
        raise InvalidValue(
            f"the value of label {name} has {len(encoded)} bytes: at most {limits.value_bytes}"
        )
    return _SIZE.pack(len(name)) + name.encode() + _SIZE.pack(len(encoded)) + encoded


def labels_of(key: bytes) -> dict[str, str]:
    """The labels of a key, by name. ValueError or struct.error when it is none."""
    found, at, size_of = {}, 0, _SIZE.unpack_from
    while at < len(key):
        name = at + _SIZE.size
        middle = name + size_of(key, at)[0]
        value = middle + _SIZE.size
        at = value + size_of(key, middle)[0]
        if at > len(key):
            raise ValueError("a key that ends too early")
        found[key[name:middle].decode()] = key[value:at].decode()
    return found
