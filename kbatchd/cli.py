"""The command line: the daemon itself, and the operator's commands.

Each command is one function; it takes the parsed arguments, prints what it did and returns the exit code. What is wrong
is raised, and becomes one line for each fault in `main`, the only place that turns errors into exit codes. Modules that
load libraries are imported by the commands that need them: `--version` and `--help` answer at once, `check-config`
never loads PostgreSQL's library, and nothing but the operator's commands loads rich.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kbatchd import __version__, log
from kbatchd.errors import EX_OK, ConfigError, KbatchError
from kbatchd.systemd import stderr_is_journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kbatchd.config import Config, Route
    from kbatchd.model import Partition
    from kbatchd.progress import Owner, ProgressRow
    from kbatchd.stats import Slot

#: What shells report for a process that Ctrl-C ended: 128 + SIGINT.
EX_INTERRUPTED = 130

#: How long `progress show` waits for Kafka, which it can do without.
LAG_TIMEOUT_SECONDS = 5.0

_DESCRIPTION = """\
Moves records from Kafka into PostgreSQL tables in large batches, exactly once.
Without a command it runs as a daemon until SIGTERM or Ctrl-C.
"""

_MANUAL = """\
examples:
  kbatchd check-config --config kbatchd.toml        all faults of the file at once
  kbatchd migrate --config kbatchd.toml             make the schema kbatchd, or bring it up to date
  kbatchd migrate --print | less                    read the SQL first
  kbatchd create-topic --config kbatchd.toml        make the topics of all routes
  kbatchd --config kbatchd.toml                     run
  kbatchd progress show --config kbatchd.toml       where each partition stands
  kbatchd progress set --config kbatchd.toml requests 0 12000
                                                    read partition 0 of route requests again from offset 12000
  kbatchd progress accept --config kbatchd.toml requests
                                                    let the halted partitions of a route go on behind their gaps
  kbatchd demo                                      all of it, on a Kafka and a PostgreSQL of its own

environment:
  DATABASE_URL             the connection string, where postgres.dsn is not in the file
  CREDENTIALS_DIRECTORY    set by systemd: the file postgres_password in it holds the password

exit codes:
  0    done, or stopped as asked
  2    the command line is wrong
  69   Kafka or PostgreSQL cannot be reached; trying again later may help
  70   a fault within, or a flush that failed for good
  78   the file, the tables or the topics are not as they must be; trying again does not help
  130  interrupted with Ctrl-C
