"""One event, one line, whatever is in it."""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import kbatchd
from kbatchd import log
from kbatchd.kafka.client_log import rdkafka_log
from kbatchd.log.folding import Folding
from kbatchd.log.lines import JsonFormatter, LineFormatter

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("kbatchd.test")


def _line(*, journal: bool, level: int = logging.INFO, message: str = "batch flushed", **extra: object) -> str:
    record = logger.makeRecord(logger.name, level, "", 0, message, (), None, extra=extra)
    record.created = 1_764_000_000.25
    return LineFormatter("worker 0", journal=journal).format(record)


def test_line_for_a_terminal() -> None:
    assert _line(journal=False, action="flush", rows=20_000, seconds=0.25) == (
        "2025-11-24T16:00:00.250Z INFO worker 0: batch flushed action=flush rows=20000 seconds=0.25"
    )


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_line_for_the_journal(level: int, priority: int) -> None:
    assert _line(journal=True, level=level, action="flush") == f"<{priority}>worker 0: batch flushed action=flush"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("a b", '"a b"'),
        ("", '""'),
        ('say "no"', '"say \\"no\\""'),
        ("a=b", '"a=b"'),
        ("back\\slash", '"back\\\\slash"'),
        ("é", "é"),
        ("é ü", '"é ü"'),
        ("two\nlines", '"two\\nlines"'),
        ("cr\rtab\tnul\0", '"cr\\rtab\\tnul\\u0000"'),
        ("line\u2028separator\x85next", '"line\\u2028separator\\u0085next"'),
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        (["a", 1], "\"['a', 1]\""),
    ],
)
def test_values(value: object, text: str) -> None:
    assert _line(journal=True, value=value) == f"<6>worker 0: batch flushed value={text}"


def test_newline_in_a_message_does_not_break_the_line() -> None:
    assert _line(journal=True, message="a\nb") == "<6>worker 0: a\\nb"


def test_traceback_stays_in_its_line() -> None:
    try:
        int("two\nlines")
    except ValueError:
        record = logger.makeRecord(logger.name, logging.ERROR, "", 0, "failed", (), sys.exc_info())
    line = LineFormatter("supervisor", journal=False).format(record)
    assert len(line.splitlines()) == 1
    assert "ValueError: invalid literal for int()" in line


def test_setup_writes_to_stderr_and_may_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "supervisor")
    logger.info("started", extra={"action": "start"})
    logger.debug("unseen")
    logging.getLogger("library").info("unseen")
    log.setup("debug", "worker 3")  # as after a fork
    logger.debug("batch", extra={"action": "flush"})
    logging.getLogger("library").warning("old")

    out, err = capsys.readouterr()
    assert not out
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(
        f"{stamp} INFO supervisor: started action=start\n"
        f"{stamp} DEBUG worker 3: batch action=flush\n"
        f"{stamp} WARNING worker 3: old\n",
        err,
    )


def _json(*, journal: bool = False, **extra: object) -> str:
    record = logger.makeRecord(logger.name, logging.WARNING, "", 0, "two\nlines", (), None, extra=extra)
    record.created = 1_764_000_000.25
    return JsonFormatter("worker 0", journal=journal).format(record)


