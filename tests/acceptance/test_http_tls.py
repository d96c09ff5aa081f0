"""HTTPS: who trusts the certificate's authority gets an answer, who does not gets none, and plain HTTP is closed."""

from __future__ import annotations

import http.client
import os
import signal
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psycopg
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from kbatchd.errors import EX_CONFIG
from tests.fix_daemon import wait_until
from tests.fix_load import TABLE
from tests.http_requests import RECORD
from tests.serving import read_all, read_answers, serving

if TYPE_CHECKING:
    from tests.fix_daemon import MakeDaemon
    from tests.fix_http import MakeGateway
    from tests.fix_kafka import MakeTopic


class Identity(NamedTuple):
    """A certificate for localhost, its key, and who believes it."""

    authority: trustme.CA
    certificate: Path
    key: Path

    @property
    def keys(self) -> dict[str, str]:
        return {"tls_certificate_file": str(self.certificate), "tls_key_file": str(self.key)}

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


def _make_identity(directory: Path, name: str) -> Identity:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    for index, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(certificate, append=index > 0)
    issued.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    return Identity(authority, certificate, key)


def _encrypted(key: bytes) -> bytes:
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return _make_identity(tmp_path_factory.mktemp("tls"), "gateway")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return _make_identity(tmp_path_factory.mktemp("tls"), "stranger")


def test_https_answers_who_trusts_it(identity: Identity) -> None:
    with serving(**identity.keys) as server:
        connection = http.client.HTTPSConnection("localhost", server.port, context=identity.context())
        for _ in range(3):
            connection.request("POST", "/", RECORD)
            response = connection.getresponse()
            assert (response.status, response.read()) == (202, RECORD)
        body = os.urandom(3_000_000)
        connection.request("POST", "/", body)
        assert connection.getresponse().read() == body
        connection.close()


def test_https_refuses_in_words_too(identity: Identity) -> None:
    with serving(**identity.keys, header_timeout_seconds=2.0) as server:  # the handshake's time, too
        for data, status in ((b"X : y\r\n\r\n", 400), (b"POST / HTTP/1.1\r\n", 408)):
            with identity.context().wrap_socket(server.connect(), server_hostname="localhost") as connection:
                connection.sendall(data)
                [answer] = read_answers(connection, 1)
                assert (answer.status, answer.headers["connection"]) == (status, "close")


def test_a_stranger_gets_no_answer(identity: Identity, stranger: Identity, caplog: pytest.LogCaptureFixture) -> None:
    with serving(**identity.keys) as server:
        with pytest.raises(ssl.SSLCertVerificationError), server.connect() as connection:
            stranger.context().wrap_socket(connection, server_hostname="localhost")
        assert not server.app.taken
    assert not caplog.records  # a client's own fault is no line in the log


def test_plain_http_to_the_port_is_closed(identity: Identity, caplog: pytest.LogCaptureFixture) -> None:
    with serving(**identity.keys) as server, server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"HTTP" not in read_all(connection)
        assert not server.app.taken
    assert not caplog.records


def test_a_handshake_that_does_not_come_to_its_end_is_closed(identity: Identity) -> None:
    with serving(**identity.keys, header_timeout_seconds=0.3) as server, server.connect() as connection:
        assert read_all(connection) == b""


def test_versions_before_1_2_are_refused(identity: Identity) -> None:
    context = identity.context()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with serving(**identity.keys) as server, server.connect() as connection, pytest.raises(ssl.SSLError):
        context.wrap_socket(connection, server_hostname="localhost")


def test_the_daemon_serves_https(
    identity: Identity, database: str, make_topic: MakeTopic, make_gateway: MakeGateway
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE.format("public.r").encode())
    route = {"name": "r", "topic": make_topic(), "table": "public.r", "omit": ["id"]}
    daemon, client = make_gateway(route, gateway={"hosts": ["a"], **identity.keys})
    assert daemon.command("check-config").returncode == 0
    https = http.client.HTTPSConnection("localhost", client.port, context=identity.context())

    def is_taken() -> bool:
        https.request("POST", "/v1/r", RECORD)
        response = https.getresponse()
        response.read()
        return response.status == 202

    wait_until(is_taken, 10, "the table is known")
    https.close()


def test_a_renewed_certificate_is_taken_at_sighup(
    make_gateway: MakeGateway, make_topic: MakeTopic, database: str, tmp_path: Path
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE.format("public.r").encode())
    route = {"name": "r", "topic": make_topic(), "table": "public.r", "omit": ["id"]}
    former = _make_identity(tmp_path, "gateway")
    daemon, client = make_gateway(route, gateway={"hosts": ["a"], **former.keys})
    gateways = daemon.gateways()

    def answers(identity: Identity) -> bool:
        https = http.client.HTTPSConnection("localhost", client.port, context=identity.context())
        try:
            https.request("GET", "/docs")
            return https.getresponse().status == 200
        except ssl.SSLCertVerificationError:
            return False
        finally:
            https.close()

    assert answers(former)
    former.key.write_text("no key")
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait_for_log("action=certificate_kept")
    assert answers(former)
    former.certificate.unlink()
    renewed = _make_identity(tmp_path, "gateway")
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait_for_log("action=certificate_read")
    assert answers(renewed)
    assert not answers(former)
    assert daemon.gateways() == gateways


@pytest.mark.parametrize("fault", ["missing", "unreadable", "of another", "no PEM", "encrypted", "certificate no PEM"])
def test_a_certificate_or_key_that_cannot_be_used_is_a_line_and_78(
    identity: Identity, stranger: Identity, make_daemon: MakeDaemon, tmp_path: Path, fault: str
) -> None:
    keys = identity.keys
    if fault == "missing":
        keys["tls_certificate_file"] = str(tmp_path / "none.pem")
    elif fault == "unreadable":
        keys["tls_key_file"] = str(tmp_path)
    elif fault == "of another":
        keys["tls_key_file"] = str(stranger.key)
    elif fault == "certificate no PEM":
        keys["tls_certificate_file"] = __file__
    else:
        key = tmp_path / "bad.key"
        key.write_bytes(b"nothing" if fault == "no PEM" else _encrypted(identity.key.read_bytes()))
        key.chmod(0o600)
        keys["tls_key_file"] = str(key)
    daemon = make_daemon({"topic": "t", "table": "public.t"}, gateway=keys)
    checked = daemon.command("check-config")
    assert checked.returncode == daemon.start().wait() == EX_CONFIG
    for said in (checked.stderr.splitlines(), daemon.lines()):
        [line] = said
        assert f"{daemon.config}:" in line
        assert f"gateway.tls_{'certificate' if fault == 'missing' else 'key'}_file: is " in line
