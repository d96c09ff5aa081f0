"""The commands' tables on a terminal: readable at 80 columns, with all columns where there is room."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

from kbatchd.check.findings import Finding
from kbatchd.commands import dead_letters, print_table, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    #: Prints on a terminal of so many columns; returns the lines.
    Show = Callable[[int, "Printed"], list[str]]

ROUTES = [
    ["requests", "public.requests", "123456", "1234567", "12.3 s", "1234", "ok"],
    ["order_events", "shop.order_events", "0", "-", "-", "0", "partly stopped, truncation"],
]
PARTITIONS = [
    [
        "requests",
        "0",
        "worker-0",
        "db-host-1",
        "4711",
        "2 h",
        "123456789",
        "123457890",
        "1101",
        "12.3 s",
        "0.3 s",
        "ok",
    ],
    ["order_events", "11", "nobody", "-", "-", "-", "123456789", "-", "-", "-", "3 d", "halted: truncation"],
]
FINDINGS = [
    [
        "warning",
        "route order_events",
        "12 of 1000 records would be dead letters: out_of_range, column id: 99999999999 is out of range for type int4",
        "give the column a wider type: ALTER TABLE public.requests ALTER COLUMN id TYPE bigint",
    ]
]
LETTERS = [
    ["4711", "requests", "3", "123456789", "2026-01-31T08:00:00+00:00", "open", "wrong_type", "created_at",
     "expected a string, got 12345"],
    ["4712", "order_events", "13", "12345", "2026-01-31T08:00:00+00:00", "discarded", "23514", "-",
     'new row for relation "requests" violates check constraint "requests_status_check"'],
]  # fmt: skip


class Printed(NamedTuple):
    """A table as its command prints it, and the columns that it has at 80."""

    names: Sequence[str]
    lines: Sequence[Sequence[str]]
    numbers: frozenset[str] = frozenset()
    spare: Sequence[str] = ()
    kept: Sequence[str] = ()

    def words(self, kept: Sequence[str]) -> set[str]:
        cells = [cell for line in self.lines for name, cell in zip(self.names, line, strict=True) if name in kept]
        return {word for text in [*cells, *(name.replace("_", " ") for name in kept)] for word in text.split()}


TABLES = {
    "routes": Printed(status._ROUTES, ROUTES, status._NUMBERS, status._SPARE_OF_ROUTES, status._ROUTES),
    "partitions": Printed(
        status._PARTITIONS,
        PARTITIONS,
        status._NUMBERS,
        status._SPARE_OF_PARTITIONS,
        [name for name in status._PARTITIONS if name not in {"since", "end", "moved", "pid", "next_offset"}],
    ),
    "findings": Printed(Finding._fields, FINDINGS, kept=Finding._fields),
    "letters": Printed(
        dead_letters._COLUMNS,
        LETTERS,
        dead_letters._NUMBERS,
        dead_letters._SPARE,
        ["id", "route", "state", "code", "column", "message"],
    ),
}


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Iterator[Show]:
    leader, terminal = os.openpty()
    with os.fdopen(terminal, "w") as output:

        def run(columns: int, table: Printed) -> list[str]:
            monkeypatch.setenv("COLUMNS", str(columns))
            monkeypatch.setenv("TERM", "xterm")
            monkeypatch.setattr("sys.stdout", output)
            print_table(table.names, table.lines, table.numbers, table.spare)
            output.flush()
            return re.sub("\x1b\\[[0-9;]*m", "", os.read(leader, 65_536).decode()).splitlines()

        yield run
    os.close(leader)


@pytest.mark.parametrize("name", TABLES)
def test_at_80_columns_no_word_is_broken(show: Show, name: str) -> None:
    table = TABLES[name]
    shown = show(80, table)
    assert max(map(len, shown)) <= 80
    assert {word for line in shown for word in line.split()} == table.words(table.kept)


@pytest.mark.parametrize("name", TABLES)
def test_a_wide_terminal_has_all_columns(show: Show, name: str) -> None:
    table = TABLES[name]
    assert {word for line in show(200, table) for word in line.split()} == table.words(table.names)


def test_what_has_no_room_is_broken_and_not_cut(show: Show) -> None:
    shown = show(20, Printed(("id", "name", "spare"), [["1", "x" * 50, "left out"]], frozenset({"id"}), ("spare",)))
    assert max(map(len, shown)) <= 20
    assert sum(line.count("x") for line in shown) == 50
    assert not any("left" in line for line in shown)
