"""Netdata's 32-bit storage numbers, as arrays: decimal floating point with flags.

    bit  31        30        29 28 27   26          25      24              23 ... 0
         negative  multiply  exponent   base 100    reset   not anomalous   mantissa
                   or divide            not base 10

value = mantissa x or / base^exponent. 24 bits of mantissa are 7 digits: integers are exact up to
16,777,215; from 5e-8 to 1.68e21. A slot without a value is 0x04000000 since Netdata 1.36 and was
0 before, which since then says "0, anomalous"; the files do not tell, so the reader is told.
Pure functions, any thread.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

EMPTY: Final = 0x04000000
NOT_ANOMALOUS: Final = 1 << 24
RESET: Final = 1 << 25
BASE_100: Final = 1 << 26
EXPONENT_SHIFT: Final = 27
MULTIPLY: Final = 1 << 30
NEGATIVE: Final = 1 << 31
MANTISSA_MAX: Final = 0xFFFFFF
EXPONENT_MAX: Final = 7
# Base 10 reaches this far: MANTISSA_MAX x 10^7.
BASE_10_MAX: Final = MANTISSA_MAX * 1e7


def _powers() -> Values:
    """base^exponent with the sign, for each value of the upper six bits."""
    upper = np.arange(64, dtype=np.int64) << 26
    base = np.where(upper & BASE_100, 100.0, 10.0)
    power: Values = base ** ((upper >> EXPONENT_SHIFT) & EXPONENT_MAX)
    return np.where(upper & NEGATIVE, -power, power)


_POWERS: Final = _powers()
# The largest |x| whose mantissa still fits after x 10^m, for m = 7 ... 1: ascending.
_DIVIDE_LIMITS: Final = np.array([MANTISSA_MAX / 10.0**m for m in range(EXPONENT_MAX, 0, -1)])
_MULTIPLY_LIMITS: Final = {
    base: np.array([MANTISSA_MAX * base**m for m in range(EXPONENT_MAX)]) for base in (10.0, 100.0)
}


def unpack(words: Words) -> Values:
    """The values of slots that are not empty.

    Divided, not multiplied by 1/10^m: only so it is the double nearest to the decimal number.
    """
    powers = _POWERS[words >> np.uint32(26)]
    mantissas = words & np.uint32(MANTISSA_MAX)
    values: Values = mantissas / powers
    large = (words & np.uint32(MULTIPLY)) != 0
    if large.any():
        np.multiply(mantissas, powers, out=values, where=large)
    return values


def is_empty(words: Words, *, zero_is_empty: bool = False) -> Flags:
    """Where a slot has no value. `zero_is_empty`: as written before 1.36."""
    empty: Flags = words == EMPTY
    return empty | (words == 0) if zero_is_empty else empty


def flags_of(words: Words) -> npt.NDArray[np.uint8]:
    """Bit 0: not anomalous (set in every value before 1.32); bit 1: a counter started again."""
    return (words >> np.uint32(24)).astype(np.uint8) & np.uint8(3)


def pack(values: Values, *, anomalous: Flags | None = None, reset: Flags | None = None) -> Words:
    """The nearest storage numbers, in the form of 1.36 and later; NaN and infinities are empty.

    Within 3e-7 of |x| in [0.168, 1.67e14) and 5e-8 below that; above the range it saturates.
    """
    finite = np.isfinite(values)
    size = np.where(finite, np.abs(values), 0.0)
    mantissa, bits = _scale(size)
    bits |= mantissa.astype(np.uint32)
    bits[np.signbit(values) & (size > 0)] |= np.uint32(NEGATIVE)
    bits[size == 0] = 0
    bits |= (
        np.uint32(NOT_ANOMALOUS)
        if anomalous is None
        else np.where(anomalous, np.uint32(0), np.uint32(NOT_ANOMALOUS))
    )
    if reset is not None:
        bits |= np.where(reset, np.uint32(RESET), np.uint32(0))
    bits[~finite] = np.uint32(EMPTY)
    return bits


def _scale(size: Values) -> tuple[Values, Words]:
    """Whole mantissas of at most 24 bits, and exponent, base and direction as bits."""
    bits = np.zeros(size.shape, np.uint32)
    mantissa = np.empty_like(size)
    small = size <= MANTISSA_MAX
    exponent = EXPONENT_MAX - np.searchsorted(_DIVIDE_LIMITS, size[small], side="left")
    mantissa[small] = np.rint(size[small] * 10.0**exponent)
    bits[small] = exponent.astype(np.uint32) << np.uint32(EXPONENT_SHIFT)
    for base, chosen in (
        (10.0, ~small & (size <= BASE_10_MAX)),
        (100.0, size > BASE_10_MAX),
    ):
        exponent = np.searchsorted(_MULTIPLY_LIMITS[base], size[chosen], side="left")
        mantissa[chosen] = np.minimum(np.rint(size[chosen] / base**exponent), MANTISSA_MAX)
        bits[chosen] = (exponent.astype(np.uint32) << np.uint32(EXPONENT_SHIFT)) | np.uint32(
            MULTIPLY | (BASE_100 if base == 100.0 else 0)
        )
    return mantissa, bits
