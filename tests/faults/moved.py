"""Scenarios: progress is moved, lost or renamed by people, a file is sent again, a table gets row security.

What cannot be made right is refused: then the daemon ends, or halts, and the table is as it was. Nothing comes twice,
and nothing is left out, in silence.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import orjson
import psycopg
from psycopg.conninfo import make_conninfo

from tests.faults.oracle import Unbalanced, value
from tests.faults.postgres_wire import following, message, of_batch, statement
from tests.faults.stage import Stage, fail_unless, has_said
from tests.fix_daemon import wait_until


def one_partition_missing(stage: Stage) -> None:
    """The progress of one partition is gone, its neighbours' is there: refused, until somebody puts it back."""
    oracle = stage.oracle(partitions=3)
    for partition in range(3):
        stage.send(oracle, 50, partition)
    daemon = stage.daemon().start()
    stage.settle(daemon)
    fail_unless(daemon.stop() == 0, "the daemon did not stop")
    stage.execute("CREATE TABLE public.saved AS SELECT * FROM kbatchd.progress WHERE partition = 1")
    stage.execute("DELETE FROM kbatchd.progress WHERE partition = 1")
    stage.send(oracle, 5, partition=1)
    daemon.start()
    stage.settle(daemon)
    stage.execute("INSERT INTO kbatchd.progress SELECT * FROM public.saved ON CONFLICT DO NOTHING")
    stage.check()


def renamed(stage: Stage, what: str) -> None:
    """The pipeline, or the route, has another name in the file than in the progress."""
    oracle = stage.oracle()
    oracle.route = "before"
    stage.send(oracle, 200)
    daemon = stage.daemon().start()
    stage.settle(daemon)
    fail_unless(daemon.stop() == 0, "the daemon did not stop")
    text = daemon.config.read_text()
    other = {"pipeline": f'pipeline = "other"\n{text}', "route": text.replace('name = "before"', 'name = "after"')}
    daemon.config.write_text(other[what])
    daemon.start()
    wait_until(lambda: daemon.has_ended() or len(oracle.books().rows) > 200, 30, "a refusal, or everything again")
    stage.check()


def set_while_a_flush_is_under_way(stage: Stage) -> None:
    """`progress set` waits for a flush that moves the same line: the ledger says from where it was moved."""
    oracle = stage.oracle()
    stage.send(oracle, 100)
    daemon = stage.daemon().start()
    stage.settle(daemon)
    commit = stage.postgres_wire.hold_before(following(statement("UPDATE kbatchd.progress AS p"), statement("^COMMIT")))
    stage.send(oracle, 100)
    commit.wait()
    with ThreadPoolExecutor() as pool:
        moved = pool.submit(stage.command, daemon, "progress", "set", oracle.topic, "0", "200")
        blocked = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ILIKE '%kbatchd.progress%'"
        wait_until(lambda: moved.done() or stage.execute(blocked), 30, "a wait for the flush's lock")
        commit.lift()
        fail_unless(moved.result().returncode == 0, moved.result().stderr)
    stage.settle(daemon)
    stage.check()


def set_back_while_a_flush_begins(stage: Stage) -> None:
    """Somebody deletes rows and sets progress back to have them again, while a flush is about to send its rows."""
    oracle = stage.oracle()
    stage.send(oracle, 100)
    daemon = stage.daemon().start()
    stage.settle(daemon)
    rows = stage.postgres_wire.hold_before(of_batch(message("d")))
    stage.send(oracle, 100)
    rows.wait()
    stage.execute(f'DELETE FROM {oracle.table} WHERE "offset" >= 50')
    moved = stage.command(daemon, "progress", "set", oracle.topic, "0", "50")
    rows.lift()
    fail_unless(moved.returncode == 0, moved.stderr)
    stage.settle(daemon)
    stage.check()


def a_file_sent_again(stage: Stage) -> None:
    """`produce --resume`, when Kafka has forgotten how far the file was sent: refused."""
    oracle = stage.oracle()
    daemon = stage.daemon().start()
    file = daemon.config.with_name("records.ndjson")
    file.write_bytes(b"".join(value(seq) + b"\n" for seq in stage.take_numbers(500)))
    sent = stage.command(daemon, "produce", oracle.topic, str(file))
    fail_unless(sent.returncode == 0, sent.stderr)
    admin = stage.brokers.admin()
    listing = admin.list_consumer_groups()
    groups = [group.group_id for group in listing.result().valid if group.group_id.startswith("kbatchd-produce-")]
    fail_unless(groups, "no group remembers the file")
    for deleted in admin.delete_consumer_groups(groups).values():
        deleted.result()
    stage.command(daemon, "produce", oracle.topic, str(file), "--resume")
    stage.settle(daemon)
    stage.check()


def row_security_switched_on(stage: Stage) -> None:
    """A running upsert's table gets row security: deletes find no row then, and say nothing."""
    topic = stage.brokers.make_topic()
    stage.execute("CREATE TABLE public.latest (id bigint PRIMARY KEY, note text)")
    [(database, role)] = stage.execute("SELECT current_database(), 'writer_' || left(md5(random()::text), 8)")
    stage.execute(f"CREATE ROLE {role} LOGIN")
    stage.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA kbatchd, public TO {role}")
    stage.execute(f"GRANT USAGE ON SCHEMA kbatchd TO {role}; GRANT TEMPORARY ON DATABASE {database} TO {role}")
    upsert = {"mode": "upsert", "key": ["id"], "delete_when": {"field": "op", "equals": "d"}}
    dsn = make_conninfo(stage.through, user=str(role))
    daemon = stage.daemon({"topic": topic, "table": "public.latest", **upsert}, postgres={"dsn": dsn}).start()
    try:
        stage.send_values(topic, [orjson.dumps({"id": key, "note": "x", "op": "c"}) for key in range(3)])
        wait_until(lambda: stage.execute("SELECT count(*) FROM public.latest") == [(3,)], 30, "three rows")
        stage.execute("ALTER TABLE public.latest ENABLE ROW LEVEL SECURITY")
        stage.send_values(topic, [orjson.dumps({"id": key, "op": "d"}) for key in range(3)])
        stood = "SELECT next_offset FROM kbatchd.progress"
        wait_until(lambda: stage.execute(stood) == [(6,)] or has_said(daemon), 30, "progress, or a reason")
        left = stage.execute("SELECT id FROM public.latest")
        if left and stage.execute(stood) == [(6,)]:
            raise Unbalanced(f"deleted in the topic, and in the table: {left}")
    finally:
        daemon.clean_up()
        with psycopg.connect(stage.dsn, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
