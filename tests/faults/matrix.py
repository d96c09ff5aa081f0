"""The fault matrix: `python -m tests.faults.matrix` lets every fault come and go, and writes docs/faults.md.

Each row is a play of its own. Two lanes, a thread each, take one row after the other, each on its own brokers and its
own PostgreSQL: most of the time is spent waiting. Then both take random pairs of faults, to the end of the time. The
seed is printed, and `--seed` gives the same moments and pairs again. `make faults` calls it.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import pytest

from kbatchd.devstack.postgres import Postgres
from tests.faults import report
from tests.faults.brokers import Brokers
from tests.faults.oracle import Unbalanced
from tests.faults.play import Outcome, begin
from tests.faults.rows_daemons import DAEMONS
from tests.faults.rows_kafka import KAFKA
from tests.faults.rows_postgres import POSTGRES
from tests.faults.rows_processes import PROCESSES
from tests.faults.rows_upgrade import UPGRADE
from tests.faults.rows_ways import WAYS
from tests.faults.stage import Stage
from tests.fix_daemon import Daemon, daemons_in
from tests.fix_faults import postgres_wire_to
from tests.fix_postgres import database_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.faults.play import Play
    from tests.faults.row import Row

log = logging.getLogger("faults")

ROWS: tuple[Row, ...] = (*PROCESSES, *WAYS, *POSTGRES, *KAFKA, *DAEMONS, *UPGRADE)

#: The rows of the page, with what is promised.
FAULTS = {**{row.fault: row.promise for row in ROWS}, report.PAIRS: report.PAIRS_PROMISE}

#: How long pairs come at the end of a run.
PAIRS_MINUTES = 1.0

#: Of the daemon's log, where a row failed.
SHOWN_LINES = 60


def perform(row: Row, stage: Stage, times: int = 0, seed: int = 0) -> Outcome:
    """Let the fault come and go so often, or as its row says; return what became of the records."""
    play = begin(stage, row, random.Random(f"{seed} {row.fault}"))
    with play.cleanup, told(play):
        for _ in range(times or row.times):
            play.do(row.act)
        return play.end()


@contextmanager
def told(play: Play) -> Iterator[None]:
    """Where rows do not come again, say first what is wrong with those that are there."""
    try:
        yield
    except pytest.fail.Exception as failed:
        play.traffic.stop()
        faults = play.faults()
        if faults:
            raise Unbalanced("; ".join(map(str, faults))) from failed
        raise


def row_of(fault: str) -> Row:
    """Return the row whose fault begins so."""
    [row] = [row for row in ROWS if row.fault.startswith(fault)]
    return row


def perform_pair(one: Row, other: Row, stage: Stage, pool: ThreadPoolExecutor, chance: random.Random) -> Outcome:
    """Let two faults come at about the same moment, once each; the pool's threads live as long as the servers."""
    play = begin(stage, replace(one, tables={**other.tables, **one.tables}), chance)

    def both(play: Play) -> None:
        for done in [pool.submit(_soon, row.act, play) for row in (one, other)]:
            done.result()
        play.over()

    with play.cleanup, told(play):
        play.do(both)
        return play.end()


def _soon(act: Callable[[Play], None], play: Play) -> None:
    time.sleep(play.random.uniform(0.0, 0.5))
    act(play)


def random_pair(chance: random.Random) -> tuple[Row, Row]:
    """Choose two faults of different places."""
    apt = [row for row in ROWS if row.pairs is not None]
    one = chance.choice(apt)
    return one, chance.choice([row for row in apt if row.pairs is not one.pairs])


class Servers:
    """The matrix's own brokers and PostgreSQL, and a fresh stage between them for each row."""

    def __init__(self, opened: ExitStack) -> None:
        """Start what most rows need; clusters of several brokers start when they are first wanted."""
        self._opened = opened
        scratch = TemporaryDirectory(prefix="kbatchd-faults-", ignore_cleanup_errors=True)
        self._directory = Path(opened.enter_context(scratch))
        self._clusters: dict[int, Brokers] = {}
        self._postgres = opened.enter_context(Postgres())
        self._wire = opened.enter_context(postgres_wire_to(self._postgres.dsn))
        self._stages = 0

    def stage(self, brokers: int, opened: ExitStack, daemons: list[Daemon]) -> Stage:
        """Make a stage whose daemons and database end with `opened`."""
        if brokers not in self._clusters:
            directory = self._directory / f"brokers-{brokers}"
            self._clusters[brokers] = self._opened.enter_context(Brokers(directory, brokers))
        cluster = self._clusters[brokers]
        cluster.start()
        self._postgres.start()
        self._stages += 1
        directory = self._directory / f"stage-{self._stages}"
        directory.mkdir()
        dsn = opened.enter_context(database_on(self._postgres))
        make = opened.enter_context(daemons_in(directory, cluster.bootstrap_servers, dsn, daemons))
        stage = Stage(cluster, dsn, self._wire, make, self._postgres)
        opened.callback(stage.clear)
        return stage


