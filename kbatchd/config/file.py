"""The configuration file: what it may say, and every fault in it at once.

One frozen model per TOML table, one line of description per key; `config/kbatchd.toml` is compared with them by a
test. `load()` is the only way in: it reads the file, lets pydantic collect the faults, and turns each into one line
that names the file, the line, the key, what is wrong and what is allowed. A rule between two keys is a validator that
runs as soon as its own keys are valid, so that a fault elsewhere does not hide it.

The tables with rules of their own are in modules of their own. These alone read the environment for settings
(DATABASE_URL, CREDENTIALS_DIRECTORY, STATE_DIRECTORY). The command line calls `load` before anything is forked; each
part of the daemon receives its own section, never the whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import InitErrorDetails

from kbatchd.config.faults import Faults, Where, fault, in_our_words
from kbatchd.config.gateway import Gateway
from kbatchd.config.kafka import Kafka
from kbatchd.config.monitor import Monitor
from kbatchd.config.postgres import Postgres
from kbatchd.config.route import Route
from kbatchd.config.table import Beside, KeptName, Table
from kbatchd.config.text import parse, read_text
from kbatchd.config.toml_lines import find_line, key_lines, key_path
from kbatchd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Batch", "Config", "Gateway", "Kafka", "Log", "Monitor", "Postgres", "Route", "Workers", "changes", "load",
    "located",
]  # fmt: skip


class Workers(Table):
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


class Batch(Table):
    """`[batch]`: a batch is flushed at whichever limit it meets first."""

    max_rows: int = Field(default=20_000, ge=1, le=1_000_000, description="Rows of a full batch.")
    max_bytes: int = Field(default=8_388_608, ge=1_024, le=1_073_741_824, description="Encoded bytes of a full batch.")
    linger_seconds: float = Field(
        default=3.0,
        ge=0.01,
        le=3600,
        description="A partly filled batch is flushed this long after its first record came.",
    )


#: For who has no home either; what cannot be written there is told, and is no failure.
HOMELESS_STATE_DIRECTORY = Path("/var/lib/kbatchd")


class Log(Table):
    """`[log]`: standard error, one line an event."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important level to log."
    )
    format: Literal["text", "json"] = Field(
        default="text", description='"text": a message and key=value pairs; "json": an object. One line an event.'
    )


def _state_directory() -> Path:
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]  # systemd joins several with colons
    if given:
        return Path(given)
    state_home = os.environ.get("XDG_STATE_HOME", "")
    try:
        return (Path(state_home) if state_home else Path.home() / ".local/state") / "kbatchd"
    except RuntimeError:  # no HOME, and no entry in /etc/passwd for who we are, as in some containers
        return HOMELESS_STATE_DIRECTORY


class Config(Table):
    """The whole file."""

    pipeline: KeptName = Field(
        default="kbatchd", description="The name all progress is kept under: one per file, for good."
    )
    startup_timeout_seconds: float = Field(
        default=60.0, ge=1, le=3600, description="How long the start-up checks wait for Kafka and PostgreSQL."
    )
    ledger_keep_days: int = Field(
        default=30,
        ge=0,
        le=36_500,
        description="Days that the ledger, kbatchd.batches, is kept; 0 = for ever.",
    )
    dead_letters_keep_days: int = Field(
        default=0, ge=0, le=36_500, description="Days that dead letters are kept; 0 = for ever."
    )
    state_directory: Beside = Field(
        default_factory=_state_directory,
        strict=False,
        description="What may be lost but is good to have: the tables' columns, for a start without PostgreSQL. "
        "Default: $STATE_DIRECTORY, as systemd sets it, else ~/.local/state/kbatchd; /var/lib/kbatchd without a home.",
    )
    kafka: Kafka = Field(description="Where the records come from.")
    postgres: Postgres = Field(description="Where the rows go.")
    workers: Workers = Field(default=Workers(), description="The processes that do the work.")
    batch: Batch = Field(default=Batch(), validate_default=True, description="When a batch is full.")
    gateway: Gateway | None = Field(default=None, description="HTTP requests into Kafka.")
    monitor: Monitor | None = Field(default=None, description="Metrics, health and the status page.")
    log: Log = Field(default=Log(), description="Standard error, one line an event.")
    route: tuple[Route, ...] = Field(
        strict=False, description="Required: at least one [[route]], one topic into one table each."
    )

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
            errors = [InitErrorDetails(type=fault(what), loc=where, input=None) for where, what in faults.items()]
            raise ValidationError.from_exception_data("batch", errors)
        return batch

    @field_validator("route")
    @classmethod
    def _route_is_not_empty(cls, routes: tuple[Route, ...]) -> tuple[Route, ...]:
        # Not min_length=1: pydantic counts valid routes only, and would call a faulty one missing too.
        if not routes:
            raise fault("is empty; allowed: at least one [[route]]")
        return routes


