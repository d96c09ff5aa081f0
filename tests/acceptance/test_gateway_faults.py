"""A fault of kbatchd's own, with one record: that request's 500, and the others' 202.

The faults are planted: a small program changes one function of the daemon and then runs it.
"""

from __future__ import annotations

import gzip
import json
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.fix_daemon import wait_until
from tests.fix_http import Client, free_port, wait_listening
from tests.fix_load import read_topic
from tests.serving import read_answers

if TYPE_CHECKING:
    from pathlib import Path

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_daemon import MakeDaemon
    from tests.fix_kafka import MakeTopic

PROGRAM = """
import sys
from kbatchd.encode import careful
from kbatchd.door import door
from kbatchd.cli import main

row, keys, check = careful.CarefulEncoder.row, door.Door.keys, door.Door.check

def failing_row(self, message, **how):  # while a record is encoded
    if b"boom" in message.value:
        raise ZeroDivisionError("planted")
    return row(self, message, **how)

def failing_keys(self, values):  # while its key is looked for, and nobody expects it
    if any(b"bang" in value for value in values):
        raise SystemError("planted")
    return keys(self, values)

def failing_check(self, values):
    if any(b"crash" in value for value in values):
        raise RecursionError("planted")
    return check(self, values)

careful.CarefulEncoder.row = failing_row
door.Door.keys = failing_keys
door.Door.check = failing_check
sys.exit(main())
"""

GOOD = b'{"id":1,"name":"good"}'
#: With a number that needs the careful encoder; with a name that breaks the search for a key; with one that breaks it
#: all.
FAULTY = {"boom": b'{"id":"boom"}', "bang": b'{"id":2,"name":"bang"}', "crash": b'{"id":3,"name":"crash"}'}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_fault_with_one_record_is_that_requests_500(
    fault: str,
    kafka: Kafka | GivenKafka,
    database: str,
    make_topic: MakeTopic,
    make_daemon: MakeDaemon,
    tmp_path: Path,
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.orders (id bigint NOT NULL, name text)")
    program = tmp_path / "faulty.py"
    program.write_text(PROGRAM)
    topic, port = make_topic(1), free_port()
    route = {"topic": topic, "table": "public.orders", "name": "r", "key_field": "name"}
    daemon = make_daemon(route, program=(str(program),), gateway={"listen": f"127.0.0.1:{port}"}).start()
    wait_listening(port)
    bad = FAULTY[fault]
    with Client(port) as client:
        wait_until(lambda: client.post("/v1/r", GOOD).status == HTTPStatus.ACCEPTED, 20, "the table's columns")
        taken = len(read_topic(kafka.bootstrap_servers, topic))
        # On one connection, one behind the other,
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            head = b"POST /v1/r HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
            bodies = [GOOD, bad, GOOD, bad, GOOD]
            connection.sendall(b"".join(head % (len(body), body) for body in bodies))
            found = read_answers(connection, len(bodies))
        assert [answer.status for answer in found] == [202, 500, 202, 500, 202]
        # as JSON that says so,
        for answer in found[1::2]:
            document = json.loads(answer.body)
            assert (document["type"], document["status"]) == ("/problems/internal", 500)
            assert fault != "boom" or [error["line"] for error in document["errors"]] == [1]
        # among others in one request,
        reply = client.post("/v1/r", b"\n".join([GOOD, bad, GOOD]), content_type="application/x-ndjson")
        assert (reply.status, reply.json["type"]) == (500, "/problems/internal")
        assert fault != "boom" or [error["line"] for error in reply.json["errors"]] == [2]
        # and in the thread of large and packed bodies.
        large = b"\n".join([GOOD] * 10_000 + [bad])
        for body, headers in ((large, {}), (gzip.compress(large), {"content_encoding": "gzip"})):
            reply = client.post("/v1/r", body, content_type="application/x-ndjson", **headers)
            assert (reply.status, reply.json["type"]) == (500, "/problems/internal")
        assert client.post("/v1/r", GOOD).status == HTTPStatus.ACCEPTED
    assert len(read_topic(kafka.bootstrap_servers, topic)) == taken + 4
    assert not daemon.logged("action=gateway_ended")
    assert daemon.logged("planted")
