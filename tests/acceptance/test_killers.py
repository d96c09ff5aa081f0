"""Records that kill the worker that encodes them: nothing catches a crash in native code, or a loop without an end.

The daemon runs through a program (`PROGRAM`) that plants them in the encoder: what a record has in its field `kill`
happens as soon as it is encoded.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer

from tests.fix_load import value

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fix_daemon import Daemon, MakeDaemon
    from tests.fix_load import Delivery

#: argv: a directory to count in, then the daemon's own.
PROGRAM = """
import ctypes, os, re, signal, sys, time
from pathlib import Path
from kbatchd.encode import rows
from kbatchd.sink import sink
from kbatchd.encode.careful import CarefulEncoder
from kbatchd.cli import main

counts = Path(sys.argv[1])
in_native_code = ctypes.PyDLL(None)  # with the interpreter's lock held

def times(what):
    with (counts / what).open("a") as file:
        file.write("x")
    return len((counts / what).read_text())

def meet(record_value, where):
    for kill in re.findall(rb'"kill":"([a-z ]+)"', record_value or b""):
        what = kill.decode()
        if what in ("abort", "letter"):
            os.abort()
        elif what == "segv":
            ctypes.string_at(0)
        elif what == "loop":
            while True:
                pass
        elif what == "native loop":
            in_native_code.sleep(3600)
        elif what == "fast" and where == "all at once":
            os.abort()
        elif what == "five times" and times(what) <= 5:
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "memory" and times(what) <= 60:
            raise MemoryError

encode, row, letter = rows.RowEncoder.encode, CarefulEncoder.row, sink.dead_letter

def encode_or_die(self, records, values, found):
    for each in values:
        meet(each, "all at once")
    return encode(self, records, values, found)

def row_or_die(self, message, **how):
    meet(message.value, "one by one")
    return row(self, message, **how)

def letter_or_die(owner, topic_id, record, why):
    if b'"letter"' in (record.value() or b""):
        os.abort()
    if b'"endless letter"' in (record.value() or b""):
        in_native_code.sleep(3600)
    return letter(owner, topic_id, record, why)

