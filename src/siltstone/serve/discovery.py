"""Where a job's targets come from beside its own list: groups with labels of their own in the
settings (static_configs), and files that other programs write (file_sd_configs).

Names, meaning and the form of the files are Prometheus' (docs: "Configuration", file_sd_config). A
file that cannot be read or makes no sense is told once, and what it said before counts on; one
that is gone has no targets. `TargetFiles.look` is called in one thread at a time.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from siltstone.config import MIB, Kind, nearest, parse_duration
from siltstone.errors import ConfigError
from siltstone.log.foreign import ForeignFile

log = logging.getLogger("siltstone.serve")

A = TypeVar("A")

FILE_BYTES_MAX: Final = 16 * MIB
# Files are looked at (not read) this often, or after refresh_interval where that is less.
LOOK_SECONDS: Final = 5.0
REFRESH_SECONDS: Final = 300.0  # as Prometheus
FILE_LABEL: Final = "__meta_filepath"
_PATTERN: Final = re.compile(r"[^*]*(\*[^/]*)?\.(json|yml|yaml)")
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True)
class Group:
    """Targets, and what labels all of them have."""

    targets: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FileDiscovery:
    """One of file_sd_configs."""

    files: tuple[str, ...]
    refresh_interval: float = REFRESH_SECONDS


class TargetFiles:
    """The groups in the files that these patterns name, as of the last `look`."""

    def __init__(self, configs: Sequence[FileDiscovery]) -> None:
        self.look_seconds = min([LOOK_SECONDS, *(one.refresh_interval for one in configs)])
        self.failures = 0  # files that could not be read, each time that they changed
        self.configs = configs
        self._patterns = [pattern for one in configs for pattern in one.files]
        self._signatures: dict[str, Any] = {}
        self._groups: dict[str, tuple[Group, ...]] = {}

    @property
    def groups(self) -> list[Group]:
        return [group for name in sorted(self._groups) for group in self._groups[name]]

    def look(self) -> bool:
        """Read what has changed; whether that says something else."""
        before = dict(self._groups)
        names = {name for pattern in self._patterns for name in glob.glob(pattern)}
        for name in self._signatures.keys() - names:
            del self._signatures[name]
            self._groups.pop(name, None)
        for name in sorted(names):
            signature = _signature(name)
            if self._signatures.get(name) != signature:
                self._signatures[name] = signature
                self._read(name)
        return self._groups != before

    def _read(self, name: str) -> None:
        try:
            self._groups[name] = groups_of(name, _content(name))
        except (OSError, ConfigError) as error:
            self.failures += 1
            log.warning("the targets in %s count as they were: %s", name, error)


def _signature(name: str) -> Any:
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _content(name: str) -> bytes:
    with ForeignFile(Path(name)) as file:
        if file.size > FILE_BYTES_MAX:
            raise ConfigError(f"longer than {FILE_BYTES_MAX} bytes")
        return file.read(0, file.size)


def groups_of(name: str, data: bytes) -> tuple[Group, ...]:
    """What such a file says. ConfigError: it makes no sense."""
    try:
        value = msgspec.json.decode(data) if name.endswith(".json") else _yaml(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(error)) from None
    found = _listed("groups", _group, value or ())
    return tuple(Group(one.targets, {FILE_LABEL: name, **one.labels}) for one in found)


def _yaml(data: bytes) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError("YAML needs pip install pyyaml; JSON is read without it") from None
    try:
        return yaml.load(data, yaml.BaseLoader)  # lists, mappings and texts: `port: 80` is "80"
    except yaml.YAMLError as error:
        raise ConfigError(" ".join(str(error).split())) from None


# In settings ---------------------------------------------------------------------------------


def _listed(what: str, read: Callable[[Any], A], value: Any) -> tuple[A, ...]:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise ConfigError(f"{value!r} are no {what}: a list of them")
    return tuple(read(one) for one in value)


def _known(value: Any, names: Sequence[str], example: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{value!r} is none: {example}")
    for name in value:
        if name not in names:
            raise ConfigError(f"there is no {name!r} in one{nearest(str(name), names)}")
    return value


def _group(value: Any) -> Group:
    if isinstance(value, Group):
        return value
    given = _known(
        value, ("targets", "labels"), '{ targets = ["a:9100"], labels = { rack = "a" } }'
    )
    labels = given.get("labels") or {}
    if not isinstance(labels, Mapping):
        raise ConfigError(f"{labels!r} are no labels")
    for name, text in labels.items():
        if not isinstance(name, str) or not _LABEL.fullmatch(name) or not isinstance(text, str):
            raise ConfigError(f"{name!r}: {text!r} is no label")
    return Group(_listed("targets", _text, given.get("targets") or ()), dict(labels))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{value!r} is no text")
    return value


def _discovery(value: Any) -> FileDiscovery:
    if isinstance(value, FileDiscovery):
        return value
    given = _known(value, ("files", "refresh_interval"), '{ files = ["targets/*.json"] }')
    files = _listed("files", _text, given.get("files") or ())
    if not files:
        raise ConfigError('it names no files: { files = ["targets/*.json"] }')
    for name in files:
        if not _PATTERN.fullmatch(name):
            raise ConfigError(
                f"{name!r}: write a .json, .yml or .yaml; a * may be in its last part"
            )
    seconds = parse_duration(given.get("refresh_interval", REFRESH_SECONDS))
    if seconds <= 0:
        raise ConfigError(f"refresh_interval is {seconds:g} s: more than 0")
    return FileDiscovery(files, seconds)


def _shown_group(one: Group) -> str:
    labels = ",".join(f"{name}={text}" for name, text in one.labels.items())
    return f"{','.join(one.targets)} {{{labels}}}"


GROUPS: Final = Kind(
    "groups",
    lambda value: _listed("groups", _group, value or ()),
    lambda value: "; ".join(_shown_group(one) for one in value),
)
DISCOVERIES: Final = Kind(
    "files",
    lambda value: _listed("file_sd_configs", _discovery, value or ()),
    lambda value: ",".join(name for one in value for name in one.files),
)
