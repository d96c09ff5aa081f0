"""`kbatchd dead-letters list|show|replay|discard`: what was refused, looked at, tried again, or let go."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson

from kbatchd import log
from kbatchd.commands import load_config, print_table
from kbatchd.config import Config
from kbatchd.errors import EX_CONFIG, EX_DATA, EX_OK, ConfigError
from kbatchd.letters import store
from kbatchd.letters.replay import Replay
from kbatchd.letters.store import Choice, Letter
from kbatchd.model import Refusal
from kbatchd.postgres.connection import Connection, connect, explained
from kbatchd.printable import printable, printable_json, printable_value
from kbatchd.schema.migrations import check_version

#: A table for people is read as a whole; NDJSON may be of any length.
MAX_LISTED = 1_000

_COLUMNS = ("id", "route", "partition", "offset", "refused_at", "state", "code", "column", "message")
_NUMBERS = frozenset({"id", "partition", "offset"})
#: What is left out where the terminal is too narrow for all, the first first; `show` has it.
_SPARE = ("refused_at", "offset", "partition", "state")


def list_letters(arguments: argparse.Namespace) -> int:
    """Print a line a letter: for people, or NDJSON with all of it."""
    config = load_config(arguments)
    with connect(config.postgres, "kbatchd dead-letters list") as connection, explained():
        check_version(connection)
        choice = _choice(arguments, whole=arguments.all)
        _, code = _find(connection, config, choice)
        chosen = _chosen(connection, config, choice)
        if arguments.ndjson:
            for letter in chosen:
                line = orjson.dumps(letter.as_json()).decode()
                sys.stdout.buffer.write(f"{printable_json(line)}\n".encode())
            return code
        lines = [_line(letter) for letter, _ in zip(chosen, range(MAX_LISTED), strict=False)]
        more = next(chosen, None) is not None
    print_table(_COLUMNS, lines, _NUMBERS, _SPARE)
    if more:
        log.complain([f"these are the first {MAX_LISTED}; --route, --code and others choose, --ndjson prints all"])
    return code


def show(arguments: argparse.Namespace) -> int:
    """Print letters whole."""
    config = load_config(arguments)
    with connect(config.postgres, "kbatchd dead-letters show") as connection, explained():
        check_version(connection)
        choice = _choice(arguments, whole=arguments.all or bool(arguments.ids))
        _, code = _find(connection, config, choice)
        for number, letter in enumerate(_chosen(connection, config, choice)):
            print("\n" * bool(number) + "\n".join(_whole(letter)))
    return code


def replay(arguments: argparse.Namespace) -> int:
    """Encode and insert letters again, and mark them in the same transaction."""
    config = load_config(arguments)
    corrected = None if arguments.value is None else _read(arguments.value)
    choice = _choice(arguments)
    with connect(config.postgres, "kbatchd dead-letters replay") as connection, explained():
        check_version(connection)
        found, code = _find(connection, config, choice)
        if corrected is not None and (len(found) != 1 or len(choice.ids or ()) != 1):
            raise ConfigError(
                f"--value is for one open letter, named by its id: {len(choice.ids or ())} are named, and of the open "
                f"ones {len(found)} are chosen"
            )
        tally = _Tally()
        for route in store.routes(connection, config.pipeline, choice):
            chosen = replace(choice, route=route)
            way = _make_replay(connection, config, route, chosen, overwrite=arguments.overwrite)
            backwards = way is not None and way.newest_first
            for page in store.read(connection, config.pipeline, chosen, newest_first=backwards):
                tally.replay(route, way, page, corrected)
    return tally.report() or code


def discard(arguments: argparse.Namespace) -> int:
    """Mark letters as discarded, or delete them."""
    config = load_config(arguments)
    choice = _choice(arguments)
    with connect(config.postgres, "kbatchd dead-letters discard") as connection, explained():
        check_version(connection)
        # By their ids: those that come while somebody ponders are not meant.
        found, code = _find(connection, config, choice)
        choice = replace(choice, ids=tuple(found))
        what = "delete" if arguments.delete else "discard"
        if choice.ids and not arguments.yes and not _agrees(arguments, f"{what} {_letters(len(choice.ids))}?"):
            print("nothing was changed")
            return code
        done = store.discard(connection, config.pipeline, choice, delete=arguments.delete)
    print(f"{_letters(done)} {what}{'d' if arguments.delete else 'ed'}")
    return code


class _Tally:
    """What became of the letters of each route."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._examples: dict[str, Refusal] = {}

    def replay(self, route: str, way: Replay | None, page: list[Letter], corrected: bytes | None) -> None:
        """Replay letters of one route; without a way to do that they stay as they are."""
        counts = self._counts.setdefault(route, [0, 0])
        if way is None:
            counts[1] += len(page)
            return
        outcome = way.run(page, corrected)
        counts[0] += outcome.rows
        counts[1] += outcome.dead_letters
        if outcome.reason is not None:
            self._examples.setdefault(route, outcome.reason)

    def report(self) -> int:
        """Print it; return the exit code."""
        if not self._counts:
            print("no open dead letter is chosen")
        for name, (replayed, kept) in self._counts.items():
            example = f"; for example {printable(str(self._examples[name]))}" if name in self._examples else ""
            print(f"route {name}: {_letters(replayed)} replayed" + (f", {kept} not{example}" if kept else ""))
        return EX_DATA if any(kept for _, kept in self._counts.values()) else EX_OK


