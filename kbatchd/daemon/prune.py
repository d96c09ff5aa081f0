"""Pruning: old lines of the ledger and old dead letters go, a thousand at a time.

The supervisor starts `run_prune` once an hour, in a short-lived process of its own: nothing of it is on the workers'
way. It deletes in small transactions and rests after each for longer than that took, so it takes a tenth of one
connection at most. Of all the daemons of a pipeline one does it at a time; the others find its advisory lock taken.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from kbatchd.errors import EX_OK, KbatchError
from kbatchd.postgres.connection import connect, explained

if TYPE_CHECKING:
    from kbatchd.config import Config
    from kbatchd.postgres.connection import Connection

log = logging.getLogger(__name__)

#: Rows of one transaction: some milliseconds.
STEP_ROWS = 1_000

#: How much longer than a step the pause after it is.
REST = 9.0

#: Oldest first, by the index on committed_at.
_LEDGER = """
DELETE FROM kbatchd.batches WHERE id OPERATOR(pg_catalog.=) ANY (
    SELECT id FROM kbatchd.batches WHERE pipeline OPERATOR(pg_catalog.=) %(pipeline)s
        AND committed_at OPERATOR(pg_catalog.<) (pg_catalog.now() OPERATOR(pg_catalog.-) %(keep)s)
    ORDER BY committed_at LIMIT %(rows)s)
"""

#: By the primary key, since ids come in the order of time, or nearly: `last` is where the step before ended.
_LETTERS_STEP = """
SELECT pg_catalog.max(id),
    pg_catalog.bool_or(refused_at OPERATOR(pg_catalog.<) (pg_catalog.now() OPERATOR(pg_catalog.-) %(keep)s))
FROM (
    SELECT id, refused_at FROM kbatchd.dead_letters WHERE id OPERATOR(pg_catalog.>) %(last)s
    ORDER BY id LIMIT %(rows)s) AS step
"""
_LETTERS = """
DELETE FROM kbatchd.dead_letters
WHERE id OPERATOR(pg_catalog.>) %(last)s AND id OPERATOR(pg_catalog.<=) %(end)s
    AND pipeline OPERATOR(pg_catalog.=) %(pipeline)s
    AND refused_at OPERATOR(pg_catalog.<) (pg_catalog.now() OPERATOR(pg_catalog.-) %(keep)s)
"""


def run_prune(config: Config) -> int:
    """Prune once; return the exit code. A server that is away is no fault: the next run comes."""
    try:
        with connect(config.postgres, "kbatchd prune") as connection, explained():
            ledger, letters = prune(connection, config)
    except KbatchError as error:
        log.warning("not pruned", extra={"action": "prune", "error": str(error)})
        return error.exit_code
    if ledger or letters:
        log.info("pruned", extra={"action": "prune", "ledger_lines": ledger, "dead_letters": letters})
    return EX_OK


def prune(connection: Connection, config: Config) -> tuple[int, int]:
    """Delete what is too old; return how many lines of the ledger and how many dead letters."""
    lock = connection.execute(
        """
        SELECT pg_catalog.pg_try_advisory_lock(
            pg_catalog.hashtextextended('kbatchd prune ' OPERATOR(pg_catalog.||) %s, 0))
        """,
        [config.pipeline],
    ).fetchone()
    if lock is None or not lock[0]:
        return 0, 0
    ledger = _prune_ledger(connection, config.pipeline, config.ledger_keep_days) if config.ledger_keep_days else 0
    days = config.dead_letters_keep_days
    return ledger, _prune_letters(connection, config.pipeline, days) if days else 0


def _prune_ledger(connection: Connection, pipeline: str, days: int) -> int:
    given = {"pipeline": pipeline, "keep": timedelta(days=days), "rows": STEP_ROWS}
    total = 0
    while True:
        began = time.monotonic()
        deleted = connection.execute(_LEDGER, given).rowcount
        total += deleted
        if deleted < STEP_ROWS:
            return total
        _rest(began)


def _prune_letters(connection: Connection, pipeline: str, days: int) -> int:
    given: dict[str, object] = {"pipeline": pipeline, "keep": timedelta(days=days), "rows": STEP_ROWS, "last": 0}
    total = 0
    while True:
        began = time.monotonic()
        end, any_old = connection.execute(_LETTERS_STEP, given).fetchone() or (None, None)
        if not any_old:
            return total
        total += connection.execute(_LETTERS, {**given, "end": end}).rowcount
        given["last"] = end
        _rest(began)


def _rest(began: float) -> None:
    time.sleep(REST * (time.monotonic() - began))
