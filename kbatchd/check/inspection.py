"""What can be wrong with a server, a table or a topic: a line each, the remedy behind its last `; ` or `: `.

The daemon's own start and `kbatchd check` ask the same questions here. Nothing is changed. Called in the start-up
checks' process and in the command's main thread.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

from kbatchd.errors import ConfigError
from kbatchd.postgres import catalogue
from kbatchd.postgres.connection import MINIMUM_VERSION, Connection, Error
from kbatchd.postgres.table import Table
from kbatchd.schema import claiming, migrations, renaming
from kbatchd.schema.progress import Owner
from kbatchd.sink.targets import build_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kbatchd.config import Config, Route
    from kbatchd.kafka.groups import Group
    from kbatchd.kafka.topics import TopicDescription
    from kbatchd.schema.renaming import Name

#: What the workers need of the schema kbatchd, beside what pruning does.
_PRIVILEGES = (
    ("progress", "SELECT"),
    ("progress", "INSERT"),
    ("progress", "UPDATE"),
    ("dead_letters", "INSERT"),
    ("gaps", "INSERT"),
    ("batches", "INSERT"),
    ("pauses", "SELECT"),
)

#: There is no schema, no table, no right: `server_faults` has said so.
_NO_PROGRESS = {"3F000", "42P01", "42501"}


#: Tables that a crash of PostgreSQL empties: the table itself, or partitions of it.
_UNLOGGED_SQL = """
SELECT c.oid::pg_catalog.regclass::pg_catalog.text FROM pg_catalog.pg_class c
WHERE c.relpersistence OPERATOR(pg_catalog.=) 'u'
    AND (c.oid OPERATOR(pg_catalog.=) %(oid)s
        OR c.oid OPERATOR(pg_catalog.=) ANY (SELECT relid FROM pg_catalog.pg_partition_tree(%(oid)s) WHERE isleaf))
ORDER BY 1
"""

#: Rules ON INSERT, by name. https://www.postgresql.org/docs/current/catalog-pg-rewrite.html
_RULES_SQL = """
SELECT rulename::pg_catalog.text FROM pg_catalog.pg_rewrite
WHERE ev_class OPERATOR(pg_catalog.=) %(oid)s AND ev_type OPERATOR(pg_catalog.=) '3'
    AND ev_enabled OPERATOR(pg_catalog.<>) 'D'
ORDER BY 1
"""


def server_faults(connection: Connection, config: Config) -> Iterator[str]:
    """Say what is wrong with the server, the schema kbatchd, and our rights in it."""
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
    needed = [*_PRIVILEGES]
    if config.ledger_keep_days:
        needed += [("batches", "SELECT"), ("batches", "DELETE")]
    if config.dead_letters_keep_days:
        needed += [("dead_letters", "SELECT"), ("dead_letters", "DELETE")]
    yield from privilege_faults(connection, needed)


def privilege_faults(connection: Connection, needed: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Say which rights in the schema kbatchd are missing, of those that somebody needs."""
    relations, privileges = zip(*needed, strict=True)
    missing = connection.execute(
        """
        SELECT relation, privilege FROM ROWS FROM (
            pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[])
        ) AS n(relation, privilege)
        WHERE NOT pg_catalog.has_table_privilege('kbatchd.' OPERATOR(pg_catalog.||) relation, privilege)
        """,
        (list(relations), list(privileges)),
    ).fetchall()
    for relation, privilege in missing:
        grant = f"GRANT {privilege} ON kbatchd.{relation} TO {_user(connection)}"
        yield f"no right to {privilege} on kbatchd.{relation}; {grant}"


def _user(connection: Connection) -> str:
    row = connection.execute("SELECT pg_catalog.quote_ident(current_user)").fetchone()
    return str(row[0]) if row else ""


def topic_faults(route: Route, descriptions: Mapping[str, TopicDescription | None]) -> Iterator[str]:
    """Say that a route's topic is missing."""
    if descriptions.get(route.topic) is None:
        yield (
            f"route {route.name}: topic {route.topic} does not exist; "
            f"create it with `kbatchd create-topic --config FILE {route.name}`"
        )


def group_warnings(config: Config, group: Group) -> Iterator[str]:
    """Say that another program is in our consumer group."""
    strangers = group.strangers(config.pipeline)
    if not strangers:
        return
    name, who = config.kafka.group_id, f"{', '.join(strangers)}: none of this pipeline's workers"
    if config.kafka.assignment == "pinned":
        what = f"no offsets are shown in group {name}, in which there is {who}"
    elif group.takes_us:
        what = f"in group {name} there is {who}; the partitions that it is given go into no table"
    else:
        what = f"in group {name}, which shares by {group.assignor} and takes nobody who does not, there is {who}"
    yield f"{what}; give kafka.group_id a name that only this pipeline has, or stop that program"