def _make_replay(
    connection: Connection, config: Config, name: str, choice: Choice, *, overwrite: bool
) -> Replay | None:
    route = next((route for route in config.route if route.name == name), None)
    if route is None:
        log.complain([f"route {name}: is not in the file, so its letters cannot be replayed"])
        return None
    try:
        return Replay(connection, config, route, choice, overwrite=overwrite)
    except ConfigError as error:
        log.complain([f"route {name}: {fault}" for fault in error.faults])
        return None


def _choice(arguments: argparse.Namespace, *, whole: bool = False) -> Choice:
    first, last = arguments.offsets or (None, None)
    return Choice(
        ids=tuple(dict.fromkeys(arguments.ids)) or None,
        route=arguments.route,
        code=arguments.code,
        column=arguments.column,
        partition=arguments.partition,
        first_offset=first,
        last_offset=last,
        since=arguments.since,
        until=arguments.until,
        state=None if whole else "open",
    )


def _chosen(connection: Connection, config: Config, choice: Choice) -> Iterator[Letter]:
    for page in store.read(connection, config.pipeline, choice):
        yield from page


def _find(connection: Connection, config: Config, choice: Choice) -> tuple[list[int], int]:
    """Return the ids of the chosen and the exit code: an id that is not among them is a slip, and must not pass."""
    found = store.known(connection, config.pipeline, choice)
    missing = set(choice.ids or ()).difference(found)
    if missing:
        kind = "open " if choice.state else ""
        log.complain([f"there is no {kind}dead letter {', '.join(map(str, sorted(missing)))} among those chosen"])
    return found, EX_CONFIG if missing else EX_OK


def _read(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from error


def _agrees(arguments: argparse.Namespace, question: str) -> bool:
    if not sys.stdin.isatty():
        arguments.parser.error("nobody is there to be asked: say --yes")
    return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}


def _letters(count: int) -> str:
    return f"{count} dead letter" if count == 1 else f"{count:,} dead letters"


def _line(letter: Letter) -> list[str]:
    values = (getattr(letter, name) for name in _COLUMNS)
    return [_cell(value) for value in values]


def _cell(value: object) -> str:
    """Show a value in one line; a message may have any text of a record in it."""
    if value is None:
        return "-"
    text = value.isoformat(timespec="seconds") if hasattr(value, "isoformat") else str(value)
    return printable(text)


#: What is shown last, and over as many lines as its JSON has.
_VALUES = ("value", "value_base64", "corrected", "corrected_base64")


def _whole(letter: Letter) -> Iterator[str]:
    fields = letter.as_json()
    for name, value in fields.items():
        if name not in {"headers", *_VALUES}:
            yield f"{name + ':':<13} {_cell(value)}"
    for header in letter.headers or ():
        yield f"{'header:':<13} {_cell(header[0])} = {_cell(header[1])} (base64)"
    if letter.value is None:
        yield f"{'value:':<13} none (a tombstone)"
    for name in _VALUES:
        if fields.get(name) is not None:
            yield f"{name + ':':<13} {printable_value(str(fields[name]))}"
