"""The routes' tables, from PostgreSQL or, when it is away, from the cache in the state directory.

The cache holds the columns that a record feeds, so that the door can be opened without PostgreSQL. It may be lost; a
file that is damaged or of another version counts as none. An entry is good for the same route, table and mapping only.
Called by a gateway's database thread, by `kbatchd produce`, and by the command line before the fork (`is_cached`).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import orjson

from kbatchd.config import RouteMapping
from kbatchd.encode.mapping import row_columns
from kbatchd.errors import ConfigError, ServerUnavailable
from kbatchd.postgres import catalogue
from kbatchd.postgres.connection import connect, explained
from kbatchd.postgres.table import Column

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kbatchd.config import Config, Route
    from kbatchd.postgres.connection import Connection

log = logging.getLogger(__name__)

#: Of the cache's format; to be raised when Column changes.
_VERSION = 2


#: What a file must not be: writable for a group, or for all.
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH

#: The types of a Column's plain fields.
_TYPES = {"str": str, "int": int, "bool": bool}


class Columns(NamedTuple):
    """What a record of a route feeds, and the fingerprint of the table it was read from."""

    columns: tuple[Column, ...]
    fingerprint: str


#: By route name; for a table that cannot be used, why.
Tables = dict[str, Columns | ConfigError]


def load(config: Config, routes: Sequence[Route] | None = None) -> dict[str, tuple[Column, ...]]:
    """Return the routes' columns, from PostgreSQL if it answers, else from the cache.

    Raises ConfigError for a table that cannot be used, ServerUnavailable when there is neither.
    """
    routes = config.route if routes is None else routes
    try:
        with connect(config.postgres, "kbatchd tables") as connection, explained():
            found = read(connection, routes)
    except ServerUnavailable:
        cached = read_cache(config)
        if any(route.name not in cached for route in routes):
            raise
        return {route.name: cached[route.name].columns for route in routes}
    faults = [fault for table in found.values() if isinstance(table, ConfigError) for fault in table.faults]
    if faults:
        raise ConfigError(*faults)
    write_cache(config, found)
    return {name: table.columns for name, table in found.items() if isinstance(table, Columns)}


def read(connection: Connection, routes: Sequence[Route]) -> Tables:
    """Read the tables of the routes; a fault of one does not hide the others."""
    return {route.name: _read_one(connection, route) for route in routes}


def _read_one(connection: Connection, route: Route) -> Columns | ConfigError:
    try:
        table = catalogue.read_table(connection, route.table)
        return Columns(row_columns(table, route), table.fingerprint)
    except ConfigError as error:
        return error


def is_cached(config: Config) -> bool:
    """Tell whether the door of every route can be opened without PostgreSQL."""
    cached = read_cache(config)
    return all(route.name in cached for route in config.route)


def read_cache(config: Config) -> dict[str, Columns]:
    """Read what is cached of the file's routes; nothing when the cache is not there or not ours."""
    path = _path(config)
    try:
        document = orjson.loads(_read_own(path))
        if document["version"] != _VERSION:
            return {}
        return {
            route.name: Columns(tuple(map(_column, entry["columns"])), str(entry["fingerprint"]))
            for route in config.route
            if (entry := document["routes"].get(route.name)) and entry["of"] == _identity(route)
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        log.warning("cache not read", extra={"action": "cache_ignored", "path": str(path), "error": str(error)})
        return {}


def write_cache(config: Config, tables: Mapping[str, Columns | ConfigError]) -> None:
    """Remember these tables, and what was remembered of other routes; a disk that does not take it is no failure."""
    known = {**read_cache(config), **{name: table for name, table in tables.items() if isinstance(table, Columns)}}
    routes = {
        route.name: {
            "of": _identity(route),
            "fingerprint": known[route.name].fingerprint,
            "columns": [dataclasses.asdict(column) for column in known[route.name].columns],
        }
        for route in config.route
        if route.name in known
    }
    path = _path(config)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(path, orjson.dumps({"version": _VERSION, "routes": routes}))
    except OSError as error:
        what = "columns not remembered: nothing can be taken in after a start without PostgreSQL; fix state_directory"
        log.warning(what, extra={"action": "cache_unwritten", "path": str(path), "error": str(error)})


def _read_own(path: Path) -> bytes:
    """Read a file that nobody but us, or root, can have written: what it says becomes a part of generated code."""
    # Not through a link, which others may have laid; and what turns out to be a pipe must not hold us up.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in {os.geteuid(), 0} or found.st_mode & _WRITABLE:
            raise PermissionError("others may have written it; remove it, and let only this user write it")
        return file.read()


def _column(values: dict[str, Any]) -> Column:
    """Make a column of what the cache says of it, if all of it is of the right type."""
    column = Column.from_dict(values)
    waiting = [column]
    for each in waiting:
        for field in dataclasses.fields(Column):
            if type(getattr(each, field.name)) is not _TYPES.get(str(field.type), type(getattr(each, field.name))):
                raise TypeError(f"{field.name} is not of type {field.type}")
        if not all(type(label) is str for label in each.labels):
            raise TypeError("a label is not a string")
        waiting += [*each.attributes, *([each.element] if each.element else [])]
    return column


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as draft:
            draft.write(content)
            draft.flush()
            os.fsync(draft.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _path(config: Config) -> Path:
    return config.state_directory / f"{quote(config.pipeline, safe='')}.tables.json"


def _identity(route: Route) -> list[object]:
    return [route.table, route.model_dump(mode="json", include=set(RouteMapping.model_fields))]
