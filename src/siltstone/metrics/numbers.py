"""Numbers as Prometheus writes them."""

from __future__ import annotations

from decimal import Decimal

import numpy as np

SPECIAL = {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}


def number_text(value: float | np.floating) -> str:
    """The shortest decimal that reads back the same, without an exponent: 1e3 is "1000"."""
    text = repr(float(value))
    if text in SPECIAL:
        return SPECIAL[text]
    if "e" in text:
        text = format(Decimal(text), "f")
    return text.removesuffix(".0")


def sample_text(value: float | np.floating) -> str:
    """A sample's value in JSON: with an exponent below 1e-6 and from 1e21 on."""
    number = float(value)
    if number and not 1e-6 <= abs(number) < 1e21 and abs(number) != np.inf and number == number:
        digits, _, exponent = repr(number).partition("e")
        return f"{digits.removesuffix('.0')}e{exponent}"
    return number_text(number)
