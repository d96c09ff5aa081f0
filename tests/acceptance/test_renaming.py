"""A name is an identity: the operator is told of a rename before anything is read again."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import psycopg
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from kbatchd.devstack.kafka import Kafka
from tests.fix_daemon import Daemon, MakeDaemon
from tests.fix_kafka import MakeTopic, wait_for_leaders
from tests.fix_load import Delivery

RECORDS = 400


def edit(daemon: Daemon, *changes: tuple[str, str]) -> None:
    """Change the file, as an operator does."""
    text = daemon.config.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    daemon.config.write_text(text)


def rename_pipeline(daemon: Daemon, name: str = "renamed") -> None:
    text = daemon.config.read_text()
    daemon.config.write_text(f'pipeline = "{name}"\n{text}')


def rename_route(daemon: Daemon, delivery: Delivery, name: str = "api") -> None:
    edit(daemon, (f'name = "{delivery.topic}"', f'name = "{name}"'))


def filled(make_daemon: MakeDaemon, delivery: Delivery) -> Daemon:
    """Run a daemon until everything is in the table, and stop it."""
    delivery.send(RECORDS)
    daemon = make_daemon(delivery.route).start()
    delivery.wait_drained()
    assert daemon.stop() == 0
    return daemon


def refusal(daemon: Daemon) -> str:
    """Start the daemon, which must not start; return why."""
    assert daemon.start().wait(30) == 78
    (line,) = daemon.logged("action=check_failed")
    return line


@pytest.mark.parametrize("what", ["pipeline", "route", "both"])
def test_a_renamed_daemon_does_not_start_until_its_progress_is_renamed(
    make_daemon: MakeDaemon, delivery: Delivery, what: str
) -> None:
    # Given: all is in the table, beside a dead letter.
    delivery.execute(f"ALTER TABLE {delivery.table} ADD CHECK (seq <> 7)")
    daemon = filled(make_daemon, delivery)
    ledger = delivery.query("SELECT count(*) FROM kbatchd.batches")
    letters = delivery.query("SELECT count(*) FROM kbatchd.dead_letters")
    assert letters == [(delivery.partitions,)]

    # When: somebody gives the pipeline, the route, or both another name.
    if what in {"pipeline", "both"}:
        rename_pipeline(daemon)
    if what in {"route", "both"}:
        rename_route(daemon, delivery)
    route = "api" if what in {"route", "both"} else delivery.topic

    # Then: the start and the check refuse, name who has read it, and both ways out.
    line = refusal(daemon)
    assert f"kbatchd/{delivery.topic}" in line
    assert "read_again" in line
    command = line.partition("`kbatchd ")[2].partition("`")[0].replace("--config FILE ", "").split()
    check = daemon.command("check")
    assert check.returncode == 78
    assert "kbatchd progress rename" in check.stdout
    assert delivery.rows() == RECORDS - delivery.partitions

    # When: the command of the message is given.
    done = daemon.command(*command)
    assert done.returncode == 0, done.stderr
    pipeline = "kbatchd" if what == "route" else "renamed"
    assert f"kbatchd/{delivery.topic} is {pipeline}/{route} now" in done.stdout

    # Then: all that was kept has the new name, the epochs are higher, and nothing goes in twice.
    for table in ("progress", "dead_letters", "batches"):
        assert delivery.query(f"SELECT DISTINCT pipeline, route FROM kbatchd.{table}") == [(pipeline, route)]
    assert delivery.query("SELECT count(*) FROM kbatchd.batches WHERE reason <> 'rename'") == ledger
    assert delivery.query("SELECT DISTINCT epoch, owner FROM kbatchd.progress") == [(2, None)]
    daemon.start().wait_ready()
    delivery.send(100, first=1_000)
    now = replace(delivery, name=route)
    now.wait_drained()
    now.assert_exactly_once()
    assert daemon.stop() == 0


def test_reading_again_is_said_in_the_file(make_daemon: MakeDaemon, delivery: Delivery) -> None:
    daemon = filled(make_daemon, delivery)
    rename_route(daemon, delivery)
    assert "action=check_failed" in refusal(daemon)
    edit(daemon, ("[[route]]", f'[[route]]\nread_again = ["kbatchd/{delivery.topic}"]'))
    now = replace(delivery, name="api")
    daemon.start().wait_ready()
    now.wait_drained()
    assert delivery.rows() == 2 * RECORDS
    assert not daemon.logged("action=read_twice")
    assert daemon.stop() == 0

    # What was said once is for that name only: another new name is refused again.
    edit(daemon, ('name = "api"', 'name = "third"'))
    line = refusal(daemon)
    assert "kbatchd/api" in line
    assert f"kbatchd/{delivery.topic}" not in line
    # And a route that has begun goes on without the key, with a warning.
    edit(daemon, ('name = "third"', 'name = "api"'), (f'read_again = ["kbatchd/{delivery.topic}"]\n', ""))
    daemon.start().wait_ready()
    assert daemon.logged("action=read_twice")
    assert daemon.stop() == 0
    assert delivery.rows() == 2 * RECORDS


def test_a_name_that_another_topics_route_has_by_now_is_a_former_one(
    make_daemon: MakeDaemon, delivery: Delivery, make_topic: MakeTopic
) -> None:
    filled(make_daemon, delivery)
    renamed = {**delivery.route, "name": "api"}
    taken = {**delivery.route, "name": delivery.topic, "topic": make_topic(1)}
    daemon = make_daemon(renamed, taken)
    line = refusal(daemon)
    assert f"kbatchd/{delivery.topic}" in line
    assert f"progress rename --config FILE api --from-route {delivery.topic}`" in line
    done = daemon.command("progress", "rename", "api", "--from-route", delivery.topic)
    assert done.returncode == 0, done.stderr
    daemon.start().wait_ready()
    assert daemon.stop() == 0
    assert delivery.rows() == RECORDS


def test_a_reload_with_a_renamed_route_is_refused(make_daemon: MakeDaemon, delivery: Delivery) -> None:
    delivery.send(RECORDS)
    daemon = make_daemon(delivery.route).start()
    delivery.wait_drained()
    rename_route(daemon, delivery)
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait_for_log("action=reload_refused", 30)
    assert "progress rename" in daemon.logged("action=check_failed")[0]

    # Nor is the progress renamed while the daemon holds it, whatever it is called; and the daemon goes on.
    done = daemon.command("progress", "rename", "api", "--from-route", delivery.topic)
    assert done.returncode == 78
    assert "stop" in done.stderr
    assert f"pid {daemon.workers()[0]}" in done.stderr or "a daemon reads under" in done.stderr
    delivery.send(100, first=1_000)
    delivery.wait_drained()
    delivery.assert_exactly_once()
    assert daemon.stop() == 0


def test_a_frozen_daemon_writes_nothing_after_a_rename(
    make_daemon: MakeDaemon, delivery: Delivery, database: str
) -> None:
    # Given: a daemon that stands still, and whose sessions are gone: its locks are free, and it does not know.
    delivery.send(RECORDS)
    daemon = make_daemon(delivery.route).start()
    delivery.wait_drained()
    daemon.send_to_all(signal.SIGSTOP)
    daemon.wait_stopped()
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name LIKE 'kbatchd worker%' AND datname = current_database()"
        )
    delivery.send(100, first=1_000)
    other = make_daemon({**delivery.route, "name": "api"})
    done = other.command("progress", "rename", "api", "--from-route", delivery.topic)
    assert done.returncode == 0, done.stderr

    # When: it wakes up, while another reads under the new name.
    now = replace(delivery, name="api")
    daemon.send_to_all(signal.SIGCONT)
    other.start().wait_ready()
    daemon.wait_for_log("is gone from kbatchd.progress", 30)
    now.wait_drained()
    now.assert_exactly_once()
    assert other.stop() == 0


def test_who_may_share_a_table(make_daemon: MakeDaemon, delivery: Delivery, own_kafka: Kafka) -> None:
    """Two routes of one file, another topic, and another cluster's topic of the same name are no renamed route."""
    delivery.send(RECORDS)
    twice = {**delivery.route, "name": "twice"}
    daemon = make_daemon(delivery.route, twice).start()
    daemon.wait_ready()
    delivery.wait_drained()
    replace(delivery, name="twice").wait_drained()
    assert daemon.stop() == 0
    assert delivery.rows() == 2 * RECORDS
    # One of the two is taken out: the other goes on.
    edit(daemon, ('name = "twice"', 'name = "twice"\nstart = "earliest"'))
    alone = make_daemon(delivery.route).start()
    alone.wait_ready()
    assert alone.stop() == 0

    elsewhere = _same_topic_on(own_kafka, delivery)
    far = make_daemon(
        {**delivery.route, "name": "far"}, kafka={"bootstrap_servers": own_kafka.bootstrap_servers}
    ).start()
    far.wait_ready()
    replace(elsewhere, name="far").wait_drained()
    assert far.stop() == 0
    assert delivery.rows() == 2 * RECORDS + 20


def _same_topic_on(own_kafka: Kafka, delivery: Delivery) -> Delivery:
    admin = AdminClient({"bootstrap.servers": own_kafka.bootstrap_servers})
    admin.create_topics([NewTopic(delivery.topic, delivery.partitions, 1)])[delivery.topic].result()
    wait_for_leaders(admin, delivery.topic, delivery.partitions)
    elsewhere = replace(delivery, bootstrap_servers=own_kafka.bootstrap_servers)
    elsewhere.send(20)
    return elsewhere
