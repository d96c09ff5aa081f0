"""`kbatchd produce` as a process of its own, its files, and what came of them in the topic."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import orjson
import psycopg
import pytest
import zstandard
from confluent_kafka import Consumer, KafkaException, TopicPartition

from tests.fix_daemon import toml, wait_until
from tests.fix_load import read_topic

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping
    from pathlib import Path

    from confluent_kafka import Message

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_kafka import MakeTopic

TABLE = "CREATE TABLE public.sent (id bigint NOT NULL, name text NOT NULL, note text, data jsonb)"

RUN_SECONDS = 120.0

COUNT = 30_000
#: For runs that something must happen to under way.
SLOW = "2000"
#: Records that fail are as much to be accounted for as the others.
BAD = range(499, COUNT, 500)
GOOD = sorted(set(range(COUNT)) - set(BAD))

#: Longer than the broker lets a transaction be open, and than it takes to notice.
FROZEN_SECONDS = 22.0


def record(number: int, *, sound: bool = True) -> bytes:
    value = b"%d" % number if sound else b'"x%d"' % number
    return b'{"id":%b,"name":"n%d","note":null,"data":{"a":[%d]}}' % (value, number, number)


def csv_row(number: int, *, sound: bool = True) -> bytes:
    """The record in CSV, every third with a line break in it."""
    mark = b"" if sound else b"x"
    return b'%b%d,n%d,,"{""a"":%b[%d]}"' % (mark, number, number, b"\n" if number % 3 == 0 else b" ", number)


def written(suffix: str, numbers: Iterable[int], bad: Container[int] = ()) -> bytes:
    """Write a file of records, in the way that goes with the end of its name; those in `bad` will fail."""
    if suffix.startswith(".csv"):
        rows = [csv_row(number, sound=number not in bad) for number in numbers]
        text = b"".join(row + b"\n" for row in (b"id,name,note,data", *rows))
    else:
        values = [record(number, sound=number not in bad) for number in numbers]
        text = b"[%b]" % b",\n".join(values) if suffix == ".json" else b"".join(value + b"\n" for value in values)
    if suffix.endswith(".gz"):
        return gzip.compress(text)
    return zstandard.ZstdCompressor().compress(text) if suffix.endswith(".zst") else text


@dataclass(frozen=True)
class Outcome:
    """What a run has said."""

    code: int
    out: list[str]
    err: list[str]


@dataclass
class Producing:
    """A topic, its table, a configuration file, and the command."""

    directory: Path
    bootstrap_servers: str
    topic: str
    dsn: str
    startup_timeout_seconds: float = 60.0
    keys: Mapping[str, object] = field(default_factory=dict)
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def config(self) -> Path:
        path = self.directory / "kbatchd.toml"
        keys = "".join(f"{name} = {toml(value)}\n" for name, value in self.keys.items())
        path.write_text(
            f"startup_timeout_seconds = {self.startup_timeout_seconds}\n"
            f'state_directory = "{self.directory / "state"}"\n'
            f'[kafka]\nbootstrap_servers = "{self.bootstrap_servers}"\n'
            f'[postgres]\ndsn = "{self.dsn}"\n'
            f'[[route]]\nname = "r"\ntopic = "{self.topic}"\ntable = "public.sent"\n{keys}',
            encoding="utf-8",
        )
        return path

    def file(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        return path

    def start(self, *arguments: str | Path, route: str = "r", stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start a run, with the files and options behind the route."""
        command = [sys.executable, "-m", "kbatchd", "produce", "--config", self.config, route, *arguments]
        process = subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.directory
        )
        self._processes.append(process)
        return process

    def run(self, *arguments: str | Path, route: str = "r", given: bytes | None = None) -> Outcome:
        """Run the command to its end."""
        if given is None:
            return finish(self.start(*arguments, route=route))
        reading, writing = os.pipe()
        process = self.start(*arguments, route=route, stdin=reading)
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(given)
        return finish(process)

    def sends(self, *arguments: str | Path, given: bytes | None = None) -> list[str]:
        """Run the command, which must send all in silence; return what it said."""
        outcome = self.run(*arguments, given=given)
        assert (outcome.code, outcome.err) == (0, [])
        return outcome.out

    def refuses(self, *arguments: str | Path, route: str = "r") -> str:
        """Run the command, which must end with 78 and one line; return that."""
        outcome = self.run(*arguments, route=route)
        assert outcome.code == 78, outcome
        (line,) = outcome.err
        return line

    def messages(self) -> list[Message]:
        """Read all committed records."""
        return read_topic(self.bootstrap_servers, self.topic)

    def wait_begun(self) -> None:
        """Wait until the first records are committed; sooner done than to read them."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap_servers, "group.id": "judge", "log_level": 0})
        partitions = [TopicPartition(self.topic, number) for number in range(4)]

        def is_begun() -> bool:
            with suppress(KafkaException):  # a partition that was made a moment ago may have no leader yet
                return any(consumer.get_watermark_offsets(each, timeout=5)[1] for each in partitions)
            return False

        try:
            wait_until(is_begun, 20, "the first records")
        finally:
            consumer.close()

    def ids(self) -> list[int]:
        """Read the ids of all committed records, sorted; within a partition they must be in order."""
        by_partition: dict[int, list[int]] = {}
        for message in self.messages():
            by_partition.setdefault(message.partition() or 0, []).append(orjson.loads(message.value() or b"")["id"])
        for ids in by_partition.values():
            assert ids == sorted(ids)
        return sorted(number for ids in by_partition.values() for number in ids)

    def clean_up(self) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.communicate()


def finish(process: subprocess.Popen[str], seconds: float = RUN_SECONDS) -> Outcome:
    """Wait for a run's end."""
    out, err = process.communicate(timeout=seconds)
    # That a broker is slow to answer is news, but no test's.
    told = [line for line in out.splitlines() if not line.endswith("; waiting")]
    return Outcome(process.returncode, told, err.splitlines())


def failed(file: Path) -> Path:
    """The file that a run puts beside its input."""
    return file.with_name(f"{file.name}.failed")


def failures(path: Path) -> list[dict[str, object]]:
    """Read a failed file."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


class MakeProducing(Protocol):
    """Makes what a run needs; `bootstrap_servers` and `topic` may be those of another Kafka."""

    def __call__(self, table: str = TABLE, **settings: object) -> Producing: ...


@pytest.fixture
def make_producing(
    tmp_path: Path, kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic
) -> Iterator[MakeProducing]:
    made: list[Producing] = []

    def make(table: str = TABLE, **settings: object) -> Producing:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(table.encode())
        bootstrap_servers = str(settings.pop("bootstrap_servers", kafka.bootstrap_servers))
        topic = str(settings.pop("topic", "") or make_topic(4))
        made.append(Producing(tmp_path, bootstrap_servers, topic, database, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for producing in made:
        producing.clean_up()


@pytest.fixture
def producing(make_producing: MakeProducing) -> Producing:
    """A topic of four partitions and a table for its records."""
    return make_producing()
