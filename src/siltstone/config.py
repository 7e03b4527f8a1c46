"""Every setting with its unit, default and limits; sizes, durations, and where settings come from.

Promises: a settings object that exists is valid, and its automatic values are filled in; an error
names the setting and a value that would work; an unknown name gives the nearest one. Called by
the caches' constructors and by the command line, from any thread. Holds no state.

Sources, later ones win: defaults, a TOML file, the environment (SILTSTONE_SECTION_KEY), flags.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from siltstone.errors import ConfigError

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB

# Positions hold 52 bits of 16-byte units over the life of a cache: 64 PiB.
SIZE_MAX: Final = 1 << 56
SEGMENTS_MIN: Final = 8  # four streams with an open segment each, and as many to reclaim from
SEGMENTS_MAX: Final = 1 << 24  # a segment table entry has 24 bits for the slot
SEGMENT_ALIGNMENT: Final = 4 * KIB

_SIZE_UNITS: Final = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "kb": 10**3,
    "m": MIB, "mib": MIB, "mb": 10**6,
    "g": GIB, "gib": GIB, "gb": 10**9,
    "t": TIB, "tib": TIB, "tb": 10**12,
    "p": 1024 * TIB, "pib": 1024 * TIB, "pb": 10**15,
}  # fmt: skip
_SECONDS: Final = {
    "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0,
    "w": 604800.0,
}  # fmt: skip
_DURATION_PART: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|min|s|m|h|d|w)", re.IGNORECASE)
DURATION_MAX: Final = 1000 * 365 * 86400.0

# Sizes and durations ------------------------------------------------------------------------


def parse_size(value: int | str) -> int:
    """Bytes of 1024, "64MiB", "1g", "1.5 GB"; one letter is a power of 1024, "MB" is 10^6."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        unit = _SIZE_UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise ConfigError(f'{value!r} is no size: write bytes, or "100k", "64MiB", "1GiB"')
        size = int(match[1]) * unit if match[1].isdigit() else int(float(match[1]) * unit)
    else:
        raise ConfigError(f'{value!r} is no size: write bytes, or "64MiB"')
    if not 0 <= size <= SIZE_MAX:
        raise ConfigError(f"{value!r} is no size: 0 to {format_size(SIZE_MAX)}")
    return size


