"""What the reader's consumer is made with, alone or in a group. For the reader, and for who judges a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbatchd.kafka.settings import Properties, Settings

if TYPE_CHECKING:
    from kbatchd import config

#: What kbatchd needs of librdkafka; the file's [kafka.librdkafka] cannot change these.
_OURS: Properties = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    # Never a silent jump: a gap is reported once, and then the partition stands still until it is assigned again.
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    # The end of a transactional topic lies behind markers that are no records: progress must move over them.
    "enable.partition.eof": True,
    "allow.auto.create.topics": False,
    # A byte altered on the broker's disk or on the way would be an altered value. Of 200 bytes a record takes 0.45 to
    # 0.63 us with it, 0.45 to 0.71 without.
    "check.crcs": True,
}

#: What it would like; the file may say otherwise.
_DEFAULTS: Properties = {
    # librdkafka's 1,000 ms once its queue is full drained 120,000 rows/s, 5 ms 225,000.
    "fetch.queue.backoff.ms": 5,
    # Bounds a worker's memory: the default of 64 MB is for each of its partitions together, on top of the batches.
    "queued.max.messages.kbytes": 32_768,
    # What the poll loop encodes in 40 ms, many times a fetch's round trip. 50,000, with fetches of 4 MB, drained no
    # faster and took 50 MB more.
    "queued.min.messages": 10_000,
    "fetch.message.max.bytes": 1_048_576,
    # A broker that comes back is found within a second, not ten.
    "reconnect.backoff.max.ms": 1_000,
    "socket.keepalive.enable": True,
    # Connected to all brokers, not just to those it has something to ask. Else a question for a topic's leaders may go
    # to the group's coordinator, which has no address any more after an outage: of some 250 consumers 2 read nothing
    # then, of 240 that are connected to all none (brokers away for 14 to 22 s, librdkafka 2.16). See also `standstill`.
    "enable.sparse.connections": False,
    # A new leader, and a topic that is gone, are noticed sooner than in five minutes.
    "topic.metadata.refresh.interval.ms": 10_000,
    "log.connection.close": False,
}

#: Of a member of a group. With "classic" the members share the partitions out themselves, and give up only what moves;
#: with "consumer" (KIP-848) the brokers do, which will not hear of a strategy.
_MEMBER: dict[str, Properties] = {
    "classic": {"partition.assignment.strategy": "cooperative-sticky"},
    "consumer": {"group.protocol": "consumer"},
}

#: How soon a member that is gone is noticed, and how soon the others hear of a change. 6 s is the shortest that brokers
#: allow by default. With 45 and 3, librdkafka's own, a host that died was missed for 47 s, and one that came for 4.
#: With "consumer" only the brokers' settings count.
_MEMBER_DEFAULTS: dict[str, Properties] = {
    "classic": {"session.timeout.ms": 6_000, "heartbeat.interval.ms": 1_000},
    "consumer": {},
}


def settings(kafka: config.Kafka, client_id: str) -> Settings:
    """Say what a consumer is made with."""
    names = {"group.id": kafka.group_id, "client.id": client_id}
    how = kafka.group_protocol
    return Settings({**_OURS, **_MEMBER[how], **names}, {**_DEFAULTS, **_MEMBER_DEFAULTS[how]})
