"""The command line: what can be asked for, and what becomes of it.

Each command is a function in a module of kbatchd.commands, named here as `module:function` and imported only when it is
asked for: `--version` and `--help` answer at once. What is wrong is raised, and becomes one line for each fault here,
the only place that turns errors into exit codes.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from kbatchd import __version__, log
from kbatchd.errors import EX_IOERR, EX_OK, KbatchError
from kbatchd.manual import DESCRIPTION, MANUAL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _typeshed import SupportsWrite

#: What shells report for a process that Ctrl-C ended: 128 + SIGINT.
EX_INTERRUPTED = 130

#: What standard output on a full or broken disk says; of its other files a command tells itself.
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    _open_standard_files()
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # --help's text too: at Python's own end nobody could tell of it
    except BrokenPipeError:
        code = EX_OK  # the reader of our output has had enough (`| head`)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        log.complain([f"cannot write: {error.strerror}"])
        code = EX_IOERR
    # Python would complain again when it flushes at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _run(arguments: Sequence[str] | None) -> int:
    parsed = _parse(arguments)
    module, _, function = parsed.command.partition(":")
    try:
        command: Callable[[argparse.Namespace], int] = getattr(import_module(f"kbatchd.commands.{module}"), function)
        return command(parsed)
    except KbatchError as error:
        log.complain(str(error).splitlines())
        return error.exit_code
    except KeyboardInterrupt:
        return EX_INTERRUPTED


def _open_standard_files() -> None:
    """Give those of 0, 1 and 2 that are closed (`2>&-`) to /dev/null: the next file would get the number.

    And let what a locale's encoding does not have be escaped: a dead letter may hold any character.
    """
    for number, mode in enumerate("rww"):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, this one
            stream = os.fdopen(number, mode, closefd=False)
            setattr(sys, ("stdin", "stdout", "stderr")[number], stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; `produce` takes files behind its options too, which argparse alone does not."""
    parser = _parser()
    parsed, extra = parser.parse_known_args(arguments)
    unknown = [argument for argument in extra if argument.startswith("-") and argument != "-"]
    if unknown or (extra and "files" not in parsed):
        parsed.parser.error(f"unrecognized arguments: {' '.join(unknown or extra)}")
    if extra:
        parsed.files += extra
    return parsed


