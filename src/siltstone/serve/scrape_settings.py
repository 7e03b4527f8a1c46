"""[[scrape]]: what is asked for its metrics, how often, and what it may answer.

Names and meaning are those of `scrape_configs` in Prometheus' configuration; `targets` and `labels`
are short for the one group of `static_configs` that most jobs have. Before a
target is asked, relabel_configs may change where and what it is: the labels __address__,
__scheme__, __metrics_path__ and __param_NAME say that; those that begin with __ are nobody's
afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
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
from siltstone.serve.discovery import DISCOVERIES, GROUPS, FileDiscovery, Group
from siltstone.serve.peers import LABELS, PARAMETERS, PeerSettings
from siltstone.serve.relabelling import RULES, Rule, relabelled
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


NONE: Final[Mapping[str, str]] = {}


class Place(NamedTuple):
    """Where a target is, and what its samples get."""

    url: str
    labels: dict[str, str]


TARGETS: Final = Kind("targets", _targets, ",".join)


@dataclass(frozen=True, kw_only=True)
class ScrapeSettings(PeerSettings):
    """Of one job: targets that are asked in the same way."""

    section = "scrape"
    listed_by = "job_name"

    job_name: str = setting("", TEXT, "the label `job` of all it finds")
    targets: tuple[str, ...] = setting((), TARGETS, "host:port of each, the label `instance`")
    static_configs: tuple[Group, ...] = setting(
        (), GROUPS, "more targets, in groups with labels of their own"
    )
    file_sd_configs: tuple[FileDiscovery, ...] = setting(
        (), DISCOVERIES, "files with more groups, JSON or YAML, read again when they change"
    )
    scrape_interval: float = setting(15, DURATION, "how often", low=0.1, high=86400)
    scrape_timeout: float = setting(
        None, DURATION, "what an answer may take; 10s, or the interval", low=0.05
    )
    metrics_path: str = setting("/metrics", TEXT, "where a target tells them")
    scheme: str = setting("http", TEXT, "how it is asked", choices=("http", "https"))
    params: dict[str, tuple[str, ...]] = setting("", PARAMETERS, "of the URL")
    labels: dict[str, str] = setting("", LABELS, "of all series beside job and instance")
    relabel_configs: tuple[Rule, ...] = setting(
        (), RULES, "rewrite the labels of targets, or drop some, before they are asked"
    )
    metric_relabel_configs: tuple[Rule, ...] = setting(
        (), RULES, "rewrite the labels of what was scraped, or drop some of it"
    )
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
        if not (self.targets or self.static_configs or self.file_sd_configs):
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
        for group in self.groups:
            for target in group.targets:
                try:
                    _check_target(target)
                except ConfigError as error:
                    self.refuse("static_configs", str(error))
                self.place_of(target, group.labels)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Those that the settings name."""
        return (Group(self.targets), *self.static_configs)

    def address_of(self, target: str) -> str:
        """host:port, as the label `instance` has it."""
        return address_text(target, self.scheme)

    def discovered(self, target: str, group: Mapping[str, str] = NONE) -> dict[str, str]:
        """The labels of a target before its rules, as Prometheus names them; `group`: those of
        its group."""
        parameters = {f"__param_{name}": texts[0] for name, texts in self.params.items() if texts}
        given = {
            "__address__": self.address_of(target),
            "__metrics_path__": self.metrics_path,
            "__scheme__": self.scheme,
            "__scrape_interval__": duration_text(self.scrape_interval),
            "__scrape_timeout__": duration_text(self.scrape_timeout),
            "job": self.job_name,
            **parameters,
            **self.labels,
            **group,
        }
        return {name: text for name, text in given.items() if text}

    def place_of(self, target: str, group: Mapping[str, str] = NONE) -> Place | None:
        """Where it is asked; None: the rules drop it. ConfigError: it becomes nothing that can
        be asked."""
        given = self.discovered(target, group)
        labels = relabelled(given, self.relabel_configs)
        if labels is None:
            return None
        usual = self.discovered(target)
        for name in ("__scrape_interval__", "__scrape_timeout__"):
            if labels.pop(name, "") != usual[name]:
                self.refuse("relabel_configs", f"{name} is the job's: make a job of its own")
        scheme = labels.pop("__scheme__", "http")
        path = labels.pop("__metrics_path__", "/metrics")
        try:
            _check_target(labels.get("__address__", ""))
            address = address_text(labels.pop("__address__"), scheme)
        except (ConfigError, KeyError) as error:
            self.refuse("relabel_configs", f"{target} becomes none: {error}")
        if scheme not in PORTS or not path.startswith("/"):
            self.refuse("relabel_configs", f"{target} becomes {scheme}://{address}{path}")
        parameters = dict(self.params)
        for name in [name for name in labels if name.startswith("__param_")]:
            own = name.removeprefix("__param_")
            parameters[own] = (labels[name], *parameters.get(own, ())[1:])
        query = urlencode(list(parameters.items()), doseq=True)
        own_labels = {name: text for name, text in labels.items() if not name.startswith("__")}
        url = f"{scheme}://{address}{path}{'?' if query else ''}{query}"
        return Place(url, {"instance": address, **own_labels})


def address_text(target: str, scheme: str) -> str:
    """host:port, with the scheme's port where it names none."""
    host, port = split_address(target, PORTS.get(scheme, 80))
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def duration_text(seconds: float) -> str:
    """As Prometheus prints durations: 1m30s, 15s, 500ms."""
    ms = round(seconds * 1000)
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, ms = divmod(ms, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
