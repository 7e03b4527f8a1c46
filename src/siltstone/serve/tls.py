"""TLS of the memcached port: one context, made from the settings, whose files can be read again.

Promises: what cannot be read or does not belong together is a ConfigError that names the setting,
before a port is open; when files are read again and are wrong, those before stay in force.
"""

from __future__ import annotations

import ssl
from typing import Any, Final

from siltstone.errors import ConfigError
from siltstone.serve.settings import Settings

VERIFY: Final = {
    "none": ssl.CERT_NONE,
    "request": ssl.CERT_OPTIONAL,
    "require": ssl.CERT_REQUIRED,
}
VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# Who does not shake hands holds a descriptor, and is not counted as a connection yet.
HANDSHAKE_SECONDS: Final = 10.0


class Tls:
    """What listeners take; connections keep what they began with."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.context = self._made()

    @property
    def options(self) -> dict[str, Any]:
        """For the loop's `create_server`."""
        return {"ssl": self.context, "ssl_handshake_timeout": HANDSHAKE_SECONDS}

    def refresh(self) -> None:
        """Read certificate, key and authorities again, for connections from now on."""
        self._made()  # all of it is sound, or nothing changes
        self._read(self.context)

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = VERSIONS[self.settings.tls_version_min]
        context.verify_mode = VERIFY[self.settings.tls_verify]
        if self.settings.tls_ciphers:
            try:
                context.set_ciphers(self.settings.tls_ciphers)
            except ssl.SSLError:
                self.settings.refuse("tls_ciphers", f"OpenSSL knows no {self.settings.tls_ciphers}")
        self._read(context)
        return context

    def _read(self, context: ssl.SSLContext) -> None:
        certificate, key = self.settings.tls_certificate, self.settings.tls_key
        assert certificate is not None  # else there is no TLS
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (OSError, ConfigError) as error:
            name, path = ("tls_key", key) if key else ("tls_certificate", certificate)
            if isinstance(error, FileNotFoundError) and not certificate.exists():
                name, path = "tls_certificate", certificate
            self.settings.refuse(name, f"{path}: {error}")
        if self.settings.tls_client_ca is not None:
            try:
                context.load_verify_locations(self.settings.tls_client_ca)
            except OSError as error:
                self.settings.refuse("tls_client_ca", f"{self.settings.tls_client_ca}: {error}")


def _no_password() -> str:
    """OpenSSL would ask on the terminal, which a server does not have."""
    raise ConfigError("the key has a password: give one without")
