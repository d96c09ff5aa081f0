"""`kbatchd check`: everything that can be found wrong, with its remedy, in one table."""

from __future__ import annotations

import argparse
import sys

import orjson

from kbatchd import log
from kbatchd.check.checkup import Checkup
from kbatchd.check.findings import Finding, Level, fault
from kbatchd.commands import missing_extras, print_table
from kbatchd.config import load
from kbatchd.errors import EX_CONFIG, EX_OK, ConfigError
from kbatchd.printable import printable


def run(arguments: argparse.Namespace) -> int:
    """Look at everything; print what was found."""
    if arguments.config is None:
        arguments.parser.error("--config FILE is required")
    log.setup("error", "kbatchd")
    try:
        config = load(arguments.config)
    except ConfigError as error:
        found = [fault("file", text) for text in error.faults]
    else:
        missing = [fault(table, text) for table, text in missing_extras(config)]
        found = list(dict.fromkeys([*missing, *Checkup(config).run()]))
    if arguments.json:
        for finding in found:
            sys.stdout.buffer.write(orjson.dumps(finding._asdict(), option=orjson.OPT_APPEND_NEWLINE))
    elif found:
        print_table(Finding._fields, [[printable(text) for text in finding] for finding in found])
    else:
        print(f"{arguments.config}: no fault found")
    return EX_CONFIG if any(finding.level is Level.FAULT for finding in found) else EX_OK
