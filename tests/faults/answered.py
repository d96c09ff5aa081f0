"""Scenarios: what a gateway answers to `ack=db` while the topic under it becomes another one, or PostgreSQL is late.

Each answer is kept beside the numbers of its records, and the oracle holds it against the table at the end.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tests.faults.oracle import Answered, Oracle, value
from tests.faults.postgres_wire import STARTUP, message
from tests.faults.recreated import accept_all, settle_for_good
from tests.faults.rules import cut
from tests.faults.stage import Stage, route
from tests.fix_daemon import wait_until
from tests.fix_http import Client, free_port, wait_listening

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fix_daemon import Daemon

#: How long an answer may wait for the table; records of a partition that stands still come to none.
WAIT_SECONDS = 4


def ask(oracle: Oracle, port: int, seqs: Sequence[int], wait_seconds: int = WAIT_SECONDS) -> None:
    """Send records in one request that waits for the table, and keep the answer."""
    body = b"\n".join(value(seq) for seq in seqs)
    with Client(port) as client:
        reply = client.post(
            f"/v1/{oracle.route or oracle.topic}",
            body,
            content_type="application/x-ndjson",
            prefer=f"wait={wait_seconds}",
        )
    kind = reply.json.get("type", "") if reply.status >= 300 else ""
    oracle.answers.append(Answered(reply.status, kind, tuple(seqs)))


def with_gateway(stage: Stage, oracle: Oracle, **keys: object) -> tuple[Daemon, int]:
    """Make a daemon with a gateway; return its port too."""
    port = free_port()
    return stage.daemon(route(oracle, **keys), gateway={"listen": f"127.0.0.1:{port}"}), port


def a_recreated_topic_that_halted(stage: Stage) -> None:
    """Progress is of the former topic, and stands behind the new one's offsets; then it is accepted."""
    oracle = stage.oracle()
    daemon, port = with_gateway(stage, oracle)
    daemon.start().wait_ready()
    stage.send(oracle, 100)
    stage.settle(daemon)
    oracle.remember()
    stage.recreate(oracle)
    stage.send(oracle, 1)
    settle_for_good(stage, daemon)
    for _ in range(3):
        ask(oracle, port, stage.take_numbers(2))
    stage.check()
    known = accept_all(stage, daemon, oracle)
    settle_for_good(stage, daemon, known)
    stage.check()


def a_recreated_topic_that_was_accepted(stage: Stage) -> None:
    """The former topic has a dead letter at 5 and ends at 11: the new topic has good rows there."""
    oracle = stage.oracle()
    daemon, port = with_gateway(stage, oracle, on_gap="record")
    daemon.start().wait_ready()
    stage.send(oracle, 5)
    stage.send(oracle, 1, sound=False)
    stage.send(oracle, 5)
    stage.settle(daemon)
    oracle.remember()
    stage.recreate(oracle)
    stage.send(oracle, 1)
    settle_for_good(stage, daemon)
    for _ in range(6):
        ask(oracle, port, stage.take_numbers(1))
    ask(oracle, port, stage.take_numbers(10))
    stage.settle(daemon)
    stage.check()


def before_the_first_progress(stage: Stage) -> None:
    """`start = "latest"`, PostgreSQL comes late: records are acknowledged before it is known where reading begins.

    Those may be skipped, but not confirmed.
    """
    oracle = stage.oracle()
    daemon, port = with_gateway(stage, oracle, start="latest")
    daemon.start().wait_ready()  # the gateway knows the table from now on
    daemon.stop()
    stage.execute("DELETE FROM kbatchd.progress")
    oracle.begins_late = True
    away = stage.postgres_wire.rule(message(STARTUP), cut)
    daemon.start()
    wait_listening(port)
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(ask, oracle, port, stage.take_numbers(1), wait_seconds=20) for _ in range(8)]
        wait_until(lambda: len(oracle.edition().records) == len(asked), 20, "records in the topic")
        away.lift()
        for each in asked:
            each.result()
    stage.settle(daemon)
    stage.check()
