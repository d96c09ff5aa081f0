"""A replay: dead letters on the daemon's own way into their table, once each.

The route's encoder as it is now makes the rows and the sink copies them, around what PostgreSQL refuses. The same
transaction marks the letters: only those that were still open, so that two replays at once, or one after another, make
no second row. A letter that is refused again stays open, with its new reason; but what is wrong with a corrected value
is no reason of the letter, which keeps its own. Progress is not touched: the offsets of dead letters are behind it.

An upsert takes no letter over a row that is there: nobody knows which of the two is newer. Such a letter stays open, as
`row_exists`, unless the operator says that letters overwrite. Of several letters with one key the newest is tried
first, so that the older ones are those that stay. Letters that delete count as overwriting. Where records may delete, a
row that is not there may have been deleted since: then the letter stays open too, as `row_deleted` (later.py).

Called by `kbatchd dead-letters replay`, in its main thread.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kbatchd.errors import ServerUnavailable, SinkError
from kbatchd.kafka import topics
from kbatchd.letters import store
from kbatchd.letters.later import Later, is_delete, may_delete
from kbatchd.letters.store import LetterRecord
from kbatchd.model import Refusal
from kbatchd.postgres import catalogue
from kbatchd.schema import by_hand
from kbatchd.sink.insertion import Insertion, Outcome
from kbatchd.sink.targets import build_target, deletes, fill_batch
from kbatchd.sink.upsert import Staging

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kbatchd.config import Config, Route
    from kbatchd.letters.store import Choice, Letter
    from kbatchd.postgres.connection import Connection
    from kbatchd.sink.batch import Batch
    from kbatchd.sink.batch_copy import Target


class Replay:
    """Replays the letters of one route."""

    def __init__(
        self, connection: Connection, config: Config, route: Route, choice: Choice, *, overwrite: bool
    ) -> None:
        """Read the table as it is now; ConfigError when it cannot be fed. `choice` are the letters that will come."""
        self._connection = connection
        pipeline = config.pipeline
        self._cautious = route.mode == "upsert" and not overwrite
        table = catalogue.read_table(connection, route.table)
        #: Where letters that delete must wait for --overwrite: which ones do, and what else may be wrong with them.
        self._deletes = deletes(route) if self._cautious and route.format == "json" else None
        self._deleting = build_target(pipeline, route, "replay", table)[1] if self._deletes else None
        self._later: Later | None = None
        if self._deletes is not None and may_delete(route, table, self._deletes):
            topic_id = _topic_id(config, route.topic)
            wanted = store.keys_by_offset(connection, pipeline, choice, topic_id)
            rows = [
                row
                for row in by_hand.show(connection, pipeline)
                if (row.route, row.topic, row.topic_id) == (route.name, route.topic, topic_id)
            ]
            ends = {row.partition: row.next_offset for row in rows if row.next_offset is not None}
            self._later = Later(config.kafka, (route.topic, topic_id), self._deletes, wanted, ends)
        if self._cautious:
            route = route.model_copy(update={"insert_only": True, "delete_when": None})
        target, self._encoder = build_target(pipeline, route, "replay", table)
        # However many are refused again, it makes no more letters; and nothing waits.
        self._target = replace(target, max_dead_letters=0, max_internal=0, max_alike=0, waits_for_partition=False)
        self._staging = Staging(connection)

    @property
    def newest_first(self) -> bool:
        """The order that the letters must come in."""
        return self._cautious

    def run(self, chosen: Sequence[Letter], corrected: bytes | None = None) -> Outcome:
        """Insert and mark these letters; with a corrected value, it stands in for each one's own.

        Raises SinkError when somebody else settled one of them meanwhile: nothing of its transaction is in.
        """
        if self._target.merge is not None:
            self._staging.prepare(self._target.merge)
        if not self._cautious:
            return self._insert(chosen, corrected)
        total = Outcome()
        for letter in chosen:
            outcome = self._insert([letter], corrected)
            total.rows += outcome.rows
            total.dead_letters += outcome.dead_letters
            total.reason = total.reason or outcome.reason
        return total

    def _insert(self, chosen: Sequence[Letter], corrected: bytes | None) -> Outcome:
        values = [letter.value if corrected is None else corrected for letter in chosen]
        if self._cautious and (why := self._why_not_deleted(chosen[0], values[0])) is not None:
            return self._keep(chosen[0], why, corrected)
        if self._later and (why := self._later.why_not(chosen[0])) is not None:
            return self._keep(chosen[0], why, corrected)
        batch = fill_batch(self._encoder, [LetterRecord(letter) for letter in chosen], values)
        insertion = _Replaying(self._connection, batch, self._target, chosen, corrected, cautious=self._cautious)
        try:
            insertion.run()
        except _RowExists:
            return self._keep(chosen[0], _ROW_EXISTS, corrected)
        return insertion.outcome

    def _keep(self, letter: Letter, why: Refusal, corrected: bytes | None) -> Outcome:
        """Leave a letter open; what is wrong with a corrected value is no reason of its own."""
        if corrected is None:
            store.keep_refused(self._connection, {letter.id: why})
        return Outcome(dead_letters=1, reason=why)

    def _why_not_deleted(self, letter: Letter, value: bytes | None) -> Refusal | None:
        """Say why a letter that deletes does not; None for one that does not delete."""
        if self._deletes is None or self._deleting is None or not is_delete(LetterRecord(letter), value, self._deletes):
            return None
        refused = self._deleting.encode([LetterRecord(letter)], [value], []).refused
        return refused[0][1] if refused else _ROW_DELETED


def _topic_id(config: Config, topic: str) -> str:
    """Ask which topic the name stands for; "" where the brokers do not say, or there is none."""
    try:
        description = topics.describe(topics.make_admin(config.kafka), [topic])[topic]
    except ServerUnavailable:
        return ""
    return description.topic_id if description else ""


_ROW_EXISTS = Refusal(
    "row_exists", None, "the table has a row of this key, perhaps of a newer record; --overwrite replaces it"
)


_ROW_DELETED = Refusal(
    "row_exists", None, "it deletes the row of its key, perhaps one of a newer record; --overwrite lets it"
)


class _RowExists(Exception):
    """The merge has left the row that was there."""


class _Replaying(Insertion):
    """A batch of letters on its way."""

    def __init__(
        self,
        connection: Connection,
        batch: Batch,
        target: Target,
        chosen: Sequence[Letter],
        corrected: bytes | None,
        *,
        cautious: bool,
    ) -> None:
        super().__init__(connection, batch, target)
        self._cautious = cautious
        self._chosen = chosen
        self._corrected = corrected

    def account(self, last: int, dead: Mapping[int, Refusal]) -> None:
        """Mark those that are in; give the others their new reason, if it is about their own value."""
        if self._cautious and not dead and self.books.merged == 0:
            raise _RowExists
        into = [self._chosen[index].id for index in range(self.done, last) if index not in dead]
        if store.settle_replayed(self.connection, into, self._corrected) != len(into):
            raise SinkError("somebody else has settled some of these letters meanwhile; run the command again")
        if self._corrected is None:
            store.keep_refused(self.connection, {self._chosen[index].id: why for index, why in dead.items()})