def test_json_has_one_object_a_line() -> None:
    line = _json(action="flush", rows=3, seconds=0.5, partitions=[1, 2], reason=None, path=Path("/x"))
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {
        "time": "2025-11-24T16:00:00.250Z",
        "level": "warning",
        "role": "worker 0",
        "message": "two\nlines",
        "action": "flush",
        "rows": 3,
        "seconds": 0.5,
        "partitions": [1, 2],
        "reason": None,
        "path": "/x",
    }
    assert _json(journal=True).startswith('<4>{"time": ')


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic time, for a test to move."""
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


class TestFolding:
    def lines(self, capsys: pytest.CaptureFixture[str]) -> list[str]:
        return [line.partition("worker 0: ")[2] for line in capsys.readouterr().err.splitlines()]

    def test_what_repeats_is_one_line_in_ten_seconds(
        self, clock: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        log.setup("info", "worker 0")
        log.fold()
        for number in range(100):
            logger.warning("lost", extra={"action": "lost", "error": f"try {number}"})
            clock[0] += 0.102
        assert self.lines(capsys) == ['lost action=lost error="try 0"', 'lost action=lost error="try 99" repeated=98']

    def test_the_last_count_comes_when_it_is_over(self, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
        log.setup("info", "worker 0")
        log.fold()
        for number in range(5):
            logger.error("lost", extra={"action": "lost", "error": f"try {number}"})
        clock[0] += 9.9
        log.tell_repeats()
        assert len(self.lines(capsys)) == 1
        clock[0] += 0.2
        log.tell_repeats()
        [line] = self.lines(capsys)
        told, _, seconds_ago = line.partition(" seconds_ago=")
        assert told == 'lost action=lost error="try 4" repeated=4'
        assert 0 <= float(seconds_ago) < 60
        clock[0] += 60
        log.tell_repeats()
        assert self.lines(capsys) == []

    def test_a_last_count_has_the_time_when_it_is_written(self, clock: list[float]) -> None:
        folding = Folding()
        record = logger.makeRecord(logger.name, logging.WARNING, "", 0, "lost", (), None)
        record.created = time.time() - 7.0
        assert [folding.filter(record) for _ in range(2)] == [True, False]
        clock[0] += 10.1
        repeats: list[logging.LogRecord] = []
        folding.tell_repeats(repeats.append)
        [late] = repeats
        assert late.__dict__["repeated"] == 1
        assert 7.0 <= late.__dict__["seconds_ago"] < 60
        assert time.time() - late.created < 5.0
        assert not hasattr(record, "repeated"), "another handler has it too"

    def test_nothing_of_a_trouble_comes_after_the_good_news(
        self, clock: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        log.setup("info", "worker 0")
        log.fold()
        for _ in range(3):
            for _ in range(4):
                logger.warning("waiting", extra={"action": "postgres_wait"})
            logger.warning("lost", extra={"action": "postgres_lost"})
            logger.warning("other", extra={"action": "other"})
            logger.warning("is back", extra={"action": "postgres_back"})
            clock[0] += 3.0
        # A server that comes and goes is told of once in ten seconds as well.
        assert self.lines(capsys)[-1] == "is back action=postgres_back repeated=3"
        clock[0] += 10.1
        log.tell_repeats()
        left = [line.partition(" seconds_ago=")[0] for line in self.lines(capsys)]
        assert left == ["other action=other repeated=2", "is back action=postgres_back repeated=12"]

    def test_no_good_news_comes_after_the_trouble_has_begun_again(
        self, clock: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        log.setup("info", "worker 0")
        log.fold()
        for _ in range(2):
            logger.warning("waiting", extra={"action": "postgres_wait"})
            logger.warning("is back", extra={"action": "postgres_back"})
        logger.warning("waiting", extra={"action": "postgres_wait"})
        assert self.lines(capsys) == ["waiting action=postgres_wait", "is back action=postgres_back"]
        clock[0] += 10.1
        log.tell_repeats()
        [left] = self.lines(capsys)
        assert left.startswith("waiting action=postgres_wait repeated=3")

    def test_good_news_waits_for_what_is_being_told(self, clock: list[float]) -> None:
        folding = Folding()
        waiting = [logger.makeRecord(logger.name, logging.WARNING, "", 0, "waiting", (), None) for _ in range(2)]
        back = logger.makeRecord(logger.name, logging.WARNING, "", 0, "back", (), None)
        vars(back)["action"] = "postgres_back"
        for record in waiting:
            vars(record)["action"] = "postgres_wait"
            folding.filter(record)
        clock[0] += 10.1
        written: list[str] = []
        begun, news = threading.Event(), threading.Event()

        def tell_late(record: logging.LogRecord) -> None:
            begun.set()
            assert not news.wait(0.2), "good news went first"
            written.append(record.getMessage())

        def bring_news() -> None:
            begun.wait()
            folding.filter(back)
            written.append(back.getMessage())
            news.set()

        thread = threading.Thread(target=bring_news)
        thread.start()
        folding.tell_repeats(tell_late)
        thread.join()
        assert written == ["waiting", "back"]

    def test_threads_tell_it_once(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """Whichever thread finds that it is time again, no other one writes the same."""
        now = 1_000.0

        def look_and_linger() -> float:
            time.sleep(0.01)
            return now

        monkeypatch.setattr(time, "monotonic", look_and_linger)
        log.setup("info", "worker 0")
        log.fold()
        for _ in range(2):
            threads = [threading.Thread(target=logger.warning, args=("lost",)) for _ in range(4)]
            for thread in threads:
                thread.start()
            log.tell_repeats()
            for thread in threads:
                thread.join()
            assert len(self.lines(capsys)) == 1
            now += 10.1

    def test_different_troubles_are_told_each(self, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
        log.setup("info", "worker 0")
        log.fold()
        assert clock
        for route in ("a", "b", "a"):
            logger.warning("lost", extra={"action": "lost", "route": route})
        logger.error("other", extra={"action": "lost"})
        for _ in range(2):
            logger.info("started", extra={"action": "start"})  # no trouble: never folded
        told = ["lost action=lost route=a", "lost action=lost route=b", "other action=lost"]
        assert self.lines(capsys) == [*told, "started action=start", "started action=start"]


def test_librdkafkas_lines_are_in_our_words(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "worker 0")
    rdkafka_log.log(logging.ERROR, "%s [%s] %s", "FAIL", "kbatchd#consumer-1", "Connection refused")
    rdkafka_log.log(logging.CRITICAL, "%s [%s] %s", "MAXPOLL", "kbatchd#consumer-1", "too slow")
    [line] = capsys.readouterr().err.splitlines()
    assert line.partition("Z ")[2] == (
        'WARNING worker 0: librdkafka: MAXPOLL action=librdkafka client=kbatchd#consumer-1 error="too slow"'
    )


def test_a_coordinator_that_loads_is_told_of_when_it_lasts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "[thrd:main]: Failed to acquire transactional PID from broker b:9092/1: Broker: Coordinator load in progress"
    line = "%s [%s] %s", "GETPID", "produce#producer-1", f"{text}: retrying"
    log.setup("info", "produce")
    rdkafka_log.warning(*line)
    assert not capsys.readouterr().err
    monkeypatch.setattr("kbatchd.kafka.client_log.LOADING_SECONDS", 0.1)
    deadline = time.monotonic() + 10
    while not (shown := capsys.readouterr().err):
        assert time.monotonic() < deadline
        rdkafka_log.warning(*line)
    assert "WARNING produce: librdkafka: GETPID action=librdkafka" in shown


def _log_calls() -> Iterator[tuple[str, ast.Call]]:
    for path in Path(kbatchd.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=level)) if level in LEVELS:
                    yield f"{path.name}:{node.lineno}", node


LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def test_every_event_has_an_action_to_search_for() -> None:
    calls = dict(_log_calls())
    assert len(calls) > 30
    without = [where for where, call in calls.items() if "'action'" not in ast.dump(call) and not _passes_on(call)]
    assert not without


def _passes_on(call: ast.Call) -> bool:
    """Whether its fields were made elsewhere: `extra=extra`."""
    return any(keyword.arg == "extra" and isinstance(keyword.value, ast.Name) for keyword in call.keywords)
