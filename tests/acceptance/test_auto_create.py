"""Brokers that make topics for any client that asks: nothing of kbatchd ever asks them to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from kbatchd.devstack.kafka import Kafka
from tests.fix_daemon import wait_until
from tests.fix_kafka import wait_for_leaders

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fix_http import MakeGateway

TABLE = "CREATE TABLE public.orders (id bigint NOT NULL)"


@pytest.fixture(scope="module")
def auto_creating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker that makes topics which are asked for."""
    directory: Path = tmp_path_factory.mktemp("auto")
    with Kafka(directory) as server:
        server.stop()
        with (directory / "server.properties").open("a") as file:
            file.write("auto.create.topics.enable=true\n")
        server.start()
        yield server


def test_a_topic_that_was_deleted_does_not_come_back(
    auto_creating: Kafka, database: str, make_gateway: MakeGateway, topic_name: str
) -> None:
    # Given: a gateway and workers at work.
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE)
    admin = AdminClient({"bootstrap.servers": auto_creating.bootstrap_servers})
    route = {"topic": topic_name, "table": "public.orders", "partitions": 3}
    kafka = {"bootstrap_servers": auto_creating.bootstrap_servers}
    admin.create_topics([NewTopic(topic_name, 3, 1)])[topic_name].result()
    wait_for_leaders(admin, topic_name, 3)
    daemon, client = make_gateway(route, kafka=kafka)
    assert client.post(f"/v1/{topic_name}", b'{"id":1}').status == 202

    # When: the topic is deleted, and everybody goes on asking for it.
    admin.delete_topics([topic_name], operation_timeout=10)[topic_name].result()
    wait_until(lambda: client.post(f"/v1/{topic_name}", b'{"id":2}').status == 503, 30, "the refusal")
    reply = client.post(f"/v1/{topic_name}", b'{"id":3}')
    assert reply.status == 503, reply.body
    daemon.wait_for_log("action=topic_gone", 20)
    for command in (("check",), ("status",), ("progress", "show"), ("progress", "accept", topic_name)):
        daemon.command(*command)
    (daemon.config.parent / "one.jsonl").write_bytes(b'{"id":4}\n')
    produced = daemon.command("produce", topic_name, str(daemon.config.parent / "one.jsonl"))
    assert produced.returncode == 78, produced.stderr

    # Then: it is not there.
    assert topic_name not in admin.list_topics(timeout=10).topics

    # And: once somebody has made it, requests are taken again, by as many partitions as the file says.
    assert daemon.command("create-topic").returncode == 0
    wait_until(lambda: client.post(f"/v1/{topic_name}", b'{"id":5}').status == 202, 30, "records to be taken again")
    assert len(admin.list_topics(timeout=10).topics[topic_name].partitions) == 3
    assert daemon.stop() == 0
