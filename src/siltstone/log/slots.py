"""How bytes are cut into slots, and slots dealt over the files of a device. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from siltstone.errors import ConfigError

SEGMENTS_MAX = (1 << 24) - 1  # a slot has 24 bits in the segment table
SEGMENT_BYTES_MIN = 4096
BLOCK = 4096


def check_segment_bytes(segment_bytes: int) -> None:
    if segment_bytes < SEGMENT_BYTES_MIN or segment_bytes % BLOCK:
        raise ConfigError(
            f"a segment of {segment_bytes} bytes cannot work: "
            f"at least {SEGMENT_BYTES_MIN}, in steps of {BLOCK}"
        )


def segments_in(path: str, size: int, segment_bytes: int) -> int:
    """How many segments `size` bytes are; ConfigError names the sizes that work."""
    count, rest = divmod(size, segment_bytes)
    if count < 1:
        raise ConfigError(f"{path}: {size} bytes are too small for a segment of {segment_bytes}")
    if rest:
        raise ConfigError(
            f"{path}: {size} bytes do not divide into segments of {segment_bytes}: "
            f"{size - rest} or {size - rest + segment_bytes} would"
        )
    return count


def deal(counts: Sequence[int], slots: int) -> list[int]:
    """How many of the first `slots` slots lie in each file."""
    dealt, index = [0] * len(counts), 0
    for end in sorted(set(counts)):
        taking_part = [number for number, count in enumerate(counts) if count >= end]
        rounds, rest = divmod(slots, len(taking_part))
        if rounds >= end - index:
            rounds, rest = end - index, 0
        for rank, number in enumerate(taking_part):
            dealt[number] = index + rounds + (rank < rest)
        slots -= rounds * len(taking_part) + rest
        index = end
        if slots <= 0:
            break
    return dealt
