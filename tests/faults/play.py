"""A play: records on their way without a pause, a sampler and an oracle beside them, while faults come and go.

Called by the matrix, in the main thread: `begin`, then a fault's `act` so often, `again` after each, and `end`, which
judges. A fault says when it is over (`over`): from there on it is measured how long no rows came. The faults' own
functions stand in the modules whose names begin with `rows_`.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import psycopg
from psycopg.conninfo import make_conninfo

from tests.faults.books import Fault
from tests.faults.postgres_wire import message, of_batch, statement
from tests.faults.rules import Frame, Side, holding
from tests.faults.sampler import Sampler
from tests.faults.stage import Stage, fail_unless, route
from tests.faults.traffic import PER_SECOND, STRIDE, Traffic
from tests.fix_daemon import wait_until
from tests.fix_postgres import roles_sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.copies import Backup
    from tests.faults.oracle import Oracle
    from tests.faults.row import Row
    from tests.faults.wire import Connection
    from tests.fix_daemon import Daemon

PARTITIONS = 4
#: Rows come again within a request's own timeouts, whatever happened.
AGAIN_SECONDS = 40.0

#: The moments of a flush as they are seen on the wire.
POINTS = ("before COPY's first byte", "within COPY", "before COMMIT", "after COMMIT, before its answer")


class Outcome(NamedTuple):
    """What became of a play."""

    #: How often the fault came, and how many seconds it took each time until all partitions had rows again.
    times: int
    seconds: Sequence[float]
    records: int
    samples: int
    faults: Sequence[Fault]

    def count(self, *kinds: str) -> int:
        """Add up how many records are wrong in one of these ways."""
        return sum(fault.records for fault in self.faults if fault.what in kinds)


@dataclass
class Play:
    """See the module."""

    stage: Stage
    oracle: Oracle
    #: The role that the daemon logs in with: sql/roles.sql's.
    role: str
    traffic: Traffic
    sampler: Sampler
    #: Of the row's own: other rows at the same time take none of its numbers.
    random: random.Random
    daemons: list[Daemon] = field(default_factory=list)
    #: Where the truth is read: past the proxies, as the servers' owner.
    dsn: str = ""
    times: int = 0
    seconds: list[float] = field(default_factory=list)
    #: Records may be gone by compaction before they are read.
    compacted: bool = False
    #: What is to be undone when the play is judged.
    cleanup: ExitStack = field(default_factory=ExitStack)
    _over: float = 0.0
    #: How the session began whose flush is held.
    _held: bytes = b""
    #: What was found of a topic that was recreated since.
    _found: list[Fault] = field(default_factory=list)
    _records: int = 0

    @property
    def daemon(self) -> Daemon:
        """The first daemon: the only one, mostly."""
        return self.daemons[0]

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run SQL past the proxy, as the owner of the server."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def over(self) -> None:
        """Note that the fault is over: the act's end, if nobody says so."""
        self._over = time.time()

    def do(self, act: Callable[[Play], None]) -> None:
        """Let a fault come and go, and wait until each partition has rows again."""
        self._over = 0.0
        act(self)
        self.again()
        self.times += 1

    def again(self, partitions: Sequence[int] | None = None) -> None:
        """Wait for each partition's first commit with rows since the fault was over; measure it by the ledger."""
        self._over = self._over or time.time()
        wanted = set(partitions or self.traffic.sent)
        first: dict[int, float] = {}

        def moved() -> bool:
            first.update(self._first_commits(self._over))
            return wanted <= first.keys()

        wait_until(moved, AGAIN_SECONDS, f"rows of the partitions {sorted(wanted)}", every_seconds=0.05)
        self.seconds.append(max(first[number] for number in wanted) - self._over)

    def _first_commits(self, since: float) -> dict[int, float]:
        statement = f"""
            SELECT span.key::int, extract(epoch FROM min(committed_at))::float8
            FROM kbatchd.batches, jsonb_each(spans->'{self.oracle.topic}') AS span
            WHERE rows > 0 AND committed_at > to_timestamp({since!r}) GROUP BY 1
        """
        try:
            return dict(self.execute(statement))  # type: ignore[arg-type]
        except psycopg.Error:
            return {}

    @contextmanager
    def at(self, point: str) -> Iterator[None]:
        """Hold a flush at one of POINTS while the block lasts; without a name, hold nothing."""
        if not point:
            yield
            return
        wire = self.stage.postgres_wire
        rule = holding(of_batch(message("d") if point in POINTS[:2] else statement("^COMMIT")))
        answers = holding(lambda frame: frame.side is Side.ANSWER, times=None)

        def act(frame: Frame, connection: Connection) -> None:
            self._held = connection.opening
            half = len(frame.data) // 2 if point == POINTS[1] else 0
            if point == POINTS[3]:
                wire.add(answers)
                connection.forward(frame)
            else:
                connection.send(frame.side, frame.data[:half])
                rule.hold(replace(frame, data=frame.data[half:]), connection)

        rule.act = act
        wire.add(rule)
        (answers if point == POINTS[3] else rule).wait()
        yield
        rule.lift()
        answers.lift()
        self._held = b""

    @property
    def victims(self) -> list[str]:
        """The names of the workers, or of the one whose flush is held."""
        held = re.search(rb"kbatchd (worker-\d+)", self._held)
        every = [f"worker-{index}" for index, _ in self.daemon.numbered_workers()]
        return [held[1].decode()] if held else every

    def session(self, dsn: str = "") -> str:
        """Return the DSN of the daemon's role, through the proxy, or another server's."""
        return make_conninfo(dsn or self.stage.through, user=self.role)

    def backends(self) -> list[int]:
        """Return the pids of the victims' sessions."""
        names = ", ".join(f"'kbatchd {name}'" for name in self.victims)
        found = self.execute(
            f"SELECT pid FROM pg_stat_activity WHERE usename = '{self.role}' AND application_name IN ({names})"
        )
        return [int(str(pid)) for (pid,) in found]

    def workers(self) -> list[int]:
        """Return the pids of the victims."""
        started = {pid: f"worker-{index}" for index, pid in self.daemon.numbered_workers()}
        return [pid for pid, name in started.items() if name in self.victims]

    def lead_to(self, server: Backup) -> None:
        """Let another server be the one that the daemon finds, and the truth."""
        self.stage.postgres_wire.lead_to(server.port)
        self.dsn = self.oracle.dsn = self.sampler.dsn = make_conninfo(self.dsn, port=server.port)

    def drain(self) -> None:
        """Send no more, and wait until all that was sent is taken."""
        self.traffic.stop()
        self.wait_progress(self.oracle.edition().ends())

    def send_on(self) -> None:
        """Send again to the topic that `drain` has left."""
        former = self.traffic
        self.traffic = former.successor(max(former.sent.values()))
        self.traffic.offsets = former.offsets
        self.traffic.start()

    def send_again(self, until: Callable[[], object] = lambda: True) -> None:
        """Send to the topic, or the log, that has the name now; what was seen of the former one is judged.

        `until`: before that, progress still is of a log that is there no more, and says so nowhere.
        """
        self.sampler.stop()
        self._judge_snapshots()
        first = max(self.traffic.sent.values())
        self.traffic = self.traffic.successor(first)
        self.sampler.since, self.sampler.topic_id = first * STRIDE, self.oracle.edition().topic_id
        self.traffic.start()
        wait_until(until, AGAIN_SECONDS, "the change to be noticed", every_seconds=0.1)
        self.sampler.start()

    def _judge_snapshots(self) -> None:
        self._found += self.sampler.judge(self.traffic.offsets, compacted=self.compacted)
        self._records += sum(map(len, self.traffic.offsets.values()))

    def end(self) -> Outcome:
        """Send no more, wait for the topic's end, and let oracle and sampler judge."""
        self.drain()
        for daemon in self.daemons:
            fail_unless(daemon.has_ended() or daemon.stop() == 0, "the daemon did not stop in good order")
        faults = self.faults()
        return Outcome(self.times, self.seconds, self._records, self.sampler.samples, faults)

    def faults(self) -> list[Fault]:
        """Let oracle and sampler judge what is there now."""
        self.sampler.stop()
        self._judge_snapshots()
        return [*self.oracle.faults(), *self._found]

    def wait_progress(self, ends: Mapping[int, tuple[str, int]]) -> None:
        """Wait until progress stands there."""

        def there() -> bool:
            try:
                return self.oracle.progress() == ends
            except psycopg.Error:
                return False

        wait_until(there, AGAIN_SECONDS, f"progress at {ends}", every_seconds=0.1)


