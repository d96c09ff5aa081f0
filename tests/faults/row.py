"""A row of the matrix: a fault, what is promised, and how a play with it is set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from tests.faults.play import Play
from tests.faults.stage import Stage
from tests.faults.traffic import Traffic


class Place(Enum):
    """What a fault touches: two of different places may come at the same time."""

    DAEMON = "daemon"
    POSTGRES = "PostgreSQL"
    KAFKA = "Kafka"
    WAY = "the way between"


@dataclass(frozen=True, slots=True)
class Row:
    """See the module; `act` lets the fault come and go, once."""

    fault: str
    promise: str
    act: Callable[[Play], None]
    times: int = 1
    #: Where it may come together with another one.
    pairs: Place | None = None
    #: How often it comes in `make test`.
    short: int = 0
    brokers: int = 1
    daemons: int = 1
    #: Of the file: its tables, and the keys of its route. Of the topic: what `Brokers.make_topic` takes.
    tables: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    keys: Mapping[str, object] = field(default_factory=dict)
    topic: Mapping[str, object] = field(default_factory=dict)
    traffic: type[Traffic] = Traffic
    #: Done to the stage before the daemon's role and the daemons are made.
    prepare: Callable[[Stage], None] = lambda _: None