class Task(NamedTuple):
    """A row or a pair, for whichever lane is free."""

    name: str
    brokers: int
    act: Callable[[Stage, ThreadPoolExecutor], Outcome]


class Tasks:
    """All rows, those on several brokers first; then pairs until the time is over. Called by both lanes."""

    def __init__(self, rows: Sequence[Row], seed: int, pairs_minutes: float, times: int) -> None:
        self._seed = seed
        self._rows = sorted(rows, key=lambda row: -row.brokers)
        self._times = times
        self._pairs = 0
        self._pairs_seconds = pairs_minutes * 60
        self._deadline = 0.0
        self._lock = threading.Lock()
        #: What became of each task, in the order of their ends; None: it failed.
        self.outcomes: dict[str, Outcome | None] = {}

    def take(self, *, alone: bool) -> Task | None:
        """Return the next task; rows on several brokers are for one lane, so that only that one starts them."""
        with self._lock:
            for row in self._rows:
                if row.brokers == 1 or not alone:
                    self._rows.remove(row)
                    return self._row(row)
            self._deadline = self._deadline or time.monotonic() + self._pairs_seconds
            if time.monotonic() > self._deadline:
                return None
            self._pairs += 1
            chance = random.Random(f"{self._seed} pair {self._pairs}")
            one, other = random_pair(chance)
            name = f"pair {self._pairs}: {one.fault} + {other.fault}"
            return Task(name, 1, lambda stage, pool: perform_pair(one, other, stage, pool, chance))

    def end(self) -> None:
        """Give no more tasks."""
        with self._lock:
            self._rows.clear()
            self._pairs_seconds = self._deadline = float("-inf")

    def _row(self, row: Row) -> Task:
        return Task(row.fault, row.brokers, lambda stage, _: perform(row, stage, self._times, self._seed))


def lane(tasks: Tasks, *, alone: bool) -> None:
    """Take one task after the other, on servers of this lane's own."""
    with ExitStack() as opened:
        pool = opened.enter_context(ThreadPoolExecutor(2))
        servers = Servers(opened)
        while (task := tasks.take(alone=alone)) is not None:
            tasks.outcomes[task.name] = _tried(task, servers, pool)


def _tried(task: Task, servers: Servers, pool: ThreadPoolExecutor) -> Outcome | None:
    """Do it on a fresh stage; what fails is told with the daemon's log, and None."""
    daemons: list[Daemon] = []
    outcome = None
    began = time.monotonic()
    with ExitStack() as opened:
        try:
            outcome = task.act(servers.stage(task.brokers, opened, daemons), pool)
        except (Exception, pytest.fail.Exception) as error:
            log.exception("%s: %s", task.name, type(error).__name__)
        if outcome is None or outcome.faults:
            for daemon in daemons:
                log.error("%s\n%s", daemon.log, "\n".join(daemon.lines()[-SHOWN_LINES:]))
    said = "FAILED" if outcome is None else report.summary(outcome)
    log.info("%5.1f s  %s: %s", time.monotonic() - began, task.name, said)
    return outcome


def lines(outcomes: Mapping[str, Outcome]) -> list[report.Line]:
    """Return what docs/faults.md is to say of them."""
    found = [report.Line(row.fault, row.promise, outcomes[row.fault]) for row in ROWS if row.fault in outcomes]
    pairs = [outcome for name, outcome in outcomes.items() if name.startswith("pair ")]
    if pairs:
        found.append(report.Line(report.PAIRS, report.PAIRS_PROMISE, report.together(pairs)))
    return found


def main() -> int:
    """Run all, or some; on the page is the last measurement of each in which all was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="the same moments and pairs again")
    parser.add_argument("--pairs-minutes", type=float, default=PAIRS_MINUTES, help="how long pairs come at the end")
    parser.add_argument("--only", default="", help="rows whose fault has this (a pattern) in it")
    parser.add_argument(
        "--times", type=int, default=0, help="how often each fault comes, if not as often as its row says"
    )
    parser.add_argument("page", type=Path, nargs="?", help="where to write it")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    log.info("SEED=%d", seed)
    rows = [row for row in ROWS if re.search(options.only, row.fault)]
    tasks = Tasks(rows, seed, options.pairs_minutes, options.times)
    began = time.monotonic()
    with ThreadPoolExecutor(2) as lanes:
        try:
            for done in [lanes.submit(lane, tasks, alone=alone) for alone in (False, True)]:
                done.result()
        finally:
            tasks.end()  # where one lane has failed, or by Ctrl-C: the other ends what it is at
    right = {name: outcome for name, outcome in tasks.outcomes.items() if outcome is not None and not outcome.faults}
    failed = sorted(tasks.outcomes.keys() - right.keys())
    log.info("%.0f s, SEED=%d; failed: %s", time.monotonic() - began, seed, "; ".join(failed) or "none")
    if options.page:
        before = options.page.read_text(encoding="utf-8") if options.page.exists() else ""
        options.page.write_text(report.page(list(FAULTS), lines(right), before), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
