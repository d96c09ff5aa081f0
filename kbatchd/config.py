"""The configuration file: what it may say, and every fault in it at once.

One frozen model per TOML table, one line of description per key; `config/kbatchd.toml` is compared with them by a
test. `load()` is the only way in: it reads the file, lets pydantic collect the faults, and turns each into one line
that names the file, the line, the key, what is wrong and what is allowed. A rule between two keys is a validator that
runs as soon as its own keys are valid, so that a fault elsewhere does not hide it.

This is the only module that reads the environment for settings (DATABASE_URL, CREDENTIALS_DIRECTORY). The command line
calls it before anything is forked; each part of the daemon receives its own section, never the whole.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from datetime import date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_origin

import annotated_types
import tomli
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from kbatchd.conninfo import CREDENTIAL, has_password, is_conninfo, read_credential, read_password, with_password
from kbatchd.errors import ConfigError
from kbatchd.toml_lines import find_line, key_lines, key_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

_TOPIC = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}\Z")

#: Where a key stands, as pydantic names it: ("route", 1, "table").
Where = tuple[str | int, ...]

#: What is wrong, by key.
Faults = dict[Where, str]

#: What TOML calls the values that are not numbers.
_KINDS = {
    bool: "a boolean",
    str: "a string",
    list: "a list",
    dict: "a table",
    datetime: "a time",
    date: "a date",
    time: "a time",
}


def _fault(what: str) -> PydanticCustomError:
    """Make the error of a rule of our own; its text is shown as it is."""
    return PydanticCustomError("fault", "{what}", {"what": what})


def _printable(value: str) -> str:
    if not value or not value.isprintable():
        raise _fault("is empty or has control characters; allowed: a line of printable characters")
    return value


def _topic(value: str) -> str:
    if not _TOPIC.match(value):
        raise _fault("is not a topic's name; allowed: 1 to 249 letters, digits, '.', '_' and '-', but not '.' or '..'")
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
        raise _fault('is not a start; allowed: "earliest", "latest" or a time with its offset, as 2026-01-31T08:00:00Z')
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
Topic = Annotated[str, AfterValidator(_topic)]
Start = Annotated[Literal["earliest", "latest"] | datetime, BeforeValidator(_start)]
Properties = Annotated[dict[str, str | int | float | bool], BeforeValidator(_flat)]


class _Table(BaseModel):
    """What all tables share: unknown keys fail, nothing is converted in silence (`count = true`), nothing changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class Kafka(_Table):
    """`[kafka]`: where the records come from."""

    bootstrap_servers: Name = Field(description="Brokers to start from: host:port, more after commas. Required.")
    assignment: Literal["pinned", "group"] = Field(
        default="pinned",
        description='"pinned": worker i of N owns its partitions; "group": Kafka shares them among all daemons.',
    )
    group_id: Name = Field(
        default="", description="Consumer group; offsets go there for display. Default: the pipeline."
    )
    librdkafka: Properties = Field(
        default={}, description="Any other librdkafka property, with its dots; what kbatchd itself sets wins."
    )


