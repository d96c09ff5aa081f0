"""A real Kafka for all tests, a topic for each, and a Kafka of one's own for tests that stop it."""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from kbatchd.devstack.kafka import GivenKafka, Kafka, kafka_server
from kbatchd.errors import ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEADER_SECONDS = 30.0


class MakeTopic(Protocol):
    """Makes a topic that is ready for use, and returns its name."""

    def __call__(self, partitions: int = 1, name: str | None = None, **config: object) -> str:
        """`config` is the topic's own, with underscores for dots: retention_ms=1000."""


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka | GivenKafka]:
    """The server all tests share: nobody stops it."""
    try:
        with kafka_server() as server:
            yield server
    except ServerUnavailable as error:
        pytest.exit(f"no test can run without Kafka: {error}", returncode=1)


@pytest.fixture(scope="module")
def own_kafka_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """The server behind `own_kafka`."""
    directory: Path = tmp_path_factory.mktemp("kafka")
    with Kafka(directory) as server:
        yield server


@pytest.fixture
def own_kafka(own_kafka_of_module: Kafka) -> Kafka:
    """A server that only this module's tests use: they may stop and kill it. It runs at the beginning of each."""
    own_kafka_of_module.start()
    return own_kafka_of_module


@pytest.fixture
def topic_name() -> str:
    """A name that no topic has yet."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def make_topic(kafka: Kafka | GivenKafka) -> Iterator[MakeTopic]:
    """Make topics on the shared server; they are deleted after the test."""
    with _topics(kafka.bootstrap_servers, delete=True) as make:
        yield make


@pytest.fixture
def own_make_topic(own_kafka: Kafka) -> Iterator[MakeTopic]:
    """Make topics on the server of one's own; they go with it."""
    with _topics(own_kafka.bootstrap_servers, delete=False) as make:
        yield make


@contextmanager
def _topics(bootstrap_servers: str, *, delete: bool) -> Iterator[MakeTopic]:
    # log_level 0: tests stop brokers, and librdkafka would tell about each connection refused.
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    made: list[str] = []

    def make(partitions: int = 1, name: str | None = None, **config: object) -> str:
        topic = name or f"t-{uuid.uuid4().hex[:12]}"
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        admin.create_topics([NewTopic(topic, partitions, 1, config=settings)])[topic].result()
        made.append(topic)
        wait_for_leaders(admin, topic, partitions)
        return topic

    yield make
    if delete and made:
        for deleted in admin.delete_topics(made, operation_timeout=10).values():
            with suppress(KafkaException):  # a test may have deleted it already
                deleted.result()


def group_ids(bootstrap_servers: str) -> set[str]:
    """Return the ids of all consumer groups."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    # The client must live as long as its future: the answer may come when it is gone, and then there is none.
    listing = admin.list_consumer_groups()
    return {group.group_id for group in listing.result().valid}


def wait_for_leaders(admin: AdminClient, topic: str, partitions: int) -> None:
    """Return when all the partitions of a topic can be written and read."""
    deadline = time.monotonic() + LEADER_SECONDS
    while time.monotonic() < deadline:
        metadata = admin.list_topics(topic, timeout=LEADER_SECONDS).topics[topic]
        if sum(partition.leader >= 0 for partition in metadata.partitions.values()) >= partitions:
            return
        time.sleep(0.02)
    raise TimeoutError(f"topic {topic} has no leaders after {LEADER_SECONDS:.0f} s")
