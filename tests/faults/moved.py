"""Scenarios: progress is moved, lost or renamed by people, and a file is sent again: nothing comes twice in silence.

What cannot be made right is refused: then the daemon ends, or halts, and the table is as it was.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
from confluent_kafka import ConsumerGroupTopicPartitions

from tests.faults.oracle import COLUMNS, value
from tests.faults.postgres_wire import statement
from tests.faults.stage import Stage, fail_unless, route
from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from tests.fix_daemon import Daemon


def one_partition_missing(stage: Stage) -> None:
    """Somebody has deleted the progress of one partition, and its neighbours' is there."""
    oracle = stage.oracle(partitions=3)
    for partition in range(3):
        stage.send(oracle, 50, partition)
    daemon = stage.daemon().start()
    stage.settle(daemon)
    fail_unless(daemon.stop() == 0, "the daemon did not stop")
    stage.execute("DELETE FROM kbatchd.progress WHERE partition = 1")
    stage.send(oracle, 5, partition=1)
    daemon.start()
    stage.settle_or_end(daemon)
    fail_unless_twice_is_the_fault(stage)


def renamed(stage: Stage, change: str) -> None:
    """The pipeline, or the route, has another name in the file than in the progress."""
    oracle = stage.oracle()
    stage.send(oracle, 200)
    daemon = stage.daemon(route(oracle, name="before")).start()
    oracle.route = "before"
    stage.settle(daemon)
    fail_unless(daemon.stop() == 0, "the daemon did not stop")
    text = daemon.config.read_text()
    if change == "pipeline":
        text = f'pipeline = "other"\n{text}'
    else:
        text = text.replace('name = "before"', 'name = "after"')
    daemon.config.write_text(text)
    daemon.start()
    wait_until(lambda: daemon.has_ended() or len(oracle.books().rows) > 200, 30, "a refusal, or everything again")
    stage.check()
