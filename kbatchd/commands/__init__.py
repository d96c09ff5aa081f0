"""The operator's commands, a module each, in the main thread of the command line's own process.

A command takes the parsed arguments, prints what it did and returns the exit code; what is wrong it raises. The command
line imports only the module of the command it runs, so these may load what they need.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from kbatchd import log
from kbatchd.config import Config, Route, load
from kbatchd.errors import ConfigError


def load_config(arguments: argparse.Namespace) -> Config:
    """Read the file that --config names; end the command with its usage where it names none."""
    if arguments.config is None:
        arguments.parser.error("--config FILE is required")
    log.setup("error", "kbatchd")  # a command says itself what happened
    return load(arguments.config)


def missing_extras(config: Config) -> list[str]:
    """Name the tables of the file whose libraries are not installed, each with the remedy."""
    faults = []
    for extra in ("gateway", "monitor"):
        if getattr(config, extra) is not None:
            try:
                import_module(f"kbatchd.{extra}.server")
            except ModuleNotFoundError as error:
                remedy = f"install it with: pip install 'kbatchd[{extra}]'"
                faults.append(f"{extra}: needs the package {error.name}; {remedy}")
    return faults


def route_named(config: Config, name: str) -> Route:
    """Return one of the file's routes."""
    for route in config.route:
        if route.name == name:
            return route
    raise ConfigError(f"there is no route {name}; the file has {', '.join(route.name for route in config.route)}")


def print_table(names: Sequence[str], lines: Sequence[Sequence[str]], numbers: frozenset[str] = frozenset()) -> None:
    """Print a table for people, the columns `numbers` to the right; tab-separated lines, nothing cut, for programs."""
    if not sys.stdout.isatty():
        for line in (names, *lines):
            print("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in names:
        number = name in numbers
        table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for line in lines:
        table.add_row(*line)
    Console(markup=False, highlight=False).print(table)
