"""What all inputs of one run share: the options, the route, the failed file, how a file is split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from kbatchd.door.feeding import Feeding
from kbatchd.encode.mapping import resolve_feeds
from kbatchd.errors import ConfigError
from kbatchd.files.csv import CsvReader
from kbatchd.files.files import is_array, read_array, read_lines
from kbatchd.produce.bar import Bar
from kbatchd.produce.checks import Checker
from kbatchd.produce.delivery import Patience
from kbatchd.produce.failures import SUFFIX, FailedFile
from kbatchd.produce.heads import foreign
from kbatchd.produce.pace import Pace

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from kbatchd.config import Config, Route
    from kbatchd.files.files import Cursor, Piece
    from kbatchd.postgres.table import Column

Format = Literal["ndjson", "array", "csv"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says."""

    files: Sequence[str] = ()
    generate: int | None = None
    seed: int = 0
    rate: float | None = None
    key_field: str | None = None
    failed: Path | None = None
    format: Format | None = None
    delimiter: str | None = None
    resume: bool = False
    restart: bool = False


class Context:
    """One run of the command."""

    def __init__(
        self,
        config: Config,
        route: Route,
        options: Options,
        columns: Sequence[Column],
        stop: threading.Event,
        tell: Callable[[str], None],
    ) -> None:
        self.config, self.route, self.options = config, route, options
        self.stop, self.tell = stop, tell
        self.bar = Bar()
        self.patience = Patience(config.startup_timeout_seconds, stop, self.bar.say)
        self.pace = Pace(options.rate, stop)
        self.feeds = resolve_feeds(columns, route)
        self._key_field = options.key_field or route.key_field
        self._max_bytes = config.kafka.max_record_bytes
        self.feeding = Feeding(self.feeds, route, self._key_field)
        self.checker = Checker(columns, route, self.feeding, self._key_field, self._max_bytes)
        #: Records that were not sent.
        self.failed = 0
        self._failed_file: FailedFile | None = None

    def splitter(self, name: str, head: bytes) -> Splitter:
        """Choose how an input is split, by its name, else by its first bytes."""
        kind = self.options.format or _format_of(name, head)
        if (what := foreign(head, kind, is_json=kind != "csv" and self.route.format == "json")) is not None:
            raise ConfigError(f"{name}: {what}")
        if self.options.delimiter is not None and kind != "csv":
            raise ConfigError(f"{name}: --delimiter is for CSV, and this is {kind}; --format csv says otherwise")
        csv = None
        if kind == "csv":
            csv = CsvReader(self.feeds, self._key_field, self._max_bytes, name, self._delimiter(name), self.feeding)
        return Splitter(kind, csv, name, self.pace.piece_records)

    def _delimiter(self, name: str) -> str:
        return self.options.delimiter or ("\t" if _suffix(name) == ".tsv" else ",")

    def failed_file(self, path: Path | None) -> FailedFile:
        """Return where an input's failures go: the file that was named, or one beside the input."""
        chosen = self.options.failed
        if chosen is None:
            chosen = Path(f"{self.route.name.replace('/', '_') if path is None else path}{SUFFIX}")
        if self._failed_file is None or self._failed_file.path != chosen:
            self.close()
            self._failed_file = FailedFile(chosen, append=self.options.resume, replace=self.options.restart)
        return self._failed_file

    def close(self) -> None:
        """Close the failed file."""
        if self._failed_file is not None:
            self._failed_file.close()
            self._failed_file = None


class Splitter(NamedTuple):
    """How an input becomes pieces."""

    format: Format
    csv: CsvReader | None
    name: str
    piece_records: int

    def pieces(self, chunks: Iterator[bytes], cursor: Cursor) -> Iterator[Piece]:
        """Split what comes behind the cursor."""
        if self.csv is not None:
            return self.csv.read(chunks, cursor, self.piece_records)
        read = read_array if self.format == "array" else read_lines
        return read(chunks, cursor, self.piece_records, self.name)


def _suffix(name: str) -> str:
    suffixes = [suffix for suffix in map(str.lower, Path(name).suffixes) if suffix not in {".gz", ".zst"}]
    return suffixes[-1] if suffixes else ""


def _format_of(name: str, head: bytes) -> Format:
    suffix = _suffix(name)
    if suffix in {".csv", ".tsv"}:
        return "csv"
    return "array" if suffix not in {".ndjson", ".jsonl"} and is_array(head) else "ndjson"