"""


class _Lag(NamedTuple):
    """What Kafka adds to a line of progress; None where it does not know."""

    end: int | None
    lag: int | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = parsed.command
    try:
        code = command(parsed)
        sys.stdout.flush()
    except KbatchError as error:
        _complain(str(error).splitlines())
        return error.exit_code
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough (`| head`). Python would complain again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EX_OK
    return code


def run(config: Config) -> int:
    """Run the daemon until it is told to stop; return its exit code."""
    from kbatchd.daemon.supervisor import Supervisor
    from kbatchd.preflight import run_preflight
    from kbatchd.worker import run_worker

    def check() -> int:
        log.setup(config.log.level, "check")
        return run_preflight(config)

    def work(index: int, slot: Slot) -> int:
        log.setup(config.log.level, f"worker {index}")
        return run_worker(config, index, slot)

    log.setup(config.log.level, "supervisor")
    return Supervisor(config.workers, check, work).run()


def _complain(lines: Iterable[str]) -> None:
    mark = "<3>" if stderr_is_journal() else ""
    for line in lines:
        print(f"{mark}kbatchd: {line}", file=sys.stderr)


def _daemon(arguments: argparse.Namespace) -> int:
    return run(_load(arguments))


def _check_config(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    from kbatchd.config import located
    from kbatchd.topics import check_librdkafka

    faults = check_librdkafka(config.kafka.librdkafka)
    if faults:
        raise located(arguments.config, faults)
    print(f"{arguments.config}: no fault found")
    return EX_OK


def _migrate(arguments: argparse.Namespace) -> int:
    from kbatchd import migrations
    from kbatchd.postgres import connect

    if arguments.print:
        print(migrations.script(), end="")
        return EX_OK
    with connect(_load(arguments).postgres, "kbatchd migrate") as connection:
        applied = migrations.migrate(connection)
    for name in applied:
        print(f"applied {name}")
    if not applied:
        print("the schema kbatchd is up to date")
    return EX_OK


def _create_topic(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    routes = [_route(config, name) for name in arguments.route] or config.route
    from kbatchd import topics

    admin = topics.make_admin(config.kafka)
    for topic, created in topics.create_topics(admin, routes, config.startup_timeout_seconds):
        print(f"{topic}: {'created' if created else 'exists already'}")
    return EX_OK


def _progress_show(arguments: argparse.Namespace) -> int:
    from kbatchd import progress
    from kbatchd.migrations import check_version
    from kbatchd.postgres import connect, explained

    config = _load(arguments)
    with connect(config.postgres, "kbatchd progress show") as connection, explained():
        check_version(connection)
        rows = progress.show(connection, config.pipeline)
    try:
        lags = _lags(config, rows)
    except KbatchError as error:
        _complain([f"the lag is not known: {error}"])
        lags = [_Lag(None, None)] * len(rows)
    _print_progress(rows, lags)
    return EX_OK


def _progress_set(arguments: argparse.Namespace) -> int:
    from kbatchd import progress
    from kbatchd.migrations import check_version
    from kbatchd.model import Partition
    from kbatchd.postgres import connect, explained

    config = _load(arguments)
    route = _route(config, arguments.route)
    partition = Partition(route.topic, arguments.partition)
    with connect(config.postgres, "kbatchd progress set") as connection, explained():
        check_version(connection)
        rows = [row for row in progress.show(connection, config.pipeline) if row.route == route.name]
        _chosen(route, rows, [partition.number])
        _refuse_outside(config, partition, arguments.next_offset)
        before = progress.set_progress(connection, _owner(config, route), partition, arguments.next_offset)
    print(f"{partition}: next_offset was {before}, is {arguments.next_offset}")
    return EX_OK


def _progress_accept(arguments: argparse.Namespace) -> int:
    from kbatchd import progress, topics
    from kbatchd.migrations import check_version
    from kbatchd.model import Partition
    from kbatchd.postgres import connect, explained
    from kbatchd.watch import judge

    config = _load(arguments)
    route = _route(config, arguments.route)
    admin = topics.make_admin(config.kafka)
    topic = topics.describe(admin, [route.topic], config.startup_timeout_seconds)[route.topic]
    if topic is None:
        raise ConfigError(f"route {route.name}: topic {route.topic} does not exist; `kbatchd create-topic` makes it")
    with connect(config.postgres, "kbatchd progress accept") as connection, explained():
        check_version(connection)
        rows = [row for row in progress.show(connection, config.pipeline) if row.route == route.name]
        for row in _chosen(route, rows, arguments.partition):
            partition = Partition(row.topic, row.partition)
            if row.partition >= topic.partitions:
                print(f"{partition}: the topic has only {topic.partitions} partitions now; nothing can be read of it")
                continue
            low, high = topics.watermarks(admin, [partition])[partition]
            gap = judge(partition, row.next_offset, row.topic_id, topic.topic_id, low, high)
            if gap is None:
                print(f"{partition}: there is nothing to accept")
            else:
                progress.accept(connection, _owner(config, route), gap, row.epoch)
                print(f"accepted {gap}")
    return EX_OK


def _demo(arguments: argparse.Namespace) -> int:
    from kbatchd.demo import run as run_demo

    return run_demo(records=arguments.records, keep=arguments.keep)


def _load(arguments: argparse.Namespace) -> Config:
    if arguments.config is None:
        arguments.parser.error("--config FILE is required")
    from kbatchd.config import load

    log.setup("error", "kbatchd")  # a command says itself what happened
    return load(arguments.config)


def _route(config: Config, name: str) -> Route:
    for route in config.route:
        if route.name == name:
            return route
    raise ConfigError(f"there is no route {name}; the file has {', '.join(route.name for route in config.route)}")


def _owner(config: Config, route: Route) -> Owner:
    from kbatchd.progress import Owner

    return Owner(config.pipeline, route.name, route.topic, route.table, "kbatchd progress")


def _chosen(route: Route, rows: Sequence[ProgressRow], numbers: Sequence[int]) -> list[ProgressRow]:
    unknown = set(numbers) - {row.partition for row in rows}
    if unknown or not rows:
        which = ", ".join(map(str, sorted(unknown))) or "any partition"
        raise ConfigError(f"route {route.name}: there is no progress of {which}; see `kbatchd progress show`")
    return [row for row in rows if not numbers or row.partition in numbers]


def _refuse_outside(config: Config, partition: Partition, next_offset: int) -> None:
    """Refuse an offset that is not in the topic: from there nothing could be read."""
    from kbatchd import topics

    low, high = topics.watermarks(topics.make_admin(config.kafka), [partition])[partition]
    if not low <= next_offset <= high:
        raise ConfigError(f"{partition}: offset {next_offset} is not in the topic, which has {low} to {high}")


def _lags(config: Config, rows: Sequence[ProgressRow]) -> list[_Lag]:
    """Ask Kafka for the ends of those partitions that are still the ones progress speaks of."""
    from kbatchd import topics
    from kbatchd.model import Partition

    admin = topics.make_admin(config.kafka)
    known = topics.describe(admin, {row.topic for row in rows}, LAG_TIMEOUT_SECONDS)
    same = [
        Partition(row.topic, row.partition)
        for row in rows
        if (topic := known[row.topic]) and topic.topic_id == row.topic_id and row.partition < topic.partitions
    ]
    ends = topics.list_offsets(admin, same, "latest", LAG_TIMEOUT_SECONDS)
    lags = []
    for row in rows:
        end = ends.get(Partition(row.topic, row.partition))
        lags.append(_Lag(end, None if end is None else end - row.next_offset))
    return lags


def _print_progress(rows: Sequence[ProgressRow], lags: Sequence[_Lag]) -> None:
    """Print a table for people; tab-separated lines, nothing cut, for programs."""
    names = ("route", "topic", "partition", "next_offset", "end", "lag", "epoch", "owner", "target", "updated_at")
    lines = [
        [
            "-" if value is None else str(value)
            for value in (
                row.route,
                row.topic,
                row.partition,
                row.next_offset,
                *lag,
                row.epoch,
                row.owner,
                row.target,
                row.updated_at.isoformat(timespec="seconds"),
            )
        ]
        for row, lag in zip(rows, lags, strict=True)
    ]
    if not sys.stdout.isatty():
        for line in (names, *lines):
            print("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in names:
        number = name in {"partition", "next_offset", "end", "lag", "epoch"}
        table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for line in lines:
        table.add_row(*line)
    Console(markup=False, highlight=False).print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "kbatchd", description=_DESCRIPTION, epilog=_MANUAL, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"kbatchd {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration file (TOML)")
    parser.set_defaults(command=_daemon, parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    _command(commands, "check-config", _check_config, "check the file; connects to nothing")

    migrate = _command(commands, "migrate", _migrate, "make the schema kbatchd, or bring it up to date")
    migrate.add_argument("--print", action="store_true", help="show the SQL for a new database; needs no file")

    create_topic = _command(commands, "create-topic", _create_topic, "make the routes' topics")
    create_topic.add_argument("route", nargs="*", metavar="ROUTE", help="a route's name (all of them by default)")

    progress = commands.add_parser("progress", help="see and change where partitions stand")
    actions = progress.add_subparsers(title="actions", metavar="ACTION", required=True)
    _command(actions, "show", _progress_show, "print where each partition stands, and its lag when Kafka answers")
    change = _command(actions, "set", _progress_set, "move one partition, forward or back")
    change.add_argument("route", metavar="ROUTE", help="a route's name")
    change.add_argument("partition", metavar="PARTITION", type=_whole_number, help="a partition's number")
    change.add_argument("next_offset", metavar="OFFSET", type=_whole_number, help="the offset to read next")
    accept = _command(actions, "accept", _progress_accept, "accept a gap or a re-created topic, and go on behind it")
    accept.add_argument("route", metavar="ROUTE", help="a route's name")
    accept.add_argument("partition", nargs="*", metavar="PARTITION", type=_whole_number, help="all halted by default")

    demo = commands.add_parser("demo", help="show all of it, on a Kafka and a PostgreSQL of its own (extra `demo`)")
    demo.add_argument("--records", type=_whole_number, default=300_000, metavar="N", help="default: %(default)s")
    demo.add_argument("--keep", action="store_true", help="stay up until Ctrl-C, to look around")
    demo.set_defaults(command=_demo, parser=demo)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    # Suppressed, so that it does not undo a --config that stands before the command.
    parser.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="the configuration file")
    parser.set_defaults(command=command, parser=parser)
    return parser


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)
