"""Scenarios: PostgreSQL dies, or the way to it breaks or alters something, at each statement of a flush.

Which statements a flush has, the proxy hears itself: a changed flush is tried in all its parts as well. PostgreSQL is
the test's own.
"""

from __future__ import annotations

import os
import re
import signal
import struct
from typing import TYPE_CHECKING

from tests.faults.postgres_wire import answer, command_complete, following, instead, message, statement
from tests.faults.rules import Frame, Side, When
from tests.faults.stage import Stage, fail_unless, route

if TYPE_CHECKING:
    from tests.faults.wire import Connection
    from tests.fix_daemon import Daemon

#: Enough of a statement to know it by.
KNOWN_BY = 60

#: What stands for the end of a COPY's rows, which is no statement.
COPY_DONE = "CopyDone"


def statements_of_a_flush(stage: Stage) -> tuple[Daemon, list[str]]:
    """Start a daemon and let it flush once, with a dead letter; return what it said from BEGIN to COMMIT."""
    oracle = stage.oracle()
    daemon = stage.daemon().start()
    daemon.wait_ready()
    heard: list[str] = []

    def hear(frame: Frame, connection: Connection) -> None:
        heard.append(COPY_DONE if frame.kind == "c" else frame.about.decode().strip()[:KNOWN_BY])
        connection.forward(frame)

    rule = stage.postgres_wire.rule(lambda f: f.side is Side.REQUEST and f.kind in ("Q", "E", "c"), hear)
    send_some(stage)
    stage.settle(daemon)
    rule.lift()
    copies = [index for index, text in enumerate(heard) if oracle.table.rpartition(".")[2] in text]
    fail_unless(copies, f"no COPY among {heard}")
    first = max(index for index, text in enumerate(heard[: copies[0] + 1]) if "BEGIN" in text)
    last = next(index for index, text in enumerate(heard) if index > copies[0] and text == "COMMIT")
    return daemon, list(dict.fromkeys(heard[first : last + 1]))


def send_some(stage: Stage) -> None:
    """Send records, one of which becomes a dead letter."""
    stage.send(stage.oracles[0], 10)
    stage.send(stage.oracles[0], 1, sound=False)


def the_server_dies_at(stage: Stage, daemon: Daemon, text: str, *, behind: bool) -> None:
    """Kill PostgreSQL when it is about to get this statement, or when it has done it and nobody has heard of it."""
    wire = stage.postgres_wire
    rule = wire.hold_behind(said(text)) if behind else wire.hold_before(said(text))
    send_some(stage)
    rule.wait()
    stage.restart_postgres()
    stage.settle(daemon)
    stage.check()


def the_session_breaks_at(stage: Stage, daemon: Daemon, text: str, *, behind: bool) -> None:
    """Only the connection ends; the server goes on with what it has."""
    wire = stage.postgres_wire
    rule = wire.hold_behind(said(text)) if behind else wire.hold_before(said(text))
    send_some(stage)
    rule.wait()
    wire.cut()
    wire.clear()
    stage.settle(daemon)
    stage.check()


def the_first_progress_is_answered_and_the_server_dies(stage: Stage) -> None:
    """`start = "latest"`: where reading begins was said, then PostgreSQL crashes, and records come."""
    oracle = stage.oracle()
    stage.send(oracle, 100)
    oracle.first = {0: 100}
    # What writes late what need not be durable: as late as it may be on a busy server.
    [(writer,)] = stage.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
    os.kill(int(str(writer)), signal.SIGSTOP)
    first = statement("INSERT INTO kbatchd.progress")
    committed = stage.postgres_wire.hold_behind(following(first, statement("^COMMIT")))
    daemon = stage.daemon(route(oracle, start="latest")).start()
    committed.wait()
    stage.restart_postgres()
    daemon.kill()
    stage.send(oracle, 50)
    daemon.start()
    stage.settle(daemon)
    stage.check()


def a_row_vanishes_on_the_way(stage: Stage, *, refused: bool = False) -> None:
    """One row of a COPY does not come to PostgreSQL, which says how many came.

    `refused`: in a batch with a row that PostgreSQL refuses, and that is copied in windows.
    """
    oracle = stage.oracle()
    if refused:
        stage.execute(f"ALTER TABLE {oracle.table} ADD CHECK (seq <> 150)")
    rule = stage.postgres_wire.rule(
        lambda f: message("d")(f) and len(f.data) > 1_000,
        lambda f, c: c.send(f.side, without_a_row(f.data)),
        times=1,
        skip=int(refused),
    )
    stage.send(oracle, 300)
    daemon = stage.daemon().start()
    rule.wait()
    stage.settle(daemon)
    stage.check()


def a_wrong_tag(stage: Stage) -> None:
    """The number in COPY's answer is not that of the rows, once: nothing is lost, and nothing written twice."""
    oracle = stage.oracle()
    stage.send(oracle, 300)
    rule = stage.postgres_wire.rule(answer("C", "COPY 300"), instead(command_complete("COPY 299")), times=1)
    daemon = stage.daemon().start()
    rule.wait()
    stage.settle(daemon)
    stage.check()


def a_merge_leaves_a_row_out(stage: Stage) -> None:
    """Of an upsert's rows one is not merged, once, and PostgreSQL says how many were."""
    oracle = stage.oracle()
    stage.execute(f"ALTER TABLE {oracle.table} ADD UNIQUE (seq)")
    stage.execute(f"ALTER TABLE {oracle.table} ALTER seq SET NOT NULL")
    stage.send(oracle, 100)

    def alter(data: bytes) -> bytes:
        """A statement that ends with its text has its length at the beginning."""
        body = data[5:].replace(b"WHEN NOT MATCHED THEN", b"WHEN NOT MATCHED AND winner.seq <> 7 THEN")
        return data[:1] + struct.pack(">i", 4 + len(body)) + body

    merging = statement("MERGE INTO ONLY .* WHEN NOT MATCHED THEN", "Q", "P")
    rule = stage.postgres_wire.rule(merging, lambda f, c: c.send(f.side, alter(f.data)), times=1)
    daemon = stage.daemon(route(oracle, mode="upsert", key=["seq"])).start()
    rule.wait()
    stage.settle(daemon)
    stage.check()


def without_a_row(data: bytes) -> bytes:
    """Take the second row out of a CopyData message in binary format."""
    body = data[5:]
    second = _row_end(body, 19 if body.startswith(b"PGCOPY") else 0)
    rest = body[:second] + body[_row_end(body, second) :]
    return b"d" + struct.pack(">i", 4 + len(rest)) + rest


def said(text: str) -> When:
    """Choose the client's message by which a statement is done."""
    return message("c") if text == COPY_DONE else statement(f"^\\s*{re.escape(text)}")


def _row_end(body: bytes, at: int) -> int:
    (fields,) = struct.unpack_from(">h", body, at)
    at += 2
    for _ in range(fields):
        (size,) = struct.unpack_from(">i", body, at)
        at += 4 + max(size, 0)
    return at
