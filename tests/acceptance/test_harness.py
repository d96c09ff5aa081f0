"""The judge is judged: with a rule taken out of the daemon, `assert_exactly_once` must fail.

Each sabotage is a small program that changes one function of the daemon and then runs it. Beside each stands the same
trouble without the sabotage, which the daemon must survive: so it is the rule that counts, not the trouble.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fix_daemon import MakeDaemon, wait_until
from tests.fix_load import Delivery, MakeDelivery, NotExactlyOnce

PROGRAM = """
import os, signal, sys
from pathlib import Path
import psycopg
from kbatchd import cli
from kbatchd.schema import claiming, progress
from kbatchd.sink import sink
{sabotage}
sys.exit(cli.main())
"""

#: Every worker gets every lock: two daemons work side by side, and only the epoch stands between them.
NO_LOCKS = """
claiming.lock = lambda connection, owner, partitions: set(partitions)
claiming.unlock = lambda connection, owner, partitions: None
"""

#: Progress moves for any command, wherever it stands.
UNCONDITIONAL = """
def advance(connection, owner, expected, next_offsets, lineages):
    for partition, offset in next_offsets.items():
        connection.execute(
            "UPDATE kbatchd.progress SET next_offset = greatest(next_offset, %s) WHERE topic = %s AND partition = %s",
            (offset, owner.topic, partition.number),
        )
progress.advance = advance
"""

#: The worker kills itself, once, in the transaction that moves progress; the rows are copied, but not committed.
KILL_BEFORE_COMMIT = """
own_advance = progress.advance
def advance(connection, owner, expected, next_offsets, lineages):
    own_advance(connection, owner, expected, next_offsets, lineages)
    mark = Path({mark!r})
    if sum(next_offsets.values()) > 100 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
progress.advance = advance
"""

#: Progress commits before the rows, in a session of its own.
PROGRESS_FIRST = """
advance_in_batch = progress.advance
def advance_apart(connection, owner, expected, next_offsets, lineages):
    with psycopg.connect(connection.info.dsn) as other:
        other.execute("SET synchronous_commit = on")
        for partition, offset in next_offsets.items():
            other.execute(
                "UPDATE kbatchd.progress SET next_offset = %s WHERE topic = %s AND partition = %s AND epoch = %s",
                (offset, owner.topic, partition.number, expected[partition].epoch),
            )
progress.advance = advance_apart
"""

#: Progress commits after the rows, in a transaction of its own, and the worker dies in between, once.
PROGRESS_LAST = """
def advance_nothing(connection, owner, expected, next_offsets, lineages):
    pass
own_advance = progress.advance
progress.advance = advance_nothing
own_committed = sink._Flush.committed
def committed(flush, last, dead):
    next_offsets = flush._next_offsets(last)
    mark = Path({mark!r})
    if sum(next_offsets.values()) > 100 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    own_advance(flush.connection, flush.target.owner, flush.positions, next_offsets)
    own_committed(flush, last, dead)
sink._Flush.committed = committed
"""


@pytest.mark.parametrize(
    ("sabotage", "fault"),
    [(NO_LOCKS, None), (NO_LOCKS + UNCONDITIONAL, "twice")],
    ids=["compare-and-set", "without"],
)
def test_two_daemons_at_work_side_by_side(
    delivery: Delivery, make_daemon: MakeDaemon, tmp_path: Path, sabotage: str, fault: str | None
) -> None:
    program = write(tmp_path, sabotage)
    first = make_daemon(delivery.route, program=program).start()
    first.wait_ready()
    with delivery.load(per_second=1_000):
        wait_until(lambda: delivery.rows() > 500, 10, "rows of the first daemon")
        second = make_daemon(config=first.config, program=program).start()
        second.wait_ready()
        # Fenced, or in the table without being asked: either way both have worked on the same partitions.
        wait_until(lambda: is_double(delivery) if fault else first.logged("action=fenced"), 10, "both at the same work")
        before = delivery.rows()
        wait_until(lambda: delivery.rows() > before + 1_000, 20, "rows with two daemons")
    delivery.wait_drained()
    judge(delivery, fault)


@pytest.mark.parametrize(
    ("sabotage", "fault"),
    [(KILL_BEFORE_COMMIT, None), (PROGRESS_FIRST + KILL_BEFORE_COMMIT, "lost"), (PROGRESS_LAST, "twice")],
    ids=["one-transaction", "progress-first", "progress-last"],
)
def test_a_worker_killed_between_rows_and_progress(
    delivery: Delivery, make_daemon: MakeDaemon, tmp_path: Path, sabotage: str, fault: str | None
) -> None:
    mark = tmp_path / "killed"
    daemon = make_daemon(delivery.route, program=write(tmp_path, sabotage.format(mark=str(mark)))).start()
    with delivery.load(per_second=2_000):
        wait_until(mark.exists, 15, "the worker's death")
        before = delivery.rows()
        wait_until(lambda: delivery.rows() > before + 1_000, 15, "rows of the next worker")
    delivery.wait_drained()
    assert daemon.stop() == 0
    judge(delivery, fault)


@pytest.mark.parametrize(
    ("seqs", "fault"),
    [
        ("0, 1, 2, 3", None),
        ("0, 1, 3", r"\[0\] lost 1: 2"),
        ("0, 1, 2, 3, 3", r"\[0\] twice 1: 3"),
        ("0, 1, 3, 2", r"\[0\] out of order at row 2: 3 instead of 2"),
        ("0, 1, 2, 3, 99", r"\[0\] twice 1: 99"),
    ],
    ids=["right", "lost", "twice", "order", "foreign"],
)
def test_the_judge_sees_what_is_wrong(make_delivery: MakeDelivery, seqs: str, fault: str | None) -> None:
    delivery = make_delivery(1)
    delivery.send(4)
    delivery.execute(f"INSERT INTO {delivery.table} (partition, seq) SELECT 0, unnest(ARRAY[{seqs}])")
    judge(delivery, fault)


def is_double(delivery: Delivery) -> bool:
    return delivery.query(f"SELECT count(*) > count(DISTINCT (partition, seq)) FROM {delivery.table}") == [(True,)]


def write(directory: Path, sabotage: str) -> tuple[str]:
    program = directory / "sabotaged.py"
    program.write_text(PROGRAM.format(sabotage=sabotage))
    return (str(program),)


def judge(delivery: Delivery, fault: str | None) -> None:
    if fault is None:
        delivery.assert_exactly_once()
    else:
        with pytest.raises(NotExactlyOnce, match=fault):
            delivery.assert_exactly_once()
