"""One event, one line, whatever is in it."""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING

import pytest

from kbatchd import log

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("kbatchd.test")


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("kbatchd")
    handlers, root_level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = handlers
    root.setLevel(root_level)
    ours.setLevel(our_level)


def _line(*, journal: bool, level: int = logging.INFO, message: str = "batch flushed", **extra: object) -> str:
    record = logger.makeRecord(logger.name, level, "", 0, message, (), None, extra=extra)
    record.created = 1_764_000_000.25
    return log.LineFormatter("worker 0", journal=journal).format(record)


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
    line = log.LineFormatter("supervisor", journal=False).format(record)
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