def load(path: Path) -> Config:
    """Read and check the file; raise ConfigError with one line for each fault in it."""
    text = read_text(path)
    data = parse(path, text)
    # A file without these tables should hear of the keys it must have, not of the tables.
    data = {"kafka": {}, "postgres": {}, **data}
    faults = _doubles(data.get("route"))
    try:
        config = Config.model_validate(data, context={"directory": path.parent})
    except ValidationError as error:
        faults = in_our_words(error, Config) | faults
    if faults:
        raise _located(path, text, faults)
    return config


class _KafkaAlone(Table):
    model_config = ConfigDict(extra="ignore")

    kafka: Kafka


def load_kafka(path: Path) -> Kafka:
    """Read `[kafka]` of a file that need have nothing else yet."""
    text = read_text(path)
    data = {"kafka": {}, **parse(path, text)}
    try:
        kafka = _KafkaAlone.model_validate(data, context={"directory": path.parent}).kafka
    except ValidationError as error:
        raise _located(path, text, in_our_words(error, _KafkaAlone)) from error
    return kafka if kafka.group_id else kafka.model_copy(update={"group_id": str(data.get("pipeline", "kbatchd"))})


def located(path: Path, faults: Mapping[Where, str]) -> ConfigError:
    """Make the error for faults that others found in a file which itself is sound: librdkafka, say."""
    return _located(path, read_text(path), faults)


def changes(former: BaseModel, now: BaseModel) -> list[str]:
    """Name the keys in which two files differ, not their values: some are secret."""
    changed: list[str] = []
    for key in type(now).model_fields:
        was, is_now = getattr(former, key), getattr(now, key)
        if was == is_now:
            continue
        if isinstance(was, BaseModel) and isinstance(is_now, BaseModel):
            # Equal in all its keys, a table differs in a secret that it has read.
            changed += [f"{key}.{inner}" for inner in changes(was, is_now) or ["secret"]]
        else:
            changed.append(key)
    return changed


def _located(path: Path, text: str, faults: Mapping[Where, str]) -> ConfigError:
    lines = key_lines(text)
    placed = sorted((find_line(lines, where), key_path(where), what) for where, what in faults.items())
    return ConfigError(*(f"{path}:{line}: {key}: {what}" for line, key, what in placed))


def _doubles(routes: object) -> Faults:
    """Find names used twice, in the raw tables: so that another fault in a route does not hide them."""
    faults: Faults = {}
    names: dict[str, int] = {}
    for index, route in enumerate(routes if isinstance(routes, list) else ()):
        if not isinstance(route, dict):
            continue
        name = route.get("name", route.get("topic"))
        first = names.setdefault(name, index) if isinstance(name, str) else index
        if first == index:
            continue
        if "name" in route:
            faults["route", index, "name"] = f'"{name}" is the name of route[{first}] too; allowed: a name of its own'
        else:
            faults["route", index, "topic"] = (
                f'"{name}" is the name of route[{first}] too; give this route a `name` of its own'
            )
    return faults
