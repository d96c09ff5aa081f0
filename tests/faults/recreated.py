"""Scenarios: the topic is another one, or its log is, under the same name and the same offsets.

A topic is deleted and created while a batch is open, or before news of it arrive, or with its first records gone; a
follower that lacks the youngest records takes over. What is read is of what is there now; what was lost is named.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.faults.kafka_wire import Api, Earlier, answers, requests
from tests.faults.oracle import note, value
from tests.faults.postgres_wire import message
from tests.faults.rules import Frame, holding
from tests.faults.stage import Stage, fail_unless, route

if TYPE_CHECKING:
    from tests.faults.oracle import Oracle
    from tests.faults.wire import Connection
    from tests.fix_daemon import Daemon

#: The watch asks again a second after a broker's connection was lost, else within 10 s; others ask, too.
LOOKS = 3

#: The first worker's consumer, as it calls itself in its requests.
CONSUMER = b"kbatchd-worker-0"

#: A batch that is closed by its sixth record, not by the time: how long it takes to make a topic does not count.
SIX_ROWS = {"max_rows": 6, "linger_seconds": 25.0}


def while_a_batch_is_open(stage: Stage) -> None:
    """Five records wait for a sixth; the topic is recreated, and longer at once than it was.

    Nobody's question comes to the broker while there is no such topic: a consumer that hears so does not ask again for
    long. Then it hears of the new topic and reads on; who asks which topic it is gets the answer when the batch's rows
    are sent, not before.
    """
    oracle = stage.oracle()
    daemon = stage.daemon(route(oracle, on_gap="record"), batch=SIX_ROWS).start()
    daemon.wait_ready()
    seqs = stage.take_numbers(5)
    last = note(seqs[-1]).encode()
    fetched = stage.wire.rule(lambda f: answers(Api.FETCH)(f) and last in f.data, lambda f, c: c.forward(f), times=1)
    stage.send_values(oracle.topic, [value(seq) for seq in seqs])
    fetched.wait()
    late = stage.wire.add(holding(lambda f: answers(Api.METADATA)(f) and CONSUMER not in f.about, times=None))

    def lift(frame: Frame, connection: Connection) -> None:
        late.lift()
        connection.forward(frame)

    sent = stage.postgres_wire.rule(message("c"), lift, times=1)
    oracle.remember()
    unasked = stage.wire.add(holding(requests(Api.METADATA), times=None))
    stage.recreate(oracle)
    stage.send(oracle, 300)
    unasked.lift()
    sent.wait()
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
