"""What all tables of the file share: their model, and the types of keys that several of them have.

Used by the config modules, while the file is loaded, before anything is forked.
"""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo

from kbatchd.config.credentials import find_password, read_private
from kbatchd.config.faults import fault
from kbatchd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: PostgreSQL's NAMEDATALEN, less the byte that ends it.
MAX_IDENTIFIER_BYTES = 63
#: As long as a topic's name may be, which is a route's by default.
MAX_KEPT_BYTES = 249

#: A part of a table's name: what is between quotes, or between dots.
_IDENTIFIER = re.compile(r'"(?P<quoted>(?:[^"]|"")*)"|(?P<plain>[^".\s]+)')
_HIGHEST_PORT = 65_535
#: As browsers write it, with which it is compared.
_ORIGIN = re.compile(r"(\*|http://(?!.*:80\Z)[^/\s?#@A-Z]+|https://(?!.*:443\Z)[^/\s?#@A-Z]+)\Z")
_HOST = re.compile(r"([A-Za-z0-9._-]+|[0-9A-Fa-f:.]+)\Z")
_TOPIC = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}\Z")


def _printable(value: str) -> str:
    if not value or not value.isprintable():
        raise fault("is empty or has control characters; allowed: a line of printable characters")
    return value


def _short(value: str) -> str:
    if len(value.encode()) > MAX_KEPT_BYTES:
        raise fault(f"is longer than {MAX_KEPT_BYTES} bytes")
    return value


def identifier(value: str) -> str:
    """Take a name only if PostgreSQL would not cut it: it would then be another one, or the same as another one."""
    size = len(value.encode())
    if size > MAX_IDENTIFIER_BYTES:
        raise fault(
            f'names "{value}", of {size} bytes; allowed: {MAX_IDENTIFIER_BYTES}, PostgreSQL cuts what is longer'
        )
    return value


def _table(value: str) -> str:
    for match in _IDENTIFIER.finditer(value):
        quoted = match["quoted"]
        identifier(match["plain"] if quoted is None else quoted.replace('""', '"'))
    return value


def _topic(value: str) -> str:
    if not _TOPIC.match(value):
        raise fault("is not a topic's name; allowed: 1 to 249 letters, digits, '.', '_' and '-', but not '.' or '..'")
    return value


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    number = int(port) if port.isascii() and port.isdecimal() else 0
    if not colon or not host.strip("[]") or not 0 < number <= _HIGHEST_PORT:
        raise fault('is not an address to listen on; allowed: "host:port", such as "127.0.0.1:8080" or "[::]:8080"')
    return value


def host_and_port(address: str) -> tuple[str, int]:
    """Split an Address."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _origin(value: str) -> str:
    if not _ORIGIN.match(value):
        raise fault(
            'has something that is not an origin; allowed: such as "https://app.example.com", in small letters and '
            'without the default port, or "*" for all'
        )
    return value


def _host(value: str) -> str:
    if not _HOST.match(value):
        raise fault('has something that is not a host; allowed: a name without a port, such as "api.example.com"')
    return value


def _not_empty(command: tuple[str, ...]) -> tuple[str, ...]:
    if not command:
        raise fault("is empty; allowed: a program and its arguments, each a string")
    return command


def beside_the_file(path: Path, info: ValidationInfo) -> Path:
    """Take a relative path from the file that names it: systemd starts the daemon in /."""
    return Path((info.context or {}).get("directory", Path()) / path)


def _scalar(value: object) -> object:
    if type(value) not in {str, int, float, bool}:
        raise fault("is not a plain value; allowed: a string, a number or a boolean")
    return value


def _start(value: object) -> object:
    """Take "earliest", "latest", or a time with an offset, as a string or as TOML's own type."""
    if value in ("earliest", "latest"):
        return value
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        at = None
    if not isinstance(at, datetime) or at.tzinfo is None:
        raise fault('is not a start; allowed: "earliest", "latest" or a time with its offset, as 2026-01-31T08:00:00Z')
    return at


def _flat(value: object) -> object:
    """Undo TOML's reading of unquoted dotted keys: {"fetch": {"wait": 1}} is {"fetch.wait": 1}."""
    return dict(_flat_items(value, "")) if isinstance(value, dict) else value


def _flat_items(table: dict[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


Name = Annotated[str, AfterValidator(_printable)]
#: A name that is kept as a text of ours, and is part of an index: PostgreSQL takes no more than 2,704 bytes of all.
KeptName = Annotated[Name, AfterValidator(_short)]
#: A table's name as SQL has it; a column's as it is.
TableName = Annotated[Name, AfterValidator(_table)]
ColumnName = Annotated[Name, AfterValidator(identifier)]
Topic = Annotated[str, AfterValidator(_topic)]
Address = Annotated[str, AfterValidator(_address)]
Origin = Annotated[str, AfterValidator(_origin)]
Host = Annotated[str, AfterValidator(_host)]
#: A file that the configuration names.
Beside = Annotated[Path, AfterValidator(beside_the_file)]
Scalar = Annotated[Any, AfterValidator(_scalar)]
#: A command and its arguments; no shell.
Command = Annotated[tuple[Name, ...], AfterValidator(_not_empty)]
Start = Annotated[Literal["earliest", "latest"] | datetime, BeforeValidator(_start)]
Properties = Annotated[dict[str, str | int | float | bool], BeforeValidator(_flat)]


class Table(BaseModel):
    """What all tables share: unknown keys fail, nothing is converted in silence (`count = true`), nothing changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


def readable(path: Path | None) -> Path | None:
    """Take a file only if it can be read."""
    if path is not None and not os.access(path, os.R_OK):
        raise fault(f"is {path}, which cannot be read")
    return path


def private(path: Path | None) -> Path | None:
    """Take a file of secrets only if it can be read, and nobody else can."""
    if path is not None:
        try:
            read_private(path)
        except ConfigError as error:
            raise fault(str(error)) from error
    return path


def read_password(file: Path | None, command: Sequence[str] | None, credential: str) -> str | None:
    """Return a table's password, from the one place that there is; None when there is none."""
    if file is not None and command is not None:
        raise fault("has both password_file and password_command; allowed: one of them")
    try:
        return find_password(file, command, credential)
    except ConfigError as error:
        raise fault(f"password: {error}") from error


def password_file(path: Path | None) -> Path | None:
    """Take a file with a password only if nobody else can read it, and there is one in it."""
    if path is not None:
        try:
            find_password(path, None, "")
        except ConfigError as error:
            raise fault(str(error)) from error
    return path
