"""A JSON number in a column of money is that number, whatever lc_monetary the server has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from confluent_kafka import Producer
from psycopg.conninfo import make_conninfo

from kbatchd.devstack.postgres import Postgres
from kbatchd.schema.migrations import migrate
from tests.fix_daemon import wait_until
from tests.fix_postgres import more_locales

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_daemon import MakeDaemon
    from tests.fix_kafka import MakeTopic

NUMBERS = ("12.34", "-0.005", "1e3", "1234567.895", "0", "7", "1e-400", "0e1000000000000000000", "-1234567890123.45")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that knows a locale with a comma, and one without a fraction."""
    with more_locales("de_DE", "vi_VN"), Postgres() as started:
        yield started


@pytest.mark.parametrize("locale", ["C", "de_DE.UTF-8", "vi_VN.UTF-8"])
def test_a_number_is_that_number(
    locale: str,
    server: Postgres,
    kafka: Kafka | GivenKafka,
    make_topic: MakeTopic,
    make_daemon: MakeDaemon,
) -> None:
    name, topic = f"money_{locale[:2].lower()}", make_topic()
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        connection.execute(f"ALTER DATABASE {name} SET lc_monetary = '{locale}'")
    dsn = make_conninfo(server.dsn, dbname=name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        migrate(connection)
        connection.execute("CREATE DOMAIN price AS money")
        connection.execute("CREATE TABLE public.priced (id int, cost money, more money[], own price)")
        daemon = make_daemon({"topic": topic, "table": "public.priced"}, postgres={"dsn": dsn}).start()
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        for number, text in enumerate(NUMBERS):
            producer.produce(topic, f'{{"id":{number},"cost":{text},"more":[{text},null],"own":{text}}}')
        producer.produce(topic, '{"id":-1,"cost":1e30,"more":[],"own":null}')
        assert producer.flush(30) == 0
        wait_until(
            lambda: connection.execute("SELECT FROM kbatchd.progress WHERE next_offset = 10").rowcount == 1,
            20,
            "all records to be taken",
        )
        for number, text in enumerate(NUMBERS):
            literal = "0" if "e-400" in text or text.startswith("0e") else f"({text})"
            right = connection.execute(
                f"SELECT cost = {literal}::numeric::money, more = ARRAY[{literal}::numeric::money, NULL], "
                f"own = {literal}::numeric::money FROM public.priced WHERE id = {number}"
            ).fetchone()
            assert right == (True, True, True), text
        assert connection.execute("SELECT code FROM kbatchd.dead_letters").fetchall() == [("out_of_range",)]
    assert daemon.stop() == 0
