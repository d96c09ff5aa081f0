"""What the two threads of a worker hand to each other: a thread waits here only where the waiting itself is tested."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from kbatchd import config
from kbatchd.encode.rows import RowEncoder, build_encoder
from kbatchd.lineage import Lineage
from kbatchd.model import FlushReason, Gap, GapKind, Partition, Position
from kbatchd.postgres.table import Column
from kbatchd.sink.batch import Batch
from kbatchd.stats.place import PLACE_BYTES, Place
from kbatchd.worker.handover import Handover
from kbatchd.worker.intake import Intake
from kbatchd.worker.lane import NOT_OURS, Lane, Reading, Turn
from kbatchd.worker.one_by_one import Encoding, Surroundings
from tests.records import TOPIC, Sent, chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

P0, P1 = Partition(TOPIC, 0), Partition(TOPIC, 1)
NEVER = 1e9
#: A deadline that has passed: what is ready now, without waiting.
NOW = 0.0
SOON_SECONDS = 60.0


@pytest.fixture(scope="module")
def encoder() -> RowEncoder:
    column = Column("id", 1, "int8", -1, not_null=True, generated=False, identity=False, has_default=False)
    return build_encoder([column])


@pytest.fixture
def other_thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def make(*topics: str, max_rows: int = 3, linger_seconds: float = 3_600, buffers: int = 2) -> Handover:
    routes = [config.Route(topic=topic, table="t") for topic in topics or (TOPIC,)]
    batch = config.Batch(max_rows=max_rows, max_bytes=1_024, linger_seconds=linger_seconds)
    return Handover(routes, batch, buffers * 1_024)


def granted(handover: Handover, encoder: RowEncoder, *partitions: Partition, at: int = 0, epoch: int = 1) -> int:
    """Grant partitions and let the poll loop take them; return the generation."""
    for partition in partitions:
        handover.grant(handover.lanes[partition.topic], {partition: Position(epoch, at)}, encoder)
    turn = handover.turn()
    starts = {partition: start for reading in turn.readings.values() for partition, start in reading.starts.items()}
    assert {partition: starts[partition] for partition in partitions} == dict.fromkeys(partitions, at)
    return turn.encoders[partitions[0].topic][0]


#: As in a worker whose records have killed nobody.
ENCODING = Encoding(
    0, TOPIC, Surroundings(Place(memoryview(bytearray(PLACE_BYTES))), lambda: None, lambda _: "", lambda: None)
)


def grant(handover: Handover, route: str, starts: dict[Partition, int], encoder: RowEncoder) -> None:
    positions = {partition: Position(1, start) for partition, start in starts.items()}
    handover.grant(handover.lanes[route], positions, encoder)


@pytest.mark.parametrize("ahead", [(2, 7), (7, 2)])
def test_of_routes_at_one_offset_the_one_that_has_read_another_log_is_asked_for(
    encoder: RowEncoder, ahead: tuple[int, int]
) -> None:
    """One has gone on in the log that took its place, up to where the other one has stopped."""
    routes = [config.Route(name=name, topic=TOPIC, table="t") for name in ("one", "other")]
    handover = Handover(routes, config.Batch(), 32_000_000)
    for route, epoch in zip(routes, ahead, strict=True):
        position = Position(1, 500, "id", Lineage(((epoch, 0),), 500))
        handover.grant(handover.lanes[route.name], {P0: position}, encoder)
    reading = handover.turn().readings[TOPIC]
    assert (reading.starts, reading.epochs) == ({P0: 500}, {P0: 2})


def take(handover: Handover, turn: Turn, records: list[Sent]) -> None:
    """Do what the poll loop does with what it polled."""
    for route, (generation, encoder) in turn.encoders.items():
        intake = Intake(handover, route, ENCODING)
        intake.begin(turn.readings[TOPIC])
        intake.take(records, generation, encoder)


def good(offsets: Iterable[int], partition: Partition = P0) -> list[Sent]:
    return [Sent(offset, b'{"id":%d}' % offset, partition.number, subject=partition.topic) for offset in offsets]


def sent(offsets: Iterable[int], partition: Partition = P0) -> list[Sent]:
    return [Sent(offset, b"x", partition.number, subject=partition.topic) for offset in offsets]


def ready(handover: Handover) -> tuple[Lane, Batch]:
    work = handover.next_batch(NOW)
    assert work is not None, "no batch is ready"
    return work


class TestGenerations:
    def test_a_chunk_polled_before_a_revoke_is_dropped(self, encoder: RowEncoder) -> None:
        handover = make()
        generation = granted(handover, encoder, P0)
        lane = handover.lanes[TOPIC]
        handover.revoke(lane)
        handover.grant(lane, {P0: Position(2, 0)}, encoder)
        assert handover.put(TOPIC, generation, chunk(*sent([0, 1, 2]))) is None
        assert handover.is_drained()

    def test_an_end_polled_before_a_revoke_is_dropped(self, encoder: RowEncoder) -> None:
        """The records before it were dropped: progress must not move over them."""
        handover = make()
        generation = granted(handover, encoder, P0)
        lane = handover.lanes[TOPIC]
        handover.revoke(lane)
        handover.grant(lane, {P0: Position(2, 0)}, encoder)
        assert handover.put_ends(TOPIC, generation, {P0: 100})
        assert handover.is_drained()
        assert lane.batches.reached == {P0: 0}

    def test_the_next_turn_reads_what_is_granted_then(self, encoder: RowEncoder) -> None:
        handover = make()
        generation = granted(handover, encoder, P0, P1)
        lane = handover.lanes[TOPIC]
        assert sorted(handover.revoke(lane)) == [P0, P1]
        handover.grant(lane, {P0: Position(2, 40)}, encoder)
        turn = handover.turn()
        assert turn.readings == {TOPIC: Reading({P0: 40}, {TOPIC: {}}, {}, {}, frozenset({P0, P1}))}
        assert turn.encoders[TOPIC][0] > generation
        assert handover.put(TOPIC, turn.encoders[TOPIC][0], chunk(*sent([40]))) is None
        assert not handover.is_drained()

    def test_a_grant_that_was_taken_back_before_the_turn(self, encoder: RowEncoder) -> None:
        handover = make()
        lane = handover.lanes[TOPIC]
        handover.grant(lane, {P0: Position(1, 40)}, encoder)
        handover.revoke(lane)
        turn = handover.turn()
        assert (turn.readings, turn.encoders) == ({TOPIC: Reading({}, {}, {}, {}, frozenset({P0}))}, {})

    def test_another_routes_revoke_leaves_this_one_alone(self, encoder: RowEncoder) -> None:
        handover = make(TOPIC, "other")
        generation = granted(handover, encoder, P0)
        handover.revoke(handover.lanes["other"])
        handover.put(TOPIC, generation, chunk(*sent([0, 1, 2])))
        assert ready(handover)[1].next_offsets == {P0: 3}

    def test_further_partitions_keep_the_generation(self, encoder: RowEncoder) -> None:
        handover = make()
        generation = granted(handover, encoder, P0)
        assert granted(handover, encoder, P1, at=7) == generation
        handover.put(TOPIC, generation, chunk(*sent([0]), *sent([7, 8], P1)))
        _, batch = ready(handover)
        assert batch.next_offsets == {P0: 1, P1: 9}
        assert batch.epochs == {P0: 1, P1: 1}

    def test_news_is_told_once(self, encoder: RowEncoder) -> None:
        handover = make()
        granted(handover, encoder, P0)
        assert handover.turn().readings == {}

    def test_no_encoder_before_the_first_grant(self) -> None:
        assert make().turn().encoders == {}


class TestMoves:
    """Partitions come and go; those that stay are read on."""

    def test_what_comes_leaves_the_others_alone(self, encoder: RowEncoder) -> None:
        handover = make()
        granted(handover, encoder, P0)
        grant(handover, TOPIC, {P1: 7}, encoder)
        reading = handover.turn().readings[TOPIC]
        assert (reading.moved, reading.starts) == (frozenset({P1}), {P1: 7})

    def test_what_goes_leaves_the_others_alone(self, encoder: RowEncoder) -> None:
        handover = make()
        generation = granted(handover, encoder, P0, P1)
        lane = handover.lanes[TOPIC]
        handover.put(TOPIC, generation, chunk(*sent([0, 1])))
        assert handover.give_up(lane, {P1})
        turn = handover.turn()
        assert turn.readings == {TOPIC: Reading({}, {TOPIC: {}}, {}, {}, frozenset({P1}))}
        assert turn.encoders[TOPIC][0] == generation
        handover.put(TOPIC, generation, chunk(*sent([2])))
        assert ready(handover)[1].next_offsets == {P0: 3}
        assert (set(lane.claimed), lane.committed, lane.batches.reached) == ({P0}, {P0: 0}, {P0: 3})

    @pytest.mark.parametrize("count", [1, 3], ids=["filling", "full"])
    def test_what_is_in_a_batch_does_not_go_alone(self, encoder: RowEncoder, count: int) -> None:
        handover = make()
        generation = granted(handover, encoder, P0, P1)
        lane = handover.lanes[TOPIC]
        handover.put(TOPIC, generation, chunk(*sent(range(count), P1)))
        assert not handover.give_up(lane, {P1})
        assert handover.turn().readings == {}
        assert handover.give_up(lane, {P0})
        assert lane.epochs.keys() == {P1}

    def test_what_waits_of_the_others_goes_on_waiting(self, encoder: RowEncoder) -> None:
        handover = make()
        granted(handover, encoder, P0, P1)
        generation = handover.lanes[TOPIC].generation
        intake = Intake(handover, TOPIC, ENCODING)
        intake.take(good(range(8)), generation, encoder)
        assert intake.is_waiting
        handover.read_again(P1)
        intake.begin(handover.turn().readings[TOPIC])
        assert intake.is_waiting, "it is of a partition that is read on"
        handover.done(*ready(handover))
        handover.free_retired()
        intake.retry()
        assert not intake.is_waiting
        assert [batch.next_offsets for batch in handover.lanes[TOPIC].batches.closed] == [{P0: 6}]
        handover.close_all(FlushReason.STOP)
        assert handover.lanes[TOPIC].batches.closed[-1].next_offsets == {P0: 8}

    def test_what_waits_of_those_that_moved_is_read_again(self, encoder: RowEncoder) -> None:
        handover = make()
        generation = granted(handover, encoder, P0, P1)
        intake = Intake(handover, TOPIC, ENCODING)
        intake.take([*good(range(6)), *good(range(2), P1), *good([6])], generation, encoder)
        handover.read_again(P0)
        reading = handover.turn().readings[TOPIC]
        assert reading.starts == {P0: 6}
        intake.begin(reading)
        handover.done(*ready(handover))
        handover.free_retired()
        intake.retry()
        handover.close_all(FlushReason.STOP)
        assert handover.lanes[TOPIC].batches.closed[-1].next_offsets == {P1: 2}

    def test_others_may_have_it_when_the_flusher_says_so(self) -> None:
        handover = make()
        assert handover.wait_released(0)
        handover.release([P0])
        handover.news()
        assert not handover.wait_released(0)
        handover.release([P1])
        handover.note_released()
        assert not handover.wait_released(0), "of the second it does not know yet"
        handover.news()
        handover.note_released()
        assert handover.wait_released(0)


class TestSeveralRoutes:
    """One topic, the routes a and b: one assignment, two lanes."""

    def make(self, encoder: RowEncoder, a: dict[Partition, int], b: dict[Partition, int]) -> Handover:
        routes = [config.Route(topic=TOPIC, table="t", name=name) for name in "ab"]
        handover = Handover(routes, config.Batch(max_rows=3, max_bytes=1_024, linger_seconds=3_600), 4_096)
        for name, starts in (("a", a), ("b", b)):
            grant(handover, name, starts, encoder)
        return handover

    def taken(self, handover: Handover, route: str) -> list[int | None]:
        handover.close_all(FlushReason.STOP)
        return [record.offset() for batch in handover.lanes[route].batches.closed for record in batch.records]

    def test_reading_begins_at_the_lowest(self, encoder: RowEncoder) -> None:
        handover = self.make(encoder, {P0: 5, P1: 9}, {P0: 7})
        reading = handover.turn().readings[TOPIC]
        assert reading.starts == {P0: 5, P1: 9}
        assert reading.floors == {"a": {}, "b": {0: 7, 1: NOT_OURS}}

    def test_each_takes_what_it_does_not_have_yet(self, encoder: RowEncoder) -> None:
        handover = self.make(encoder, {P0: 2}, {P0: 4, P1: 10})
        records = [*good([2, 3]), *good([10], P1), *good([4, 5])]
        take(handover, handover.turn(), records)
        assert self.taken(handover, "a") == [2, 3, 4, 5]
        assert self.taken(handover, "b") == [10, 4, 5]

    def test_the_ends_of_others_partitions_are_not_taken(self, encoder: RowEncoder) -> None:
        """They may be granted the moment after: progress would move over all that is still to be read."""
        handover = self.make(encoder, {P0: 0}, {P1: 0})
        turn = handover.turn()
        intake = Intake(handover, "a", ENCODING)
        intake.begin(turn.readings[TOPIC])
        intake.note_end(P1, 100)
        grant(handover, "a", {P1: 50}, encoder)
        intake.put_ends(turn.encoders["a"][0])
        assert handover.lanes["a"].batches.reached == {P0: 0, P1: 50}

    def test_what_another_one_is_given_later_is_not_taken(self, encoder: RowEncoder) -> None:
        handover = self.make(encoder, {P0: 0}, {P0: 0})
        turn = handover.turn()
        intake = Intake(handover, "b", ENCODING)
        intake.begin(turn.readings[TOPIC])
        grant(handover, "a", {P1: 5}, encoder)
        intake.begin(handover.turn().readings[TOPIC])
        intake.take([*good([5, 6], P1), *good([0])], turn.encoders["b"][0], encoder)
        assert self.taken(handover, "b") == [0]

    def test_a_halted_one_does_not_hold_the_other(self, encoder: RowEncoder) -> None:
        handover = self.make(encoder, {P0: 2}, {P0: 400})
        handover.turn()
        handover.revoke(handover.lanes["a"])
        turn = handover.turn()
        assert turn.readings == {TOPIC: Reading({P0: 400}, {"b": {}}, {}, {}, frozenset({P0}))}
        assert turn.encoders.keys() == {"b"}

    def test_one_without_room_is_parked_and_comes_back(self, encoder: RowEncoder) -> None:
        handover = self.make(encoder, {P0: 0}, {P0: 0})
        turn = handover.turn()
        rest = handover.put("a", turn.encoders["a"][0], chunk(*sent(range(9))))
        assert rest is not None
        handover.park("a")
        assert handover.put("a", turn.encoders["a"][0], rest) is None, "it is read again"
        turn = handover.turn()
        assert turn.readings == {TOPIC: Reading({P0: 0}, {"b": {}}, {}, {}, frozenset({P0}))}
        assert turn.encoders.keys() == {"b"}
        assert handover.turn().readings == {}
        handover.done(*ready(handover))
        handover.free_retired()
        turn = handover.turn()
        assert turn.readings == {
            TOPIC: Reading({P0: 0}, {"a": {0: 6}, "b": {}}, {}, {"a": {0: Lineage()}}, frozenset({P0}))
        }
        assert turn.encoders.keys() == {"a", "b"}

    def test_the_lowest_is_shown_as_committed(self, encoder: RowEncoder) -> None:
        handover = self.make(encoder, {P0: 0}, {P0: 2})
        take(handover, handover.turn(), good([0, 1, 2]))
        handover.close_all(FlushReason.STOP)
        shown = []
        for _ in "ab":
            handover.done(*ready(handover))
            shown.append(handover.committed())
        assert shown == [{P0: 2}, {P0: 3}]


class TestBatches:
    def test_oldest_first_and_the_same_until_it_is_done(self, encoder: RowEncoder) -> None:
        handover = make()
        generation = granted(handover, encoder, P0)
        rest = handover.put(TOPIC, generation, chunk(*sent(range(8))))
        assert rest is not None
        lane, first = ready(handover)
        assert ready(handover) == (lane, first)
        handover.done(lane, first)
        _, second = ready(handover)
        assert [record.offset() for record in second.records] == [3, 4, 5]

    def test_done_makes_room(self, encoder: RowEncoder) -> None:
        handover = make()
        generation = granted(handover, encoder, P0)
        rest = handover.put(TOPIC, generation, chunk(*sent(range(8))))
        assert rest is not None
        assert handover.put(TOPIC, generation, rest) is rest
        handover.done(*ready(handover))
        assert handover.put(TOPIC, generation, rest) is rest, "the next one goes first"
        handover.free_retired()
        assert handover.put(TOPIC, generation, rest) is None

    def test_the_last_one_makes_room_at_once(self, encoder: RowEncoder) -> None:
        handover = make()
        generation = granted(handover, encoder, P0)
        assert handover.put(TOPIC, generation, chunk(*sent(range(6)))) is None
        handover.done(*ready(handover))
        handover.free_retired()
        handover.done(*ready(handover))
        assert handover.put(TOPIC, generation, chunk(*sent(range(6, 12)))) is None

    def test_a_revoke_frees_the_one_that_was_to_be_freed(self, encoder: RowEncoder) -> None:
        handover = make()
        generation = granted(handover, encoder, P0)
        assert handover.put(TOPIC, generation, chunk(*sent(range(6)))) is None
        lane, batch = ready(handover)
        handover.done(lane, batch)
        handover.revoke(lane)
        handover.free_retired()
        generation = granted_again(handover, lane, encoder)
        assert handover.put(TOPIC, generation, chunk(*sent(range(6)))) is None
        assert len({id(batch.buffer) for batch in lane.batches.closed}) == 2

    def test_done_after_a_revoke_frees_nothing_twice(self, encoder: RowEncoder) -> None:
        handover = make()
        generation = granted(handover, encoder, P0)
        handover.put(TOPIC, generation, chunk(*sent(range(3))))
        lane, batch = ready(handover)
        handover.revoke(lane)
        handover.done(lane, batch)
        generation = granted_again(handover, lane, encoder)
        rest = handover.put(TOPIC, generation, chunk(*sent(range(9))))
        assert rest is not None
        assert len(rest.records) == 3
        assert len({id(batch.buffer) for batch in lane.batches.closed}) == 2

    def test_a_lane_that_waits_lets_the_others_go_on(self, encoder: RowEncoder) -> None:
        handover = make(TOPIC, "other", buffers=4)
        other = Partition("other", 0)
        generation = granted(handover, encoder, P0)
        handover.put(TOPIC, generation, chunk(*sent(range(3))))
        lane, _ = ready(handover)
        lane.not_before = NEVER
        assert handover.next_batch(NOW) is None
        generation = granted(handover, encoder, other)
        handover.put("other", generation, chunk(*sent(range(3), other)))
        assert ready(handover)[0] is handover.lanes["other"]

    def test_committed_offsets_are_told_once(self, encoder: RowEncoder) -> None:
        handover = make()
        generation = granted(handover, encoder, P0)
        handover.put(TOPIC, generation, chunk(*sent(range(3))))
        assert handover.committed() == {}
        handover.done(*ready(handover))
        assert handover.committed() == {P0: 3}
        assert handover.committed() == {}

    def test_nothing_is_told_of_what_was_released(self, encoder: RowEncoder) -> None:
        """A group that has forgotten us would answer with the end of the membership that we have just begun."""
        handover = make()
        generation = granted(handover, encoder, P0, P1)
        handover.put(TOPIC, generation, chunk(*sent([0]), *sent([0], P1), *sent([1])))
        lane, batch = ready(handover)
        handover.done(lane, batch)
        handover.release([P0])
        assert handover.committed() == {P1: 1}
        handover.news()
        generation = granted(handover, encoder, P0, P1)
        handover.put(TOPIC, generation, chunk(*sent([2]), *sent([1], P1), *sent([3])))
        handover.done(*ready(handover))
        handover.revoke(lane)
        assert handover.committed() == {}

    def test_close_all_and_drained(self, encoder: RowEncoder) -> None:
        handover = make(TOPIC, "other")
        generation = granted(handover, encoder, P0)
        handover.put(TOPIC, generation, chunk(*sent([0])))
        assert not handover.is_drained()
        assert handover.is_drained(["other"])
        handover.close_all(FlushReason.STOP)
        lane, batch = ready(handover)
        assert batch.reason is FlushReason.STOP
        assert not handover.is_drained([TOPIC])
        handover.done(lane, batch)
        assert handover.is_drained()

    def test_no_room_for_an_end(self, encoder: RowEncoder) -> None:
        handover = make()
        generation = granted(handover, encoder, P0)
        handover.put(TOPIC, generation, chunk(*sent(range(6))))
        assert not handover.put_ends(TOPIC, generation, {P0: 9})
        handover.done(*ready(handover))
        handover.free_retired()
        assert handover.put_ends(TOPIC, generation, {P0: 9})


class TestStarvation:
    def test_the_oldest_open_batch_gives_its_buffer(self, encoder: RowEncoder) -> None:
        """Two buffers, three routes: the third gets one without waiting for anybody's linger."""
        topics = ("a", "b", "c")
        handover = make(*topics)
        generations = {topic: granted(handover, encoder, Partition(topic, 0)) for topic in topics}
        rests = {
            topic: handover.put(topic, generations[topic], chunk(*sent([0], Partition(topic, 0)))) for topic in topics
        }
        assert [topic for topic, rest in rests.items() if rest is not None] == ["c"]
        lane, batch = ready(handover)
        assert (lane.route.topic, batch.reason) == ("a", FlushReason.BUFFERS)
        handover.done(lane, batch)
        assert rests["c"] is not None
        assert handover.put("c", generations["c"], rests["c"]) is None
        assert handover.next_batch(NOW) is None