def table_faults(connection: Connection, config: Config, route: Route) -> Iterator[str]:
    """Say what is wrong with a route's table, and whether its progress was made for another one."""
    try:
        table = catalogue.read_table(connection, route.table)
        build_target(config.pipeline, route, "check", table)
        claiming.refuse_other_target(connection, owner(config, route, table.quoted))
    except ConfigError as error:
        for fault in error.faults:
            yield fault if fault.startswith("route ") else f"route {route.name}: {fault}"
    except Error as error:
        if error.sqlstate not in _NO_PROGRESS:
            raise


def name_faults(connection: Connection, config: Config, route: Route, topic: TopicDescription) -> Iterator[str]:
    """Say that a route would read again what another name has read: somebody has renamed it, or the pipeline."""
    others = _strangers(connection, config, route, topic)
    if others and not claiming.is_begun(connection, owner(config, route, "")):
        commands = "`, or `".join(_rename_command(config, route, other) for other in others)
        yield (
            f"route {route.name}: topic {route.topic} was read into table {route.table} by {_listed(others)} "
            "(pipeline/route), which does not read it in this file, and all of it would go in again; "
            f"if that was renamed: `{commands}`, and if all is to be read again: "
            f"read_again = {_toml(others)} in the route"
        )


def name_warnings(connection: Connection, config: Config, route: Route, topic: TopicDescription) -> Iterator[str]:
    """Say that somebody else reads the topic into the same table, beside a route that has begun it itself."""
    others = _strangers(connection, config, route, topic)
    if others and claiming.is_begun(connection, owner(config, route, "")):
        yield (
            f"route {route.name}: topic {route.topic} is or was read into table {route.table} by {_listed(others)} "
            "(pipeline/route) too, which does not read it in this file: what both have read is there twice; "
            f"if that is meant: read_again = {_toml(others)} in the route"
        )


def _strangers(connection: Connection, config: Config, route: Route, topic: TopicDescription) -> list[Name]:
    table = catalogue.read_table(connection, route.table)
    # A route of another topic that has the name by now has not read this one.
    names = [other.name for other in config.route if other.topic == route.topic]
    try:
        found = renaming.strangers(connection, owner(config, route, table.quoted), topic.topic_id, names)
    except Error as error:
        if error.sqlstate not in _NO_PROGRESS:
            raise
        return []
    return [name for name in found if str(name) not in route.read_again]


def _rename_command(config: Config, route: Route, other: Name) -> str:
    words = ["kbatchd", "progress", "rename", "--config", "FILE", route.name]
    words += ["--from-pipeline", other.pipeline] if other.pipeline != config.pipeline else []
    words += ["--from-route", other.route] if other.route != route.name else []
    return shlex.join(words)


def _listed(names: Iterable[Name]) -> str:
    return ", ".join(map(str, names))


def _toml(names: Iterable[Name]) -> str:
    return json.dumps([str(name) for name in names], ensure_ascii=False)


def table_warnings(connection: Connection, table: Table) -> Iterator[str]:
    """Say what will hurt later of a table that can be written, or of its partitions."""
    for (name,) in connection.execute(_UNLOGGED_SQL, {"oid": table.oid}):
        yield (
            f"table {name} is UNLOGGED: a crash of PostgreSQL empties it, and its records are not read again; "
            f"ALTER TABLE {name} SET LOGGED"
        )
    for (name,) in connection.execute(_RULES_SQL, {"oid": table.oid}):
        yield f"table {table} has the rule {name} ON INSERT, which COPY passes over; make a trigger of it, or drop it"


def partition_faults(
    connection: Connection, config: Config, route: Route, topic: TopicDescription | None
) -> Iterator[str]:
    """Say that progress of some of the topic's partitions was lost."""
    try:
        lost = topic and claiming.missing(connection, owner(config, route, route.table), topic.partitions)
    except Error as error:
        if error.sqlstate not in _NO_PROGRESS:
            raise
    else:
        if lost:
            yield lost


def owner(config: Config, route: Route, target: str) -> Owner:
    """Name the owner of a route's progress for those who only look."""
    return Owner(config.pipeline, route.name, route.topic, target, "check")
