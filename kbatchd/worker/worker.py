"""The worker: a process with a poll loop in its main thread and a flusher beside it.

The chain of a record stands in `run`: poll, encode, put into a batch; the flusher does the rest. The supervisor calls
`run_worker` in a freshly forked process. The poll loop alone owns the consumer, never touches PostgreSQL, and beats
once a turn: a turn takes as long as one poll, one encoding or one wait, each bounded.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from itertools import chain
from typing import TYPE_CHECKING

from kbatchd.errors import EX_OK, EX_SOFTWARE, KbatchError, SourceError
from kbatchd.kafka.reader import TopicReader
from kbatchd.kafka.watch import Diagnosis, TopicWatch
from kbatchd.log import tell_repeats
from kbatchd.model import FlushReason, Gap, GapKind, Partition
from kbatchd.stats.slots import Field, Slot
from kbatchd.stats.suspicions import NOTHING_TO_HEED, Heed
from kbatchd.worker.flusher import Flusher
from kbatchd.worker.garbage import Garbage
from kbatchd.worker.handover import Handover
from kbatchd.worker.intake import Intake
from kbatchd.worker.one_by_one import Surroundings, make_encodings
from kbatchd.worker.standstill import Standstill
from kbatchd.worker.too_short import TooShort
from kbatchd.worker.unreadable import Unreadable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from kbatchd.config import Config
    from kbatchd.encode.rows import RowEncoder
    from kbatchd.kafka.reader import Polled

log = logging.getLogger(__name__)

#: Records a poll takes at most: few enough that their decoded objects die in the processor's cache (decoding 500 and
#: then encoding them costs 0.65 us each, 20,000 cost 2.6), many enough that a lock and a call a chunk do not count.
RECORDS_PER_POLL = 500

#: The longest a turn waits, for records or for room: it is also how soon a stop is noticed.
TURN_SECONDS = 0.1

#: How long the poll loop waits for a free batch before it parks the lane and polls on for the others. What librdkafka
#: has fetched is thrown away then: pausing at every batch drained 20,600 rows/s, waiting 275,000.
PATIENCE_SECONDS = 5.0

#: The interpreter's switch interval: at the default of 5 ms the flusher waits too long for its turns (4 to 10 %).
SWITCH_INTERVAL_SECONDS = 0.0005

#: How often committed offsets are shown to Kafka's tools.
SHOW_SECONDS = 1.0


def run_worker(config: Config, index: int, slot: Slot, heed: Heed = NOTHING_TO_HEED) -> int:
    """Run worker `index` until SIGTERM; return the exit code. For a process of its own, just forked."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    try:
        worker = Worker(config, index, slot, heed)
        signal.signal(signal.SIGTERM, lambda *_: worker.stop())
        signal.signal(signal.SIGUSR1, lambda *_: worker.ask_state())
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        return worker.run()
    except KbatchError as error:
        log.error(str(error), extra={"action": "worker_failed"})
        return error.exit_code


