"""`kbatchd produce --generate` for routes with mappings: what it makes up is in the table, every record of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from tests.fix_load import wait_all_taken

if TYPE_CHECKING:
    from tests.fix_daemon import MakeDaemon
    from tests.fix_kafka import MakeTopic
    from tests.fix_produce import MakeProducing

COUNT = 200

#: For each table its columns, the keys of its route, and what must hold for each of its rows.
ROUTES: dict[str, tuple[str, dict[str, Any], str]] = {
    "nested": (
        """id bigint PRIMARY KEY, city varchar(6) NOT NULL, zip text, sku text NOT NULL, items jsonb NOT NULL,
        created_at timestamptz NOT NULL, day date NOT NULL, note jsonb, region text NOT NULL, state text NOT NULL""",
        {"columns": {
            "city": "address.city", "zip": 'address."post code"', "sku": "items[1].sku", "items": "items",
            "created_at": {"field": "ts", "unit": "ms"}, "day": {"field": "ts", "unit": "ms"},
            "note": {"field": "note", "json_text": True}, "region": {"constant": "eu"}, "state": {"default": "new"},
        }},
        "items = jsonb_build_array(null, jsonb_build_object('sku', sku)) AND created_at::date - day BETWEEN -1 AND 1",
    ),
    "enveloped": (
        "id uuid NOT NULL, op text NOT NULL, more json NOT NULL, seen integer, at timestamptz DEFAULT now()",
        {"value_field": "data.after", "unknown_fields": "more", "on_missing": "default",
         "columns": {"op": {"source": "value", "field": "op"}}},
        "more::text = '{}'",
    ),
    "labelled": (
        """event uuid PRIMARY KEY, tenant text NOT NULL, shard integer NOT NULL, trace text NOT NULL,
        context jsonb NOT NULL, level smallint NOT NULL, all_of_them jsonb NOT NULL, sent timestamptz NOT NULL,
        topic text NOT NULL, part integer NOT NULL, place bigint NOT NULL, taken timestamptz NOT NULL""",
        {"columns": {
            "event": {"source": "header:ce_id"},
            "tenant": {"source": "key", "field": "tenant"}, "shard": {"source": "key", "field": "shard"},
            "trace": {"source": "header:trace"}, "context": {"source": "header:context"},
            "level": {"source": "header:context", "field": "level"}, "all_of_them": {"source": "headers"},
            "sent": {"source": "timestamp"}, "topic": {"source": "topic"}, "part": {"source": "partition"},
            "place": {"source": "offset"}, "taken": {"source": "now"},
        }},
        "all_of_them ->> 'trace' = trace AND context = jsonb_build_object('level', level) AND part < 4",
    ),
    "raw": (
        "whole text NOT NULL, id bigint NOT NULL, kept bytea NOT NULL",
        {"format": "raw",
         "columns": {"whole": {"source": "value"}, "id": {"source": "value", "field": "head.id"},
                     "kept": {"source": "value"}}},
        "whole::jsonb #>> '{head,id}' = id::text AND convert_from(kept, 'UTF8') = whole",
    ),
    "texts": (
        "id bigint, way path, name char(8) NOT NULL, tags text[] NOT NULL, mood public.mood NOT NULL",
        {"value_field": "it", "unknown_fields": "reject", "columns": {"name": "who.name", "mood": "how.mood"}},
        "way IS NULL AND mood = 'sad'",
    ),
    "literals": (
        """id bigint NOT NULL, money money NOT NULL, oid oid NOT NULL UNIQUE, point point NOT NULL, flag bit NOT NULL,
        flags bit(3), many bit(100) NOT NULL, varbit bit varying NOT NULL, few varbit(5) NOT NULL,
        macaddr macaddr NOT NULL UNIQUE, int4range int4range NOT NULL UNIQUE, int8range int8range NOT NULL,
        numrange numrange NOT NULL, daterange daterange NOT NULL, tsrange tsrange, tstzrange tstzrange NOT NULL""",
        {"columns": {"few": "more.few", "macaddr": {"source": "key"}}},
        "upper(int8range) = id + 1 AND NOT isempty(daterange) AND upper(tstzrange) = '2027-01-01Z'",
    ),
    "whole": (
        "record jsonb NOT NULL, text text NOT NULL",
        {"columns": {"record": {"source": "value"}, "text": {"source": "value"}}},
        "record = text::jsonb AND record ? 'word'",
    ),
}  # fmt: skip


def test_what_is_made_up_is_in_the_table(
    make_producing: MakeProducing, make_daemon: MakeDaemon, make_topic: MakeTopic
) -> None:
    dsn = make_producing("CREATE TYPE public.mood AS ENUM ('sad', 'ok')").dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        for name, (columns, _, _) in ROUTES.items():
            if name == "literals" and _has_libxml(connection):
                columns += ", xml xml NOT NULL"  # noqa: PLW2901
            connection.execute(f"CREATE TABLE public.{name} ({columns})".encode())
        routes = [
            {"name": name, "topic": make_topic(4), "table": f"public.{name}", **keys}
            for name, (_, keys, _) in ROUTES.items()
        ]
        daemon = make_daemon(*routes)
        for name in ROUTES:
            done = daemon.command("produce", name, "--generate", str(COUNT), "--seed", "7")
            assert (done.returncode, done.stderr) == (0, "")
            assert f"{COUNT} records acknowledged\n" in done.stdout
        daemon.start().wait_ready()
        wait_all_taken(connection, [f"public.{name}" for name in ROUTES], COUNT)
        for name, (_, _, holds) in ROUTES.items():
            rows = connection.execute(f"SELECT count(*) FROM public.{name} WHERE {holds}".encode()).fetchall()
            assert rows == [(COUNT,)], name
    assert daemon.stop() == 0


def _has_libxml(connection: psycopg.Connection) -> bool:
    """Say whether the server was built with it: else PostgreSQL takes no value of the type xml."""
    try:
        connection.execute("SELECT xml '<a/>'")
    except psycopg.errors.FeatureNotSupported:
        return False
    return True
