"""One input on its way: its pieces checked, sent, committed and counted.

In the command's main thread.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple

from kbatchd import log
from kbatchd.errors import ConfigError
from kbatchd.files.files import Cursor
from kbatchd.files.streams import Stopped
from kbatchd.model import Partition
from kbatchd.produce.bookmark import Bookmark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd.files.files import Piece
    from kbatchd.files.streams import Input
    from kbatchd.produce.checks import Unfed
    from kbatchd.produce.context import Context
    from kbatchd.produce.delivery import InputProducer
    from kbatchd.produce.failures import FailedFile, Failure

#: A wait that is longer must not hold a transaction open.
_SHORT_SECONDS: Final = 0.05
#: Of the failed file where there is no input.
_GENERATED_MODE: Final = 0o600
#: So many failures are written at the latest.
_MOST_FAILURES: Final = 5_000


class Begin(NamedTuple):
    """Where an input is taken up, and what comes from there."""

    bookmark: Bookmark
    sha: hashlib._Hash
    pieces: Iterator[Piece]
    #: The input's name in the failed file.
    entry: str


def at_beginning(pieces: Iterator[Piece], entry: str) -> Begin:
    """Take an input up where nothing of it was sent."""
    sha = hashlib.sha256()
    bookmark = Bookmark(
        offset=0, lines=0, sha256=sha.hexdigest(), sent=0, failed=0, finished=False, run=secrets.token_hex(8)
    )
    return Begin(bookmark, sha, pieces, entry)


class Transfer:
    """One input on its way: checks its pieces, sends them, and counts."""

    def __init__(
        self,
        context: Context,
        source: Input | None,
        producer: InputProducer,
        failed_file: FailedFile,
        name: str,
        begin: Begin,
    ) -> None:
        self._context, self._source, self._producer, self._failed_file = context, source, producer, failed_file
        self._name = name
        self._begin = begin
        self._sha = begin.sha
        self._cursor = Cursor(begin.bookmark.offset, begin.bookmark.lines, begin.bookmark.records)
        self._sent, self._failed = begin.bookmark.sent, begin.bookmark.failed
        self._failures: list[Failure] = []
        self._unfed: Unfed | None = None
        #: What is settled.
        self.bookmark = begin.bookmark

    def send(self) -> None:
        """Send all. Raises Stopped when somebody wants the end; what was begun is finished then."""
        context, pieces = self._context, self._begin.pieces
        context.bar.open(self._name, self._total(), self._done(), self._cursor.records)
        while True:
            try:
                piece = next(pieces, None)
            except (Stopped, ConfigError):  # a wish, or the input's fault: what is under way is sound
                self._commit()
                raise
            if piece is None:
                break
            if context.stop.is_set():
                self._commit()
                raise Stopped
            self._keep_pace()
            self._add(piece)
            if self._producer.is_full() or len(self._failures) >= _MOST_FAILURES:
                self._commit()
            context.bar.show(self._done(), self._cursor.records, self._cursor.offset)
        self._commit(finished=True)
        context.bar.show(self._done(), self._cursor.records, self._cursor.offset, last=True)

    def close(self) -> None:
        """End it, and tell what became of it."""
        self._producer.close()
        context, acknowledged = self._context, self._producer.acknowledged
        context.bar.close()
        failed = self.bookmark.failed - self._begin.bookmark.failed
        context.failed += failed
        refused = f", {failed:,} failed (see {self._failed_file.path})" if failed else ""
        context.tell(f"{self._name}: {_records(acknowledged.count)} acknowledged{refused}")
        if self._unfed is not None:
            count, line, explanation = self._unfed
            what = f"{count:,} records feed no column of {context.route.table}, the first on line {line:,}"
            log.complain([f"{self._name}: warning: {what}: {explanation}"])
        for number, (first, last, count) in sorted(acknowledged.partitions.items()):
            partition = Partition(context.route.topic, number)
            context.tell(f"  {partition}: {_records(count)}, offsets {first} to {last}")

    def _keep_pace(self) -> None:
        pace = self._context.pace
        if pace.delay_seconds() > _SHORT_SECONDS and self._producer.is_open():
            self._commit()
        pace.wait()

    def _add(self, piece: Piece) -> None:
        checked = self._context.checker.check(piece, self._cursor.records)
        if checked.values:
            self._producer.add(checked.values, checked.keys)
        self._context.pace.count(len(checked.values))
        self._failures += checked.failures
        if checked.unfed is not None:
            before = 0 if self._unfed is None else self._unfed.records
            self._unfed = (self._unfed or checked.unfed)._replace(records=before + checked.unfed.records)
        self._sent += len(checked.values)
        self._failed += len(checked.failures)
        self._sha.update(piece.raw)
        self._cursor = self._cursor.after(piece)

    def _commit(self, *, finished: bool = False) -> None:
        if self._failures:
            mode, group = (_GENERATED_MODE, None) if self._source is None else (self._source.mode, self._source.group)
            self._failed_file.write(self._begin.entry, self._failures, mode, group)
            self._failures = []
        bookmark = Bookmark(
            offset=self._cursor.offset,
            lines=self._cursor.lines,
            sha256=self._sha.hexdigest(),
            sent=self._sent,
            failed=self._failed,
            finished=finished,
            run=self.bookmark.run,
        )
        self._producer.commit(bookmark)
        self.bookmark = bookmark

    def _total(self) -> int | None:
        return self._context.options.generate if self._source is None else self._source.size_bytes

    def _done(self) -> int:
        return self._cursor.records if self._source is None else self._source.read_bytes


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count:,} records"
