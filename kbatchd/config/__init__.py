"""The configuration file, its faults and its secrets.

This is the package's door: others import what they need from here. Loaded in the command's main thread, before anything
is forked; a reload loads it in a process of its own. Each part of the daemon receives its own section.
"""

from kbatchd.config.faults import Where
from kbatchd.config.file import (
    HOMELESS_STATE_DIRECTORY,
    Batch,
    Config,
    Log,
    Workers,
    changes,
    load,
    load_kafka,
    located,
)
from kbatchd.config.gateway import Gateway
from kbatchd.config.kafka import Kafka, record_too_large
from kbatchd.config.mapping import TEXT_SOURCES, FieldPath, RouteMapping, literal
from kbatchd.config.monitor import Monitor
from kbatchd.config.postgres import Postgres
from kbatchd.config.route import Route
from kbatchd.config.table import host_and_port

__all__ = [
    "HOMELESS_STATE_DIRECTORY",
    "TEXT_SOURCES",
    "Batch",
    "Config",
    "FieldPath",
    "Gateway",
    "Kafka",
    "Log",
    "Monitor",
    "Postgres",
    "Route",
    "RouteMapping",
    "Where",
    "Workers",
    "changes",
    "host_and_port",
    "literal",
    "load",
    "load_kafka",
    "located",
    "record_too_large",
]
