"""Dead letters of records that cannot be read in full, and of a fault of kbatchd's own: real rows of PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kbatchd.errors import BreakerOpen
from tests.integration.sink.test_sink import Route, connection, make_route  # noqa: F401 - fixtures
from tests.records import Headers, Sent

if TYPE_CHECKING:
    from collections.abc import Callable


class Broken(Sent):
    """A record of which nothing but its place can be read."""

    def key(self) -> bytes | None:
        raise SystemError("no key")

    def headers(self) -> Headers | None:
        raise SystemError("no headers")

    def timestamp(self) -> tuple[int, int]:
        raise SystemError("no timestamp")


def test_a_letter_has_what_can_be_read(make_route: Callable[..., Route]) -> None:  # noqa: F811
    route = make_route()
    route.flush([Sent(0, b'{"id":1}'), Broken(1, b'{"id":"x"}'), Sent(2, b'{"id":2}')])
    assert route.ids() == [1, 2]
    assert route.next_offsets() == {0: 3, 1: 0}
    ((offset, key, value, headers, at, code, message),) = route.connection.execute(
        'SELECT "offset", key, value, headers, "timestamp", code, message FROM kbatchd.dead_letters'
    )
    assert (offset, key, value, headers, at, code) == (1, None, b'{"id":"x"}', None, None, "wrong_type")
    for part in ("timestamp", "key", "headers"):
        assert f"; its {part} cannot be read: SystemError at " in message


@pytest.mark.parametrize("max_dead_letters", [0, 50, 10_000])
def test_a_hundred_internal_letters_in_a_row_halt_the_route(
    make_route: Callable[..., Route],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    max_dead_letters: int,
) -> None:
    route = make_route(max_dead_letters=max_dead_letters)

    def fail(*_: object) -> object:
        raise ZeroDivisionError("a fault of kbatchd")

    # Planted: a fault in what every record passes, from the tenth on.
    good = [Sent(n, b'{"id":%d}' % n) for n in range(10)]
    assert route.flush(good).rows == 10
    monkeypatch.setattr(route.encoder._careful, "row", fail)
    bad = [Sent(10 + n, b'{"id":"%d"}' % n) for n in range(70)]
    limit = max_dead_letters if 0 < max_dead_letters < 100 else 100
    expected = min(70, limit)
    try:
        route.flush(bad)
    except BreakerOpen:
        assert limit == 50
    assert len(route.dead()) == expected
    with pytest.raises(BreakerOpen, match="in a row"):
        route.flush([Sent(80 + n, b"no") for n in range(70)])
    assert {code for *_, code, _ in route.dead()} == {"internal"}
    assert len(route.dead()) == limit
