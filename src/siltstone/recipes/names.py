"""The name under which a decorated function keeps something in a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def full_name(function: Callable[..., Any]) -> str:
    """`module.qualified.name`."""
    return f"{function.__module__}.{function.__qualname__}"
