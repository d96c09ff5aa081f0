"""The start-up checks: everything that can be found wrong before the first record is read.

The supervisor runs `check` once, in a short-lived process of its own, since it makes clients. All faults are collected
and reported at once; only when there are none is the first progress of new topics registered. A server that does not
answer is waited for, up to `startup_timeout_seconds`; what the other one has to say is told all the same.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kbatchd import log as logs
from kbatchd.check import inspection, properties
from kbatchd.errors import EX_OK, ConfigError, KbatchError, ServerUnavailable, SourceError
from kbatchd.kafka import groups, offsets, topics
from kbatchd.model import Partition
from kbatchd.postgres import catalogue
from kbatchd.postgres.connection import connect, explained
from kbatchd.schema import claiming

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeVar

    from kbatchd.config import Config, Route
    from kbatchd.postgres.connection import Connection

    T = TypeVar("T")

log = logging.getLogger(__name__)

#: How long to wait before a server that does not answer is asked again.
RETRY_SECONDS = 0.5

#: How long a first start waits for partitions whose broker is silent, before the others begin without them.
LEADER_SECONDS = 12.0

#: How long the brokers may take to tell of our group: the daemon starts without.
GROUP_SECONDS = 3.0

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
    librdkafka = properties.judge(config)
    if librdkafka:
        raise ConfigError(*(f"{'.'.join(map(str, where))}: {what}" for where, what in librdkafka.items()))
    admin = _patiently(deadline, lambda _: topics.make_admin(config.kafka))
    try:
        connection = _patiently(deadline, lambda _: connect(config.postgres, "kbatchd check"))
    except (ConfigError, ServerUnavailable) as error:
        raise _joined([error, *_ask_topics(admin, config, 0.0)[1]]) from error
    with connection, explained():
        server = list(inspection.server_faults(connection, config))
        tables = {route.name: list(inspection.table_faults(connection, config, route)) for route in config.route}
        sound = not server and not any(tables.values())
        descriptions, trouble = _ask_topics(admin, config, deadline if sound else 0.0)
        faults = [*server]
        for route in config.route:
            faults += inspection.topic_faults(route, descriptions) if not trouble else ()
            faults += tables[route.name]
            faults += inspection.partition_faults(connection, config, route, descriptions.get(route.topic))
        if faults or trouble:
            raise _joined([*([ConfigError(*faults)] if faults else []), *trouble])
        _check_names(connection, config, descriptions)
        starts = []
        for route in config.route:
            table = catalogue.read_table(connection, route.table)
            for text in inspection.table_warnings(connection, table):
                log.warning(text, extra={"action": "check_warning", "route": route.name})
            owner = inspection.owner(config, route, table.quoted)
            description = descriptions[route.topic]
            if description and not claiming.is_begun(connection, owner):
                starts.append((owner, *_starts(admin, route, description, deadline)))
        with connection.transaction():  # all topics are begun, or none
            for start in starts:
                claiming.register(connection, *start)
    if config.kafka.assignment == "group":
        _tell_group(admin, config)


def _check_names(
    connection: Connection, config: Config, descriptions: Mapping[str, topics.TopicDescription | None]
) -> None:
    """Refuse to begin what another name has read; warn where both have."""
    described = [(route, topic) for route in config.route if (topic := descriptions[route.topic])]
    faults = [fault for route, topic in described for fault in inspection.name_faults(connection, config, route, topic)]
    if faults:
        raise ConfigError(*faults)
    for route, topic in described:
        for warning in inspection.name_warnings(connection, config, route, topic):
            log.warning(warning, extra={"action": "read_twice"})


def _tell_group(admin: topics.Admin, config: Config) -> None:
    """Warn of others in our group; tell its timeouts where the brokers have set them, if they tell."""
    group_id = config.kafka.group_id
    group = groups.describe(admin, group_id, GROUP_SECONDS)
    for text in inspection.group_warnings(config, group) if group else ():
        log.warning(text, extra={"action": "check_warning"})
    if config.kafka.group_protocol == "consumer":
        told = groups.timeouts(admin, group_id, GROUP_SECONDS)
        about = {name.replace(".", "_"): value for name, value in told.items()}
        log.info("the group's timeouts are the brokers'", extra={"action": "group", "group": group_id, **about})


def _ask_topics(
    admin: topics.Admin, config: Config, deadline: float
) -> tuple[dict[str, topics.TopicDescription | None], list[KbatchError]]:
    """Ask Kafka, once where something else is wrong already: it shall be told of together."""
    names = {route.topic for route in config.route}
    try:
        return _patiently(deadline, lambda seconds: topics.describe(admin, names, seconds)), []
    except (ConfigError, ServerUnavailable) as error:
        return {}, [error]


def _joined(errors: Sequence[KbatchError]) -> KbatchError:
    """Make one error of those of both servers; what trying again does not fix decides of its kind."""
    if any(isinstance(error, ConfigError) for error in errors):
        return ConfigError(*(line for error in errors for line in str(error).splitlines()))
    return ServerUnavailable("; ".join(map(str, errors)))


def _patiently(deadline: float, ask: Callable[[float], T]) -> T:
    """Ask a server until it answers or the deadline has come; `ask` is told how long it may wait."""
    while True:
        left = deadline - time.monotonic()
        try:
            return ask(min(topics.REQUEST_TIMEOUT_SECONDS, max(MINIMUM_TIMEOUT_SECONDS, left)))
        except (ServerUnavailable, SourceError) as error:  # SourceError: a topic just made may have no leader yet
            if time.monotonic() + RETRY_SECONDS > deadline:
                raise ServerUnavailable(str(error)) from error
            log.warning("waiting for a server", extra={"action": "startup_wait", "error": str(error)})
            logs.tell_repeats()
            time.sleep(RETRY_SECONDS)


def _starts(
    admin: topics.Admin, route: Route, description: topics.TopicDescription, deadline: float
) -> tuple[str, dict[int, int | None], str]:
    """Ask where a topic is to begin that this pipeline has never read: its id, the offsets, and what they are asked by.

    A partition that is silent for long has none, and the others begin without it. At the end of a topic that is not
    known yet begins what comes from now on.
    """
    now = datetime.now(UTC)
    answers = offsets.patiently(
        lambda asked: offsets.Beginnings(admin, asked, route.start).wait(),
        [Partition(route.topic, number) for number in range(description.partitions)],
        min(LEADER_SECONDS, deadline - time.monotonic()),
    )
    for partition, error in answers.silent.items():
        if isinstance(error, ConfigError):
            raise error
        about = {"partition": str(partition), "error": str(error)}
        log.warning("not known yet where to begin; the others begin", extra={"action": "start_unknown", **about})
    start = now.isoformat() if route.start == "latest" else str(route.start)
    numbers = range(description.partitions)
    known = {number: answers.known.get(Partition(route.topic, number)) for number in numbers}
    return description.topic_id, dict(known), start