rows.RowEncoder.encode, CarefulEncoder.row, sink.dead_letter = encode_or_die, row_or_die, letter_or_die
sys.exit(main(sys.argv[2:]))
"""

#: Of the records that each partition has; the one that kills is in the midst of them.
RECORDS = 1_500
KILLER_AT = 700


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "counts").mkdir()
    return [str(tmp_path / "program.py"), str(tmp_path / "counts")]


@pytest.mark.parametrize(
    ("kill", "code", "how", "deaths"),
    [
        ("abort", "crashed", "died of SIGABRT", 4),
        ("segv", "crashed", "died of SIGSEGV", 4),
        ("loop", "silent", "fell silent for ", 4),
        ("native loop", "silent", "fell silent for ", 4),
        ("memory", "crashed", "ended with 70", 6),  # it may be the machine's: three times alone
    ],
)
def test_a_record_that_kills_is_found_and_becomes_a_dead_letter(
    delivery: Delivery, make_daemon: MakeDaemon, program: list[str], kill: str, code: str, how: str, deaths: int
) -> None:
    offset = send(delivery, kill)
    daemon = make_daemon(delivery.route, program=program, workers={"heartbeat_timeout_seconds": 4.0}).start()
    delivery.wait_drained(90)

    [letter] = delivery.query('SELECT partition, "offset", code, message, value FROM kbatchd.dead_letters')
    assert letter[:3] == (0, offset, code)
    assert str(letter[3]).startswith(f"a worker that encoded it alone {how}")
    assert isinstance(letter[4], bytes)
    assert f'"kill":"{kill}"'.encode() in letter[4]
    delivery.assert_exactly_once()
    assert len(ends(daemon)) == deaths
    assert len(daemon.logged("action=suspected")) == 1
    assert daemon.logged("action=condemned")[0].count(f"offset={offset} code={code}") == 1
    # And: from then on it is a worker like any other.
    delivery.send(RECORDS, first=2 * RECORDS)
    delivery.wait_drained()
    assert len(ends(daemon)) == deaths


def test_several_that_kill_in_one_partition_and_in_others(
    delivery: Delivery, make_daemon: MakeDaemon, program: list[str]
) -> None:
    offsets = {
        (partition, send(delivery, "abort", partition, at, 10_000 * number))
        for number, (partition, at) in enumerate(product(range(2), (5, 9, 1_200)))
    }
    daemon = make_daemon(delivery.route, program=program, workers={"count": 1}).start()
    delivery.wait_drained(120)
    assert set(delivery.query('SELECT partition, "offset" FROM kbatchd.dead_letters')) == offsets
    delivery.assert_exactly_once()
    assert daemon.stop() == 0


def test_what_kills_in_the_fast_way_alone_becomes_a_row(
    delivery: Delivery, make_daemon: MakeDaemon, program: list[str]
) -> None:
    send(delivery, "fast")
    daemon = make_daemon(delivery.route, program=program).start()
    delivery.wait_drained(60)
    assert delivery.query("SELECT FROM kbatchd.dead_letters") == []
    delivery.assert_exactly_once()
    assert len(ends(daemon)) == 3


def test_who_was_killed_from_outside_condemns_nobody(
    delivery: Delivery, make_daemon: MakeDaemon, program: list[str]
) -> None:
    send(delivery, "five times")
    daemon = make_daemon(delivery.route, program=program).start()
    delivery.wait_drained(60)
    assert delivery.query("SELECT FROM kbatchd.dead_letters") == []
    delivery.assert_exactly_once()
    assert len(ends(daemon)) == 5


def test_a_dead_letter_that_kills_as_well_has_the_offset_alone(
    delivery: Delivery, make_daemon: MakeDaemon, program: list[str]
) -> None:
    offset = send(delivery, "letter")
    daemon = make_daemon(delivery.route, program=program).start()
    delivery.wait_drained(60)
    columns = 'partition, "offset", code, "timestamp", key, value, headers'
    assert delivery.query(f"SELECT {columns} FROM kbatchd.dead_letters") == [
        (0, offset, "crashed", None, None, None, None)
    ]
    delivery.assert_exactly_once()
    assert len(ends(daemon)) == 5


def send(delivery: Delivery, kill: str, partition: int = 0, at: int = KILLER_AT, first: int = 0) -> int:
    """Send records, numbered from `first` on, and between them one that kills; return its offset."""
    delivery.send(2 * at, first=first)
    producer = Producer({"bootstrap.servers": delivery.bootstrap_servers})
    offsets: list[int] = []
    producer.produce(
        delivery.topic,
        value(partition, 1_000_000 + first)[:-1] + b',"kill":"%b"}' % kill.encode(),
        partition=partition,
        on_delivery=lambda _, message: offsets.append(message.offset() or 0),
    )
    assert producer.flush(30) == 0
    delivery.send(2 * RECORDS, first=first + at + 1)
    return offsets[0]


def ends(daemon: Daemon) -> list[str]:
    return daemon.logged("action=worker_ended")


@pytest.mark.parametrize(("what", "code"), [("letter", "crashed"), ("endless letter", "silent")])
def test_a_record_whose_dead_letter_kills(
    delivery: Delivery, make_daemon: MakeDaemon, program: list[str], what: str, code: str
) -> None:
    """It is no more than refused, and what kills is to write that down: nothing of the record goes into its letter."""
    delivery.send(RECORDS)
    producer = Producer({"bootstrap.servers": delivery.bootstrap_servers})
    producer.produce(delivery.topic, f'{{"partition":0,"seq":"none","{what}":1}}'.encode(), partition=0)
    assert producer.flush(30) == 0
    delivery.send(RECORDS, first=RECORDS)
    daemon = make_daemon(delivery.route, program=program, workers={"heartbeat_timeout_seconds": 4.0}).start()
    delivery.wait_drained(90)

    letters = delivery.query("SELECT code, key, value, message FROM kbatchd.dead_letters")
    assert [letter[:3] for letter in letters] == [(code, None, None)]
    assert str(letters[0][3]).startswith("a worker that made its dead letter ")
    assert delivery.query(f"SELECT count(*), count(DISTINCT (partition, seq)) FROM {delivery.table}") == [
        (2 * RECORDS, 2 * RECORDS)
    ]
    assert len(ends(daemon)) == 3
    assert daemon.stop() == 0
