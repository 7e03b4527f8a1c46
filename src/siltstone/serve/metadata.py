"""What writers told of metrics: type, help, unit. Kept in memory, for pickers and tooltips.

Lost with the process and told again by the next scrape or request; bounded, since names come from
outside. Any thread.
"""

from __future__ import annotations

import threading
from collections.abc import ItemsView
from dataclasses import asdict, dataclass

NAMES_MAX = 20_000
TEXT_MAX = 1024
TYPES = frozenset(
    ("counter", "gauge", "histogram", "summary", "info", "stateset", "gaugehistogram", "unknown")
)


@dataclass(frozen=True, slots=True)
class About:
    """Of one metric."""

    type: str = "unknown"
    help: str = ""
    unit: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


class Metadata:
    """Name -> `About`; further names are not noted once there are NAMES_MAX."""

    def __init__(self) -> None:
        self._known: dict[str, About] = {}
        self._lock = threading.Lock()

    def note(self, name: str, type: str = "unknown", help: str = "", unit: str = "") -> None:
        about = About(type if type in TYPES else "unknown", help[:TEXT_MAX], unit[:TEXT_MAX])
        with self._lock:
            if name in self._known or len(self._known) < NAMES_MAX:
                self._known[name] = about

    def items(self) -> ItemsView[str, About]:
        with self._lock:
            return dict(sorted(self._known.items())).items()
