"""Scenarios: Kafka does not answer a request, or answers late, or wrongly, just when the daemon decides where to read.

Each kind of request is swallowed, its answer is swallowed, delayed, or its connection cut: at a first start, a restart,
a claim, an `accept`, and a reload with a new route. Nothing may be lost, doubled or skipped by any of them.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from tests.faults.kafka_wire import Api, Earlier, answers, requests
from tests.faults.rules import Rule, cut, delay, swallow
from tests.faults.stage import Stage, fail_unless, route
from tests.fix_daemon import Daemon, toml

if TYPE_CHECKING:
    from collections.abc import Callable

#: What is asked before a record is read, or while it is.
KINDS = (Api.LIST_OFFSETS, Api.METADATA, Api.FETCH, Api.FIND_COORDINATOR, Api.OFFSET_COMMIT)

#: Longer than a poll's turn and a flush's question, shorter than any request's timeout.
LATE_SECONDS = 1.5

#: What is done to the requests of a kind, by the word that a test says.
WAYS: dict[str, Callable[[Api], Rule]] = {
    "swallowed": lambda kind: Rule(requests(kind), swallow, times=1),
    "unanswered": lambda kind: Rule(answers(kind), swallow, times=1),
    "late": lambda kind: Rule(answers(kind), delay(LATE_SECONDS), times=3),
    "cut": lambda kind: Rule(requests(kind), cut, times=1),
}

#: A request that is not answered is given up soon.
IMPATIENT = {"librdkafka.socket.timeout.ms": 3_000}


def at_a_first_start(stage: Stage, kind: Api, way: str) -> None:
    """Records are there before anybody has read any."""
    stage.send(stage.oracle(), 1_000)
    start_through(stage, stage.daemon(kafka=IMPATIENT), WAYS[way](kind))


def at_a_restart(stage: Stage, kind: Api, way: str) -> None:
    """Half was read before."""
    oracle = stage.oracle()
    daemon = half_read(stage)
    stage.send(oracle, 500)
    start_through(stage, daemon, WAYS[way](kind))


def at_a_claim(stage: Stage, kind: Api, way: str) -> None:
    """The session to PostgreSQL breaks, and what was read is claimed again."""
    oracle = stage.oracle()
    daemon = stage.daemon(kafka=IMPATIENT).start()
    daemon.wait_ready()
    stage.send(oracle, 500)
    stage.settle(daemon)
    rule = stage.wire.add(WAYS[way](kind))
    stage.postgres_wire.cut()
    stage.send(oracle, 500)
    rule.wait()
    stage.settle(daemon)
    stage.check()


def at_accept(stage: Stage, kind: Api, way: str) -> None:
    """There is nothing to accept: all can still be read."""
    oracle = stage.oracle()
    daemon = half_read(stage)
    stage.send(oracle, 500)
    rule = stage.wire.add(WAYS[way](kind))
    stage.command(daemon, "progress", "accept", oracle.topic)
    fail_unless(rule.hits, f"accept asked nothing of kind {kind.name}")
    daemon.start()
    stage.settle(daemon)
    stage.check()


def at_a_reload_with_a_new_route(stage: Stage, kind: Api, way: str) -> None:
    """A route is added, and its topic has records already."""
    old = stage.oracle()
    daemon = stage.daemon(kafka=IMPATIENT).start()
    daemon.wait_ready()
    new = stage.oracle()
    stage.send(old, 300)
    stage.send(new, 700)
    rule = stage.wire.add(WAYS[way](kind))
    reload_with(daemon, route(new))
    rule.wait()
    stage.settle(daemon)
    stage.check()


def at_a_rebalance(stage: Stage, kind: Api, way: str) -> None:
    """A second daemon joins the group while records come, the first one is killed, and comes back."""
    oracle = stage.oracle(partitions=4)
    group = {**IMPATIENT, "assignment": "group", "librdkafka.session.timeout.ms": 6_000}
    first = stage.daemon(kafka=group).start()
    for partition in range(4):
        stage.send(oracle, 100, partition)
    stage.settle(first)
    rule = stage.wire.add(WAYS[way](kind))
    second = stage.another(first).start()
    for partition in range(4):
        stage.send(oracle, 100, partition)
    rule.wait()
    stage.settle(second)
    first.kill()
    for partition in range(4):
        stage.send(oracle, 100, partition)
    stage.settle(second)
    stage.check()


def one_stale_answer_at_accept(stage: Stage) -> None:
    """A broker that lags says once that the topic ends below what was read."""
    oracle = stage.oracle()
    stage.send(oracle, 200)
    daemon = stage.daemon(kafka=IMPATIENT)
    earlier = Earlier(stage.wire, Api.LIST_OFFSETS)
    daemon.start()
    stage.settle(daemon)
    stage.command(daemon, "progress", "accept", oracle.topic)
    stage.send(oracle, 300)
    stage.settle(daemon)
    fail_unless(daemon.stop() == 0, "the daemon did not stop")
    # Two questions, for the start and the end; the second answers are those of now.
    rule = earlier.again(times=2)
    stage.command(daemon, "progress", "accept", oracle.topic)
    fail_unless(rule.hits, "accept did not ask for the topic's end as before")
    daemon.start()
    stage.settle(daemon)
    stage.check()


def altered_once(stage: Stage) -> Rule:
    """Make one digit of a record another one in one answer: its checksum no longer fits."""

    def alter(data: bytes) -> bytes:
        at = data.index(b'"note":"') + len(b'"note":"')
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return stage.wire.rule(
        lambda frame: answers(Api.FETCH)(frame) and b'"note":"' in frame.data,
        lambda frame, connection: connection.send(frame.side, alter(frame.data)),
        times=1,
    )


def a_byte_altered_on_the_way(stage: Stage) -> None:
    """What came altered is not written, and is read again."""
    oracle = stage.oracle()
    stage.send(oracle, 100)
    rule = altered_once(stage)
    daemon = stage.daemon(kafka=IMPATIENT).start()
    rule.wait()
    stage.settle(daemon)
    stage.check()


def start_through(stage: Stage, daemon: Daemon, rule: Rule) -> None:
    """Start a daemon while the rule holds, and let it read all there is."""
    rule = stage.wire.add(rule)
    daemon.start()
    rule.wait()
    stage.settle(daemon)
    stage.check()


def half_read(stage: Stage) -> Daemon:
    """Let a daemon read 500 records, and stop it."""
    stage.send(stage.oracles[0], 500)
    daemon = stage.daemon(kafka=IMPATIENT).start()
    stage.settle(daemon)
    fail_unless(daemon.stop() == 0, "the daemon did not stop")
    return daemon


def reload_with(daemon: Daemon, added: dict[str, object]) -> None:
    """Add a route to the file and have it read."""
    lines = ["[[route]]", *(f"{key} = {toml(value)}" for key, value in added.items()), ""]
    with daemon.config.open("a") as file:
        file.write("\n".join(lines))
    os.kill(daemon.pid, signal.SIGHUP)
