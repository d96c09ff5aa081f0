"""Scenarios: the topic is another one, or its log is, under the same name and the same offsets.

A topic is deleted and created while a batch is open, or before news of it arrive, or with its first records gone; a
follower that lacks the youngest records takes over. What is read is of what is there now; what was lost is named.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.faults.kafka_wire import Api, Earlier
from tests.faults.stage import Stage, fail_unless, route

if TYPE_CHECKING:
    from tests.faults.oracle import Oracle
    from tests.fix_daemon import Daemon

#: The watch asks again a second after a broker's connection was lost, else within 10 s; others ask, too.
LOOKS = 3

#: Records wait in an open batch for so long.
LINGER = {"linger_seconds": 2.0}


def while_a_batch_is_open(stage: Stage) -> None:
    """Five records wait for the flush; the topic is recreated, and longer at once than it was."""
    oracle = stage.oracle()
    daemon = stage.daemon(route(oracle, on_gap="record"), batch=LINGER).start()
    daemon.wait_ready()
    stage.send(oracle, 5)
    oracle.remember()
    stage.recreate(oracle)
    stage.send(oracle, 300)
    settle_for_good(stage, daemon)
    stage.check()


def with_stale_answers(stage: Stage, answers: int = 1, on_gap: str = "record") -> None:
    """A broker that lags says, so often, when all is in, that the topic has its former id."""
    oracle = stage.oracle()
    earlier = Earlier(stage.wire, Api.METADATA, Api.DESCRIBE_TOPIC_PARTITIONS)
    daemon = stage.daemon(route(oracle, on_gap=on_gap)).start()
    daemon.wait_ready()
    stage.send(oracle, 100)
    stage.settle(daemon)
    oracle.remember()
    rule = earlier.again(times=0)
    stage.recreate(oracle)
    stage.send(oracle, 500)
    settle_for_good(stage, daemon)
    known = accept_all(stage, daemon, oracle)
    rule.times = answers
    stage.wire.cut()  # the watch asks soon after a broker's connection was lost
    stage.send(oracle, 10)
    rule.wait()
    settle_for_good(stage, daemon, known)
    stage.check()


def with_its_first_records_gone(stage: Stage) -> None:
    """The new topic's first 300 records were deleted before anybody accepted it."""
    oracle = stage.oracle()
    daemon = stage.daemon().start()
    stage.send(oracle, 10)
    stage.settle(daemon)
    oracle.remember()
    stage.recreate(oracle)
    stage.send(oracle, 500)
    stage.delete_records(oracle, 300)
    settle_for_good(stage, daemon)
    known = accept_all(stage, daemon, oracle)
    settle_for_good(stage, daemon, known)
    stage.check()


def an_unclean_election(stage: Stage, new_records: int, on_gap: str = "record") -> None:
    """The leader has 500 records that only it has, and that were read; then the follower takes over, and new ones come.

    For a stage with two brokers.
    """
    brokers = stage.brokers
    topic = brokers.make_topic(replicas=(1, 2), unclean_leader_election_enable=True)
    oracle = stage.oracle(topic)
    daemon = stage.daemon(route(oracle, on_gap=on_gap)).start()
    stage.send(oracle, 500)
    stage.settle(daemon)
    brokers.kill(2)
    stage.send(oracle, 500)
    stage.settle(daemon)
    oracle.remember()
    brokers.kill(1)
    brokers.start(2)
    brokers.elect(topic)
    brokers.wait_for_leader(topic, 2)
    stage.send(oracle, new_records)
    settle_for_good(stage, daemon)
    known = accept_all(stage, daemon, oracle)
    settle_for_good(stage, daemon, known)
    stage.check()


def an_unclean_election_while_stopped(stage: Stage, new_records: int) -> None:
    """The same, and nobody read meanwhile."""
    brokers = stage.brokers
    topic = brokers.make_topic(replicas=(1, 2), unclean_leader_election_enable=True)
    oracle = stage.oracle(topic)
    daemon = stage.daemon(route(oracle, on_gap="record")).start()
    brokers.kill(2)
    stage.send(oracle, 1_000)
    stage.settle(daemon)
    fail_unless(
        not daemon.has_ended() and daemon.stop(signal.SIGTERM) == 0, "the daemon did not stop, or not first now"
    )
    oracle.remember()
    brokers.kill(1)
    brokers.start(2)
    brokers.elect(topic)
    brokers.wait_for_leader(topic, 2)
    stage.send(oracle, new_records)
    daemon.start()
    settle_for_good(stage, daemon)
    stage.check()


def settle_for_good(stage: Stage, daemon: Daemon, known_halts: int = 0) -> None:
    """Settle, let the watch look again, and settle."""
    stage.settle(daemon, known_halts=known_halts)
    if not daemon.has_ended():
        up = next(wire for wire, runs in zip(stage.brokers.wires, stage.brokers.running, strict=True) if runs)
        up.cut()
        up.wait(Api.METADATA, more=LOOKS)
    stage.settle(daemon, known_halts=known_halts)


def accept_all(stage: Stage, daemon: Daemon, oracle: Oracle) -> int:
    """Accept what halted, if anything did; return how many halts were known then."""
    known = len(daemon.logged("action=halt"))
    if known:
        stage.command(daemon, "progress", "accept", oracle.route or oracle.topic)
    return known
