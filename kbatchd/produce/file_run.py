"""A file from where it stands: whether it may be sent, from which record on, and that record found again in it.

In the command's main thread.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from contextlib import closing
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Final

from kbatchd.errors import ConfigError, KbatchError
from kbatchd.files.files import Cursor
from kbatchd.files.streams import Stopped
from kbatchd.produce.file_producer import FileProducer, TakenOver
from kbatchd.produce.heads import read_head
from kbatchd.produce.transfer import Begin, Transfer, at_beginning

if TYPE_CHECKING:
    from pathlib import Path

    from kbatchd.files.streams import Input
    from kbatchd.produce.bookmark import Bookmark
    from kbatchd.produce.context import Context, Splitter


#: Said of a file that Kafka has no bookmark of.
_NOTHING: Final = (
    "there is nothing to go on with: Kafka has no bookmark of this file and route. Either none of it was sent, or that "
    "is longer ago than bookmarks are kept (the brokers' offsets.retention.minutes, 7 days by default). In the first "
    "case leave --resume out, in the second send what is missing as another file, or all of it again with --restart"
)


class _Altered(Exception):
    """A file is not what was sent of it."""


class FileRun:
    """Sends a file from where it stands."""

    def __init__(self, context: Context, source: Input, path: Path) -> None:
        self._context = context
        self._source = source
        self._path = path
        self._resolved = str(path.resolve())

    def send(self) -> None:
        """Send what is left of it, if it may be sent at all."""
        context = self._context
        with closing(self._producer()) as producer:
            stored = producer.peek()
            begin = self._begin(stored)
            if begin is None:
                return
            failed_file = context.failed_file(self._path)
            claimed = producer.claim()
            if claimed != stored:  # the run that is shut out now had come further
                begin = self._begin(claimed)
                if begin is None:
                    return
            # This tells the other run, should it still live, that the file is ours now.
            producer.commit(begin.bookmark)
            failed_file.cut_back(begin.entry, begin.bookmark.records)
            transfer = Transfer(context, self._source, producer, failed_file, self._source.name, begin)
            try:
                with closing(transfer):
                    transfer.send()
            except TakenOver:
                raise
            except (KbatchError, Stopped):
                line = transfer.bookmark.lines + 1
                context.tell(f"{self._source.name}: is not sent to its end; --resume goes on at line {line:,}")
                raise

    def _producer(self) -> FileProducer:
        config, route = self._context.config, self._context.route
        text = json.dumps([config.pipeline, route.name, self._resolved])
        identity = f"kbatchd-produce-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
        return FileProducer(config.kafka, route.topic, identity, self._context.patience)

    def _begin(self, stored: Bookmark | None) -> Begin | None:
        """Decide where to begin; None when there is nothing to do."""
        name, options = self._source.name, self._context.options
        if stored is None and options.resume:
            raise ConfigError(f"{name}: {_NOTHING}")
        # Of what has sent nothing yet there is nothing to go on with.
        if stored is None or stored.offset == 0 or options.restart:
            return self._from_beginning()
        far = f"{stored.sent:,} records, up to line {stored.lines:,}"
        if not stored.finished and not options.resume:
            raise ConfigError(
                f"{name}: was begun and not sent to its end ({far}): --resume goes on there, --restart sends it again"
            )
        try:
            more, begin = self._behind(stored)
        except _Altered as error:
            # Another file, under the name of a former one; or none of it is in the topic.
            if (stored.finished and not options.resume) or not stored.sent:
                return self._from_beginning()
            raise ConfigError(
                f"{name}: {error} since {far} of it were sent: undo that, or send what is left as another file; "
                "--restart sends all of it again"
            ) from error
        if not stored.finished or (more and options.resume):
            self._context.tell(f"{name}: goes on behind {far}")
            return begin
        if more:
            raise ConfigError(f"{name}: has grown since it was sent ({far}): --resume sends what was added")
        if options.resume:
            self._context.tell(f"{name}: was sent to its end before ({far})")
            return None
        raise ConfigError(f"{name}: was sent already ({far}): --restart sends it again")

    def _from_beginning(self) -> Begin:
        splitter = self._splitter()
        return at_beginning(splitter.pieces(self._source.chunks(), Cursor()), self._resolved)

    def _behind(self, stored: Bookmark) -> tuple[bool, Begin]:
        """Go to a bookmark, and tell whether anything comes after it. Raises _Altered."""
        splitter = self._splitter()
        if splitter.csv is not None:
            splitter.csv.read_header(self._source.chunks())
            self._source.rewind()
        chunks = self._source.chunks()
        sha, last, rest = hashlib.sha256(), b"", b""
        left = stored.offset
        while left and (chunk := next(chunks, b"")):
            part, rest = chunk[:left], chunk[left:]
            sha.update(part)
            left -= len(part)
            last = part[-1:]
        if left or sha.hexdigest() != stored.sha256:
            raise _Altered("its beginning was altered")
        rest = rest or next(chunks, b"")
        if rest and splitter.format == "array" and stored.finished:
            raise _Altered("something was put behind its end")
        if rest and splitter.format != "array" and last != b"\n" and rest[:1] not in b"\r\n":
            raise _Altered("its last line was continued")
        bookmark = replace(stored, finished=False, run=secrets.token_hex(8))
        cursor = Cursor(stored.offset, stored.lines, stored.records)
        pieces = splitter.pieces(chain([rest], chunks), cursor)
        return bool(rest), Begin(bookmark, sha, pieces, self._resolved)

    def _splitter(self) -> Splitter:
        """Look at the file's first bytes; after that it is at its beginning again."""
        self._source.rewind()
        splitter = self._context.splitter(self._source.name, read_head(self._source.chunks()))
        self._source.rewind()
        return splitter
