"""The operator's commands, a module each, in the main thread of the command line's own process.

A command takes the parsed arguments, prints what it did and returns the exit code; what is wrong it raises. The command
line imports only the module of the command it runs, so these may load what they need.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from kbatchd import log
from kbatchd.config import Config, Route, load
from kbatchd.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table


def load_config(arguments: argparse.Namespace) -> Config:
    """Read the file that --config names; end the command with its usage where it names none."""
    if arguments.config is None:
        arguments.parser.error("--config FILE is required")
    log.setup("error", "kbatchd")  # a command says itself what happened
    return load(arguments.config)


def missing_extras(config: Config) -> list[tuple[str, str]]:
    """Name the tables of the file whose libraries are not installed, each with what it needs and the remedy."""
    missing = []
    for extra in ("gateway", "monitor"):
        if getattr(config, extra) is not None:
            try:
                import_module(f"kbatchd.{extra}.server")
            except ModuleNotFoundError as error:
                remedy = f"install it with: pip install 'kbatchd[{extra}]'"
                missing.append((extra, f"needs the package {error.name}; {remedy}"))
    return missing


def route_named(config: Config, name: str) -> Route:
    """Return one of the file's routes."""
    for route in config.route:
        if route.name == name:
            return route
    raise ConfigError(f"there is no route {name}; the file has {', '.join(route.name for route in config.route)}")


def print_as_utf8() -> None:
    """Let what is printed be UTF-8, whatever the locale is: as files of ours and psql read it, if it is for them."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")


def print_table(
    names: Sequence[str],
    lines: Sequence[Sequence[str]],
    numbers: frozenset[str] = frozenset(),
    spare: Sequence[str] = (),
) -> None:
    """Print a table for people, the columns `numbers` to the right; tab-separated lines, nothing cut, for programs.

    On a terminal too narrow for whole words, columns in `spare` are left out, one after the other.
    """
    if not sys.stdout.isatty():
        for line in (names, *lines):
            print("\t".join(line))
        return
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    boundless = console.options.update(width=1_000_000)
    for count in range(len(spare) + 1):
        columns = [column for column in zip(names, *lines, strict=True) if column[0] not in spare[:count]]
        table = _table(columns, numbers, whole_words=True)
        if console.measure(table, options=boundless).minimum <= console.width:
            break
    else:
        table = _table(columns, numbers, whole_words=False)
    console.print(table)


def _table(columns: Sequence[Sequence[str]], numbers: frozenset[str], *, whole_words: bool) -> Table:
    """Make a table of columns, each with its name first; what has no blanks is in one line, where that is possible."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, *cells in columns:
        number = name in numbers
        one_line = number or (whole_words and not any(" " in cell for cell in cells))
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(re.sub("[ _]", "\n", name), justify=justify, no_wrap=one_line, overflow="fold")
    for row in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*row)
    return table
