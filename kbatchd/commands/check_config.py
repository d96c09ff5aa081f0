"""`kbatchd check-config`: all faults of the file at once, and the libraries that it asks for; connects to nothing."""

from __future__ import annotations

import argparse

from kbatchd.commands import load_config, missing_extras
from kbatchd.config import located
from kbatchd.errors import EX_OK, ConfigError
from kbatchd.topics import check_librdkafka


def run(arguments: argparse.Namespace) -> int:
    """Check the file."""
    config = load_config(arguments)
    librdkafka = located(arguments.config, check_librdkafka(config.kafka.librdkafka))
    if faults := [*librdkafka.faults, *map(": ".join, missing_extras(config))]:
        raise ConfigError(*faults)
    print(f"{arguments.config}: no fault found")
    return EX_OK
