"""Which records are suspected, and which condemned, from the ends of the workers that were at them."""

from __future__ import annotations

from signal import SIGABRT, SIGKILL, SIGSEGV

import pytest

from kbatchd.model import Refusal
from kbatchd.stats.place import MAX_SPANS, PLACE_BYTES, At, Found, Place, Span
from kbatchd.stats.suspicions import DEATHS, End, Suspicions

ROUTES = ["a", "b"]
CRASH, KILL, EXIT = End(-SIGSEGV), End(-SIGKILL), End(70)
SILENCE = End(-SIGABRT, 30.2)
#: The second signal of the supervisor's, to one that did not heed the first.
DEAF = End(-SIGKILL, 32.0)


def chunk(*spans: tuple[int, int, int], rank: int = 0, identity: int = 7) -> Found:
    return Found(At.CHUNK, rank, [Span(number, identity, first, last) for number, first, last in spans])


def at(offset: int, how: At = At.RECORD, number: int = 0) -> Found:
    return Found(how, 0, [Span(number, 7, offset, offset)])


def ordered(suspicions: Suspicions) -> list[tuple[str, int, int, int, list[int]]]:
    return sorted(
        (order.route, order.span.number, order.span.first, order.span.last, sorted(order.condemned))
        for order in suspicions.heed().orders
    )


@pytest.mark.parametrize("end", [CRASH, KILL, EXIT, SILENCE, DEAF])
def test_three_deaths_at_the_same_offsets_however_the_polls_were_cut(end: End) -> None:
    suspicions = Suspicions()
    suspicions.note(chunk((0, 100, 599), (1, 0, 4)), ROUTES, end)
    suspicions.note(chunk((0, 400, 899)), ROUTES, end)
    suspicions.note(chunk((0, 2_000, 2_100)), ROUTES, end)
    assert ordered(suspicions) == []
    suspicions.note(chunk((0, 500, 500), (1, 5, 9)), ROUTES, end)
    assert ordered(suspicions) == [("a", 0, 100, 899, [])]


def test_one_that_died_somewhere_may_have_died_here() -> None:
    suspicions = Suspicions()
    assert suspicions.heed().watched == set()
    for _ in range(2):
        suspicions.note(chunk(rank=1), ROUTES, CRASH)
    assert suspicions.heed().watched == {"b"}
    suspicions.note(chunk((0, 0, 99), rank=1), ROUTES, CRASH)
    suspicions.note(chunk((0, 0, 99), rank=0), ROUTES, CRASH)
    assert suspicions.heed().watched == {"a", "b"}
    assert ordered(suspicions) == []
    suspicions.note(chunk((0, 99, 120), rank=1), ROUTES, CRASH)
    assert ordered(suspicions) == [("b", 0, 0, 120, [])]


def test_deaths_elsewhere_are_accidents() -> None:
    suspicions = Suspicions()
    for step in range(20):
        suspicions.note(chunk((0, 500 * step, 500 * step + 499)), ROUTES, CRASH)
        suspicions.note(None, ROUTES, CRASH)
        suspicions.note(chunk((step, 0, 9)), ROUTES, CRASH)
    for identity in range(2 * DEATHS):  # another topic each time
        suspicions.note(chunk((0, 0, 9), identity=100 + identity), ROUTES, CRASH)
    suspicions.note(chunk((0, 0, 9), rank=len(ROUTES)), ROUTES, CRASH)
    assert ordered(suspicions) == []


def test_two_records_that_take_turns_are_both_suspected() -> None:
    suspicions = Suspicions()
    for _ in range(DEATHS):
        suspicions.note(chunk((0, 0, 9)), ROUTES, CRASH)
        suspicions.note(chunk((0, 50, 59)), ROUTES, CRASH)
        suspicions.note(chunk((0, 0, 9), rank=1), ROUTES, CRASH)
    assert ordered(suspicions) == [("a", 0, 0, 59, []), ("b", 0, 0, 9, [])]


