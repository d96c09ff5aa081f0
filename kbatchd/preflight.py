"""The start-up checks: everything that can be found wrong before the first record is read.

The supervisor runs `check` once, in a short-lived process of its own, since it makes clients. All faults are collected
and reported at once; only when there are none is the first progress of new topics registered. A server that does not
answer is waited for, up to `startup_timeout_seconds`.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from kbatchd import catalogue, migrations, progress, topics
from kbatchd.errors import EX_OK, ConfigError, KbatchError, ServerUnavailable, SourceError
from kbatchd.model import Partition
from kbatchd.postgres import MINIMUM_VERSION, Connection, connect, explained
from kbatchd.progress import Owner
from kbatchd.rows import build_encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from kbatchd.config import Config, Route

    T = TypeVar("T")

log = logging.getLogger(__name__)

#: How long to wait before a server that does not answer is asked again.
RETRY_SECONDS = 0.5

#: How often it is told that we wait.
TELL_SECONDS = 10.0

#: What a server is given at least, even when the deadline is nearer.
MINIMUM_TIMEOUT_SECONDS = 1.0


def run_preflight(config: Config) -> int:
    """Run the checks and return the exit code; every fault becomes one line of the log."""
    try:
        check(config)
    except ConfigError as error:
        for fault in error.faults:
            log.error(fault, extra={"action": "check_failed"})
        return error.exit_code
    except KbatchError as error:
        log.error(str(error), extra={"action": "check_failed"})
        return error.exit_code
    return EX_OK


def check(config: Config) -> None:
    """Raise ConfigError with all faults, or ServerUnavailable; register the first progress of new topics."""
    deadline = time.monotonic() + config.startup_timeout_seconds
    librdkafka = topics.check_librdkafka(config.kafka.librdkafka)
    if librdkafka:
        raise ConfigError(*(f"{'.'.join(map(str, where))}: {what}" for where, what in librdkafka.items()))
    admin = topics.make_admin(config.kafka)
    names = [route.topic for route in config.route]
    with _patiently(deadline, lambda _: connect(config.postgres, "kbatchd check")) as connection, explained():
        descriptions = _patiently(deadline, lambda seconds: topics.describe(admin, names, seconds))
        faults = list(_server_faults(connection))
        if not faults:
            for route in config.route:
                faults += _route_faults(connection, config, route, descriptions[route.topic])
        if faults:
            raise ConfigError(*faults)
        described = [(route, description) for route in config.route if (description := descriptions[route.topic])]
        starts = [_start_offsets(admin, route, description, deadline) for route, description in described]
        with connection.transaction():  # all topics are begun, or none
            for (route, description), offsets in zip(described, starts, strict=True):
                target = catalogue.read_table(connection, route.table).quoted
                progress.register(connection, _owner(config, route, target), description.topic_id, offsets)


def _patiently(deadline: float, ask: Callable[[float], T]) -> T:
    """Ask a server until it answers or the deadline has come; `ask` is told how long it may wait."""
    told_at = -TELL_SECONDS
    while True:
        left = deadline - time.monotonic()
        try:
            return ask(min(topics.REQUEST_TIMEOUT_SECONDS, max(MINIMUM_TIMEOUT_SECONDS, left)))
        except (ServerUnavailable, SourceError) as error:  # SourceError: a topic just made may have no leader yet
            if time.monotonic() + RETRY_SECONDS > deadline:
                raise ServerUnavailable(str(error)) from error
            if time.monotonic() - told_at >= TELL_SECONDS:
                told_at = time.monotonic()
                log.warning("waiting for a server", extra={"action": "startup_wait", "error": str(error)})
            time.sleep(RETRY_SECONDS)


def _server_faults(connection: Connection) -> Iterator[str]:
    if connection.info.server_version < MINIMUM_VERSION:
        yield (
            f"PostgreSQL {connection.info.server_version // 10000} is too old; "
            f"upgrade it to {MINIMUM_VERSION // 10000} or later"
        )
        return
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        yield f"the database's encoding is {encoding}, and JSON's is UTF-8; create a database with ENCODING 'UTF8'"
    try:
        migrations.check_version(connection)
    except ConfigError as error:
        yield from error.faults
        return
    missing = connection.execute(
        """
        SELECT relation, privilege
        FROM (VALUES ('progress', 'SELECT'), ('progress', 'INSERT'), ('progress', 'UPDATE'),
                     ('dead_letters', 'INSERT'), ('gaps', 'INSERT'), ('batches', 'INSERT')) AS n(relation, privilege)
        WHERE NOT has_table_privilege('kbatchd.' || relation, privilege)
        """
    ).fetchall()
    for relation, privilege in missing:
        grant = f"GRANT {privilege} ON kbatchd.{relation} TO {_user(connection)}"
        yield f"no right to {privilege} on kbatchd.{relation}; {grant}"


def _user(connection: Connection) -> str:
    row = connection.execute("SELECT quote_ident(current_user)").fetchone()
    return str(row[0]) if row else ""


def _route_faults(
    connection: Connection, config: Config, route: Route, description: topics.TopicDescription | None
) -> Iterator[str]:
    """Say what is wrong with a route's topic and table."""
    if description is None:
        yield (
            f"route {route.name}: topic {route.topic} does not exist; "
            f"create it with `kbatchd create-topic --config FILE {route.name}`"
        )
    try:
        table = catalogue.read_table(connection, route.table)
        build_encoder(catalogue.row_columns(table, route.omit))
        progress.refuse_other_target(connection, _owner(config, route, table.quoted))
    except ConfigError as error:
        for fault in error.faults:
            yield fault if fault.startswith("route ") else f"route {route.name}: {fault}"


def _start_offsets(
    admin: topics.Admin, route: Route, description: topics.TopicDescription, deadline: float
) -> dict[int, int]:
    """Ask where a topic is to begin, should this pipeline never have read it."""
    partitions = [Partition(route.topic, number) for number in range(description.partitions)]
    offsets = _patiently(deadline, lambda seconds: topics.list_offsets(admin, partitions, route.start, seconds))
    return {partition.number: offset for partition, offset in offsets.items()}


def _owner(config: Config, route: Route, target: str) -> Owner:
    return Owner(config.pipeline, route.name, route.topic, target, "check")
