"""What an error of PostgreSQL means, and what is asked of a connection."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from kbatchd.config import Postgres
from kbatchd.postgres.connection import Verdict, _conninfo, verdict

RETRY, RECONNECT, POISON, HOLD = Verdict.RETRY, Verdict.RECONNECT, Verdict.POISON, Verdict.HOLD
DOUBT = Verdict.DOUBT

#: SQLSTATE, what it is, what to do. https://www.postgresql.org/docs/current/errcodes-appendix.html
TABLE = [
    ("08000", "connection exception", RECONNECT),
    ("08001", "unable to establish", RECONNECT),
    ("08003", "does not exist", RECONNECT),
    ("08006", "connection failure", RECONNECT),
    ("08P01", "protocol violation", RECONNECT),
    ("57P01", "admin shutdown", RECONNECT),
    ("57P02", "crash shutdown", RECONNECT),
    ("57P03", "cannot connect now", RECONNECT),
    ("57P04", "database dropped", RECONNECT),
    ("57P05", "idle session timeout", RECONNECT),
    ("25006", "read only: a standby after a failover", RECONNECT),
    ("53000", "insufficient resources", RETRY),
    ("53100", "disk full", RETRY),
    ("53200", "out of memory", RETRY),
    ("53300", "too many connections", RETRY),
    ("40001", "serialization failure", RETRY),
    ("40P01", "deadlock detected", RETRY),
    ("55P03", "lock not available", RETRY),
    ("22001", "string right truncation", POISON),
    ("22003", "numeric value out of range", POISON),
    ("22008", "datetime field overflow", POISON),
    ("22021", "character not in repertoire", POISON),
    ("22P02", "invalid text representation", POISON),
    ("22P05", "untranslatable character", POISON),
    ("22032", "invalid JSON text", POISON),
    ("23502", "not null violation", POISON),
    ("23503", "foreign key violation", POISON),
    ("23505", "unique violation", POISON),
    ("23514", "check violation", POISON),
    ("23P01", "exclusion violation", POISON),
    ("44000", "WITH CHECK OPTION violation", POISON),
    ("54000", "row too big for a page or an index", POISON),
    ("54001", "statement too complex", POISON),
    ("P0001", "RAISE EXCEPTION in a trigger", POISON),
    ("KB001", "RAISE EXCEPTION with a code of one's own", POISON),
    ("99001", "the same", POISON),
    ("22P03", "invalid binary representation: the table is another", HOLD),
    ("22P04", "bad COPY file format: the table is another", HOLD),
    ("42P01", "undefined table", HOLD),
    ("42703", "undefined column", HOLD),
    ("42501", "insufficient privilege", HOLD),
    ("42804", "datatype mismatch", HOLD),
    ("0A000", "feature not supported", HOLD),
    ("55000", "a record that is not assigned yet, in a trigger", DOUBT),
    ("55006", "object in use", HOLD),
    ("57014", "query canceled: statement_timeout", HOLD),
    ("25P02", "in failed transaction", HOLD),
    ("P0000", "PL/pgSQL error", HOLD),
    ("P0002", "no data found in a trigger", DOUBT),
    ("P0003", "too many rows in a trigger", DOUBT),
    ("P0004", "assertion failure in a trigger", DOUBT),
    ("20000", "case not found in a trigger", DOUBT),
    ("21000", "more than one row returned by a subquery", DOUBT),
    ("2F005", "a function without RETURN", DOUBT),
    ("2F002", "modifying SQL data not permitted", HOLD),
    ("38000", "an exception in another language", DOUBT),
    ("40002", "transaction integrity constraint violation", HOLD),
    ("XX000", "internal error", HOLD),
    ("XX001", "data corrupted", HOLD),
]


def error_of(state: str) -> psycopg.Error:
    """Make an error as psycopg does: the class of the code where there is one, else that of its first two letters."""
    try:
        return errors.lookup(state)("as the server said")
    except KeyError:
        error = psycopg.DatabaseError("as the server said")
        error.sqlstate = state
        return error


@pytest.mark.parametrize(("state", "what", "expected"), TABLE, ids=[f"{row[0]} {row[1]}" for row in TABLE])
def test_a_live_connection(state: str, what: str, expected: Verdict) -> None:
    error = error_of(state)
    assert error.sqlstate == state, what
    assert verdict(error, broken=False) is expected


@pytest.mark.parametrize("state", [row[0] for row in TABLE])
def test_a_broken_connection_outranks_every_code(state: str) -> None:
    assert verdict(error_of(state), broken=True) is RECONNECT


def test_without_a_code() -> None:
    """A killed backend had no time for one; an error of psycopg's own never has one."""
    assert verdict(psycopg.OperationalError("consuming input failed"), broken=False) is RECONNECT
    assert verdict(psycopg.InterfaceError("the connection is closed"), broken=True) is RECONNECT
    assert verdict(psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"), broken=False) is HOLD
    assert verdict(psycopg.ProgrammingError("the last operation didn't produce a result"), broken=False) is HOLD


def test_a_whole_class_is_judged_alike() -> None:
    """New codes of a known class need no new version of kbatchd."""
    assert verdict(error_of("22ZZZ"), broken=False) is POISON
    assert verdict(error_of("23ZZZ"), broken=False) is POISON
    assert verdict(error_of("53ZZZ"), broken=False) is RETRY
    assert verdict(error_of("08ZZZ"), broken=False) is RECONNECT
    assert verdict(error_of("XXZZZ"), broken=False) is HOLD


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://u@a,b/app", "read-write"),
        ("host=a,b dbname=app", "read-write"),
        ("postgresql://u@a,b/app?target_session_attrs=any", "any"),
        ("postgresql://u@a/app", None),
    ],
)
def test_several_hosts_are_asked_for_one_that_takes_writes(dsn: str, expected: str | None) -> None:
    own = conninfo_to_dict(_conninfo(Postgres(dsn=dsn, allow_insecure=True), "test"))
    assert own.get("target_session_attrs") == expected
    assert own["application_name"] == "test"
