"""Certificates of servers: a good one, one for another host, an expired one; who signs them, and who shows them."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trustme

from kbatchd.devstack.kafka import Listeners

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KINDS = ("GOOD", "ELSEWHERE", "EXPIRED")


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files by kind: a server's certificate chain and its key, apart and in one file."""

    directory: Path

    @property
    def authority(self) -> Path:
        return self.directory / "authority.pem"

    @property
    def stranger(self) -> Path:
        """An authority that has signed none of them."""
        return self.directory / "stranger.pem"

    def chain(self, kind: str) -> Path:
        return self.directory / f"{kind}.pem"

    def key(self, kind: str) -> Path:
        return self.directory / f"{kind}.key"

    def both(self, kind: str) -> Path:
        return self.directory / f"{kind}.both"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(made.authority)
    trustme.CA().cert_pem.write_to_path(made.stranger)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    for kind in KINDS:
        host = "elsewhere.example" if kind == "ELSEWHERE" else "localhost"
        issued = authority.issue_cert(host, not_after=yesterday if kind == "EXPIRED" else None)
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        key = issued.private_key_pem.bytes()
        made.chain(kind).write_bytes(chain)
        made.key(kind).write_bytes(_pkcs8(key))
        made.both(kind).write_bytes(_pkcs8(key) + chain)
    return made


def _pkcs8(key: bytes) -> bytes:
    """Kafka takes no other form of a key."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


#: A listener with TLS and SCRAM; its key and certificates are one PEM file.
SCRAM_LISTENER = """
listener.name.{name}.ssl.keystore.type=PEM
listener.name.{name}.ssl.keystore.location={keystore}
listener.name.{name}.sasl.enabled.mechanisms=SCRAM-SHA-256
listener.name.{name}.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"""


def scram_listeners(user: str, password: str, keystores: Mapping[str, Path]) -> Listeners:
    """A listener for each of these certificates, by its name; this user may log in."""
    return Listeners(
        protocols=dict.fromkeys(keystores, "SASL_SSL"),
        properties="".join(SCRAM_LISTENER.format(name=n.lower(), keystore=path) for n, path in keystores.items()),
        format=("--add-scram", f"SCRAM-SHA-256=[name={user},password={password}]"),
    )


class TlsFront:
    """Speaks TLS for a PostgreSQL that was built without it (the wheel's): libpq's own request for it, then bytes."""

    def __init__(self, server: tuple[str, int], certificates: Certificates) -> None:
        self._server = server
        self._certificates = certificates
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def show(self, kind: str) -> None:
        """Show this certificate from now on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificates.chain(kind), self._certificates.key(kind))
        self._context = context

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            request = client.recv(8, socket.MSG_WAITALL)
            if request != SSL_REQUEST:  # nothing goes on in the clear
                return
            client.sendall(b"S")
            with (
                self._context.wrap_socket(client, server_side=True) as inner,
                socket.create_connection(self._server) as server,
            ):
                back = threading.Thread(target=_pump, args=[server, inner], daemon=True)
                back.start()
                _pump(inner, server)
                back.join()


#: The first message of a client that wants TLS: its length, and the number 80877103.
SSL_REQUEST = struct.pack(">II", 8, 80_877_103)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