def begin(stage: Stage, row: Row, chance: random.Random) -> Play:
    """Make topic, table and role, start the daemons, and let records come."""
    spread = row.topic.get("spread")
    name = stage.brokers.spread_topic(spread) if spread else None  # type: ignore[arg-type]
    oracle = stage.oracle(name, None, **{} if name else {"partitions": PARTITIONS, **row.topic})
    [(role,)] = stage.execute("SELECT 'writer_' || left(md5(random()::text), 12)")
    row.prepare(stage)
    stage.execute(roles_sql(str(role), oracle.table, path=stage.roles))
    edition = oracle.edition()
    sampler = Sampler(oracle, stage.dsn, STRIDE, topic_id=edition.topic_id)
    sender = row.traffic(stage.brokers.direct, oracle.topic, len(edition.stops), PER_SECOND)
    play = Play(stage, oracle, str(role), sender, sampler, chance, dsn=stage.dsn)
    given = {name: dict(table) for name, table in row.tables.items()}
    given["postgres"] = {"dsn": play.session(), "lock_timeout_seconds": 1.0, **given.get("postgres", {})}
    given["batch"] = {"max_rows": 200, "linger_seconds": 0.1, **given.get("batch", {})}
    given["workers"] = {"count": 2, **given.get("workers", {})}
    play.daemons.append(stage.daemon(route(oracle, **row.keys), **given).start())
    play.daemon.wait_ready()
    play.daemons += [stage.another(play.daemon).start() for _ in range(row.daemons - 1)]
    for daemon in play.daemons:
        daemon.wait_ready()
    sampler.start()
    sender.start()
    play.again()
    play.seconds.clear()
    return play
