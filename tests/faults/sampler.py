"""The sampler: at every moment, every record below next_offset is a row, a dead letter or in a gap, and none above.

A thread beside the faults. One statement, in a transaction of REPEATABLE READ, adds up each partition of the table
within PostgreSQL: a hundred thousand rows cost some milliseconds. What must be there then, the senders know: they note
the offset of each record that was acknowledged. Their notes may come later than the rows, so the samples are kept and
judged at the end. The oracle judges the last state record by record; here the states before it are counted.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from tests.faults.books import Fault

if TYPE_CHECKING:
    from tests.faults.oracle import Oracle

#: Between two samples; a longer pause where one takes long, so that this costs a fifth of a processor at the most.
PAUSE_SECONDS = 0.1
PAUSES_PER_SAMPLE = 4

#: A server that is away is asked again soon; one that is there and silent is given up.
OPTIONS = "-c statement_timeout=5s -c default_transaction_isolation=repeatable\\ read"

#: The text that `oracle.note` makes, made by PostgreSQL; of which partition a number was sent to, see `Traffic`.
SAMPLE = """
WITH stored AS (
    SELECT partition, count(*) AS rows, count(DISTINCT "offset") AS offsets, max("offset") AS last,
           count(*) FILTER (WHERE seq %% %(stride)s <> partition OR note <>
               repeat(lpad(to_hex(seq * 2654435761 %% (1::bigint << 61)), 16, '0'), 2) || '-' || seq) AS altered
    FROM {} WHERE seq >= %(since)s GROUP BY partition
), dead AS (
    SELECT partition, array_agg("offset") AS offsets FROM kbatchd.dead_letters
    WHERE (pipeline, route, topic, topic_id) = (%(pipeline)s, %(route)s, %(topic)s, %(topic_id)s) GROUP BY partition
), gone AS (
    SELECT partition, jsonb_agg(jsonb_build_array(first_offset, last_offset)) AS spans FROM kbatchd.gaps
    WHERE (pipeline, route, topic, topic_id) = (%(pipeline)s, %(route)s, %(topic)s, %(topic_id)s)
      AND kind = 'retention'  -- of a log that was cut off the offsets are others' now
    GROUP BY partition
), reached AS (
    SELECT partition, CASE WHEN topic_id = %(topic_id)s THEN coalesce(next_offset, 0) ELSE 0 END AS next_offset
    FROM kbatchd.progress WHERE (pipeline, route, topic) = (%(pipeline)s, %(route)s, %(topic)s)
)
SELECT partition, coalesce(next_offset, 0), coalesce(rows, 0), coalesce(stored.offsets, 0), coalesce(last, -1),
       coalesce(altered, 0), coalesce(dead.offsets, '{{}}'), coalesce(spans, '[]')
FROM reached FULL JOIN stored USING (partition) LEFT JOIN dead USING (partition) LEFT JOIN gone USING (partition)
"""


class Moment(NamedTuple):
    """What a snapshot had of one partition."""

    partition: int
    next_offset: int
    rows: int
    #: How many different offsets these have, and the highest.
    offsets: int
    last: int
    altered: int
    dead: Sequence[int]
    gone: Sequence[tuple[int, int]]


@dataclass(slots=True)
class Sampler:
    """Looks again and again until it is stopped, while servers come and go."""

    oracle: Oracle
    #: Where to look: past all proxies; several hosts where the server fails over.
    dsn: str
    #: Numbers go up by so much within a partition.
    stride: int
    #: Of a recreated topic only what was sent since counts.
    since: int = 0
    topic_id: str = ""
    samples: int = 0
    _seen: list[Moment] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, with the topic as it is."""
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(30)
            self._thread = None

    def judge(self, sent: Mapping[int, Sequence[int]], *, compacted: bool = False) -> list[Fault]:
        """Hold the snapshots since the last judgement against the offsets that were acknowledged, in their order.

        `compacted`: what was sent may be gone before it was read.
        """
        seen, self._seen = self._seen, []
        bad = [fault for moment in seen for fault in _faults(moment, sent.get(moment.partition, ()), compacted)]
        return [Fault("snapshots are wrong", len(bad), "; ".join(bad[:3]))] if bad else []

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                # Of a standby's or a former primary's sessions none outlives the change.
                with psycopg.connect(self.dsn, autocommit=True, connect_timeout=2, options=OPTIONS) as connection:
                    self._look(connection)
            except psycopg.Error:
                self._stopped.wait(PAUSE_SECONDS)

    def _look(self, connection: psycopg.Connection) -> None:
        oracle = self.oracle
        while not self._stopped.is_set():
            began = time.monotonic()
            about = {
                "pipeline": oracle.pipeline,
                "route": oracle.route or oracle.topic,
                "topic": oracle.topic,
                "topic_id": self.topic_id,
                "since": self.since,
                "stride": self.stride,
            }
            with connection.transaction():
                # The lock first, then the snapshot: to one of before it a table that is rewritten looks empty.
                connection.execute(f"LOCK TABLE {oracle.table} IN ACCESS SHARE MODE".encode())
                rows = connection.execute(SAMPLE.format(oracle.table).encode(), about).fetchall()
            if about["topic_id"] == self.topic_id:
                self._seen += [Moment(*row) for row in rows]
                self.samples += 1
            self._stopped.wait(max(PAUSE_SECONDS, PAUSES_PER_SAMPLE * (time.monotonic() - began)))


def _faults(moment: Moment, sent: Sequence[int], compacted: bool) -> list[str]:
    """Compare one partition's state with what was acknowledged of it: `sent` ascends."""
    due = bisect_left(sent, moment.next_offset)
    for first, last in moment.gone:
        due -= bisect_left(sent, min(last, moment.next_offset)) - bisect_left(sent, first)
    found = moment.offsets + len(moment.dead)
    where = f"[{moment.partition}] at next_offset {moment.next_offset}"
    faults = []
    if found < due and not compacted:
        faults.append(f"{where}: {due} records, and {found} rows and dead letters")
    if found > due:
        faults.append(f"{where}: {found} rows and dead letters of {due} records")
    if moment.rows != moment.offsets:
        faults.append(f"{where}: {moment.rows} rows with {moment.offsets} offsets")
    if max(moment.last, *moment.dead, -1) >= moment.next_offset:
        faults.append(f"{where}: a row or a dead letter at {max(moment.last, *moment.dead, -1)}")
    if moment.altered:
        faults.append(f"{where}: {moment.altered} altered rows")
    return faults
