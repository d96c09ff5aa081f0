"""Every error kbatchd raises on purpose, and the exit code each one means.

    KbatchError
    ├── ConfigError            78  the file, the tables or the topics are not as they must be
    ├── ServerUnavailable      69  Kafka or PostgreSQL cannot be reached in time
    ├── SourceError                a topic or partition is not there, or has no leader yet
    └── SinkError                  a flush did not commit
        ├── Fenced                 another session claimed the partitions
        ├── TableChanged           the columns are not those the encoder was built for
        ├── BreakerOpen            too many dead letters in a row
        ├── Unbalanced             PostgreSQL counts other than what was sent
        └── NotTheRecords          rows are refused for something that is no record's fault

Third-party exceptions become these in the one module that owns the library, always `raise ... from`.
"""

from __future__ import annotations

from collections.abc import Sequence

from kbatchd.model import Partition

#: Exit codes, from sysexits.h.
EX_OK = 0
#: Of `kbatchd verify` alone: a record is not where it should be, or is there twice.
EX_DIFFERENT = 3
EX_DATA = 65
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_IOERR = 74
EX_CONFIG = 78


class KbatchError(Exception):
    """The root of all errors kbatchd raises on purpose."""

    exit_code = EX_SOFTWARE


class ConfigError(KbatchError):
    """The configuration, or what it names, is wrong; trying again does not help.

    `faults` holds one line each: what is wrong, and what to do.
    """

    exit_code = EX_CONFIG

    def __init__(self, *faults: str) -> None:
        super().__init__(*faults)
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(self.faults)


class ServerUnavailable(KbatchError):
    """Kafka or PostgreSQL could not be reached within the time allowed."""

    exit_code = EX_UNAVAILABLE


class SourceError(KbatchError):
    """The brokers do not know a topic or a partition, or it has no leader yet."""


class SinkError(KbatchError):
    """A flush did not commit; nothing of it is in the table."""


class Fenced(SinkError):
    """Another session has claimed these partitions, or moved their progress."""

    def __init__(self, partitions: Sequence[Partition]) -> None:
        super().__init__(f"another session has claimed {', '.join(map(str, partitions))}")
        self.partitions = tuple(partitions)


class TableChanged(SinkError):
    """The table's columns differ from those the encoder was built for."""


class TopicRecreated(SinkError):
    """The topic was deleted and recreated: nobody knows which of the two a batch was read from."""

    def __init__(self, topic: str, topic_id: str) -> None:
        super().__init__(f"topic {topic} is another one now (id {topic_id}); what was read last is dropped")


class BreakerOpen(SinkError):
    """A route has had `max_dead_letters` dead letters in a row."""


class Unbalanced(SinkError):
    """The books of a transaction do not balance: something was lost or doubled on its way, and all of it is undone."""


class NotTheRecords(SinkError):
    """Rows are refused for something that no record is to blame for: the route waits until somebody sees to it."""