class Worker:
    """One worker's poll loop."""

    def __init__(self, config: Config, index: int, slot: Slot, heed: Heed) -> None:
        self._config = config
        self._index = index
        self._slot = slot
        self._stopping = self._state_asked = False
        name = f"worker-{index}"
        self._handover = Handover(config.route, config.batch, config.workers.buffer_bytes)
        self._intakes: dict[str, list[Intake]] = {}
        self._topics = sorted({route.topic for route in config.route})
        self._watch = TopicWatch(config.kafka, self._topics)
        around = Surroundings(slot.place, slot.beat, self._watch.ids.last, self._settle)
        encodings = make_encodings(config.route, heed, around)
        for route in config.route:
            self._intakes.setdefault(route.topic, []).append(Intake(self._handover, route.name, encodings[route.name]))
        self._reader = TopicReader(config.kafka, f"{config.pipeline}-{name}", self._topics)
        self._standstill = Standstill(self._watch.admin)
        self._flusher = Flusher(config, name, self._handover, slot, self._watch.admin, self._watch.ids)
        self._timeout_seconds = min(TURN_SECONDS, config.batch.linger_seconds / 2)
        #: What we asked the flusher for; and what may not be read on before it is looked into.
        self._wanted: set[Partition] = set()
        self._undiagnosed: set[Partition] = set()
        self._unreadable = Unreadable()
        self._too_short = TooShort(self._handover.is_beyond)
        self._show_at = 0.0

    def stop(self) -> None:
        """Ask the loop to end; for the signal handler."""
        self._stopping = True

    def ask_state(self) -> None:
        """Ask the loop to log what it knows; for the signal handler."""
        self._state_asked = True

    def run(self) -> int:
        """Poll, encode and hand over until told to stop; then flush what was read."""
        self._flusher.start()
        if self._config.kafka.assignment == "group":
            self._reader.subscribe(self._topics, self)
        garbage = Garbage()
        while not self._stopping and self._flusher.is_alive():
            self._slot.beat()
            if self._state_asked:
                self._log_state()
            encoders = self._take_turn()
            self._watch_topics()
            self._watch_fetching()
            if self._must_wait():
                continue
            polled = self._reader.poll(RECORDS_PER_POLL, self._timeout_seconds)
            self._take_in(polled, encoders)
            self._doubt(polled)
            self._show_committed()
            garbage.collect_if_due()
        return self._drain()

    def _take_in(self, polled: Polled, encoders: Mapping[str, tuple[int, RowEncoder]]) -> None:
        """Hand what was polled to each route that reads its topic."""
        for topic, records in polled.records.items():
            for intake in self._intakes[topic]:
                if intake.route in encoders:
                    intake.take(records, *encoders[intake.route])
        for partition, offset in polled.ends.items():
            for intake in self._intakes[partition.topic]:
                intake.note_end(partition, offset)
        for intake in self._all_intakes():
            if intake.route in encoders:
                intake.put_ends(encoders[intake.route][0])

    def _all_intakes(self) -> Iterator[Intake]:
        return chain.from_iterable(self._intakes.values())

    def _must_wait(self) -> bool:
        """Try again what found no room; True while the loop must not poll, because it would only find more of it."""
        waiting = False
        for intake in self._all_intakes():
            intake.retry()
            if intake.is_waiting:
                waiting = True
                if intake.waits_seconds > PATIENCE_SECONDS:
                    self._handover.park(intake.route)  # the next turn begins without it
        if waiting:
            self._handover.wait_for_room(TURN_SECONDS)
        return waiting

    def _take_turn(self) -> Mapping[str, tuple[int, RowEncoder]]:
        """Do what the flusher decided: stop reading what is lost, read what is claimed."""
        turn = self._handover.turn()
        for topic, reading in turn.readings.items():
            self._reader.read(reading.moved, reading.starts, reading.epochs)
            for intake in self._intakes[topic]:
                intake.begin(reading)
            self._undiagnosed -= reading.moved
            self._watch.suspect()  # who did not fetch for a while may have missed that the topic was recreated
        return turn.encoders

    def _watch_topics(self) -> None:
        """Ask for new partitions that are ours; report offsets that are not there."""
        if self._reader.brokers_changed:
            self._reader.brokers_changed = False
            self._watch.suspect()
        answered = self._watch.look()
        self._reader.outage.look(self._watch.waits_since)
        if answered:
            self._reader.outage.end()
            if self._config.kafka.assignment == "pinned":
                self._want(self._pinned())
            gaps: list[tuple[str, Gap, int]] = []
            for partition in sorted(filter(self._unreadable.is_due, self._undiagnosed)):
                self._slot.beat()
                gaps += self._diagnose(partition)
            self._report(gaps)
            self._forget_gone()

    def _watch_fetching(self) -> None:
        """End, to be replaced by a worker with another consumer, when this one does not fetch any more."""
        stuck = self._standstill.look(self._furthest, self._reader.known_end)
        if stuck:
            partitions = ", ".join(map(str, stuck))
            raise SourceError(
                f"the consumer stands still, though there is more in {partitions}; another worker takes over"
            )

    def _furthest(self) -> dict[Partition, int]:
        assigned = self._reader.assigned
        return {partition: reached for partition, reached in self._handover.furthest().items() if partition in assigned}

    def _forget_gone(self) -> None:
        """Give up partitions that a recreated topic does not have any more."""
        waiting = {topic for topic, intakes in self._intakes.items() if any(intake.is_waiting for intake in intakes)}
        gone = [p for p in self._wanted if p.topic not in waiting and self._is_gone(p)]
        if gone:
            log.error("partitions are gone", extra={"action": "partitions_gone", "partitions": list(map(str, gone))})
            self._reader.unassign(gone)
            self.on_lost(gone)

    def _is_gone(self, partition: Partition) -> bool:
        known = self._watch.known.get(partition.topic)
        return known is not None and partition.number >= known.partitions

    def _pinned(self) -> list[Partition]:
        """Partition p of the r-th topic is worker (p + r) % N's: a topic that grows moves no other partition."""
        return [
            Partition(topic, number)
            for rank, topic in enumerate(self._topics)
            if topic in self._watch.known
            for number in range(self._watch.known[topic].partitions)
            if (number + rank) % self._config.workers.count == self._index
        ]

    def _want(self, partitions: Iterable[Partition]) -> None:
        new = set(partitions) - self._wanted
        if new or not self._slot[Field.STATE]:
            self._wanted.update(new)
            self._handover.want(new)

    def _doubt(self, polled: Polled) -> None:
        """Hold partitions whose offset or whose topic is not there, until the topic watch has an answer."""
        doubtful = {p for p in self._wanted if p.topic in polled.unknown_topics}
        doubtful.update(polled.out_of_range, polled.ended, *(intake.parted for intake in self._all_intakes()))
        doubtful.update(self._too_short.look(polled.ends) & self._reader.assigned)
        for partition, error in polled.unreadable.items():
            self._unreadable.note(partition, self._handover.positions(partition), error)
            doubtful.add(partition)
        for partition, ended in polled.ended.items():
            what = "the leader's log is another one than was read"
            log.warning(what, extra={"action": "truncated", "partition": str(partition), "end": ended.offset})
        if doubtful:
            self._reader.unassign(doubtful)
            self._undiagnosed |= doubtful
            self._watch.suspect()

    def _diagnose(self, partition: Partition) -> list[tuple[str, Gap, int]]:
        """Find out for which routes, under which claims, an offset is not there; if for none, read on."""
        if any(intake.is_waiting for intake in self._intakes[partition.topic]):
            return []
        positions = self._handover.positions(partition)
        try:
            gaps, nothing_to_compare = self._watch.diagnose(partition, positions) if positions else Diagnosis({}, False)
        except KbatchError as error:
            log.warning("partition not diagnosed yet", extra={"action": "diagnose", "error": str(error)})
            self._watch.suspect()
            return []
        if any(gap.kind is GapKind.RECREATED for gap in gaps.values()):
            self._watch.ids.doubt(partition.topic)  # the flusher goes by what the watch makes out
            return []
        self._undiagnosed.discard(partition)
        if nothing_to_compare:
            self._handover.forget_log(partition)
        elif not gaps:
            self._handover.read_again(partition)
        return [(route, gap, positions[route].epoch) for route, gap in gaps.items()]

    def _report(self, gaps: Collection[tuple[str, Gap, int]]) -> None:
        """Let what was read before the gaps be flushed, then tell the flusher of them."""
        if not gaps:
            return
        topics = {gap.partition.topic for _, gap, _ in gaps}
        self._flush_out(FlushReason.LINGER, time.monotonic() + PATIENCE_SECONDS, topics)
        for route, gap, epoch in gaps:
            self._handover.report(route, gap, epoch)

    def _show_committed(self) -> None:
        now = time.monotonic()
        if now >= self._show_at:
            self._show_at = now + SHOW_SECONDS
            tell_repeats()
            committed = self._handover.committed()
            if committed:
                self._reader.show_committed(committed)

    def _log_state(self) -> None:
        """Write into the log where each lane stands."""
        self._state_asked = False
        for lane in self._handover.describe():
            log.info("lane", extra={"action": "lane_state", **lane})

    def _drain(self) -> int:
        """Flush what was read, as far as the grace period allows; the rest is read again by the next worker."""
        deadline = time.monotonic() + self._config.workers.grace_seconds
        # 1. What found room is flushed now, what did not is dropped.
        self._flush_out(FlushReason.STOP, deadline, self._topics)
        # 2. The flusher ends after the transaction it is in; one that hangs is rolled back by our end.
        self._handover.stop()
        self._flusher.join(max(0.5, deadline - time.monotonic()))
        # 3. The consumer goes last: its group hears of it.
        self._reader.close()
        failure = self._flusher.failure
        if failure is None:
            return EX_OK
        if isinstance(failure, KbatchError):
            raise failure
        return EX_SOFTWARE

    def _flush_out(self, reason: FlushReason, deadline: float, topics: Collection[str]) -> None:
        """Have the flusher write what these topics' lanes hold, and wait for it until the deadline."""
        self._handover.close_all(reason, topics)
        while not self._handover.is_drained(topics) and time.monotonic() < deadline and self._flusher.is_alive():
            self._slot.beat()
            self._handover.wait_for_room(TURN_SECONDS)

    def _settle(self) -> None:
        """Wait until the flusher is idle: what is tried next must be alone."""
        while not (self._stopping or self._handover.is_drained()) and self._flusher.is_alive():
            self._flush_out(FlushReason.LINGER, time.monotonic() + PATIENCE_SECONDS, self._topics)

    # With assignment = "group": Kafka's group protocol decides what is ours. Called from within reader.poll.

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """Claim what the group gives us; reading begins when the claim is granted."""
        while not all(partition.topic in self._watch.known for partition in partitions):
            if self._stopping or not self._flusher.is_alive():
                return
            self._slot.beat()
            self._watch.look()
            self._handover.wait_for_room(TURN_SECONDS)
        self._want(partitions)

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Flush what these partitions' lanes hold, then let the next owner claim: it waits until this returns."""
        deadline = time.monotonic() + self._config.workers.grace_seconds
        self._flush_out(FlushReason.REVOKE, deadline, {partition.topic for partition in partitions})
        self.on_lost(partitions)
        while self._flusher.is_alive() and not self._handover.wait_released(TURN_SECONDS):
            self._slot.beat()
            if time.monotonic() >= deadline:
                break

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        """Forget these partitions: another member has them already."""
        for partition in partitions:
            self._wanted.discard(partition)
            self._undiagnosed.discard(partition)
        self._handover.release(partitions)
