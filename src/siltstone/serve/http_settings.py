"""The HTTP port's settings: where it listens, and the limits of queries and bodies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from siltstone.config import COUNT, DURATION, MIB, SIZE, SWITCH, Kind, SettingsBase, setting
from siltstone.errors import ConfigError
from siltstone.serve.settings import split_address

PORT: Final = 8181
OFF: Final = "off"


def _address(value: Any) -> str:
    text = str(value).strip()
    if "," in text:
        raise ConfigError(f"{text!r}: HTTP listens on one address")
    if text not in ("", OFF):
        split_address(text, PORT)
    return text or OFF


ADDRESS: Final = Kind("address", _address, str)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings(SettingsBase):
    """Of one HTTP port."""

    section = "http"

    listen: str = setting(
        None, ADDRESS, "host, host:port, [v6]:port; port 0: a free one; off: no HTTP"
    )
    query_timeout: float = setting(120, DURATION, "what a query may take", low=0.001)
    points_max: int = setting(11_000, COUNT, "points of a range query", low=1)
    body_size_max: int = setting(64 * MIB, SIZE, "of what is written, unpacked too", low=MIB)
    admin: bool = setting(
        False, SWITCH, "take orders to delete series and to write snapshots, from everybody"
    )
    lifecycle: bool = setting(
        False, SWITCH, "read the settings again at POST /-/reload, from everybody"
    )
    record: bool = setting(True, SWITCH, "record siltstone's own statistics every second")
    record_machine: bool = setting(
        False, SWITCH, "record this machine's processors, memory, disks and network every second"
    )

    @property
    def chosen(self) -> bool:
        """Whether somebody said where; else the usual port is a wish and no demand."""
        return self.listen is not None

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port; None: no HTTP."""
        if self.listen == OFF:
            return None
        return split_address(self.listen or f"127.0.0.1:{PORT}", PORT)
