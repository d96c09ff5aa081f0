"""Who may move a partition, from where, and what everybody else is told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from kbatchd.errors import ConfigError, Fenced
from kbatchd.lineage import Lineage
from kbatchd.model import Gap, GapKind, Partition, Position
from kbatchd.schema import by_hand, claiming, progress
from kbatchd.schema.progress import Owner
from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kbatchd.devstack.postgres import Postgres

TOPIC = "requests"
P0, P1 = Partition(TOPIC, 0), Partition(TOPIC, 1)
OURS = Owner("pipe", "route", TOPIC, '"public"."requests"', "ours")
THEIRS = replace(OURS, worker="theirs")
IDS = {0: "id", 1: "id"}


@pytest.fixture
def ours(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        claiming.register(connection, OURS, "id", {0: 0, 1: 10})
        yield connection


@pytest.fixture
def theirs(ours: psycopg.Connection, database: str) -> Iterator[psycopg.Connection]:
    """Another session, as another daemon has it."""
    assert ours
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def claim(connection: psycopg.Connection, owner: Owner = OURS, *numbers: int) -> dict[Partition, Position]:
    positions, recreated = claiming.claim(connection, owner, dict.fromkeys(numbers or IDS, "id"))
    assert not recreated
    assert {position.topic_id for position in positions.values()} == {"id"}
    return {Partition(TOPIC, number): Position(*position[:2]) for number, position in positions.items()}


def stored(connection: psycopg.Connection, columns: str = "next_offset, epoch") -> dict[int, tuple[Any, ...]]:
    rows = connection.execute(f"SELECT partition, {columns} FROM kbatchd.progress ORDER BY 1").fetchall()
    return {number: tuple(values) for number, *values in rows}


class TestRegister:
    def test_where_a_topic_is_begun(self, ours: psycopg.Connection) -> None:
        assert stored(ours, "next_offset, epoch, topic_id, target, owner") == {
            0: (0, 0, "id", OURS.target, None),
            1: (10, 0, "id", OURS.target, None),
        }

    def test_only_once(self, ours: psycopg.Connection) -> None:
        """A second start, or a topic that has grown, begins nothing again."""
        claiming.register(ours, OURS, "other", {0: 500, 1: 500, 2: 500})
        assert stored(ours, "next_offset, topic_id") == {0: (0, "id"), 1: (10, "id")}

    def test_another_pipeline_or_route_has_its_own(self, ours: psycopg.Connection) -> None:
        claiming.register(ours, replace(OURS, pipeline="other"), "id", {0: 7})
        claiming.register(ours, replace(OURS, route="other"), "id", {0: 8})
        rows = ours.execute("SELECT pipeline, route, next_offset FROM kbatchd.progress WHERE partition = 0").fetchall()
        assert sorted(rows) == [("other", "route", 7), ("pipe", "other", 8), ("pipe", "route", 0)]

    def test_progress_for_another_table(self, ours: psycopg.Connection) -> None:
        elsewhere = replace(OURS, target='"public"."elsewhere"')
        claiming.refuse_other_target(ours, OURS)
        with pytest.raises(ConfigError, match=r'made for table "public"\."requests", not "public"\."elsewhere"'):
            claiming.refuse_other_target(ours, elsewhere)
        with pytest.raises(ConfigError):
            claiming.claim(ours, elsewhere, IDS)
        assert stored(ours) == {0: (0, 0), 1: (10, 0)}


class TestClaim:
    def test_each_raises_the_epoch(self, ours: psycopg.Connection) -> None:
        assert claim(ours) == {P0: Position(1, 0), P1: Position(1, 10)}
        assert claim(ours, OURS, 1) == {P1: Position(2, 10)}
        assert stored(ours, "epoch, owner, backend_pid") == {
            0: (1, "ours", ours.info.backend_pid),
            1: (2, "ours", ours.info.backend_pid),
        }

    def test_a_partition_that_appears_later_starts_at_0(self, ours: psycopg.Connection) -> None:
        assert claim(ours, OURS, 1, 2) == {P1: Position(1, 10), Partition(TOPIC, 2): Position(1, 0)}
        assert stored(ours, "next_offset, topic_id, target")[2] == (0, "id", OURS.target)

    def test_progress_that_is_gone_is_not_begun_again(self, ours: psycopg.Connection) -> None:
        """Somebody deleted it while we ran: starting at 0 would double every row."""
        ours.execute("DELETE FROM kbatchd.progress")
        with pytest.raises(ConfigError, match=r"is gone from kbatchd\.progress"):
            claiming.claim(ours, OURS, IDS)
        assert stored(ours) == {}

    def test_a_topic_recreated_is_told_and_not_moved(self, ours: psycopg.Connection) -> None:
        positions, recreated = claiming.claim(ours, OURS, {0: "id", 1: "new"})
        assert positions == {0: Position(1, 0, "id"), 1: Position(1, 10, "id")}
        assert recreated == [Gap(P1, GapKind.RECREATED, 10, 10, 0, "id", "new")]
        assert stored(ours, "next_offset, topic_id")[1] == (10, "id")

    def test_it_is_durable_whatever_the_session_says(self, ours: psycopg.Connection) -> None:
        ours.execute("SET synchronous_commit = off")
        (before,) = ours.execute("SELECT pg_current_wal_insert_lsn()").fetchone() or ("",)
        claim(ours)
        assert ours.execute("SELECT pg_current_wal_flush_lsn() > %s::pg_lsn", (before,)).fetchone() == (True,)
        assert ours.execute("SHOW synchronous_commit").fetchone() == ("off",)


class TestAdvance:
    def test_from_where_we_left_it(self, ours: psycopg.Connection) -> None:
        positions = claim(ours)
        progress.advance(ours, OURS, positions, {P0: 5, P1: 30})
        assert stored(ours) == {0: (5, 1), 1: (30, 1)}

    def test_nothing_to_move(self, ours: psycopg.Connection) -> None:
        progress.advance(ours, OURS, claim(ours), {})
        assert stored(ours) == {0: (0, 1), 1: (10, 1)}

    def test_after_anothers_claim(self, ours: psycopg.Connection, theirs: psycopg.Connection) -> None:
        positions = claim(ours)
        claim(theirs, THEIRS, 1)
        with pytest.raises(Fenced) as caught, ours.transaction():
            progress.advance(ours, OURS, positions, {P0: 5, P1: 30})
        assert caught.value.partitions == (P1,)
        assert stored(ours) == {0: (0, 1), 1: (10, 2)}

    def test_from_another_offset_than_expected(self, ours: psycopg.Connection) -> None:
        positions = claim(ours)
        ours.execute("UPDATE kbatchd.progress SET next_offset = 3 WHERE partition = 0")
        with pytest.raises(Fenced) as caught, ours.transaction():
            progress.advance(ours, OURS, positions, {P0: 5, P1: 30})
        assert caught.value.partitions == (P0,)
        assert stored(ours) == {0: (3, 1), 1: (10, 1)}

    def test_progress_that_is_gone(self, ours: psycopg.Connection) -> None:
        positions = claim(ours)
        ours.execute("DELETE FROM kbatchd.progress WHERE partition = 1")
        with pytest.raises(Fenced) as caught, ours.transaction():
            progress.advance(ours, OURS, positions, {P0: 5, P1: 30})
        assert caught.value.partitions == (P1,)

    def test_a_claim_waits_for_the_flush_before_it(
        self, ours: psycopg.Connection, theirs: psycopg.Connection, database: str
    ) -> None:
        """And then reads where that flush has left the partition: no row twice."""
        positions = claim(ours)
        with ours.transaction():
            progress.advance(ours, OURS, positions, {P0: 5})
            theirs.execute("SET lock_timeout = '50ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                claim(theirs, THEIRS)
        assert claim(theirs, THEIRS) == {P0: Position(2, 5), P1: Position(2, 10)}
        with psycopg.connect(database, autocommit=True) as third, pytest.raises(Fenced):
            progress.advance(third, OURS, {P0: Position(1, 5)}, {P0: 9})

    def test_a_pooler_that_changes_sessions(self, ours: psycopg.Connection, theirs: psycopg.Connection) -> None:
        """Same epoch, same offset, another backend: nobody has claimed, our session is not our own."""
        positions = claim(ours)
        with pytest.raises(ConfigError, match="pooler"), theirs.transaction():
            progress.advance(theirs, OURS, positions, {P0: 5})
        assert stored(ours) == {0: (0, 1), 1: (10, 1)}


class TestLineage:
    """Of which log the records were read, beside how far."""

    READ = Lineage(((0, 0), (3, 12)), 20)

    def read(self, connection: psycopg.Connection) -> None:
        """Read partition 1 up to 20, and a marker behind it."""
        progress.advance(connection, OURS, claim(connection), {P1: 21}, {P1: self.READ})

    def test_it_is_kept_in_the_same_statement(self, ours: psycopg.Connection) -> None:
        self.read(ours)
        assert stored(ours, "next_offset, leader_epoch, leader_epochs, records_end") == {
            0: (0, None, [], None),
            1: (21, 3, [[0, 0], [3, 12]], 20),
        }
        assert claiming.claim(ours, OURS, IDS)[0] == {
            0: Position(2, 0, "id"),
            1: Position(2, 21, "id", self.READ),
        }
        assert progress.lineages(ours, OURS) == {0: Lineage(), 1: self.READ}

    def test_a_part_of_a_batch_has_a_part_of_it(self, ours: psycopg.Connection) -> None:
        progress.advance(ours, OURS, claim(ours), {P1: 11}, {P1: self.READ})
        assert progress.lineages(ours, OURS)[1] == Lineage(((0, 0),), 11)

    def test_an_end_without_records_keeps_it(self, ours: psycopg.Connection) -> None:
        self.read(ours)
        progress.advance(ours, OURS, {P1: Position(1, 21)}, {P1: 40}, {})
        assert stored(ours, "next_offset")[1] == (40,)
        assert progress.lineages(ours, OURS)[1] == self.READ

    @pytest.mark.parametrize(
        ("gap", "after"),
        [
            (Gap(P1, GapKind.TRUNCATION, 15, 21, 15, "id"), Lineage(((0, 0), (3, 12)), 15)),
            (Gap(P1, GapKind.TRUNCATION, 7, 21, 7, "id"), Lineage(((0, 0),), 7)),
            # Nobody knows under which epoch the offset before was written.
            (Gap(P1, GapKind.RETENTION, 21, 50, 50, "id"), READ.unknown()),
            (Gap(P1, GapKind.RECREATED, 21, 21, 0, "id", "new"), Lineage()),
        ],
        ids=["truncated", "truncated further", "retention", "recreated"],
    )
    def test_what_holds_behind_a_gap(self, ours: psycopg.Connection, gap: Gap, after: Lineage) -> None:
        self.read(ours)
        by_hand.accept(ours, OURS, gap, epoch=1)
        assert progress.lineages(ours, OURS)[1] == after
        assert stored(ours, "leader_epoch")[1] == (after.epoch,)
        # And: the ledger tells from where to where.
        assert ours.execute("SELECT spans FROM kbatchd.batches").fetchall() == [({TOPIC: {"1": [21, gap.resume_at]}},)]

    @pytest.mark.parametrize(
        ("to", "after"),
        [(0, Lineage()), (15, Lineage(((0, 0), (3, 12)), 15)), (20, READ), (21, READ.unknown()), (400, READ.unknown())],
    )
    def test_what_holds_when_somebody_moves_it(self, ours: psycopg.Connection, to: int, after: Lineage) -> None:
        self.read(ours)
        by_hand.set_progress(ours, OURS, P1, to)
        assert progress.lineages(ours, OURS)[1] == after


class TestLock:
    def test_one_at_a_time(self, ours: psycopg.Connection, theirs: psycopg.Connection) -> None:
        assert claiming.lock(ours, OURS, [0]) == {0}
        assert claiming.lock(theirs, THEIRS, [0, 1]) == {1}
        assert claiming.lock(ours, OURS, [1]) == set()
        claiming.unlock(ours, OURS, [0])
        assert claiming.lock(theirs, THEIRS, [0]) == {0}

    def test_what_is_given_back_is_nobodys(self, ours: psycopg.Connection, theirs: psycopg.Connection) -> None:
        claim(ours)
        claim(theirs, THEIRS, 1)
        claiming.unlock(ours, OURS, [0, 1])
        assert stored(ours, "backend_pid") == {0: (None,), 1: (theirs.info.backend_pid,)}

    def test_only_a_silent_session_is_ended(self, ours: psycopg.Connection, database: str) -> None:
        with psycopg.connect(database, autocommit=True) as silent:
            assert claiming.lock(silent, THEIRS, [0, 1]) == {0, 1}
            assert claiming.end_silent(ours, OURS, [0, 1], 60.0) == []
            assert claiming.end_silent(ours, replace(OURS, pipeline="other"), [0, 1], 0.0) == []
            assert claiming.end_silent(ours, OURS, [2], 0.0) == []
            with suppress(psycopg.OperationalError), silent.transaction():  # a transaction under way does not save it
                silent.execute("SELECT 1")
                assert claiming.end_silent(ours, OURS, [1, 2], 0.0) == [silent.info.backend_pid]
                wait_until(lambda: claiming.lock(ours, OURS, [0, 1]) == {0, 1}, 10, "the locks")

    def test_it_goes_with_the_session(self, ours: psycopg.Connection, database: str) -> None:
        with psycopg.connect(database, autocommit=True) as dying:
            assert claiming.lock(dying, THEIRS, [0, 1]) == {0, 1}
            assert claiming.lock(ours, OURS, [0, 1]) == set()
            pid = dying.info.backend_pid
            # Waits until the backend has ended.
            assert ours.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,)).fetchone() == (True,)
        assert claiming.lock(ours, OURS, [0, 1]) == {0, 1}

    def test_each_route_and_pipeline_has_its_own(self, ours: psycopg.Connection, theirs: psycopg.Connection) -> None:
        assert claiming.lock(ours, OURS, [0]) == {0}
        assert claiming.lock(theirs, replace(THEIRS, pipeline="other"), [0]) == {0}
        assert claiming.lock(theirs, replace(THEIRS, route="other"), [0]) == {0}

    def test_its_key_is_the_same_everywhere(self) -> None:
        """Daemons of two versions on two hosts must meet at the same key."""
        assert claiming._lock_key(OURS, 0) == claiming._lock_key(THEIRS, 0)
        assert claiming._lock_key(Owner("kbatchd", "requests", "requests", "t", "w"), 3) == -2_374_702_322_233_778_894

    def test_no_lock_is_not_a_question(self, ours: psycopg.Connection) -> None:
        assert claiming.lock(ours, OURS, []) == set()
        claiming.unlock(ours, OURS, [])


class TestAccept:
    GAP = Gap(P1, GapKind.RETENTION, 10, 25, 25, "id")

    def test_the_gap_is_recorded_and_the_epoch_goes_up(self, ours: psycopg.Connection) -> None:
        claim(ours)
        by_hand.accept(ours, OURS, self.GAP, epoch=1)
        assert stored(ours) == {0: (0, 1), 1: (25, 2)}
        rows = ours.execute("SELECT partition, topic_id, kind, first_offset, last_offset FROM kbatchd.gaps").fetchall()
        assert rows == [(1, "id", "retention", 10, 25)]
        ledger = ours.execute("SELECT reason, rows, spans FROM kbatchd.batches").fetchall()
        assert ledger == [("gap", 0, {TOPIC: {"1": [10, 25]}})]

    def test_a_topic_recreated_gets_its_new_id(self, ours: psycopg.Connection) -> None:
        assert claiming.former_ids(ours, OURS) == set()
        _, (gap,) = claiming.claim(ours, OURS, {1: "new"})
        by_hand.accept(ours, OURS, gap, epoch=1)
        assert stored(ours, "next_offset, epoch, topic_id")[1] == (0, 2, "new")
        assert claiming.claim(ours, OURS, {1: "new"}) == ({1: Position(3, 0, "new")}, [])

        # And: the gap's offsets are the former topic's, which never comes back.
        lines = ours.execute("SELECT topic_id, next_topic_id, first_offset, last_offset FROM kbatchd.gaps").fetchall()
        assert lines == [("id", "new", 10, 10)]
        assert claiming.former_ids(ours, OURS) == {"id"}

    def test_only_of_the_topic_that_progress_is_of(self, ours: psycopg.Connection) -> None:
        """A report from before the topic was recreated, or from a broker that lags, says nothing of the new one."""
        claim(ours)
        with pytest.raises(Fenced):
            by_hand.accept(ours, OURS, replace(self.GAP, topic_id="former"), epoch=1)
        assert stored(ours)[1] == (10, 1)

    def test_only_where_progress_still_stands_at_the_gap(self, ours: psycopg.Connection) -> None:
        positions = claim(ours)
        with ours.transaction():
            progress.advance(ours, OURS, positions, {P1: 12})
        with pytest.raises(Fenced):
            by_hand.accept(ours, OURS, self.GAP, epoch=1)
        assert stored(ours)[1] == (12, 1)

    def test_only_by_who_has_claimed_it(self, ours: psycopg.Connection, theirs: psycopg.Connection) -> None:
        claim(ours)
        claim(theirs, THEIRS, 1)
        with pytest.raises(Fenced):
            by_hand.accept(ours, OURS, self.GAP, epoch=1)
        assert stored(ours)[1] == (10, 2)
        assert ours.execute("SELECT count(*) FROM kbatchd.gaps").fetchone() == (0,)


class TestSet:
    @pytest.mark.parametrize("to", [0, 10, 4_000])
    def test_a_running_worker_is_fenced_and_reads_from_there(self, ours: psycopg.Connection, to: int) -> None:
        positions = claim(ours)
        assert by_hand.set_progress(ours, OURS, P1, to) == 10
        assert stored(ours)[1] == (to, 2)
        with pytest.raises(Fenced), ours.transaction():
            progress.advance(ours, OURS, positions, {P1: 20})
        assert claim(ours)[P1] == Position(3, to)
        ledger = ours.execute("SELECT reason, spans FROM kbatchd.batches").fetchall()
        assert ledger == [("set", {TOPIC: {"1": [10, to]}})]

    def test_a_partition_without_progress(self, ours: psycopg.Connection) -> None:
        with pytest.raises(ConfigError, match=r"there is no progress of requests\[7\]"):
            by_hand.set_progress(ours, OURS, Partition(TOPIC, 7), 0)
        assert ours.execute("SELECT count(*) FROM kbatchd.batches").fetchone() == (0,)

    def test_where_it_stood_is_what_a_flush_has_left(
        self, ours: psycopg.Connection, theirs: psycopg.Connection
    ) -> None:
        """It waits for the flush that is about to move it, and the ledger has no hole."""
        positions = claim(ours)
        with ThreadPoolExecutor() as threads:
            with ours.transaction():
                progress.advance(ours, OURS, positions, {P1: 20})
                stood = threads.submit(by_hand.set_progress, theirs, OURS, P1, 3)
                waits = "SELECT 1 WHERE pg_backend_pid() = ANY (pg_blocking_pids(%s))"
                pid = theirs.info.backend_pid
                wait_until(lambda: ours.execute(waits, (pid,)).fetchone(), 10, "the other to wait")
            assert stood.result() == 20
        assert stored(ours)[1] == (3, 2)
        assert ours.execute("SELECT spans FROM kbatchd.batches").fetchone() == ({TOPIC: {"1": [20, 3]}},)


class TestDurable:
    """What decides where reading begins is on the disk when it is committed, whatever the session says."""

    @pytest.mark.parametrize("what", ["register", "claim", "accept", "set"])
    def test_at_once(self, ours: psycopg.Connection, what: str) -> None:
        epoch = claim(ours)[P1].epoch
        ours.execute("SET synchronous_commit = off")
        gap = Gap(P1, GapKind.RETENTION, 10, 25, 25, "id")
        acts: dict[str, Callable[[], object]] = {
            "register": lambda: claiming.register(ours, replace(OURS, route="new"), "id", {0: 50}),
            "claim": lambda: claim(ours),
            "accept": lambda: by_hand.accept(ours, OURS, gap, epoch),
            "set": lambda: by_hand.set_progress(ours, OURS, P1, 3),
        }
        (before,) = ours.execute("SELECT pg_current_wal_insert_lsn()").fetchone() or ("",)
        with ours.transaction():  # the start-up checks begin all their topics in one
            acts[what]()
        assert ours.execute("SELECT pg_current_wal_flush_lsn() > %s::pg_lsn", (before,)).fetchone() == (True,)
        assert ours.execute("SHOW synchronous_commit").fetchone() == ("off",)

    def test_the_first_progress_outlives_a_crash(self, own_postgres: Postgres, own_database: str) -> None:
        """`start = "latest"`: begun again, it would be behind what came meanwhile."""
        with psycopg.connect(own_database, autocommit=True) as connection:
            connection.execute("SET synchronous_commit = off")
            claiming.register(connection, OURS, "id", {0: 1_000})
            own_postgres.kill()
        own_postgres.start()
        with psycopg.connect(own_database, autocommit=True) as connection:
            claiming.register(connection, OURS, "id", {0: 1_050})
            assert stored(connection) == {0: (1_000, 0)}


class TestLost:
    """Progress of one partition is gone, and that of its neighbours is there."""

    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_it_is_not_begun_again(self, ours: psycopg.Connection, number: int) -> None:
        claim(ours, OURS, 1, 2)  # the topic has grown
        ours.execute("DELETE FROM kbatchd.progress WHERE partition = %s", (number,))
        with pytest.raises(ConfigError, match=rf"for partition {number}, .*progress set --config FILE route PARTITION"):
            claim(ours, OURS, 0, 1, 2)
        assert set(stored(ours)) == {0, 1, 2} - {number}
        message = claiming.missing(ours, OURS, 3)
        assert message is not None
        assert f"for partition {number}," in message

    def test_the_others_of_it_go_on(self, ours: psycopg.Connection) -> None:
        ours.execute("DELETE FROM kbatchd.progress WHERE partition = 0")
        assert claim(ours, OURS, 1) == {P1: Position(1, 10)}

    def test_those_that_were_added_start_at_0(self, ours: psycopg.Connection) -> None:
        """Whatever is claimed first, and also where it is none of them but the last."""
        assert claiming.missing(ours, OURS, 6) is None
        assert claim(ours, OURS, 1, 5) == {P1: Position(1, 10), Partition(TOPIC, 5): Position(1, 0)}
        assert claiming.missing(ours, OURS, 6) is None
        assert claim(ours, OURS, 0, 2, 4)[Partition(TOPIC, 4)] == Position(1, 0)
        assert claim(ours, OURS, 3) == {Partition(TOPIC, 3): Position(1, 0)}
        assert stored(ours, "topic_id, target")[3] == ("id", OURS.target)

    def test_two_daemons_meet_the_same_growth(self, ours: psycopg.Connection, theirs: psycopg.Connection) -> None:
        with ThreadPoolExecutor() as threads:
            claims = [threads.submit(claim, ours, OURS, 0, 2, 4), threads.submit(claim, theirs, THEIRS, 1, 3, 5)]
            claimed = claims[0].result() | claims[1].result()
        assert {number: position.next_offset for (_, number), position in claimed.items()} == {
            0: 0, 1: 10, 2: 0, 3: 0, 4: 0, 5: 0,
        }  # fmt: skip

    def test_partitions_that_the_topic_has_not_any_more(self, ours: psycopg.Connection) -> None:
        """Recreated with fewer, and somebody has tidied up."""
        ours.execute("DELETE FROM kbatchd.progress WHERE partition = 1")
        assert claiming.missing(ours, OURS, 1) is None

    def test_somebody_says_where_to_read_on(self, ours: psycopg.Connection) -> None:
        ours.execute("DELETE FROM kbatchd.progress WHERE partition = 0")
        assert by_hand.set_progress(ours, OURS, P0, 7) is None
        assert claim(ours) == {P0: Position(1, 7), P1: Position(1, 10)}
        assert stored(ours, "topic_id, target")[0] == ("id", OURS.target)


class TestLooking:
    def test_moved_by_others(self, ours: psycopg.Connection, theirs: psycopg.Connection) -> None:
        claim(ours)
        assert claiming.moved_by_others(ours, OURS, {0: 1, 1: 1}) == set()
        claim(theirs, THEIRS, 1)
        assert claiming.moved_by_others(ours, OURS, {0: 1, 1: 1}) == {1}
        assert claiming.moved_by_others(ours, OURS, {0: 1}) == set()

    def test_show(self, ours: psycopg.Connection) -> None:
        claiming.register(ours, replace(OURS, pipeline="other"), "id", {0: 7})
        claim(ours)
        rows = by_hand.show(ours, "pipe")
        assert [(row.route, row.topic, row.partition, row.next_offset, row.epoch, row.owner) for row in rows] == [
            ("route", TOPIC, 0, 0, 1, "ours"),
            ("route", TOPIC, 1, 10, 1, "ours"),
        ]
