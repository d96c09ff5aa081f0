"""Rows: leaders change, partitions are away, topics are deleted, recreated, cut off, compacted, or very large."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from confluent_kafka.admin import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from tests.faults.play import PARTITIONS
from tests.faults.row import Row
from tests.faults.stage import fail_unless
from tests.faults.traffic import LARGE_BYTES, Keyed, Sound, Transactions
from tests.fix_daemon import wait_until
from tests.fix_kafka import wait_for_leaders

if TYPE_CHECKING:
    from tests.faults.play import Play

BOTH = (1, 2)


def stop_leader(play: Play) -> None:
    """In good order; it leads again when it is back and has all."""
    brokers = play.stage.brokers
    brokers.stop(1)
    play.again()
    brokers.start(1)
    wait_until(lambda: brokers.in_sync(play.oracle.topic) == set(BOTH), 30, "both in sync")
    brokers.wait_for_leader(play.oracle.topic, 1, PARTITIONS)


def kill_leader(play: Play) -> None:
    brokers = play.stage.brokers
    brokers.kill(1)
    brokers.wait_for_leader(play.oracle.topic, 2, PARTITIONS)
    play.again()
    brokers.start(1)
    wait_until(lambda: brokers.in_sync(play.oracle.topic) == set(BOTH), 30, "both in sync")
    brokers.wait_for_leader(play.oracle.topic, 1, PARTITIONS)


def take_partitions_away(play: Play) -> None:
    """Half of the partitions have no broker; the others go on, also when the daemon starts again meanwhile."""
    play.stage.brokers.kill(2)
    play.again([0, 2])
    fail_unless(play.daemon.stop() == 0, "the daemon did not stop in good order")
    play.daemon.start()
    play.over()
    play.again([0, 2])
    play.stage.brokers.start(2)
    play.over()


def elect_uncleanly(play: Play) -> None:
    """The follower lacks what came last, and was read; it takes over."""
    brokers, topic = play.stage.brokers, play.oracle.topic
    brokers.kill(2)
    play.again()
    play.drain()
    play.oracle.remember()
    brokers.kill(1)
    brokers.start(2)
    for partition in range(PARTITIONS):
        brokers.elect(topic, partition)
    brokers.wait_for_leader(topic, 2, PARTITIONS)
    play.over()
    named = f"SELECT count(DISTINCT partition) FROM kbatchd.gaps WHERE topic = '{topic}'"
    play.send_again(until=lambda: play.execute(named) == [(PARTITIONS,)])


def recreate(play: Play, *, records: int = 0, halts: bool = False) -> None:
    """Delete the topic and make it again, with so many records at once."""
    play.drain()
    play.oracle.remember()
    play.stage.recreate(play.oracle, PARTITIONS)
    play.send_again()
    play.traffic.send_more(records)
    if halts:
        play.daemon.wait_for_log("action=halt", 20, count=PARTITIONS)
        accepted = play.stage.command(play.daemon, "progress", "accept", play.oracle.topic)
        fail_unless(accepted.returncode == 0, accepted.stderr)
    play.over()


def add_partitions(play: Play) -> None:
    topic, count = play.oracle.topic, PARTITIONS + 2
    admin = play.stage.brokers.admin()
    admin.create_partitions([NewPartitions(topic, count)])[topic].result()
    wait_for_leaders(admin, topic, count)
    play.traffic.grow(count)


def overrun(play: Play) -> None:
    """The daemon is stopped, and retention deletes what it has not read yet."""
    fail_unless(play.daemon.stop() == 0, "the daemon did not stop in good order")
    time.sleep(1.0)
    for partition, end in play.oracle.edition().stops.items():
        play.stage.delete_records(play.oracle, end - 5, partition)
    play.daemon.start()


def transact(_play: Play) -> None:
    """Let some transactions come."""
    time.sleep(1.0)


def compact(play: Play) -> None:
    """The daemon is stopped, and compaction deletes most of what it has not read yet."""
    fail_unless(play.daemon.stop() == 0, "the daemon did not stop in good order")
    time.sleep(1.0)
    play.traffic.stop()
    play.oracle.remember()
    before = len(play.oracle.edition().records)
    play.compacted = True
    _set_policy(play, "compact")
    wait_until(lambda: len(play.oracle.edition().records) < before - 200, 40, "compaction", every_seconds=0.5)
    _set_policy(play, "delete")
    play.daemon.start()
    play.wait_progress(play.oracle.edition().ends())
    play.send_on()
    play.over()


def _set_policy(play: Play, policy: str) -> None:
    entry = ConfigEntry("cleanup.policy", policy, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, play.oracle.topic, incremental_configs=[entry])
    admin = play.stage.brokers.admin()
    admin.incremental_alter_configs([resource])[resource].result()


def send_large(play: Play) -> None:
    play.execute(f"ALTER TABLE {play.oracle.table} ADD COLUMN IF NOT EXISTS more text")
    play.traffic.large = 3
    wait_until(lambda: not play.traffic.large, 20, "large records sent")


RECORDS = {"on_gap": "record"}
TWICE = {"replicas": BOTH}

KAFKA = (
    Row(
        "the leader is shut down, the follower takes over",
        "reads on from the new leader",
        stop_leader,
        1,
        brokers=2,
        topic=TWICE,
    ),
    Row(
        "the leader is killed, the follower takes over",
        "reads on from the new leader",
        kill_leader,
        1,
        brokers=2,
        topic=TWICE,
    ),
    Row(
        "a broker is away, and with it half of the partitions; the daemon is started again meanwhile",
        "the other partitions go on; those are read on when it is back",
        take_partitions_away,
        brokers=2,
        topic={"spread": ((1,), (2,), (1,), (2,))},
    ),
    Row(
        "an unclean election: the new leader lacks what came last",
        'where the two logs part is named, and what stands there now is read (`on_gap = "record"`)',
        elect_uncleanly,
        brokers=2,
        topic={"replicas": BOTH, "unclean_leader_election_enable": True},
        keys=RECORDS,
        traffic=Sound,
    ),
    Row(
        "the topic is deleted, and recreated with fewer records",
        "halts, named, until `progress accept`; then the new topic is read from its start",
        partial(recreate, halts=True),
    ),
    Row(
        "the topic is deleted, and recreated with more records than it had",
        'the gap is recorded, and the new topic is read from its start (`on_gap = "record"`)',
        partial(recreate, records=6_000),
        keys=RECORDS,
    ),
    Row("partitions are added", "read from their start when the topics are looked at (every 10 s)", add_partitions),
    Row(
        "retention deletes what was not read yet",
        'the range is recorded, and reading goes on behind it (`on_gap = "record"`)',
        overrun,
        2,
        keys=RECORDS,
    ),
    Row(
        "three in ten transactions are aborted",
        "what was aborted is no row, and no gap",
        transact,
        5,
        traffic=Transactions,
    ),
    Row(
        "compaction deletes what was not read yet",
        "what is left is read; holes are no gaps",
        compact,
        traffic=Keyed,
        topic={"segment_ms": 200, "min_cleanable_dirty_ratio": 0.01, "max_compaction_lag_ms": 200},
    ),
    Row(
        "records of 10 MB among the others",
        "each is a row, with more columns and less company",
        send_large,
        2,
        topic={"max_message_bytes": 2 * LARGE_BYTES},
        tables={"workers": {"buffer_bytes": 67_108_864}},
    ),
)
