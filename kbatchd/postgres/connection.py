"""Connections to PostgreSQL: how a session is set up, and what each of its errors means for us.

Called by the flusher (its only connection), by the start-up checks and by the operator's commands; always after the
fork, since libpq's connections do not survive one.
"""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING

import psycopg
from psycopg import Connection, Error
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kbatchd.errors import ConfigError, ServerUnavailable
from kbatchd.postgres.refused_login import sqlstates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd import config

__all__ = ["MINIMUM_VERSION", "Connection", "Error", "Verdict", "connect", "explained", "verdict"]

log = logging.getLogger(__name__)

#: client_connection_check_interval came with 14: a session whose worker died in a lock's queue ends by itself.
MINIMUM_VERSION = 140000

#: A dead peer is noticed after 5 + 3 * 2 = 11 s without traffic, and after 10 s with unacknowledged bytes.
_TCP = {"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3"}
_TCP_USER_TIMEOUT_MS = 10_000

_TRANSACTION_TIMEOUT_VERSION = 170000

#: SQLSTATEs of a refused connection that trying again does not fix, and what does.
_REMEDIES = {
    "28P01": "check the password and the role in postgres.dsn",
    "28000": "check the role in postgres.dsn, and let it and this host in, in pg_hba.conf",
    "3D000": "create the database, or correct postgres.dsn",
    "42501": "GRANT CONNECT ON DATABASE to this role",
    "42704": "correct postgres.dsn",  # an option that the server does not have
    "22023": "correct postgres.dsn",  # ... or of which it does not have this value
}

#: What the server says of a login as such: the password may have been changed since it was asked for.
_LOGIN_REFUSED = {"28P01", "28000"}

#: libpq's own words for what has no SQLSTATE, since no server was asked. They are English wherever the process has set
#: no locale for messages, and Python sets none.
_LIBPQ_REMEDIES = (
    ("no password supplied", "set postgres.password_file or postgres.password_command"),
    ("certificate verify failed", "check sslrootcert in postgres.dsn, and the dates of the server's certificate"),
    ("does not match host name", "name the host as the server's certificate does"),
    ("root certificate file", "set sslrootcert in postgres.dsn to a file or to system"),
    ("invalid", "correct postgres.dsn"),
    ("bad value", "correct postgres.dsn"),
    ("server does not support SSL", "switch it on in the server, or set sslmode in postgres.dsn"),
)

#: What our statements and the values we send rely on, whatever the role, the database or the server has set.
_RELIED_ON = {
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "array_nulls": "on",
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    "xmloption": "content",
}


#: The classes of PostgreSQL's own SQLSTATEs. Any other is the invention of a trigger or a constraint's function.
_OWN_CLASSES = re.compile("0[0-389ABFLPZ]|10|2[0-8BDF]|3[489BDF]|4[024]|5[34578]|72|F0|HV|P0|XX")

#: What a table's own code (a trigger, a CHECK's function, an index's expression) says of a row it cannot do with: no
#: data found and too many rows for INTO STRICT, a failed ASSERT, a CASE without ELSE, a subquery of several rows, a
#: function that ends without RETURN, a record that is not assigned yet, an error in another language.
_OF_THE_TABLES_CODE = ("P0002", "P0003", "P0004", "20000", "21000", "2F005", "55000", "38")

#: PostgreSQL's own functions that raise an error, as it names them itself, in every language.
_RAISE = "exec_stmt_raise"
_FIND_PARTITION = "ExecFindPartition"


class Verdict(Enum):
    """What to do about a failed flush."""

    RETRY = auto()  # the same batch again, on the same connection
    RECONNECT = auto()  # the outcome is unknown or the session is no good: claim again and read again
    POISON = auto()  # a row is to blame
    DOUBT = auto()  # a row is to blame, unless many in a row are refused alike and none goes in
    NO_PARTITION = auto()  # a row has no partition to go to
    HOLD = auto()  # the route is to blame: let the others go on


