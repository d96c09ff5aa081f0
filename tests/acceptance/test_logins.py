"""Who is refused by PostgreSQL: told by its SQLSTATE in any language; and passwords that change while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from kbatchd.devstack.postgres import Postgres
from kbatchd.errors import EX_CONFIG
from kbatchd.schema.migrations import migrate
from tests.fix_daemon import wait_until
from tests.fix_load import new_delivery
from tests.fix_postgres import more_locales

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_daemon import MakeDaemon
    from tests.fix_kafka import MakeTopic

ROLE, PASSWORD = "asked", "first password"

#: A server with translated messages, as Debian's packages are; the wheel's speaks English only.
TRANSLATED = [
    path for path in Path("/usr/lib/postgresql").glob("*/bin")
    if Path(f"/usr/share/locale/de/LC_MESSAGES/postgres-{path.parent.name}.mo").exists()
]  # fmt: skip


def make_asked_role(server: Postgres) -> str:
    """Make a role that is asked for its password; return its DSN."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        migrate(connection)
        connection.execute(f"CREATE ROLE {ROLE} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        rules = server.data / "pg_hba.conf"
        rules.write_text(f"host all {ROLE} all scram-sha-256\n{rules.read_text()}")
        connection.execute("SELECT pg_reload_conf()")
    return make_conninfo(server.dsn, user=ROLE)


@pytest.fixture(scope="module")
def german() -> Iterator[Postgres]:
    """A server whose messages are German from the first word on."""
    if not TRANSLATED:
        pytest.skip("not run: there is no PostgreSQL with translated messages on this machine")
    server = Postgres()
    server._programs = TRANSLATED[0]
    with more_locales("de_DE"), server:
        with (server.data / "postgresql.conf").open("a") as file:
            file.write("lc_messages = 'de_DE.UTF-8'\n")
        server.stop()
        server.start()
        make_asked_role(server)
        yield server


class TestInAnotherLanguage:
    @pytest.mark.parametrize(
        ("change", "said", "remedy"),
        [
            ({"dbname": "nowhere"}, "existiert nicht", "create the database"),
            ({"user": "nobody_knows"}, "existiert nicht", "check the role"),
            ({"user": ROLE, "password": "wrong"}, "Passwort-Authentifizierung", "check the password"),
        ],
        ids=["database", "role", "password"],
    )
    def test_a_refusal_is_a_configuration_error(
        self,
        german: Postgres,
        make_daemon: MakeDaemon,
        tmp_path: Path,
        change: dict[str, str],
        said: str,
        remedy: str,
    ) -> None:
        postgres = {"dsn": make_conninfo(german.dsn, **{k: v for k, v in change.items() if k != "password"})}
        if "password" in change:
            secret = tmp_path / "password"
            secret.write_text(change["password"])
            secret.chmod(0o600)
            postgres["password_file"] = str(secret)
        daemon = make_daemon({"topic": "t", "table": "public.t"}, postgres=postgres).start()
        assert daemon.wait(30) == EX_CONFIG
        (line,) = [line for line in daemon.logged("action=check_failed") if "postgres.dsn" in line]
        assert said in line
        assert remedy in line

    def test_a_server_that_is_away_is_waited_for(self, german: Postgres, make_daemon: MakeDaemon) -> None:
        german.stop()
        try:
            daemon = make_daemon({"topic": "t", "table": "public.t"}, postgres={"dsn": german.dsn})
            daemon.config.write_text(f"startup_timeout_seconds = 2\n{daemon.config.read_text()}")
            daemon.start()
            assert daemon.wait(30) == 69
        finally:
            german.start()


@pytest.mark.parametrize("source", ["command", "file"])
def test_a_password_that_changes(
    source: str,
    kafka: Kafka | GivenKafka,
    make_topic: MakeTopic,
    make_daemon: MakeDaemon,
    tmp_path: Path,
) -> None:
    # Given: a daemon that runs on the first password.
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o600)
    with Postgres() as server:
        dsn = make_asked_role(server)
        delivery = new_delivery(kafka.bootstrap_servers, make_topic(2), 2, server.dsn)
        where = {"password_file": str(secret)} if source == "file" else {"password_command": ["cat", str(secret)]}
        daemon = make_daemon(delivery.route, postgres={"dsn": dsn, **where}).start()
        daemon.wait_ready()
        delivery.send(100)
        delivery.wait_drained()

        # When: the role has another one, and all its sessions end.
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(f"ALTER ROLE {ROLE} PASSWORD 'second password'")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (ROLE,))
            daemon.wait_for_log("waiting for PostgreSQL", 20)
        secret.write_text("second password")

        # Then: nobody reloads anything, and the rows come.
        delivery.send(100, first=50)
        wait_until(lambda: delivery.rows() == 200, 30, "the rows that came since")
        delivery.assert_exactly_once()
        assert daemon.stop() == 0
        assert "second password" not in daemon.log.read_text()


def test_a_password_is_asked_for_again_when_it_is_old(
    kafka: Kafka | GivenKafka, make_topic: MakeTopic, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """With password_keep_seconds = 0 each connection asks; with the default those of a start ask once."""
    asked = tmp_path / "asked"
    command = ["sh", "-c", f"echo x >> {asked}; echo secret"]
    with Postgres() as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            migrate(connection)
        delivery = new_delivery(kafka.bootstrap_servers, make_topic(1), 1, server.dsn)
        counts = []
        for keep in (300, 0):
            asked.write_text("")
            daemon = make_daemon(
                delivery.route,
                postgres={"dsn": server.dsn, "password_command": command, "password_keep_seconds": keep},
            ).start()
            daemon.wait_ready()
            assert daemon.stop() == 0
            counts.append(len(asked.read_text().splitlines()))
    assert counts[0] == 1
    assert counts[1] > 2
