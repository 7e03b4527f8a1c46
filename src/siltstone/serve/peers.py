"""Other servers that siltstone asks or sends to over HTTP: what their settings have in common.

Who it is there (user and password, headers), how its certificate is checked, and labels. `client`
makes the httpx2 client of such settings. What is secret is not shown by `check-config`.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from siltstone import __version__
from siltstone.config import PATH, SWITCH, TEXT, Kind, SettingsBase, setting
from siltstone.errors import ConfigError

if TYPE_CHECKING:
    import httpx2

USER_AGENT: Final = f"siltstone/{__version__}"
SHOWN_MAX: Final = 200  # of what another server says in an error
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def _labels(value: Any) -> dict[str, str]:
    value = value or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f'{value!r} are no labels: {{ env = "test", rack = "a" }}')
    for name, text in value.items():
        if not _LABEL.fullmatch(name) or name.startswith("__"):
            raise ConfigError(f"{name!r} is no name that a label may have")
        if not isinstance(text, str):
            raise ConfigError(f"the label {name!r} is {text!r}, not a text")
    return dict(value)


def _headers(value: Any) -> dict[str, str]:
    value = value or {}
    if not isinstance(value, Mapping) or not all(isinstance(one, str) for one in value.values()):
        raise ConfigError(f'{value!r} are no headers: {{ X-Scope-OrgID = "a" }}')
    for name, text in value.items():
        if not re.fullmatch(r"[!-9;-~]+", name) or not re.fullmatch(r"[ -~]*", text):
            raise ConfigError(f"the header {name!r} is none that HTTP can carry")
    return dict(value)


def _strings(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        value = [value]
    found = tuple(value)
    if not all(isinstance(one, str) for one in found):
        raise ConfigError(f'{value!r} is no list of texts: ["a", "b"]')
    return found


def _parameters(value: Any) -> dict[str, tuple[str, ...]]:
    value = value or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f'{value!r} are no parameters: {{ module = ["http_2xx"] }}')
    return {name: _strings(texts) for name, texts in value.items()}


LABELS: Final = Kind(
    "labels", _labels, lambda value: ",".join(f"{name}={text}" for name, text in value.items())
)
HEADERS: Final = Kind("headers", _headers, lambda value: ",".join(f"{name}: ***" for name in value))
PARAMETERS: Final = Kind(
    "parameters",
    _parameters,
    lambda value: "&".join(f"{name}={text}" for name, texts in value.items() for text in texts),
)
SECRET: Final = Kind("secret", TEXT.parse, lambda value: "***" if value else "")


@dataclass(frozen=True, kw_only=True)
class PeerSettings(SettingsBase):
    """Of one other server, or several of a kind."""

    username: str = setting("", TEXT, "for HTTP's basic authentication; empty: none")
    password: str = setting("", SECRET, "of that user")
    headers: dict[str, str] = setting("", HEADERS, "sent with every request")
    tls_ca: Path | None = setting(None, PATH, "certificates to trust (PEM); none: the system's")
    tls_verify: bool = setting(True, SWITCH, "false: any certificate will do")


def client(settings: PeerSettings, timeout: float) -> httpx2.AsyncClient:
    """For one event loop; to be closed with `aclose`. ConfigError: certificates are unreadable."""
    import httpx2  # only servers need it

    verify: ssl.SSLContext | bool = settings.tls_verify
    if settings.tls_ca is not None and settings.tls_verify:
        try:
            verify = ssl.create_default_context(cafile=settings.tls_ca)
        except OSError as error:
            settings.refuse("tls_ca", f"{settings.tls_ca}: {error}")
    return httpx2.AsyncClient(
        auth=(settings.username, settings.password) if settings.username else None,
        headers={"User-Agent": USER_AGENT, **settings.headers},
        verify=verify,
        timeout=timeout,
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        trust_env=False,  # a proxy of the environment is for people, not for scrapes
    )


def what_happened(error: Exception) -> str:
    """A sentence for a log or an operator."""
    text = str(error).strip()
    return text[:SHOWN_MAX] if text else type(error).__name__
