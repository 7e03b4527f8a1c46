"""The memcached port over TLS: real clients, certificates of both sides, files read again."""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheError
from serverrig import Running, read_until

from siltstone.errors import ConfigError
from siltstone.serve.settings import Settings
from siltstone.serve.tls import Tls

AUTHORITY = trustme.CA()


def write(issued: trustme.LeafCert, path: Path) -> Path:
    issued.private_key_and_cert_chain_pem.write_to_path(path)
    return path


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return write(AUTHORITY.issue_cert("localhost"), tmp_path / "server.pem")


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "authority.pem")
    return tmp_path / "authority.pem"


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


def client(running: Running, context: ssl.SSLContext, port: int = 0) -> Any:
    address = ("localhost", running.server.ports[port])
    return contextlib.closing(Client(address, timeout=10, tls_context=context))


def shown(running: Running) -> bytes | None:
    """The certificate that a new connection is shown."""
    with (
        running.connect() as sock,
        trusting().wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        return tls.getpeercert(binary_form=True)


@pytest.mark.parametrize("uvloop", [True, False])
def test_a_client_over_tls(certificate: Path, uvloop: bool) -> None:
    with (
        Running(tls_certificate=certificate, uvloop=uvloop) as running,
        client(running, trusting()) as found,
    ):
        assert found.set("a", b"x" * 900_000, noreply=False)
        assert found.get("a") == b"x" * 900_000
        assert found.set_many({f"k{n}": b"v" * 1000 for n in range(500)}, noreply=False) == []
        assert len(found.get_many([f"k{n}" for n in range(500)])) == 500
        assert found.stats("settings")[b"ssl_enabled"] == b"yes"


def test_an_address_without_tls(certificate: Path) -> None:
    listen = "notls:127.0.0.1:0,127.0.0.1:0"
    with Running(tls_certificate=certificate, listen=listen) as running:
        with running.connect() as plain:
            plain.sendall(b"version\r\n")
            assert read_until(plain, b"\r\n") == b"VERSION 1.6.18\r\n"
        with client(running, trusting(), port=1) as found:
            assert found.version() == b"1.6.18"


def test_who_does_not_speak_tls_is_closed_and_nobody_else(certificate: Path) -> None:
    with Running(tls_certificate=certificate) as running:
        with running.connect() as plain:
            plain.sendall(b"version\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert b"VERSION" not in plain.recv(1000)
        with client(running, trusting()) as found:
            assert found.version() == b"1.6.18"
        assert running.control.counters.connections_total == 1


def test_clients_that_must_show_a_certificate(certificate: Path, authority: Path) -> None:
    with Running(
        tls_certificate=certificate, tls_client_ca=authority, tls_verify="require"
    ) as running:
        with client(running, trusting()) as stranger, pytest.raises((OSError, MemcacheError)):
            stranger.version()
        known = trusting()
        AUTHORITY.issue_cert("client@example.org").configure_cert(known)
        with client(running, known) as found:
            assert found.version() == b"1.6.18"


def test_certificates_are_read_again(certificate: Path) -> None:
    with Running(tls_certificate=certificate) as running, client(running, trusting()) as found:
        first = shown(running)
        write(AUTHORITY.issue_cert("localhost"), certificate)
        assert shown(running) == first
        assert found.raw_command("refresh_certs") == b"OK"
        second = shown(running)
        assert second != first
        certificate.write_text("nothing")
        assert found.raw_command("refresh_certs").startswith(b"Error [memcached] tls_cert")
        assert shown(running) == second
        assert found.version() == b"1.6.18"


def test_what_is_wrong_is_named(tmp_path: Path, certificate: Path) -> None:
    def made(**settings: Any) -> Tls:
        return Tls(Settings(tls_certificate=certificate, **settings))

    other = tmp_path / "other.pem"
    AUTHORITY.issue_cert("localhost").private_key_pem.write_to_path(other)
    for name, wrong in (
        ("tls_certificate", lambda: Tls(Settings(tls_certificate=tmp_path / "none.pem"))),
        ("tls_key", lambda: made(tls_key=tmp_path / "none.pem")),
        ("tls_key", lambda: made(tls_key=other)),
        ("tls_client_ca", lambda: made(tls_client_ca=tmp_path / "none.pem", tls_verify="request")),
        ("tls_ciphers", lambda: made(tls_ciphers="bogus")),
        ("tls_verify", lambda: made(tls_verify="require")),
        ("tls_verify", lambda: made(tls_verify="perhaps")),
        ("tls_key", lambda: Settings(tls_key=other)),
    ):
        with pytest.raises(ConfigError, match=rf"\[memcached\] {name}: "):
            wrong()


def test_a_key_with_a_password_asks_nobody(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    issued = AUTHORITY.issue_cert("localhost")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    path = tmp_path / "locked.pem"
    path.write_bytes(locked + issued.cert_chain_pems[0].bytes())
    with pytest.raises(ConfigError, match="has a password"):
        Tls(Settings(tls_certificate=path))


def test_a_client_that_ends_in_the_middle(certificate: Path) -> None:
    with Running(tls_certificate=certificate) as running:
        with trusting().wrap_socket(running.connect(), server_hostname="localhost") as shaken:
            shaken.sendall(b"set a 0 0 10\r\nhalf")
            with contextlib.suppress(OSError):
                shaken.unwrap()
        with socket.socket() as silent:  # never shakes hands
            silent.connect(("127.0.0.1", running.server.ports[0]))
            with client(running, trusting()) as found:
                assert found.get("a") is None