class TestNews:
    def test_wanted_released_and_gaps_are_taken_once(self) -> None:
        handover = make()
        gap = Gap(P1, GapKind.RETENTION, 0, 5, 5, "id")
        handover.want({P0})
        handover.want({P1})
        handover.release([P1])
        handover.report(TOPIC, gap, 1)
        assert handover.news() == ({P0}, [P1], [(handover.lanes[TOPIC], gap, 1)])
        assert handover.news() == (None, [], [])

    def test_wanting_nothing_is_news_as_well(self) -> None:
        """A worker without partitions is ready once it knows that it has none."""
        handover = make()
        handover.want(set())
        assert handover.next_batch(NEVER) is None
        assert handover.news()[0] == set()

    def test_wanted_again_after_a_release(self) -> None:
        handover = make()
        handover.release([P0])
        handover.want({P0})
        assert handover.news() == ({P0}, [P0], [])

    def test_news_comes_before_batches(self, encoder: RowEncoder) -> None:
        handover = make()
        generation = granted(handover, encoder, P0)
        handover.put(TOPIC, generation, chunk(*sent(range(3))))
        handover.release([P0])
        assert handover.next_batch(NEVER) is None


class TestWakingUp:
    """The flusher waits for ever here: a call that does not wake it fails the test by its time limit."""

    def wait_in(self, executor: ThreadPoolExecutor, handover: Handover) -> list[tuple[Lane, Batch] | None]:
        waiting = threading.Event()
        results: list[tuple[Lane, Batch] | None] = []

        def wait() -> None:
            with handover.changed:  # nobody can notify before next_batch waits, and so gives the lock back
                waiting.set()
                results.append(handover.next_batch(NEVER))

        self.future = executor.submit(wait)
        assert waiting.wait(SOON_SECONDS)
        return results

    def woken(self) -> None:
        self.future.result(SOON_SECONDS)

    def test_by_a_full_batch(self, encoder: RowEncoder, other_thread: ThreadPoolExecutor) -> None:
        handover = make()
        generation = granted(handover, encoder, P0)
        results = self.wait_in(other_thread, handover)
        handover.put(TOPIC, generation, chunk(*sent(range(3))))
        self.woken()
        assert results[0] is not None
        assert results[0][1].reason is FlushReason.FULL

    def test_by_the_linger_of_a_batch_that_opened_meanwhile(
        self, encoder: RowEncoder, other_thread: ThreadPoolExecutor
    ) -> None:
        handover = make(linger_seconds=0.05)
        generation = granted(handover, encoder, P0)
        results = self.wait_in(other_thread, handover)
        handover.put(TOPIC, generation, chunk(*sent([0])))
        self.woken()
        assert results[0] is not None
        assert results[0][1].reason is FlushReason.LINGER

    def test_by_an_end(self, encoder: RowEncoder, other_thread: ThreadPoolExecutor) -> None:
        handover = make(linger_seconds=0.05)
        generation = granted(handover, encoder, P0)
        results = self.wait_in(other_thread, handover)
        handover.put_ends(TOPIC, generation, {P0: 5})
        self.woken()
        assert results[0] is not None
        assert results[0][1].next_offsets == {P0: 5}

    def test_by_a_starved_route(self, encoder: RowEncoder, other_thread: ThreadPoolExecutor) -> None:
        handover = make("a", "b", "c")
        generations = {topic: granted(handover, encoder, Partition(topic, 0)) for topic in ("a", "b", "c")}
        for topic in ("a", "b"):
            handover.put(topic, generations[topic], chunk(*sent([0], Partition(topic, 0))))
        results = self.wait_in(other_thread, handover)
        handover.put("c", generations["c"], chunk(*sent([0], Partition("c", 0))))
        self.woken()
        assert results[0] is not None
        assert results[0][1].reason is FlushReason.BUFFERS

    def test_by_news(self, other_thread: ThreadPoolExecutor) -> None:
        handover = make()
        results = self.wait_in(other_thread, handover)
        handover.want(set())
        self.woken()
        assert results == [None]

    def test_by_a_stop(self, other_thread: ThreadPoolExecutor) -> None:
        handover = make()
        results = self.wait_in(other_thread, handover)
        handover.stop()
        self.woken()
        assert results == [None]
        assert handover.stopping

    def test_a_pause_ends_at_a_stop(self, other_thread: ThreadPoolExecutor) -> None:
        handover = make()
        future = other_thread.submit(handover.wait_to_stop, 3_600)
        handover.stop()
        future.result(SOON_SECONDS)


def granted_again(handover: Handover, lane: Lane, encoder: RowEncoder) -> int:
    handover.grant(lane, {P0: Position(2, 0)}, encoder)
    return handover.turn().encoders[TOPIC][0]
