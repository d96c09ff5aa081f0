"""What is taken out of the daemon, one mechanism each, and the scenario that finds it.

`old` is in the module's source once; `new` is what stood there before, or what somebody might make of it.
"""

from __future__ import annotations

from typing import NamedTuple


class Change(NamedTuple):
    """A text of a module's source, and what stands there instead."""

    module: str
    old: str
    new: str


class Defect(NamedTuple):
    """Changes, and the name of the scenario (scenarios.py) that finds them."""

    scenario: str
    changes: tuple[Change, ...]


#: Progress moves for any command, wherever it stands, and by whichever session.
UNCONDITIONAL = Change(
    "kbatchd.schema.progress",
    "AND p.epoch OPERATOR(pg_catalog.=) n.epoch\n"
    "          AND p.next_offset OPERATOR(pg_catalog.=) n.expected\n"
    "          AND p.backend_pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()\n",
    "\n",
)

_ADVANCE = "        progress.advance(self.connection, owner, self.positions, next_offsets, batch.lineages)\n"

DEFECTS = {
    # One transaction
    "progress moves before COPY": Defect(
        "a worker is killed",
        (
            Change(
                "kbatchd.sink.insertion",
                "            last, refused = copy(last)\n",
                "            self.go_ahead(last)\n            last, refused = copy(last)\n",
            ),
            Change(
                "kbatchd.sink.sink",
                "    def sent(self) -> None:\n",
                "    def go_ahead(self, last):\n"
                "        with psycopg.connect(self.connection.info.dsn) as other:\n"
                "            next_offsets, owner = self._next_offsets(last), self.target.owner\n"
                "            progress.advance(other, owner, self.positions, next_offsets, self.batch.lineages)\n\n"
                "    def sent(self) -> None:\n",
            ),
            Change("kbatchd.sink.sink", _ADVANCE, ""),
            UNCONDITIONAL,
        ),
    ),
    "progress moves after the rows, in its own transaction": Defect(
        "a worker is killed",
        (
            Change("kbatchd.sink.sink", _ADVANCE, ""),
            Change(
                "kbatchd.sink.sink",
                "        for partition, offset in self._next_offsets(last).items():\n",
                "        next_offsets, owner = self._next_offsets(last), self.target.owner\n"
                "        progress.advance(self.connection, owner, self.positions, next_offsets, self.batch.lineages)\n"
                "        for partition, offset in self._next_offsets(last).items():\n",
            ),
        ),
    ),
    "progress is not compared before it is set": Defect("progress set back while a flush begins", (UNCONDITIONAL,)),
    "after a lost COMMIT reading goes on where it was": Defect(
        "a session is cut before COMMIT",
        (
            Change("kbatchd.sink.batch", "        self.reached.clear()\n        self.lineages.clear()\n", ""),
            Change(
                "kbatchd.worker.lane",
                "self.committed[partition] = self.batches.reached[partition] = position.next_offset\n"
                "            self.batches.lineages[partition] = position.lineage\n",
                "self.committed[partition] = begin = position.next_offset\n"
                "            self.batches.reached[partition] = max(begin, self.batches.reached.get(partition, 0))\n"
                "            self.batches.lineages.setdefault(partition, position.lineage)\n",
            ),
        ),
    ),
    "a batch is kept over a revoke": Defect(
        "a session is cut before COMMIT",
        (
            Change("kbatchd.worker.lane", "        self.batches.clear()\n", ""),
            Change("kbatchd.worker.flusher", "        assert epochs == batch.epochs, ", "        assert True, "),
            # The books would notice, and the route stand still.
            Change("kbatchd.postgres.books", "        if offset < starts[partition]:\n", "        if False:\n"),
        ),
    ),
    "dead letters are written outside of the transaction": Defect(
        "a worker is killed",
        (
            Change(
                "kbatchd.sink.sink",
                "    cursor = connection.cursor()\n",
                "    cursor = psycopg.connect(connection.info.dsn, autocommit=True).cursor()\n",
            ),
        ),
    ),
    # Kafka's answers
    "a sentinel is taken for an offset": Defect(
        "a first start: LIST_OFFSETS swallowed",
        (
            Change(
                "kbatchd.kafka.offsets",
                "        return answers\n\n    def _ask_twice",
                '        answers.known.update(list_offsets(self._admin, answers.silent, "latest").known)\n'
                "        answers.silent.clear()\n        return answers\n\n    def _ask_twice",
            ),
        ),
    ),
    "no answer is an end at accept": Defect(
        "accept: LIST_OFFSETS swallowed",
        (
            Change(
                "kbatchd.kafka.offsets",
                "    low, high = (question.answers() for question in questions)\n",
                "    low, high = (question.answers() for question in questions)\n"
                "    ends = OffsetsInquiry(admin, low.silent, 'latest', timeout_seconds).answers().known\n"
                "    low = Answers({**low.known, **ends}, {})\n",
            ),
            Change(
                "kbatchd.kafka.watch",
                "    second, _ = _look(kafka, admin, partition, positions)\n",
                "    second = first\n",
            ),
        ),
    ),
    "one answer is enough to skip": Defect(
        "one stale answer at accept",
        (
            Change(
                "kbatchd.kafka.watch",
                "    second, _ = _look(kafka, admin, partition, positions)\n",
                "    second = first\n",
            ),
            Change(
                "kbatchd.kafka.watch", "    if parted is None and high < (at.lineage.end or 0):\n", "    if False:\n"
            ),
        ),
    ),
    "what is gone of a recreated topic is not named": Defect(
        "recreated, its first records gone",
        (Change("kbatchd.model", "if self.next_topic_id is not None and self.resume_at:", "if False:"),),
    ),
    "checksums are not looked at": Defect(
        "a byte altered on the way",
        (Change("kbatchd.kafka.reader_settings", '"check.crcs": True', '"check.crcs": False'),),
    ),
    # Which topic, which log
    "a flush does not ask which topic it is of": Defect(
        "recreated while a batch is open",
        (
            Change(
                "kbatchd.kafka.identity",
                "        if not self._inquiry.wait(ANSWER_SECONDS):\n            return\n",
                "        return\n",
            ),
        ),
    ),
    "an id that was seen before is new": Defect(
        "recreated, stale answers",
        (
            Change(
                "kbatchd.kafka.identity",
                "            return topic_id in self._former.get(topic, ())",
                "            return False",
            ),
        ),
    ),
    "reading begins without the leader epoch": Defect(
        "an unclean election",
        (Change("kbatchd.kafka.reader", "leader_epoch=epoch))", "leader_epoch=-1))"),),
    ),
    # What ack=db says
    "ack=db: progress of the former topic counts": Defect(
        "ack=db, a recreated topic that halted",
        (
            Change("kbatchd.gateway.database", "if at.topic_id != log.topic_id:", "if False:"),
            Change(
                "kbatchd.schema.arrived",
                "        if begin < 0 or ",
                "        return Arrived.YES\n        if begin < 0 or ",
            ),
        ),
    ),
    "ack=db: progress from before its beginning counts": Defect(
        "ack=db before the first progress",
        (
            Change(
                "kbatchd.schema.arrived",
                "        if self.next_offset is None or last >= min(self.next_offset, self.records_end or 0):\n"
                "            return Arrived.NOT_YET\n",
                "        return Arrived.YES if last < (self.next_offset or 0) else Arrived.NOT_YET\n",
            ),
        ),
    ),
    "dead letters of any topic of the name": Defect(
        "ack=db, a recreated topic that was accepted",
        (
            Change(
                "kbatchd.schema.arrived",
                "          AND (d.topic_id IS NULL OR d.topic_id OPERATOR(pg_catalog.=) s.topic_id)\n"
                "          AND d.refused_at OPERATOR(pg_catalog.>=) pg_catalog.to_timestamp(s.since)\n",
                "",
            ),
        ),
    ),
    # The books
    "COPY's tag is not compared": Defect(
        "a row vanishes on the way",
        (Change("kbatchd.sink.batch_copy", "skipped = expected - found\n", "skipped = 0\n"),),
    ),
    "COPY's tag is not compared in windows": Defect(
        "a row vanishes on the way, in windows",
        (Change("kbatchd.sink.batch_copy", "skipped = expected - found\n", "skipped = 0\n"),),
    ),
    "the first progress is not durable": Defect(
        "PostgreSQL dies behind the first progress",
        (
            Change(
                "kbatchd.schema.progress",
                '        connection.execute("SET LOCAL synchronous_commit = on")\n        yield',
                "        yield",
            ),
        ),
    ),
    "progress that is missing begins at 0": Defect(
        "one partition's progress missing",
        (
            Change(
                "kbatchd.schema.claiming", "generate_series(({_KNOWN}), %(highest)s)", "generate_series(0, %(highest)s)"
            ),
            Change("kbatchd.check.inspection", "        if lost:\n", "        if False:\n"),
        ),
    ),
    "progress set reads the line without its lock": Defect(
        "progress set while a flush is under way",
        (Change("kbatchd.schema.by_hand", "FOR UPDATE  -- a flush may be about to move it", ""),),
    ),
    "row security is not in the fingerprint": Defect(
        "row security switched on",
        (
            Change(
                "kbatchd.postgres.catalogue",
                " pg_catalog.row_security_active(c.oid),\n        {_UNIQUE",
                "\n        {_UNIQUE",
            ),
        ),
    ),
    "merged and deleted are not compared with what was staged": Defect(
        "a merge leaves a row out",
        (Change("kbatchd.sink.upsert", "        if changed != keys:\n", "        if False:\n"),),
    ),
    # Names
    "a renamed route begins again": Defect(
        "the route renamed",
        (
            Change(
                "kbatchd.check.preflight",
                "    if faults:\n        raise ConfigError(*faults)\n    for route",
                "    for route",
            ),
        ),
    ),
    "produce resumes from nothing": Defect(
        "a file sent again",
        (Change("kbatchd.produce.file_run", "if stored is None and options.resume:", "if False:"),),
    ),
}
