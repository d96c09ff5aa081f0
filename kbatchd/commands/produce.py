"""`kbatchd produce`: what the arguments say, for kbatchd.produce.command, which does it."""

from __future__ import annotations

import argparse

from kbatchd.commands import load_config, route_named
from kbatchd.printable import printable
from kbatchd.produce import command
from kbatchd.produce.context import Options


def run(arguments: argparse.Namespace) -> int:
    """Send files, standard input or made-up records to a route's topic."""
    chosen = arguments.generate is not None
    if chosen == bool(arguments.files):
        arguments.parser.error("name files, - for standard input, or --generate N: one of them")
    if chosen and (arguments.resume or arguments.restart):
        arguments.parser.error("--generate starts over each time: no --resume, no --restart")
    config = load_config(arguments)
    route = route_named(config, arguments.route)
    names = ("files", "generate", "seed", "rate", "key_field", "failed", "format", "delimiter", "resume", "restart")
    options = Options(**{name: getattr(arguments, name) for name in names})
    return command.run(config, route, options, lambda line: print(printable(line), flush=True))