class _Parser(argparse.ArgumentParser):
    """A parser that lets `main` tell when its help or the version cannot be written: argparse itself keeps quiet."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file is sys.stdout:
            print(message, end="", file=file)
        else:
            super()._print_message(message, file)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        "kbatchd", description=DESCRIPTION, epilog=MANUAL, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"kbatchd {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration file (TOML)")
    parser.set_defaults(command="run:run", parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    check = _command(commands, "check", "check:run", "look at servers, tables, topics and real records; change nothing")
    check.add_argument("--json", action="store_true", help="a line of JSON for each finding")
    _command(commands, "check-config", "check_config:run", "check the file; connects to nothing")

    migrate = _command(commands, "migrate", "migrate:run", "make the schema kbatchd, or bring it up to date")
    migrate.add_argument("--print", action="store_true", help="show the SQL for a new database; needs no file")

    create_topic = _command(commands, "create-topic", "create_topic:run", "make the routes' topics")
    create_topic.add_argument("route", nargs="*", metavar="ROUTE", help="a route's name (all of them by default)")

    progress = commands.add_parser("progress", help="see and change where partitions stand")
    actions = progress.add_subparsers(title="actions", metavar="ACTION", required=True)
    _command(actions, "show", "progress:show", "print where each partition stands, and its lag when Kafka answers")
    change = _command(actions, "set", "progress:set_one", "move one partition, forward or back")
    change.add_argument("route", metavar="ROUTE", help="a route's name")
    change.add_argument("partition", metavar="PARTITION", type=_whole_number, help="a partition's number")
    change.add_argument("next_offset", metavar="OFFSET", type=_whole_number, help="the offset to read next")
    accept = _command(
        actions, "accept", "progress:accept", "let halted partitions go on, behind a gap or after the breaker"
    )
    accept.add_argument("route", metavar="ROUTE", help="a route's name")
    accept.add_argument("partition", nargs="*", metavar="PARTITION", type=_whole_number, help="all halted by default")
    text = "take over progress, dead letters, gaps and ledger of a route or a pipeline that has another name now"
    rename = _command(actions, "rename", "progress:rename", text)
    rename.add_argument("route", nargs="*", metavar="ROUTE", help="a route's name in the file; default: all of them")
    rename.add_argument("--from-pipeline", metavar="NAME", help="what the pipeline was called; default: the file's")
    rename.add_argument("--from-route", metavar="NAME", help="what the one route was called; default: as it is now")

    _add_route(commands)

    text = "show how the pipeline is doing, from PostgreSQL and Kafka; the daemon need not run"
    status = _command(commands, "status", "status:run", text)
    status.add_argument("--json", action="store_true", help="one line of JSON, for programs")
    status.add_argument("--exit-code", action="store_true", help="for probes: 1 unless every route is ok")
    status.add_argument("--watch", action="store_true", help="look again every two seconds, until Ctrl-C")

    _add_audit(commands)
    _add_produce(commands)
    _add_dead_letters(commands)

    infer = _command(commands, "infer", "infer:run", "print a table for the records of a topic, and its route")
    infer.add_argument("topic", metavar="TOPIC", help="a topic with records; no route is needed yet")
    infer.add_argument("--records", type=_count, default=1_000, metavar="N", help="to look at; default: %(default)s")
    infer.add_argument("--table", metavar="TABLE", help="the table's name, as SQL has it; default: public.TOPIC")
    infer.add_argument("--route", action="store_true", help="print the [[route]] for the file instead")

    demo = commands.add_parser("demo", help="show all of it, on a Kafka and a PostgreSQL of its own (extra `demo`)")
    demo.add_argument("--records", type=_count, default=300_000, metavar="N", help="default: %(default)s")
    demo.add_argument("--keep", action="store_true", help="stay up until Ctrl-C, to look around")
    demo.set_defaults(command="demo:run", parser=demo)
    return parser


def _add_route(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    route = commands.add_parser("route", help="let a route stand still on all hosts, and go on")
    actions = route.add_subparsers(title="actions", metavar="ACTION", required=True)
    pause = _command(actions, "pause", "route:pause", "read and write nothing for a route, on any host")
    resume = _command(actions, "resume", "route:resume", "let a paused route go on where it stands")
    for action in (pause, resume):
        action.add_argument("route", metavar="ROUTE", help="a route's name")


def _add_audit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "compare Kafka, progress, the ledger, dead letters, gaps and tables; the daemon may run"
    verify = _command(commands, "verify", "verify:run", text)
    verify.add_argument("route", nargs="*", metavar="ROUTE", help="a route's name (all of them by default)")
    since = "only what was written then or later: 2026-01-31T08:00:00Z"
    verify.add_argument("--since", metavar="TIME", type=_time, help=since)
    verify.add_argument("--json", action="store_true", help="one line of JSON, for programs")

    text = "read a range of offsets again, in place of the rows that it has; for append routes"
    again = _command(commands, "replay-range", "replay_range:run", text)
    again.add_argument("--route", metavar="ROUTE", required=True, help="a route's name")
    again.add_argument("--partition", metavar="N", type=_whole_number, required=True, help="a partition's number")
    again.add_argument("--from", metavar="A", type=_whole_number, required=True, dest="first", help="the first offset")
    end = "the offset behind the last one"
    again.add_argument("--to", metavar="B", type=_whole_number, required=True, dest="end", help=end)


def _add_produce(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "send the records of files to a route's topic, checked, each exactly once"
    produce = _command(commands, "produce", "produce:run", text)
    produce.add_argument("route", metavar="ROUTE", help="a route's name")
    files = "NDJSON, JSON arrays or CSV (with a header), plain, gzip or zstd; - is standard input"
    produce.add_argument("files", nargs="*", metavar="FILE", help=files)
    begin = produce.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="go on where a former run of the file ended")
    begin.add_argument("--restart", action="store_true", help="send a file again that was sent before, or in part")
    formats = "default: by the name, else by the first byte"
    produce.add_argument("--format", choices=("ndjson", "array", "csv"), help=formats)
    delimiter = 'between the fields of CSV: one character, or "tab"; default: a comma, in .tsv a tab'
    produce.add_argument("--delimiter", type=_delimiter, metavar="C", help=delimiter)
    produce.add_argument("--key-field", metavar="FIELD", help="the field that is the record's key; default: the file's")
    produce.add_argument("--failed", type=Path, metavar="FILE", help="where refused records go; default: FILE.failed")
    produce.add_argument("--rate", type=_rate, metavar="R", help="at most so many records a second")
    produce.add_argument("--generate", type=_whole_number, metavar="N", help="send N made-up records instead of files")
    produce.add_argument("--seed", type=_whole_number, default=0, metavar="S", help="of --generate; default: 0")


def _add_dead_letters(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    dead_letters = commands.add_parser("dead-letters", help="look at what was refused; try it again, or let it go")
    actions = dead_letters.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = _command(actions, "list", "dead_letters:list_letters", "print the letters, one a line")
    listing.add_argument("--ndjson", action="store_true", help="everything about each, as a line of JSON")
    show = _command(actions, "show", "dead_letters:show", "print letters whole, with key, headers and value")
    replay = _command(actions, "replay", "dead_letters:replay", "encode and insert letters again, each once")
    replay.add_argument("--value", metavar="FILE", help="for one letter: what to insert instead; - is standard input")
    replay.add_argument(
        "--overwrite", action="store_true", help="an upsert route's letters replace rows that are there"
    )
    discard = _command(actions, "discard", "dead_letters:discard", "settle letters without a row")
    discard.add_argument("--yes", action="store_true", help="do not ask")
    discard.add_argument("--delete", action="store_true", help="delete them instead of marking them")
    for action in (listing, show, replay, discard):
        action.add_argument("ids", nargs="*", type=_whole_number, metavar="ID", help="letters by their id")
        action.add_argument("--route", metavar="ROUTE", help="of this route")
        action.add_argument("--code", metavar="CODE", help="refused with this SQLSTATE or word")
        action.add_argument("--column", metavar="COLUMN", help="... because of this column")
        action.add_argument("--partition", metavar="N", type=_whole_number, help="of this partition")
        action.add_argument("--offsets", metavar="A-B", type=_offsets, help="of these offsets, or of one")
        action.add_argument("--since", metavar="TIME", type=_time, help="refused then or later: 2026-01-31T08:00:00Z")
        action.add_argument("--until", metavar="TIME", type=_time, help="refused before then")
    for action in (listing, show):
        action.add_argument("--all", action="store_true", help="replayed and discarded ones too")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: str,
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.epilog = _examples(parser.prog)
    # Suppressed, so that it does not undo a --config that stands before the command.
    parser.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="the configuration file")
    parser.set_defaults(command=command, parser=parser)
    return parser


def _examples(command: str) -> str:
    """Return the manual's examples of one command, for its own help."""
    found = re.findall(rf"^  {re.escape(command)} .*(?:\n {{50}}.*)*\n", MANUAL, re.MULTILINE)
    return "examples:\n" + "".join(found)


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _count(text: str) -> int:
    if (count := _whole_number(text)) == 0:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


def _offsets(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    lowest, highest = _whole_number(first), _whole_number(last or first)
    if highest < lowest:
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    return lowest, highest


def _time(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time with its offset, as 2026-01-31T08:00:00Z")
    return at


def _delimiter(text: str) -> str:
    character = {"tab": "\t", "\\t": "\t"}.get(text.lower(), text)
    if len(character) != 1 or character in '\r\n"':
        raise argparse.ArgumentTypeError(f"{text!r} is not one character, nor tab")
    return character


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of records a second")
    return rate
