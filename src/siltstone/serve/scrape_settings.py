"""[[scrape]]: what is asked for its metrics, how often, and what it may answer.

Names and meaning are those of `scrape_configs` in Prometheus' configuration; `targets` and `labels`
are those of its `static_configs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from siltstone.config import (
    COUNT,
    DURATION,
    KIB,
    MIB,
    SIZE,
    SWITCH,
    TEXT,
    Kind,
    format_duration,
    setting,
)
from siltstone.errors import ConfigError
from siltstone.serve.peers import LABELS, PARAMETERS, PeerSettings
from siltstone.serve.settings import split_address

TIMEOUT_SECONDS: Final = 10.0
PORTS: Final = {"http": 80, "https": 443}


def _targets(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f'{value!r} is no list of targets: ["localhost:9100", "[::1]:9100"]')
    found = tuple(value)
    for target in found:
        _check_target(target)
        if found.count(target) > 1:
            raise ConfigError(f"the target {target!r} twice")
    return found


def _check_target(target: Any) -> None:
    if not isinstance(target, str) or not target.strip():
        raise ConfigError(f"{target!r} is no target: write host:port")
    if "://" in target or "/" in target:
        raise ConfigError(
            f"{target!r} is no target: write host:port; scheme and metrics_path are settings"
        )
    host, port = split_address(target, 80)
    if not host or port == 0:
        raise ConfigError(f"{target!r} is no target: write host:port")


TARGETS: Final = Kind("targets", _targets, ",".join)


@dataclass(frozen=True, kw_only=True)
class ScrapeSettings(PeerSettings):
    """Of one job: targets that are asked in the same way."""

    section = "scrape"
    listed_by = "job_name"

    job_name: str = setting("", TEXT, "the label `job` of all it finds")
    targets: tuple[str, ...] = setting((), TARGETS, "host:port of each, the label `instance`")
    scrape_interval: float = setting(15, DURATION, "how often", low=0.1, high=86400)
    scrape_timeout: float = setting(
        None, DURATION, "what an answer may take; 10s, or the interval", low=0.05
    )
    metrics_path: str = setting("/metrics", TEXT, "where a target tells them")
    scheme: str = setting("http", TEXT, "how it is asked", choices=("http", "https"))
    params: dict[str, tuple[str, ...]] = setting("", PARAMETERS, "of the URL")
    labels: dict[str, str] = setting("", LABELS, "of all series beside job and instance")
    honor_labels: bool = setting(
        False, SWITCH, "labels that both have: true keeps what was scraped, false as exported_NAME"
    )
    honor_timestamps: bool = setting(True, SWITCH, "false: the time of the scrape for all samples")
    sample_limit: int = setting(0, COUNT, "a scrape with more samples fails; 0: none", low=0)
    body_size_limit: int = setting(
        64 * MIB, SIZE, "a scrape with a longer answer, unpacked, fails", low=KIB
    )

    def derive(self) -> None:
        if not self.job_name:
            self.refuse("job_name", "each job needs a name of its own")
        if not self.targets:
            self.refuse("targets", 'nothing to scrape: targets = ["localhost:9100"]')
        if not self.metrics_path.startswith("/"):
            self.refuse("metrics_path", f"{self.metrics_path!r} does not begin with a slash")
        if self.scrape_timeout is None:
            self._set("scrape_timeout", min(TIMEOUT_SECONDS, self.scrape_interval))
        if self.scrape_timeout > self.scrape_interval:
            self.refuse(
                "scrape_timeout",
                f"longer than scrape_interval: use {format_duration(self.scrape_interval)} or less",
            )
        assert math.isfinite(self.scrape_timeout)

    def address_of(self, target: str) -> str:
        """host:port, as the label `instance` has it."""
        host, port = split_address(target, PORTS[self.scheme])
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def url_of(self, target: str) -> str:
        query = urlencode(list(self.params.items()), doseq=True)
        url = f"{self.scheme}://{self.address_of(target)}{self.metrics_path}"
        return f"{url}?{query}" if query else url
