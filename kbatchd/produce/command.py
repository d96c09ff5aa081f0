"""One run of `kbatchd produce`: its inputs one after the other.

Each file is a run of its own: read piece by piece, checked with the encoder the worker will use, sent in transactions
that carry the file's bookmark. What is refused goes into the failed file. Standard input, pipes and generated records
cannot be read again: they are sent plainly.

One process, one thread; the command line calls `run`. SIGINT and SIGTERM only set an event: the transaction that is
open is finished, and what was acknowledged is told.
"""

from __future__ import annotations

import gc
import signal
import threading
from contextlib import closing, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from kbatchd.door import tables
from kbatchd.errors import EX_DATA, EX_OK, ConfigError
from kbatchd.files.files import Cursor, Piece
from kbatchd.files.streams import Input, Stopped
from kbatchd.kafka import topics
from kbatchd.produce.context import Context
from kbatchd.produce.file_run import FileRun
from kbatchd.produce.heads import read_head
from kbatchd.produce.plain_producer import PlainProducer
from kbatchd.produce.transfer import Transfer, at_beginning
from kbatchd.shapes import samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kbatchd.config import Config, Route
    from kbatchd.produce.context import Options
    from kbatchd.shapes.samples import Label

STANDARD_INPUT: Final = "-"


def run(config: Config, route: Route, options: Options, tell: Callable[[str], None]) -> int:
    """Send everything; return the exit code. `tell` gets the lines that say what was acknowledged."""
    faults = [f"{name}: is not there" for name in options.files if name != STANDARD_INPUT and not Path(name).exists()]
    if faults:
        raise ConfigError(*faults)
    with _signals() as stop, _no_garbage_collection():
        columns = tables.load(config, [route])[route.name]
        _check_topic(config, route)
        with closing(Context(config, route, options, columns, stop, tell)) as context:
            try:
                if options.generate is not None:
                    _generate(context, options.generate)
                for name in options.files:
                    _send(context, None if name == STANDARD_INPUT else Path(name))
            except Stopped as stopped:
                raise KeyboardInterrupt from stopped
            return EX_DATA if context.failed else EX_OK


def _check_topic(config: Config, route: Route) -> None:
    admin = topics.make_admin(config.kafka)
    if topics.describe(admin, [route.topic], config.startup_timeout_seconds)[route.topic] is None:
        raise ConfigError(f"route {route.name}: topic {route.topic} does not exist; `kbatchd create-topic` makes it")


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event; the next one ends the process at once."""
    stop = threading.Event()

    def ask(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Switch the collector off: no record makes a cycle, and with it orjson.loads takes three times as long."""
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _generate(context: Context, count: int) -> None:
    """Send made-up records."""
    route, seed = context.route, context.options.seed
    _check_that_they_fit(context)
    made = samples.values(context.feeds, route, count, seed)
    lists = iter(lambda: list(islice(made, context.pace.piece_records)), [])
    pieces = (Piece(some, range(1, len(some) + 1), b"") for some in lists)
    _send_plainly(context, pieces, "generated records", None, samples.labels(context.feeds, seed))


def _check_that_they_fit(context: Context) -> None:
    """Say at once where no made-up record would be a row: the mapping or a type wants what nobody makes up here."""
    route = context.route
    faults = [
        f"column {feed.column.name} is of type {feed.column.type}, and --generate knows no values of it"
        for feed in context.feeds
        if feed.source in samples.MADE_UP and not samples.knows(feed.column)
        if feed.column.not_null or route.format == "raw"
    ]
    if not faults and route.format == "json":
        record = orjson.dumps(samples.example(context.feeds, route))
        refusals = [failure.refusal for failure in context.checker.check(Piece([record], [1], b""), 0).failures]
        faults = [f"its mapping asks for more than --generate can make up: {refusal}" for refusal in refusals]
    if faults:
        raise ConfigError(*(f"route {route.name}: {fault}" for fault in faults))


def _send(context: Context, path: Path | None) -> None:
    """Send one input."""
    with closing(Input(path, context.stop)) as source:
        if path is not None and source.is_file:
            FileRun(context, source, path).send()
            return
        if context.options.resume or context.options.restart:
            raise ConfigError(f"{source.name}: is not a file, and cannot be read again: no --resume, no --restart")
        chunks = source.chunks()
        head = read_head(chunks)
        pieces = context.splitter(source.name, head).pieces(chain([head], chunks), Cursor())
        _send_plainly(context, pieces, source.name, source)


def _send_plainly(
    context: Context, pieces: Iterator[Piece], name: str, source: Input | None, labels: Iterator[Label] | None = None
) -> None:
    config = context.config
    failed_file = context.failed_file(None)
    producer = PlainProducer(
        config.kafka, context.route.topic, config.startup_timeout_seconds, context.patience, labels
    )
    with closing(Transfer(context, source, producer, failed_file, name, at_beginning(pieces, name))) as transfer:
        transfer.send()