class Postgres(_Table):
    """`[postgres]`: where the rows go. `conninfo` is what to connect with; it alone holds the password."""

    dsn: str | None = Field(
        default=None,
        validate_default=True,
        description="libpq connection string without a password. Default: $DATABASE_URL.",
    )
    password_file: Path | None = Field(
        default=None,
        strict=False,
        description=f"File with the password, mode 0600 or 0400. Default: the systemd credential {CREDENTIAL}, if any.",
    )
    synchronous_commit: Literal["off", "local", "remote_write", "on", "remote_apply"] = Field(
        default="off",
        description='"off" is safe: after a crash rows and progress are back together, and are read again.',
    )
    connect_timeout_seconds: float = Field(
        default=5.0, ge=1, le=300, description="How long one attempt to connect may take."
    )
    lock_timeout_seconds: float = Field(
        default=5.0, ge=0.1, le=300, description="How long a flush waits for a lock of others."
    )

    _conninfo: SecretStr = PrivateAttr()

    @property
    def conninfo(self) -> str:
        """The connection string with its password: hand it to libpq, never to a log."""
        return self._conninfo.get_secret_value()

    @field_validator("dsn")
    @classmethod
    def _dsn_is_usable(cls, dsn: str | None) -> str | None:
        if dsn is not None and has_password(dsn):
            raise _fault(
                "holds a password; put it into a file with mode 0600 and name that in postgres.password_file, "
                f"or into the systemd credential {CREDENTIAL}",
            )
        if dsn is None and not os.environ.get("DATABASE_URL"):
            raise _fault(
                'is missing, and so is $DATABASE_URL; allowed: a string such as "postgresql://user@host/database"'
            )
        if not is_conninfo(os.environ["DATABASE_URL"] if dsn is None else dsn):
            source = "is" if dsn is not None else "is missing, and $DATABASE_URL is"
            raise _fault(
                f'{source} not a connection string; allowed: "postgresql://user@host/database" or "host=... dbname=..."'
            )
        return dsn

    @field_validator("password_file")
    @classmethod
    def _password_file_is_private(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is None:
            return None
        # A relative path is meant from the file that names it: systemd starts the daemon in /.
        path = (info.context or {}).get("directory", Path()) / path
        try:
            read_password(path)
        except ConfigError as error:
            raise _fault(str(error)) from error
        return path

    @model_validator(mode="after")
    def _build_conninfo(self) -> Self:
        conninfo = self.dsn or os.environ["DATABASE_URL"]
        try:
            password = self._password()
        except ConfigError as error:
            raise _fault(str(error)) from error
        self._conninfo = SecretStr(conninfo if password is None else with_password(conninfo, password))
        return self

    def _password(self) -> str | None:
        if self.password_file is not None:
            return read_password(self.password_file)
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        return read_credential(Path(directory)) if directory else None


class Workers(_Table):
    """`[workers]`: the processes that do the work."""

    count: int = Field(
        default=4, ge=1, le=256, description="Worker processes; more than there are partitions stay idle."
    )
    buffer_bytes: int = Field(
        default=67_108_864,
        ge=2_048,
        le=17_179_869_184,
        description="A worker's pool of batch buffers, for all its routes.",
    )
    heartbeat_timeout_seconds: float = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="A worker whose poll loop stands still this long is killed and replaced.",
    )
    grace_seconds: float = Field(default=8.0, ge=0.1, le=600, description="At a stop, the time to flush what was read.")
    restart_backoff_max_seconds: float = Field(
        default=30.0,
        ge=0.1,
        le=3600,
        description="The longest wait before a worker that keeps failing is started again.",
    )


class Batch(_Table):
    """`[batch]`: a batch is flushed at whichever limit it meets first."""

    max_rows: int = Field(default=20_000, ge=1, le=1_000_000, description="Rows of a full batch.")
    max_bytes: int = Field(default=8_388_608, ge=1_024, le=1_073_741_824, description="Encoded bytes of a full batch.")
    linger_seconds: float = Field(
        default=3.0,
        ge=0.01,
        le=3600,
        description="A partly filled batch is flushed this long after its first record came.",
    )


