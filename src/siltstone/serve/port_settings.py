"""[graphite] and [statsd]: ports that lines come in by; off unless an address is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from siltstone.config import COUNT, DURATION, KIB, MIB, SIZE, TEXT, Kind, SettingsBase, setting
from siltstone.errors import ConfigError
from siltstone.serve.settings import split_address

OFF: Final = "off"
DEFAULT_PORTS: Final = {"graphite": 2003, "statsd": 8125}


def _address(value: Any) -> str:
    text = str(value).strip()
    if text in ("", OFF):
        return OFF
    if "," in text:
        raise ConfigError(f"{text!r}: one address")
    split_address(text, 1)
    return text


ADDRESS: Final = Kind("address", _address, str)


@dataclass(frozen=True, kw_only=True)
class PortSettings(SettingsBase):
    """Of both."""

    listen: str = setting(OFF, ADDRESS, "host, host:port, [v6]:port; off: no such port")
    protocols: str = setting("both", TEXT, "of that port", choices=("both", "tcp", "udp"))
    connections_max: int = setting(1024, COUNT, "TCP connections; further ones are closed", low=1)
    line_size_max: int = setting(
        16 * KIB, SIZE, "bytes of a line; the connection of a longer one is closed", low=64
    )
    packets_size_max: int = setting(
        8 * MIB, SIZE, "UDP packets that wait to be stored; further ones are dropped", low=64 * KIB
    )

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port; None: off."""
        if self.listen == OFF:
            return None
        return split_address(self.listen, DEFAULT_PORTS[self.section])

    @property
    def tcp(self) -> bool:
        return self.protocols != "udp"

    @property
    def udp(self) -> bool:
        return self.protocols != "tcp"


@dataclass(frozen=True, kw_only=True)
class GraphiteSettings(PortSettings):
    """Graphite's plaintext protocol."""

    section = "graphite"


@dataclass(frozen=True, kw_only=True)
class StatsdSettings(PortSettings):
    """statsd."""

    section = "statsd"

    flush_interval: float = setting(
        10, DURATION, "what came in is stored so often", low=0.1, high=3600
    )
