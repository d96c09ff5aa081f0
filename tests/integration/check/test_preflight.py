"""Everything that can be wrong before the first record: one clear line each, the right exit code, nothing half done."""

from __future__ import annotations

import logging
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pytest
from confluent_kafka import Producer
from psycopg import sql
from psycopg.conninfo import make_conninfo

from kbatchd.check.preflight import check, run_preflight
from kbatchd.config import Config
from kbatchd.errors import EX_CONFIG, EX_OK, EX_UNAVAILABLE, ConfigError, ServerUnavailable
from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from kbatchd.devstack.postgres import Postgres
    from tests.fix_kafka import MakeTopic

#: Nobody listens on the discard port.
NOBODY = "127.0.0.1:9"


class MakeConfig(Protocol):
    """Makes a configuration with these routes; a route without a topic gets one."""

    def __call__(self, *routes: dict[str, Any], **tables: dict[str, Any]) -> Config: ...


@pytest.fixture
def make_config(kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic) -> MakeConfig:
    def make(*routes: dict[str, Any], **tables: dict[str, Any]) -> Config:
        filled = [{"topic": route.get("topic") or make_topic(2), "table": "public.target", **route} for route in routes]
        return Config.model_validate(
            {
                "kafka": {"bootstrap_servers": kafka.bootstrap_servers},
                "postgres": {"dsn": database},
                "route": filled,
                "startup_timeout_seconds": 20.0,
                **tables,
            }
        )

    return make


@pytest.fixture
def producer(kafka: Kafka | GivenKafka) -> Producer:
    return Producer({"bootstrap.servers": kafka.bootstrap_servers})


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.target (id bigint NOT NULL)")
        yield connection


@pytest.fixture
def role(connection: psycopg.Connection) -> Iterator[str]:
    """A role without any right."""
    name = f"r_{uuid.uuid4().hex[:12]}"
    connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    yield name
    connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


def progress(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT route, topic, partition, next_offset, target FROM kbatchd.progress ORDER BY 1, 2, 3"
    ).fetchall()


def faults(config: Config) -> tuple[str, ...]:
    """Return what is wrong; each fault must be one line."""
    with pytest.raises(ConfigError) as caught:
        check(config)
    assert all("\n" not in fault for fault in caught.value.faults)
    return caught.value.faults


def the_fault(config: Config) -> str:
    (fault,) = faults(config)
    return fault


class TestNothingWrong:
    def test_the_first_progress_of_each_topic(self, connection: psycopg.Connection, make_config: MakeConfig) -> None:
        config = make_config({"name": "a"}, {"name": "b"})
        check(config)
        expected = [
            (name, config.route[n].topic, partition, 0, '"public"."target"')
            for n, name in enumerate("ab")
            for partition in (0, 1)
        ]
        assert progress(connection) == expected
        check(config)
        assert progress(connection) == expected
        assert run_preflight(config) == EX_OK

    def test_latest_begins_at_the_end(
        self, connection: psycopg.Connection, make_config: MakeConfig, producer: Producer
    ) -> None:
        config = make_config({"start": "latest", "name": "a"})
        for _ in range(5):
            producer.produce(config.route[0].topic, b"{}", partition=1)
        assert producer.flush(30) == 0
        check(config)
        assert [next_offset for *_, next_offset, _ in progress(connection)] == [0, 5]
        producer.produce(config.route[0].topic, b"{}", partition=1)
        assert producer.flush(30) == 0
        check(config)
        assert [next_offset for *_, next_offset, _ in progress(connection)] == [0, 5]

    def test_an_ordinary_role_will_do(
        self, connection: psycopg.Connection, make_config: MakeConfig, database: str, role: str
    ) -> None:
        grant(connection, role, "USAGE ON SCHEMA kbatchd", "SELECT ON kbatchd.migrations")
        grant(connection, role, "SELECT, INSERT, UPDATE ON kbatchd.progress", "INSERT ON public.target")
        grant(
            connection,
            role,
            "INSERT ON kbatchd.dead_letters, kbatchd.gaps",
            "SELECT, INSERT, DELETE ON kbatchd.batches",
            "SELECT ON kbatchd.pauses",
        )
        check(make_config({}, postgres={"dsn": make_conninfo(database, user=role)}))
        assert len(progress(connection)) == 2


