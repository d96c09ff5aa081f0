"""`kbatchd check-config`: all faults of the file at once; connects to nothing, and never loads PostgreSQL's library."""

from __future__ import annotations

import argparse

from kbatchd.commands import load_config
from kbatchd.config import located
from kbatchd.errors import EX_OK
from kbatchd.topics import check_librdkafka


def run(arguments: argparse.Namespace) -> int:
    """Check the file."""
    config = load_config(arguments)
    faults = check_librdkafka(config.kafka.librdkafka)
    if faults:
        raise located(arguments.config, faults)
    print(f"{arguments.config}: no fault found")
    return EX_OK