def format_size(size: int) -> str:
    """The shortest exact text that `parse_size` reads back."""
    for unit, name in ((1024 * TIB, "PiB"), (TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


def parse_duration(value: float | str | timedelta) -> float:
    """Seconds of 1.5, timedelta, "500ms", "2h5m", "60"."""
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        seconds = _duration_text(value)
    else:
        raise ConfigError(f'{value!r} is no duration: write seconds, a timedelta or "500ms"')
    if not 0 <= seconds <= DURATION_MAX:  # refuses nan too
        raise ConfigError(f"{value!r} is no duration: 0 seconds to 1000 years")
    return seconds


def duration_ms(value: float | str | timedelta) -> int:
    """Milliseconds of a duration, rounded up: what lives is never cut short."""
    return math.ceil(round(parse_duration(value) * 1000, 6))


def _duration_text(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    total, place = 0.0, 0
    while match := _DURATION_PART.match(text, place):
        total += float(match[1]) * _SECONDS[match[2].lower()]
        place = match.end()
    if place == 0 or text[place:].strip():
        raise ConfigError(f'{text!r} is no duration: write seconds, or "500ms", "2h5m", "1d"')
    return total


def format_duration(seconds: float) -> str:
    """The shortest text in one unit that `parse_duration` reads back."""
    for unit in ("w", "d", "h", "m", "s", "ms"):
        count = seconds / _SECONDS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return repr(seconds)


# Kinds of settings --------------------------------------------------------------------------


class Kind(NamedTuple):
    """How the values of a setting are read and shown."""

    name: str
    parse: Callable[[Any], Any]
    show: Callable[[Any], str]


def _switch(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("1", "true", "yes", "on"):
        return True
    if isinstance(value, str) and value.lower() in ("0", "false", "no", "off"):
        return False
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{value!r} is neither true nor false")


def _count(value: Any) -> int:
    if isinstance(value, str):
        try:
            return int(value, 0)
        except ValueError:
            raise ConfigError(f"{value!r} is no whole number") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{value!r} is no whole number")
    return value


def _fraction(value: Any) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ConfigError(f"{value!r} is no number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ConfigError(f"{value!r} is no number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{value!r} is no text")
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, (str, bytes, os.PathLike)) or not os.fspath(value):
        raise ConfigError(f"{value!r} is no path")
    text = os.fsdecode(value)
    if "\0" in text:
        raise ConfigError(f"{value!r} is no path: it has a zero byte")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ConfigError(f"{value!r} is no path: {error}") from None
    return Path(text).expanduser()


def data_directory(value: Any) -> Path:
    """A path that stays the same when the process changes its directory; ConfigError: none."""
    return _path(value).absolute()


def _mode(value: Any) -> int:
    if isinstance(value, str):
        try:
            value = int(value, 8)
        except ValueError:
            raise ConfigError(f'{value!r} is no file mode: write "0600"') from None
    return _count(value)


def _files(value: Any) -> tuple[tuple[Path, int], ...]:
    if isinstance(value, str):
        value = [part for part in value.split(",") if part]
    if not isinstance(value, Iterable):
        raise ConfigError('files is a list of pairs: [["/disk1/a", "100GiB"], ...]')
    return tuple(_file(entry) for entry in value)


def _file(entry: Any) -> tuple[Path, int]:
    if isinstance(entry, str):
        entry = entry.rpartition(":")[::2]  # the last colon: a path may hold others
    try:
        path, size = entry
    except (TypeError, ValueError):
        raise ConfigError(
            f'{entry!r} is no pair of path and size: ["/disk1/a", "100GiB"]'
        ) from None
    return _path(path), parse_size(size)


def _codec(value: Any) -> Any:
    return value  # names and objects alike: siltstone.codecs.resolve() judges


SIZE: Final = Kind("size", parse_size, format_size)
DURATION: Final = Kind("duration", parse_duration, format_duration)
COUNT: Final = Kind("count", _count, str)
FRACTION: Final = Kind("fraction", _fraction, str)
SWITCH: Final = Kind("switch", _switch, lambda value: "true" if value else "false")
TEXT: Final = Kind("text", _text, str)
PATH: Final = Kind("path", _path, str)
MODE: Final = Kind("mode", _mode, lambda value: f"0{value:o}")
FILES: Final = Kind(
    "files", _files, lambda value: ",".join(f"{path}:{format_size(size)}" for path, size in value)
)
CODEC: Final = Kind("codec", _codec, str)


def setting(
    default: Any,
    kind: Kind,
    text: str,
    *,
    low: Any = None,
    high: Any = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that knows its kind, limits and meaning. None = chosen automatically."""
    metadata = {"kind": kind, "low": low, "high": high, "choices": choices, "text": text}
    return field(default=default, metadata=metadata)


def names_of(owner: Any) -> list[str]:
    """The names of a section's settings, in order."""
    return [f.name for f in fields(owner)]


class SettingsBase:
    """Reads, checks and freezes the fields when the object is made."""

    section = ""
    # Of a section that a file may have several times, [[section]]: the setting that tells them
    # apart. "": there is one.
    listed_by = ""

    def __post_init__(self) -> None:
        for name in names_of(type(self)):
            self._set(name, check(type(self), name, getattr(self, name)))
        self.derive()

    def derive(self) -> None:
        """Fill in what was left to us, and check what depends on several settings."""

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def refuse(self, name: str, problem: str) -> None:
        raise ConfigError(f"[{self.section}] {name}: {problem}")


def check(owner: type[SettingsBase], name: str, value: Any) -> Any:
    """The value in its own type and within its limits, else ConfigError."""
    found = owner.__dataclass_fields__[name]  # type: ignore[attr-defined]
    metadata = found.metadata
    if "kind" not in metadata or (value is None and found.default is None):
        return value
    kind, low, high = metadata["kind"], metadata["low"], metadata["high"]
    if value is None:
        raise ConfigError(
            f"[{owner.section}] {name}: None is no {kind.name}; unless said it is {found.default!r}"
        )
    try:
        value = kind.parse(value)
    except ConfigError as error:
        raise ConfigError(f"[{owner.section}] {name}: {error}") from None
    where = f"[{owner.section}] {name}"
    if low is not None and value < low:
        raise ConfigError(f"{where}: {kind.show(value)} is too small, use {kind.show(low)} or more")
    if high is not None and value > high:
        raise ConfigError(
            f"{where}: {kind.show(value)} is too large, use {kind.show(high)} or less"
        )
    if metadata["choices"] and value not in metadata["choices"]:
        raise ConfigError(
            f"{where}: {value!r} is unknown, use one of {_listed(metadata['choices'])}"
        )
    return value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


# The cache ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings(SettingsBase):
    """The settings of a cache, all of them; sizes in bytes, durations in seconds.

    `path` None with `files` given: private flash that is empty at each opening (memcached's way).
    """

    section = "cache"

    path: Path | None = setting(None, PATH, "data directory; none: memory only, or `files`")
    ram: int = setting("64MiB", SIZE, "memory limit: items, index and buffers", low=1 * MIB)
    ram_max: int = setting(None, SIZE, "highest limit that may be set while running; 4 x ram")
    flash: int = setting("1GiB", SIZE, "flash used in the data directory; 0: none")
    files: tuple[tuple[Path, int], ...] = setting((), FILES, "flash files of several devices")
    codec: Any = setting("msgpack", CODEC, "msgpack, json, raw, pickle, or an object")
    arena: str = setting(
        "auto",
        TEXT,
        "where shared memory lives",
        choices=("auto", "shm", "memfd", "file", "private"),
    )
    mode: int = setting(0o600, MODE, "of the files in the data directory", low=0, high=0o777)
    evict: bool = setting(True, SWITCH, "false: a full cache refuses what is new (-M)")
    cas: bool = setting(True, SWITCH, "false: no CAS numbers (-C)")
    item_size_max: int = setting(
        None, SIZE, "largest value; 1MiB, at most half of ram without flash", low=KIB, high=GIB
    )
    item_size_min: int = setting(512, SIZE, "smaller values go to flash only when memory is short")
    item_age: float | None = setting(None, DURATION, "idle time after which an item goes to flash")
    low_ttl: float = setting(0, DURATION, "items with less time left share a stream; 0: off")
    low_ttl_min: float = setting(2, DURATION, "items with less time left never go to flash")
    recache_rate: int = setting(
        2000, COUNT, "one in so many hits takes a hot item back to memory; 0: none", low=0
    )
    compact_under: int = setting(None, COUNT, "free segments below which compaction starts", low=0)
    drop_under: int = setting(None, COUNT, "free segments below which unread items are dropped")
    max_fragmentation: float = setting(
        0.8, FRACTION, "live share below which a segment is worth compacting", low=0.0, high=1.0
    )
    drop_unread: bool = setting(False, SWITCH, "compaction drops what was never read")
    segment_size: int = setting(
        None, SIZE, "unit of reclaim; flash/256 within 1MiB..64MiB", low=64 * KIB, high=GIB
    )
    buffer_size: int = setting(
        None, SIZE, "unit of writing; ram/128 within 64KiB..4MiB", low=4 * KIB, high=64 * MIB
    )
    buffers: int = setting(None, SIZE, "memory of all write buffers together; ram/16")
    workers: int = setting(2, COUNT, "threads for device I/O; 0: callers do it", low=0, high=256)
    direct: bool = setting(False, SWITCH, "O_DIRECT: past the page cache")
    flush_idle: float = setting(1, DURATION, "a part-filled buffer is written after so long")
    lease: float = setting(30, DURATION, "time one computation of get_or_set may take", low=0.001)

    def derive(self) -> None:
        self._derive_memory()
        self._derive_flash()

    def _derive_memory(self) -> None:
        if self.ram_max is None:
            self._set("ram_max", min(4 * self.ram, SIZE_MAX))
        if self.ram_max < self.ram:
            self.refuse("ram_max", f"below ram; use {format_size(self.ram)} or more")
        if self.path is None and not self.files:
            self._set("flash", 0)
        if self.files:
            self._set("flash", sum(size for _, size in self.files))
        if self.item_size_max is None:
            self._set("item_size_max", min(MIB, self.ram // 2))
        elif not self.flash and self.item_size_max > self.ram // 2:
            self.refuse(
                "item_size_max",
                f"without flash at most half of ram, {format_size(self.ram // 2)}",
            )

    def _derive_flash(self) -> None:
        automatic = _power_below(min(max(self.flash // 256, MIB), 64 * MIB))
        if self.buffer_size is None:
            segment = automatic if self.segment_size is None else self.segment_size
            size = _power_below(min(max(self.ram // 128, 64 * KIB), 4 * MIB, segment))
            while segment % size and size > 4 * KIB:
                size //= 2
            self._set("buffer_size", size)
        if self.segment_size is None:
            # a buffer size of one's own need not be a power of two
            size = max(automatic, self.buffer_size)
            self._set("segment_size", size - size % self.buffer_size)
        if self.buffers is None:
            self._set("buffers", max(self.ram // 16, 2 * self.buffer_size))
        if self.flash:
            self._check_flash()
        count = self.segments
        if self.compact_under is None:
            self._set("compact_under", max(count // 4, 1))
        if self.drop_under is None:
            self._set("drop_under", max(count // 4, 1))

    def _check_flash(self) -> None:
        check_log_sizes(self)
        if self.segments < SEGMENTS_MIN:
            self.refuse(
                "flash",
                f"{format_size(self.flash)} holds {self.segments} segments of "
                f"{format_size(self.segment_size)}, {SEGMENTS_MIN} are needed: use "
                f"{format_size(SEGMENTS_MIN * self.segment_size)} or more, or smaller segments",
            )
        if self.segments > SEGMENTS_MAX:
            self.refuse(
                "segment_size",
                f"{self.segments} segments are too many, use "
                f"{format_size(_power_below(self.flash // SEGMENTS_MAX) * 2)} or more",
            )

    @property
    def segments(self) -> int:
        """How many segments the flash holds; a file counts its whole ones."""
        if self.files:
            return sum(size // self.segment_size for _, size in self.files)
        return self.flash // self.segment_size

    @property
    def flash_files(self) -> tuple[tuple[Path, int], ...]:
        """The flash files with their sizes in whole segments: `files`, else one in the data
        directory."""
        files = self.files
        if not files and self.flash and self.path is not None:
            files = ((self.path / "flash", self.flash),)
        return tuple((path, size - size % self.segment_size) for path, size in files)


def _power_below(size: int) -> int:
    return 1 << (max(size, 1).bit_length() - 1)


# Where settings come from -------------------------------------------------------------------

S = TypeVar("S", bound=SettingsBase)


def check_log_sizes(settings: Any) -> None:
    """`segment_size` and `buffer_size` as the log needs them: whole blocks, and whole buffers in a
    segment. The ConfigError names the nearest sizes that fit."""
    for name in ("segment_size", "buffer_size"):
        size = getattr(settings, name)
        if size % SEGMENT_ALIGNMENT:
            up = size + SEGMENT_ALIGNMENT - size % SEGMENT_ALIGNMENT
            settings.refuse(name, f"{size} is no multiple of 4KiB, use {format_size(up)}")
    if settings.segment_size % settings.buffer_size:
        fits = max(1, round(settings.segment_size / settings.buffer_size)) * settings.buffer_size
        settings.refuse(
            "segment_size",
            f"{format_size(settings.segment_size)} is no multiple of buffer_size "
            f"({format_size(settings.buffer_size)}), use {format_size(fits)}",
        )


def build(owner: type[S], options: Mapping[str, Any], where: str = "") -> S:
    """Settings from a mapping; an unknown name is a ConfigError with the nearest one."""
    names = names_of(owner)
    for name in options:
        if name not in names:
            raise ConfigError(
                f"{where or f'[{owner.section}]'}: unknown setting {name!r}{nearest(name, names)}"
            )
    return owner(**options)


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message: the likeliest name that was meant, or all there are."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f", did you mean {close[0]!r}?"
    return f"; there are {', '.join(sorted(names))}" if names else ""


def load(
    owners: Iterable[type[SettingsBase]],
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """One settings object a section, from file, environment and flags (later ones win).

    Sections with a `listed_by` give a tuple of them; only a file can have these.
    """
    by_section = {owner.section: owner for owner in owners}
    merged: dict[str, dict[str, Any]] = {section: {} for section in by_section}
    lists: dict[str, list[Any]] = {}
    for source, where in (
        (_read_toml(file) if file else {}, str(file)),
        (_read_environment(environ or {}), "environment"),
        (flags or {}, "flags"),
    ):
        for section, options in source.items():
            if section in by_section and by_section[section].listed_by:
                lists[section] = _each(by_section[section], options, where)
            else:
                _merge(by_section, merged, section, options, where)
    return {
        section: tuple(lists.get(section, ())) if owner.listed_by else build(owner, merged[section])
        for section, owner in by_section.items()
    }


def _each(owner: type[SettingsBase], entries: Any, where: str) -> list[SettingsBase]:
    """The settings of a section that is there several times."""
    name = owner.section
    if not isinstance(entries, list) or not all(isinstance(one, Mapping) for one in entries):
        raise ConfigError(f"{where}: {name} is a list: write [[{name}]] above each of its parts")
    found = []
    for number, options in enumerate(entries, 1):
        try:
            found.append(build(owner, options))
        except ConfigError as error:
            raise ConfigError(f"{where}: {name} number {number}: {error}") from None
    names = [getattr(one, owner.listed_by) for one in found]
    for one in names:
        if names.count(one) > 1:
            raise ConfigError(f"{where}: two [[{name}]] with {owner.listed_by} {one!r}")
    return found


def _merge(
    by_section: Mapping[str, type[SettingsBase]],
    merged: dict[str, dict[str, Any]],
    section: str,
    options: Any,
    where: str,
) -> None:
    if section not in by_section:
        raise ConfigError(f"{where}: unknown section {section!r}{nearest(section, by_section)}")
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where}: {section} is a section: write [{section}] above its settings")
    owner = by_section[section]
    names = names_of(owner)
    for name, value in options.items():
        if name not in names:
            raise ConfigError(
                f"{where}: unknown setting {name!r} in [{section}]{nearest(name, names)}"
            )
        try:
            check(owner, name, value)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        merged[section][name] = value


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None


def _read_environment(environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for variable, value in environ.items():
        if not variable.startswith("SILTSTONE_"):
            continue
        section, _, name = variable.removeprefix("SILTSTONE_").lower().partition("_")
        if name:  # SILTSTONE_CONFIG and its like are no settings
            found.setdefault(section, {})[name] = value
    return found


class SettingRow(NamedTuple):
    """One setting as tables show it."""

    name: str
    kind: str
    default: str
    limits: str
    text: str


def describe(owner: type[SettingsBase]) -> Iterator[SettingRow]:
    """The settings of a section, in order, for documents and `check-config`."""
    for f in fields(owner):  # type: ignore[arg-type]
        kind: Kind | None = f.metadata.get("kind")
        if kind is None:
            continue
        default = None if f.default is MISSING else f.default
        low, high = f.metadata["low"], f.metadata["high"]
        limits = " | ".join(f.metadata["choices"])
        if low is not None or high is not None:
            limits = "..".join("" if end is None else kind.show(end) for end in (low, high))
        shown = "automatic" if default is None else kind.show(kind.parse(default))
        yield SettingRow(f.name, kind.name, shown, limits, f.metadata["text"])


def shown(settings: SettingsBase) -> dict[str, str]:
    """Each setting's value as text, automatic ones filled in."""
    out = {}
    for f in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, f.name)
        kind: Kind | None = f.metadata.get("kind")
        out[f.name] = "none" if value is None else kind.show(value) if kind else str(value)
    return out