def grant(connection: psycopg.Connection, role: str, *rights: str) -> None:
    for right in rights:
        connection.execute(f'GRANT {right} TO "{role}"')


class TestTables:
    @pytest.mark.parametrize(
        ("setup", "route", "words"),
        [
            ("", {"table": "public.nowhere"}, ["table public.nowhere does not exist", "create it"]),
            ("", {"table": "nowhere.target"}, ["nowhere.target does not exist"]),
            ("CREATE VIEW public.seen AS TABLE public.target", {"table": "public.seen"}, ["public.seen is a view"]),
            (
                "ALTER TABLE public.target ADD at timestamptz NOT NULL DEFAULT now(), ADD serial bigserial",
                {},
                ["at, serial: NOT NULL with a default", 'omit = ["at", "serial"]'],
            ),
            (
                "ALTER TABLE public.target ADD twice int GENERATED ALWAYS AS (2 * id) STORED",
                {"columns": {"twice": "double"}},
                ["column twice is generated", "take it out of the mapping"],
            ),
            (
                "ALTER TABLE public.target ADD span int4range",
                {"columns": {"span": {"field": "span", "unit": "ms"}}},
                ["column span is of type int4range", "`unit` is for"],
            ),
            ("", {"omit": ["id"]}, ["omitted column id is NOT NULL and has no default"]),
            ("", {"omit": ["idd"]}, ["omit names column idd, which is not there"]),
        ],
    )
    def test_one_line(
        self,
        connection: psycopg.Connection,
        make_config: MakeConfig,
        setup: str,
        route: dict[str, Any],
        words: list[str],
    ) -> None:
        if setup:
            connection.execute(setup)
        found = faults(make_config({"name": "mine", **route}))
        assert found[0].startswith("route mine: ")
        for word in words:
            assert word in found[0]
        assert progress(connection) == []

    def test_progress_for_another_table(self, connection: psycopg.Connection, make_config: MakeConfig) -> None:
        config = make_config({"name": "mine"})
        check(config)
        before = progress(connection)
        connection.execute("CREATE TABLE public.other (id bigint NOT NULL)")
        changed = make_config({"name": "mine", "topic": config.route[0].topic, "table": "public.other"})
        assert "its progress was made for table" in the_fault(changed)
        assert progress(connection) == before

    def test_a_role_that_may_not_insert(
        self, connection: psycopg.Connection, make_config: MakeConfig, database: str, role: str
    ) -> None:
        grant(connection, role, "USAGE ON SCHEMA kbatchd", "ALL ON ALL TABLES IN SCHEMA kbatchd")
        fault = the_fault(make_config({}, postgres={"dsn": make_conninfo(database, user=role)}))
        assert f"may not be written by {role}" in fault
        assert "GRANT INSERT ON public.target" in fault

    def test_progress_of_one_partition_is_gone(self, connection: psycopg.Connection, make_config: MakeConfig) -> None:
        """Begun at 0, what it has brought would be there twice."""
        config = make_config({"name": "r"})
        check(config)
        connection.execute("UPDATE kbatchd.progress SET next_offset = 55")
        connection.execute("DELETE FROM kbatchd.progress WHERE partition = 1")
        assert "for partition 1, and that of others is there" in the_fault(config)
        assert run_preflight(config) == EX_CONFIG
        assert len(progress(connection)) == 1

    def test_what_will_hurt_later_is_told(
        self, connection: psycopg.Connection, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is no fault, and the root of a partitioned table does not show it."""
        connection.execute(
            "CREATE TABLE public.split (id bigint) PARTITION BY RANGE (id);"
            "CREATE UNLOGGED TABLE public.low PARTITION OF public.split FOR VALUES FROM (0) TO (100);"
            "CREATE RULE r AS ON INSERT TO public.split DO ALSO NOTIFY r"
        )
        with caplog.at_level(logging.WARNING):
            assert run_preflight(make_config({"name": "r", "table": "public.split"})) == EX_OK
        told = [record.getMessage() for record in caplog.records]
        assert any("low is UNLOGGED" in text for text in told)
        assert any("the rule r ON INSERT, which COPY passes over" in text for text in told)


class TestOwnSchema:
    def test_it_is_missing(self, empty_database: str, make_config: MakeConfig) -> None:
        schema, table = faults(make_config({}, postgres={"dsn": empty_database}))
        assert "kbatchd migrate" in schema
        assert "table public.target does not exist" in table  # looked at all the same

    def test_it_is_of_another_version(self, connection: psycopg.Connection, make_config: MakeConfig) -> None:
        connection.execute("INSERT INTO kbatchd.migrations (number, name) VALUES (9999, '9999_later')")
        assert "is at version 9999, newer than this program" in the_fault(make_config({}))

    def test_no_right_to_look_at_it(
        self, connection: psycopg.Connection, make_config: MakeConfig, database: str, role: str
    ) -> None:
        schema, table = faults(make_config({}, postgres={"dsn": make_conninfo(database, user=role)}))
        assert "permission denied for schema kbatchd" in schema
        assert "GRANT INSERT ON public.target" in table
        assert progress(connection) == []

    def test_each_right_that_is_missing(
        self, connection: psycopg.Connection, make_config: MakeConfig, database: str, role: str
    ) -> None:
        grant(connection, role, "USAGE ON SCHEMA kbatchd", "SELECT ON kbatchd.migrations", "INSERT ON public.target")
        grant(connection, role, "SELECT, INSERT ON kbatchd.progress", "INSERT ON kbatchd.gaps")
        found = faults(make_config({}, postgres={"dsn": make_conninfo(database, user=role)}))
        assert found == tuple(
            f"no right to {right} on kbatchd.{relation}; GRANT {right} ON kbatchd.{relation} TO {role}"
            for relation, right in (
                ("progress", "UPDATE"),
                ("dead_letters", "INSERT"),
                ("batches", "INSERT"),
                ("pauses", "SELECT"),
                *(("batches", right) for right in ("SELECT", "DELETE")),
            )
        )
        assert progress(connection) == []


class TestKafka:
    def test_a_missing_topic(self, connection: psycopg.Connection, make_config: MakeConfig, topic_name: str) -> None:
        fault = the_fault(make_config({"name": "mine", "topic": topic_name}))
        assert fault.startswith(f"route mine: topic {topic_name} does not exist; ")
        assert "kbatchd create-topic --config FILE mine" in fault
        assert progress(connection) == []

    def test_a_property_that_librdkafka_refuses(self, make_config: MakeConfig, kafka: Kafka | GivenKafka) -> None:
        table = {"bootstrap_servers": kafka.bootstrap_servers, "librdkafka": {"fetch.wait.max.ms": -3}}
        assert the_fault(make_config({}, kafka=table)).startswith("kafka.librdkafka.fetch.wait.max.ms: ")


def test_all_faults_at_once_and_nothing_half_done(
    connection: psycopg.Connection, make_config: MakeConfig, topic_name: str
) -> None:
    connection.execute("CREATE TABLE public.bad (id int, at timestamptz NOT NULL DEFAULT now())")
    config = make_config(
        {"name": "good"},
        {"name": "first", "topic": topic_name, "table": "public.nowhere"},
        {"name": "second", "table": "public.bad"},
    )
    found = faults(config)
    assert [fault.partition(":")[0] for fault in found] == ["route first"] * 2 + ["route second"]
    assert progress(connection) == []
    assert run_preflight(config) == EX_CONFIG


class TestServers:
    def test_the_faults_of_one_and_the_absence_of_the_other(
        self, connection: psycopg.Connection, make_config: MakeConfig, database: str, topic_name: str
    ) -> None:
        away = {"bootstrap_servers": NOBODY, "librdkafka": {"log_level": 0}}
        found = faults(make_config({"name": "a", "table": "public.nowhere"}, kafka=away))
        assert "table public.nowhere does not exist" in found[0]
        assert "Kafka cannot be reached" in found[1]
        lost = make_config({"name": "b", "topic": topic_name}, postgres={"dsn": make_conninfo(database, dbname="no")})
        [fault] = [fault for fault in faults(lost) if "Kafka" not in fault]
        assert 'database "no" does not exist' in fault
        assert progress(connection) == []

    def test_a_database_that_does_not_exist(self, database: str, make_config: MakeConfig) -> None:
        fault = the_fault(make_config({}, postgres={"dsn": make_conninfo(database, dbname="nowhere")}))
        assert 'database "nowhere" does not exist' in fault

    def test_a_role_that_does_not_exist(self, database: str, make_config: MakeConfig) -> None:
        assert "nobody_we_know" in the_fault(
            make_config({}, postgres={"dsn": make_conninfo(database, user="nobody_we_know")})
        )

    @pytest.mark.parametrize("who", ["kafka", "postgres"])
    def test_one_that_does_not_answer(
        self, connection: psycopg.Connection, make_config: MakeConfig, who: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tables: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap_servers": NOBODY, "librdkafka": {"log_level": 0}},
            "postgres": {"dsn": "host=127.0.0.1 port=9 user=x dbname=x"},
        }
        config = make_config({}, **{who: tables[who]}).model_copy(update={"startup_timeout_seconds": 5.0})
        began = time.monotonic()
        with pytest.raises(ServerUnavailable) as caught:
            check(config)
        assert 3.0 < time.monotonic() - began < 20.0
        assert {"kafka": "Kafka", "postgres": "PostgreSQL"}[who] in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == EX_UNAVAILABLE
        assert progress(connection) == []
        assert capsys.readouterr().out == ""

    def test_one_that_comes_late_is_waited_for(
        self,
        own_postgres: Postgres,
        own_database: str,
        make_config: MakeConfig,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with psycopg.connect(own_database, autocommit=True) as connection:
            connection.execute("CREATE TABLE public.target (id bigint NOT NULL)")
        config = make_config({}, postgres={"dsn": own_database}).model_copy(update={"startup_timeout_seconds": 120.0})
        own_postgres.stop()
        with ThreadPoolExecutor(1) as executor, caplog.at_level(logging.WARNING, "kbatchd"):
            checking = executor.submit(check, config)
            wait_until(lambda: "waiting for a server" in caplog.text or checking.done(), 10, "the first attempt")
            own_postgres.start()
            checking.result(120)
        with psycopg.connect(own_database) as connection:
            assert len(progress(connection)) == 2


class TestPassword:
    """The shared servers let everybody in: this needs one of its own that asks."""

    ROLE, PASSWORD = "asked", "open sesame"

    @pytest.fixture
    def asking(self, own_postgres: Postgres, own_database: str) -> Iterator[str]:
        """The DSN of a role that is asked for its password."""
        hba = own_postgres.directory / "data" / "pg_hba.conf"
        former = hba.read_text()
        with psycopg.connect(own_database, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {self.ROLE} LOGIN SUPERUSER PASSWORD '{self.PASSWORD}'")
            hba.write_text(f"host all {self.ROLE} all scram-sha-256\n{former}")
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("CREATE TABLE public.target (id bigint NOT NULL)")
            dsn = make_conninfo(own_database, user=self.ROLE)
            wait_until(lambda: not connects(dsn), 10, "the server asks")
            yield dsn
            hba.write_text(former)
            connection.execute(f"SELECT pg_reload_conf(); DROP OWNED BY {self.ROLE}; DROP ROLE {self.ROLE}")

    def test_the_right_one(self, asking: str, make_config: MakeConfig, tmp_path: Path) -> None:
        check(make_config({}, postgres={"dsn": asking, "password_file": self.file(tmp_path, self.PASSWORD)}))

    def test_a_wrong_one(self, asking: str, make_config: MakeConfig, tmp_path: Path) -> None:
        wrong = "open barley"
        fault = the_fault(make_config({}, postgres={"dsn": asking, "password_file": self.file(tmp_path, wrong)}))
        assert "password authentication failed" in fault
        assert "check the password and the role in postgres.dsn" in fault
        assert wrong not in fault

    def test_none(self, asking: str, make_config: MakeConfig) -> None:
        fault = the_fault(make_config({}, postgres={"dsn": asking}))
        assert "no password supplied" in fault
        assert "set postgres.password_file" in fault

    def file(self, directory: Path, password: str) -> str:
        path = directory / "password"
        path.write_text(password + "\n")
        path.chmod(0o600)
        return str(path)


def connects(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True
