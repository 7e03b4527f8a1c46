"""The sections of `siltstone serve`'s settings, all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from siltstone.config import CacheSettings, SettingsBase
from siltstone.metrics.settings import MetricsSettings
from siltstone.serve.forward_settings import ForwardSettings
from siltstone.serve.http_settings import HttpSettings
from siltstone.serve.port_settings import GraphiteSettings, StatsdSettings
from siltstone.serve.scrape_settings import ScrapeSettings
from siltstone.serve.settings import Settings

OWNERS: Final[tuple[type[SettingsBase], ...]] = (
    CacheSettings,
    Settings,
    HttpSettings,
    MetricsSettings,
    GraphiteSettings,
    StatsdSettings,
    ScrapeSettings,
    ForwardSettings,
)


def inputs(sections: Mapping[str, Any]) -> bool:
    """Whether samples come in by other ways than HTTP."""
    ports = any(sections[name].address for name in ("graphite", "statsd"))
    return ports or bool(sections["scrape"])