@pytest.mark.parametrize(
    ("end", "refusal"),
    [
        (CRASH, Refusal("crashed", None, "a worker that encoded it alone died of SIGSEGV")),
        (End(-40), Refusal("crashed", None, "a worker that encoded it alone died of signal 40")),
        (SILENCE, Refusal("silent", None, "a worker that encoded it alone fell silent for 30 s")),
        (DEAF, Refusal("silent", None, "a worker that encoded it alone fell silent for 32 s")),
    ],
)
def test_the_record_at_which_it_dies_again_is_condemned(end: End, refusal: Refusal) -> None:
    suspicions = Suspicions()
    for _ in range(DEATHS):
        suspicions.note(chunk((0, 0, 99)), ROUTES, end)
    suspicions.note(at(42), ROUTES, end)
    [order] = suspicions.heed().orders
    assert order.condemned == {42: refusal}
    assert (order.span.first, order.span.last) == (0, 99)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (KILL, "a worker that encoded it alone died of SIGKILL"),
        (EXIT, "a worker that encoded it alone ended with 70"),
    ],
)
def test_who_may_have_been_ended_by_others_must_be_there_each_time(end: End, message: str) -> None:
    suspicions = Suspicions()
    for _ in range(DEATHS):
        suspicions.note(chunk((0, 0, 99)), ROUTES, end)
    for offset in range(10):
        suspicions.note(at(offset), ROUTES, end)
        suspicions.note(at(42), ROUTES, end) if offset < DEATHS - 1 else None
    assert ordered(suspicions) == [("a", 0, 0, 99, [])]
    suspicions.note(at(42), ROUTES, end)
    [order] = suspicions.heed().orders
    assert order.condemned == {42: Refusal("crashed", None, message)}


def test_what_is_condemned_stays_so_when_more_is_found() -> None:
    suspicions = Suspicions()
    for _ in range(DEATHS):
        suspicions.note(chunk((0, 0, 99)), ROUTES, CRASH)
    suspicions.note(at(7), ROUTES, CRASH)
    for offset in (8, 9, 10, 8):  # no thread is known to crash at the same record by accident
        assert ordered(suspicions) == [("a", 0, 0, 99, [7])]
        suspicions.note(at(offset), ROUTES, CRASH)
    for _ in range(DEATHS):
        suspicions.note(chunk((0, 80, 300)), ROUTES, CRASH)
    assert ordered(suspicions) == [("a", 0, 0, 300, [7, 8])]


def test_a_dead_letter_that_kills_as_well_is_written_bare() -> None:
    suspicions = Suspicions()
    for _ in range(DEATHS):
        suspicions.note(chunk((0, 0, 99)), ROUTES, CRASH)
    suspicions.note(at(7), ROUTES, CRASH)
    suspicions.note(at(7, At.LETTER), ROUTES, KILL)
    suspicions.note(at(9, At.LETTER, number=3), ROUTES, CRASH)
    [order] = suspicions.heed().orders
    assert order.bare == set()
    suspicions.note(at(7, At.LETTER), ROUTES, CRASH)
    assert order.bare == {7}


def test_a_place_is_read_as_it_was_written() -> None:
    memory = memoryview(bytearray(PLACE_BYTES))
    place = Place(memory)
    assert place.read() is None
    spans = [Span(number, 2**32 - 1, 2**40 + number, 2**62) for number in range(MAX_SPANS)]
    for found in (Found(At.CHUNK, 3, spans), Found(At.RECORD, 0, spans[:1]), Found(At.LETTER, 1, [])):
        place.enter(*found)
        assert Place(memory).read() == found
    place.enter(At.CHUNK, 2)
    assert place.read() == Found(At.CHUNK, 2, [])
    place.leave()
    assert place.read() is None
    place.enter(At.CHUNK, 0, spans * 2)  # more than there is room for
    found_ = place.read()
    assert found_ is not None
    assert found_.spans == spans