def verdict(error: psycopg.Error, *, broken: bool) -> Verdict:  # noqa: PLR0911 - a table
    """Judge an error by its SQLSTATE; `broken` is `connection.broken`, which outranks it.

    After a killed backend sqlstate is None, since the server had no time to say anything.
    Classes: https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    state = error.sqlstate or ""
    raised = error.diag.source_function == _RAISE  # whatever code it took: the table's own code has a row in its hands
    if not raised and not broken and (state.startswith("53") or state in {"40001", "40P01", "55P03"}):
        return Verdict.RETRY
    if broken or (not raised and (state.startswith(("08", "57P")) or state == "25006")):
        return Verdict.RECONNECT
    if not state:
        return Verdict.RECONNECT if isinstance(error, psycopg.OperationalError) else Verdict.HOLD
    if state == "23514" and error.diag.source_function == _FIND_PARTITION and error.diag.constraint_name is None:
        return Verdict.NO_PARTITION
    # 22P03 and 22P04 mean that our bytes do not fit the table as it is now: no fault of a row.
    if state.startswith(("22", "23", "44", "54", "P0001")) and state not in {"22P03", "22P04"}:
        return Verdict.POISON
    if not _OWN_CLASSES.match(state):
        return Verdict.POISON
    return Verdict.DOUBT if raised or state.startswith(_OF_THE_TABLES_CODE) else Verdict.HOLD


def connect(settings: config.Postgres, application_name: str) -> psycopg.Connection:
    """Open a session in autocommit mode.

    Raises ServerUnavailable when trying again may help, ConfigError when the server has refused us for good.
    """
    if settings.is_password_old:
        _ask_password(settings)
    try:
        connection = _log_in(settings, application_name)
    except psycopg.Error as error:
        codes = _codes(settings, error)
        if not (codes & _LOGIN_REFUSED and _ask_password(settings)):
            raise _connect_error(error, codes) from error
        try:
            connection = _log_in(settings, application_name)
        except psycopg.Error as again:
            raise _connect_error(again, _codes(settings, again)) from again
    try:
        _set_up(connection, settings)
    except psycopg.Error as error:
        connection.close()
        raise _connect_error(error, {error.sqlstate or ""}) from error
    return connection


def _log_in(settings: config.Postgres, application_name: str) -> psycopg.Connection:
    return psycopg.connect(_conninfo(settings, application_name), autocommit=True)


def _codes(settings: config.Postgres, error: psycopg.Error) -> set[str]:
    """Return why the server refuses us; a silent one is not asked again."""
    if isinstance(error, psycopg.errors.ConnectionTimeout) or not isinstance(error, psycopg.OperationalError):
        return set()
    return sqlstates(_conninfo(settings, "kbatchd"), settings.connect_timeout_seconds)


def _ask_password(settings: config.Postgres) -> bool:
    """Ask for the password again; tell whether it is another one. Where it cannot be had, the one we have stays."""
    try:
        return settings.ask_password()
    except ConfigError as error:
        log.warning("the password cannot be renewed", extra={"action": "password", "error": str(error)})
        return False


@contextmanager
def explained() -> Iterator[None]:
    """Turn what PostgreSQL has against a command's statements into one clear line; for commands, not for the daemon."""
    try:
        yield
    except psycopg.Error as error:
        text = " ".join(str(error).split())
        if verdict(error, broken=False) in {Verdict.RECONNECT, Verdict.RETRY}:
            raise ServerUnavailable(f"PostgreSQL cannot go on: {text}") from error
        raise ConfigError(f"PostgreSQL refuses: {text}") from error


def _conninfo(settings: config.Postgres, application_name: str) -> str:
    """Add what a daemon needs; what the user's own string says wins, but for the name and the encoding."""
    own = conninfo_to_dict(settings.conninfo)
    defaults: dict[str, str | int] = {
        "connect_timeout": round(settings.connect_timeout_seconds),
        "keepalives_idle": _TCP["tcp_keepalives_idle"],
        "keepalives_interval": _TCP["tcp_keepalives_interval"],
        "keepalives_count": _TCP["tcp_keepalives_count"],
        "tcp_user_timeout": _TCP_USER_TIMEOUT_MS,
    }
    if "," in str(own.get("host", "")) or "," in str(own.get("hostaddr", "")):
        defaults["target_session_attrs"] = "read-write"
    return make_conninfo("", **{**defaults, **own, "application_name": application_name, "client_encoding": "UTF8"})


def _set_up(connection: psycopg.Connection, settings: config.Postgres) -> None:
    """Set the session's own limits: everything here an ordinary role may do."""
    session = {
        **_RELIED_ON,
        **_TCP,
        "tcp_user_timeout": str(_TCP_USER_TIMEOUT_MS),
        "client_connection_check_interval": "2s",
        "idle_in_transaction_session_timeout": "10s",
        "idle_session_timeout": "0",
        # A role's own limits are for people: a flush is bounded by its size, and tried again for ever if it is not let.
        "statement_timeout": "0",
        **({"transaction_timeout": "0"} if connection.info.server_version >= _TRANSACTION_TIMEOUT_VERSION else {}),
        "lock_timeout": f"{round(settings.lock_timeout_seconds * 1000)}ms",
        "synchronous_commit": settings.synchronous_commit,
        "default_transaction_isolation": "read committed",
    }
    connection.execute(
        """
        SELECT pg_catalog.set_config(name, value, false)
        FROM ROWS FROM (pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[]))
             AS s(name, value)
        """,
        (list(session), list(session.values())),
    )


def _connect_error(error: psycopg.Error, codes: set[str]) -> ServerUnavailable | ConfigError:
    """Tell a refusal from an absence: by the server's SQLSTATE, by libpq's words only where no server has spoken."""
    text = " ".join(str(error).split())
    remedies = [_REMEDIES[code] for code in sorted(codes & _REMEDIES.keys())]
    if not codes:
        remedies = [remedy for phrase, remedy in _LIBPQ_REMEDIES if phrase in text][:1]
    if remedies or isinstance(error, psycopg.ProgrammingError):
        return ConfigError(f"postgres.dsn: {text}; {'; '.join(remedies) or 'correct postgres.dsn'}")
    return ServerUnavailable(f"PostgreSQL cannot be reached: {text}")
