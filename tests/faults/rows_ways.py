"""Rows: the ways to Kafka and PostgreSQL are cut, slow, torn in the middle of a message, or swallow everything."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.faults.kafka_wire import Api, answers
from tests.faults.postgres_wire import answer, message, of_batch, statement
from tests.faults.row import Place, Row
from tests.faults.rules import Act, Frame, Side, When, cut, cut_behind, delay

if TYPE_CHECKING:
    from tests.faults.play import Play
    from tests.faults.wire import Connection, Wire

#: How often a COMMIT is cut, on each side of it.
CUTS = 100

#: How long nothing passes, or all is late.
LASTS_SECONDS = 3.0

COMMIT = of_batch(statement("^COMMIT"))


def half(frame: Frame, connection: Connection) -> None:
    """Let the first half pass, and end the connection."""
    connection.send(frame.side, frame.data[: len(frame.data) // 2])
    connection.close()


def _to_postgres(play: Play) -> Wire:
    return play.stage.postgres_wire


def _to_kafka(play: Play) -> Wire:
    return play.stage.wire


def _once(way: Callable[[Play], Wire], when: When, act: Act) -> Callable[[Play], None]:
    def do(play: Play) -> None:
        way(play).rule(when, act, times=1, skip=play.random.randrange(2)).wait()

    return do


def _slow(way: Callable[[Play], Wire], when: When, seconds: float) -> Callable[[Play], None]:
    def do(play: Play) -> None:
        rule = way(play).rule(when, delay(seconds))
        time.sleep(LASTS_SECONDS)
        rule.lift()

    return do


def _black_hole(way: Callable[[Play], Wire]) -> Callable[[Play], None]:
    def do(play: Play) -> None:
        with way(play).blocked():
            time.sleep(LASTS_SECONDS)

    return do


def _all(way: Callable[[Play], Wire]) -> Callable[[Play], None]:
    return lambda play: way(play).cut()


WAYS = (
    Row(
        "the session is cut before COMMIT comes to PostgreSQL",
        "connects, claims and reads again",
        _once(_to_postgres, COMMIT, cut),
        CUTS,
        Place.WAY,
    ),
    Row(
        "the session is cut after COMMIT, before its answer",
        "the claim tells whether it was committed; nothing is sent again on a guess",
        _once(_to_postgres, COMMIT, cut_behind),
        CUTS,
        Place.WAY,
        short=3,
    ),
    Row(
        "half of a COPY's rows pass, then the session is cut",
        "as if nothing had",
        _once(_to_postgres, of_batch(message("d")), half),
        8,
        Place.WAY,
    ),
    Row(
        "half of an answer of PostgreSQL's passes, then the session is cut",
        "connects, claims and reads again",
        _once(_to_postgres, answer("C"), half),
        8,
        Place.WAY,
    ),
    Row(
        "PostgreSQL's answers are 0.1 s late, for 3 s",
        "slower",
        _slow(_to_postgres, lambda f: f.side is Side.ANSWER, 0.1),
        1,
        Place.WAY,
    ),
    Row(
        "the way to PostgreSQL swallows everything, for 3 s",
        "waits, and goes on",
        _black_hole(_to_postgres),
        2,
        Place.WAY,
    ),
    Row("all connections to Kafka are cut", "connects, and reads on", _all(_to_kafka), 5, Place.WAY),
    Row(
        "half of an answer of Kafka's passes, then the connection is cut",
        "connects, and reads on",
        _once(_to_kafka, answers(Api.FETCH), half),
        8,
        Place.WAY,
    ),
    Row("Kafka's answers are 0.3 s late, for 3 s", "later", _slow(_to_kafka, answers(), 0.3), 1, Place.WAY),
    Row("the way to Kafka swallows everything, for 3 s", "waits, and reads on", _black_hole(_to_kafka), 2, Place.WAY),
)
