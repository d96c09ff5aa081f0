"""Requests while gateways are killed and the broker restarts: what was answered 2xx is in the table."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import psycopg
import pytest

from tests.fix_daemon import Daemon, wait_until
from tests.fix_http import MakeGateway
from tests.fix_load import Delivery, read_topic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd.devstack.kafka import Kafka
    from tests.fix_kafka import MakeTopic

CONNECTIONS = 64
#: One request in so many waits for the table.
ACK_DB_EVERY = 50

_HEAD = re.compile(rb"HTTP/1\.1 (\d\d\d) .*?content-length: (\d+)", re.DOTALL | re.IGNORECASE)


class Size(NamedTuple):
    """How much is sent, and what happens meanwhile."""

    requests: int
    gateway_kills: int
    broker_restarts: int


@dataclass(slots=True)
class Outcome:
    """What the clients were answered."""

    #: How many shall be sent.
    wanted: int
    statuses: Counter[int] = field(default_factory=Counter)
    unanswered: int = 0
    accepted: set[int] = field(default_factory=set)
    #: Answered 200 to ack=db, and not found in the table at that moment.
    not_there: list[int] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return self.statuses.total() + self.unanswered


@pytest.mark.parametrize("size", [Size(10_000, 2, 1), pytest.param(Size(100_000, 10, 2), marks=pytest.mark.soak)])
def test_every_2xx_is_in_the_table(
    own_kafka: Kafka, own_make_topic: MakeTopic, database: str, make_gateway: MakeGateway, size: Size
) -> None:
    topic = own_make_topic(4)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.numbered (seq bigint NOT NULL)")
        connection.execute("CREATE INDEX ON public.numbered (seq)")
    daemon, client = make_gateway(
        {"topic": topic, "table": "public.numbered"},
        gateway={"workers": 2},
        kafka={"bootstrap_servers": own_kafka.bootstrap_servers},
    )
    delivery = Delivery(own_kafka.bootstrap_servers, topic, 4, database, "public.numbered")
    done = threading.Event()
    outcome = Outcome(size.requests)
    clients = threading.Thread(
        target=lambda: asyncio.run(_send_all(client.port, f"/v1/{topic}", database, outcome, done))
    )
    clients.start()
    try:
        # In this thread: the broker that it starts ends with it.
        _make_trouble(daemon, own_kafka, size, outcome, clients)
        clients.join()
    finally:
        done.set()
        clients.join()
    delivery.wait_drained(60)

    stored = Counter(seq for (seq,) in delivery.query("SELECT seq FROM public.numbered"))
    assert outcome.requests >= size.requests
    assert len(daemon.logged("action=gateway_ended")) >= size.gateway_kills, outcome
    assert outcome.unanswered > 0, "the kills met nobody at work"
    assert outcome.statuses[503] > 0, "the restarts met nobody at work"
    assert not outcome.not_there
    assert not outcome.accepted - stored.keys()
    sent = Counter(int(record.value()[7:-1]) for record in read_topic(own_kafka.bootstrap_servers, topic))  # type: ignore[index]
    assert stored == sent, "the table is the topic"
    assert max(sent.values()) == 1, "no record twice: nobody sent one twice, unless the answer was 503"
    assert set(outcome.statuses) <= {200, 202, 503, 504}


def _make_trouble(daemon: Daemon, kafka: Kafka, size: Size, outcome: Outcome, clients: threading.Thread) -> None:
    """Kill and restart, spread over the requests."""
    what = ["gateway"] * size.gateway_kills + ["broker"] * size.broker_restarts
    random.shuffle(what)
    for number, victim in enumerate(what, 1):
        due = number * size.requests // (len(what) + 2)
        wait_until(lambda: outcome.requests >= due or not clients.is_alive(), 60, f"{due} requests")  # noqa: B023
        if victim == "broker":
            kafka.stop()
            time.sleep(1.0)  # long enough for clients to be told so
            kafka.start()
        else:
            wait_until(daemon.gateways, 10, "a gateway to kill")
            with suppress(ProcessLookupError):
                os.kill(random.choice(daemon.gateways()), signal.SIGKILL)


async def _send_all(port: int, path: str, dsn: str, outcome: Outcome, done: threading.Event) -> None:
    numbers = iter(range(10**9))
    await asyncio.gather(*(_client(port, path, dsn, numbers, outcome, done) for _ in range(CONNECTIONS)))


async def _client(
    port: int, path: str, dsn: str, numbers: Iterator[int], outcome: Outcome, done: threading.Event
) -> None:
    """Send one request after the other; a number goes out again only when it is certain that it is not in Kafka."""
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    number = next(numbers)
    while outcome.requests < outcome.wanted and not done.is_set():
        ack_db = number % ACK_DB_EVERY == 0
        try:
            if streams is None:
                streams = await asyncio.open_connection("127.0.0.1", port)
        except OSError:  # between two gateways
            await asyncio.sleep(0.02)
            continue
        try:
            status = await _post(*streams, path + "?ack=db" * ack_db, b'{"seq":%d}' % number)
        except (OSError, asyncio.IncompleteReadError):
            outcome.unanswered += 1
            streams[1].close()
            streams = None
            number = next(numbers)
            continue
        outcome.statuses[status] += 1
        if status == 503:
            await asyncio.sleep(0.05)
            continue
        if status in {200, 202}:
            outcome.accepted.add(number)
        if status == 200 and not await asyncio.to_thread(_is_there, dsn, number):
            outcome.not_there.append(number)
        number = next(numbers)
    if streams is not None:
        streams[1].close()


async def _post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes) -> int:
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    found = _HEAD.match(answer)
    assert found, answer
    await reader.readexactly(int(found[2]))
    return int(found[1])


def _is_there(dsn: str, number: int) -> bool:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute("SELECT count(*) FROM public.numbered WHERE seq = %s", (number,)).fetchone()
    return row == (1,)