class Log(_Table):
    """`[log]`: standard error, one line an event."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important level to log."
    )


class Route(_Table):
    """`[[route]]`: one topic into one table."""

    topic: Topic = Field(description="The topic to read. Required; in one route only.")
    table: Name = Field(description="The table to write: schema.table. Required.")
    name: Name = Field(
        default_factory=lambda data: data.get("topic", ""),
        description="The route's name in progress, logs and commands, unique. Default: the topic.",
    )
    omit: tuple[Name, ...] = Field(
        default=(), strict=False, description="Columns left out of the COPY: their defaults apply."
    )
    partitions: int = Field(default=4, ge=1, le=100_000, description="For `kbatchd create-topic` only.")
    replication_factor: int = Field(default=1, ge=1, le=32_767, description="For `kbatchd create-topic` only.")
    start: Start = Field(
        default="earliest",
        description='Where a topic is begun: "earliest", "latest" or a time such as 2026-01-31T08:00:00Z.',
    )
    on_gap: Literal["halt", "record"] = Field(
        default="halt",
        description='Offsets lost in Kafka: "halt" the partition, or "record" them in kbatchd.gaps and go on.',
    )
    max_dead_letters: int = Field(
        default=10_000,
        ge=0,
        description="So many dead letters in a row halt the route instead of emptying the topic; 0 = off.",
    )


class Config(_Table):
    """The whole file."""

    pipeline: Name = Field(
        default="kbatchd", description="The name all progress is kept under: one per file, for good."
    )
    startup_timeout_seconds: float = Field(
        default=60.0, ge=1, le=3600, description="How long the start-up checks wait for Kafka and PostgreSQL."
    )
    kafka: Kafka = Field(description="Where the records come from.")
    postgres: Postgres = Field(description="Where the rows go.")
    workers: Workers = Field(default=Workers(), description="The processes that do the work.")
    batch: Batch = Field(default=Batch(), validate_default=True, description="When a batch is full.")
    log: Log = Field(default=Log(), description="Standard error, one line an event.")
    route: tuple[Route, ...] = Field(strict=False, description="One topic into one table, each.")

    @field_validator("kafka")
    @classmethod
    def _group_defaults_to_pipeline(cls, kafka: Kafka, info: ValidationInfo) -> Kafka:
        return kafka if kafka.group_id else kafka.model_copy(update={"group_id": info.data.get("pipeline", "")})

    @field_validator("batch")
    @classmethod
    def _batch_fits_workers(cls, batch: Batch, info: ValidationInfo) -> Batch:
        workers: Workers | None = info.data.get("workers")
        if workers is None:
            return batch
        faults: Faults = {}
        if batch.linger_seconds >= workers.heartbeat_timeout_seconds:
            faults["linger_seconds",] = (
                f"is {batch.linger_seconds:g}; allowed: less than workers.heartbeat_timeout_seconds, "
                f"which is {workers.heartbeat_timeout_seconds:g}"
            )
        if 2 * batch.max_bytes > workers.buffer_bytes:
            faults["max_bytes",] = (
                f"is {batch.max_bytes:_}; allowed: at most half of workers.buffer_bytes, "
                f"which is {workers.buffer_bytes:_}: one batch fills while another is copied"
            )
        if faults:
            # pydantic merges a ValidationError raised by a validator into its own: so both are reported.
            errors = [InitErrorDetails(type=_fault(what), loc=where, input=None) for where, what in faults.items()]
            raise ValidationError.from_exception_data("batch", errors)
        return batch

    @field_validator("route")
    @classmethod
    def _route_is_not_empty(cls, routes: tuple[Route, ...]) -> tuple[Route, ...]:
        # Not min_length=1: pydantic counts valid routes only, and would call a faulty one missing too.
        if not routes:
            raise _fault("is empty; allowed: at least one [[route]]")
        return routes


def load(path: Path) -> Config:
    """Read and check the file; raise ConfigError with one line for each fault in it."""
    text = _read(path)
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: {error}") from error
    # A file without these tables should hear of the keys it must have, not of the tables.
    data = {"kafka": {}, "postgres": {}, **data}
    faults = _doubles(data.get("route"))
    try:
        config = Config.model_validate(data, context={"directory": path.parent})
    except ValidationError as error:
        faults = _in_our_words(error) | faults
    if faults:
        raise _located(path, text, faults)
    return config


def located(path: Path, faults: Mapping[Where, str]) -> ConfigError:
    """Make the error for faults that others found in a file which itself is sound: librdkafka, say."""
    return _located(path, _read(path), faults)


def _located(path: Path, text: str, faults: Mapping[Where, str]) -> ConfigError:
    lines = key_lines(text)
    placed = sorted((find_line(lines, where), key_path(where), what) for where, what in faults.items())
    return ConfigError(*(f"{path}:{line}: {key}: {what}" for line, key, what in placed))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8: byte {error.object[error.start]:#04x}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _doubles(routes: object) -> Faults:
    """Find topics and names used twice, in the raw tables: so that another fault in a route does not hide them."""
    faults: Faults = {}
    topics: dict[object, int] = {}
    names: dict[object, int] = {}
    for index, route in enumerate(routes if isinstance(routes, list) else ()):
        if not isinstance(route, dict) or not isinstance(topic := route.get("topic"), str):
            continue
        first = topics.setdefault(topic, index)
        if first != index:
            faults["route", index, "topic"] = (
                f'"{topic}" is the topic of route[{first}] too; allowed: in one route only'
            )
            continue  # its name is the topic, mostly: one fault is enough
        name = route.get("name", topic)
        first = names.setdefault(name, index) if isinstance(name, str) else index
        if first != index:
            faults["route", index, "name"] = f'"{name}" is the name of route[{first}] too; allowed: a name of its own'
    return faults


def _in_our_words(error: ValidationError) -> Faults:
    """Turn pydantic's errors into ours; several about one key (the branches of a union) are one fault."""
    faults: Faults = {}
    for detail in error.errors(include_url=False):
        if detail["type"] != "default_factory_not_called":  # the topic it leans on has a fault of its own
            where, table, field = _resolve(detail["loc"])
            faults.setdefault(where, _what(detail, table, field))
    return faults


def _resolve(loc: Where) -> tuple[Where, type[_Table], FieldInfo | None]:
    """Find the key pydantic speaks of, without the parts it adds for a union's branches, and the table it is in."""
    table: type[_Table] = Config
    field: FieldInfo | None = None
    for at, part in enumerate(loc):
        if isinstance(part, int):
            continue
        field = table.model_fields.get(part)
        inner = _inner_table(field) if field else None
        if inner is None:
            # A list's element or a free property is the last part of ours.
            return loc[: at + 1 + bool(field and get_origin(field.annotation))], table, field
        table = inner
    return loc, table, field


def _inner_table(field: FieldInfo) -> type[_Table] | None:
    """Return the table a key holds: its type, or the element of its tuple."""
    for annotation in (field.annotation, *get_args(field.annotation)):
        if isinstance(annotation, type) and issubclass(annotation, _Table):
            return annotation
    return None


def _what(detail: ErrorDetails, table: type[_Table], field: FieldInfo | None) -> str:
    value = detail["input"]
    if detail["type"] == "fault":
        return detail["msg"]
    if field is None:
        return f"is an unknown key; {_nearest(str(detail['loc'][-1]), table)}"
    if detail["type"] == "missing":
        return f"is missing; {field.description}"
    if detail["type"] == "literal_error":
        shown = json.dumps(value, ensure_ascii=False, default=str)
    else:
        shown = _KINDS.get(type(value), str(value))  # never a string's own text: it may be a secret in a wrong place
    return f"is {shown}; allowed: {_allowed(field)}"


def _nearest(key: str, table: type[_Table]) -> str:
    """Say what an unknown key was probably meant to be."""
    near = difflib.get_close_matches(key, table.model_fields, n=1)
    if near:
        return f"did you mean {near[0]}?"
    for name, field in Config.model_fields.items():
        inner = _inner_table(field)
        if inner is not None and key in inner.model_fields:
            return f"{key} belongs to [{name}]"
    return f"allowed: {', '.join(table.model_fields)}"


def _allowed(field: FieldInfo) -> str:
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(annotation))
    if annotation in {int, float}:
        bounds = {type(bound): getattr(bound, type(bound).__name__.lower()) for bound in field.metadata}
        low, high = bounds.get(annotated_types.Ge), bounds.get(annotated_types.Le)
        number = "a whole number" if annotation is int else "a number of seconds"
        return f"{number} from {low:_}" + ("" if high is None else f" to {high:_}")
    if _inner_table(field) is not None:
        return "tables, [[route]]" if get_origin(annotation) is tuple else "a table"
    if get_origin(annotation) is tuple:
        return "a list of strings"
    if get_origin(annotation) is dict:
        return "a string, a number or a boolean for each property"
    return "a string"
