"""assignment = "group": Kafka shares the partitions among daemons that come and go."""

from __future__ import annotations

import os
import signal
from contextlib import closing

from confluent_kafka import Consumer

from tests.fix_daemon import Daemon, MakeDaemon, wait_until
from tests.fix_load import Delivery

GROUP = {"assignment": "group"}


def test_daemons_of_a_group_share_and_give_up_only_what_moves(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    first = make_daemon(delivery.route, kafka=GROUP, workers={"count": 1}).start()
    second = make_daemon(config=first.config)
    with delivery.load(per_second=2_000):
        wait_until(lambda: len(claims(delivery)) == 4, 30, "the first owner")
        before = claims(delivery)

        # When: another one comes,
        second.start()
        wait_until(lambda: len(owners(delivery)) == 2 and moves_everywhere(delivery), 30, "two owners")

        # Then: what stays is not even claimed again.
        after = claims(delivery)
        assert len(before.items() & after.items()) == 2

        # And: one leaves in good order, the other goes on with all of them.
        assert first.stop() == 0
        wait_until(lambda: owners(delivery) == set(second.workers()), 30, "all partitions to move")
    delivery.wait_drained()
    delivery.assert_exactly_once()
    assert second.stop() == 0
    assert not owners(delivery)


def test_one_that_is_frozen_and_one_that_is_killed_are_taken_over(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    frozen = make_daemon(delivery.route, kafka=GROUP, workers={"count": 1}).start()
    killed, third = (make_daemon(config=frozen.config).start() for _ in range(2))
    with delivery.load(per_second=1_000):
        daemons = [frozen, killed, third]
        wait_until(lambda: len(owners(delivery)) == 3 and all(map(claimed, daemons)), 30, "three owners")

        # When: one is frozen with all its sessions, and one is gone.
        frozen.send_to_all(signal.SIGSTOP)
        frozen.wait_stopped()
        killed.kill()

        # Then: the third has all of it, and the frozen one is not waited for.
        wait_until(lambda: owners(delivery) == set(third.workers()), 30, "one owner")
        wait_until(lambda: moves_everywhere(delivery), 30, "all partitions to move")
        assert third.logged("action=silent_owner")

        # And: it comes back, and is given something again.
        frozen.send_to_all(signal.SIGCONT)
        wait_until(lambda: len(owners(delivery)) == 2 and moves_everywhere(delivery), 30, "two owners")
    delivery.wait_drained()
    delivery.assert_exactly_once()


def test_the_newer_group_protocol(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    first = make_daemon(delivery.route, kafka={**GROUP, "group_protocol": "consumer"}).start()
    second = make_daemon(config=first.config).start()
    with delivery.load(per_second=2_000):
        wait_until(lambda: claimed(first) and claimed(second), 30, "claims of both daemons")
        wait_until(lambda: delivery.rows() > 2_000, 15, "rows of both")
        assert first.stop() == 0
        wait_until(lambda: owners(delivery) == set(second.workers()), 30, "all partitions to move")
        assert first.logged("consumer_session_timeout_ms=45000"), "who starts is told of the brokers' timeouts"
    delivery.wait_drained()
    delivery.assert_exactly_once()


def test_from_pinned_to_a_group_and_back(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(delivery.route, kafka={"assignment": "pinned"}).start()
    text = daemon.config.read_text()
    daemon.wait_ready()
    with delivery.load(per_second=1_000):
        for turn, assignment in enumerate(("group", "pinned"), 1):
            before = owners(delivery)
            daemon.config.write_text(text.replace('"pinned"', f'"{assignment}"'))
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log("action=reloaded", 30, count=turn)
            wait_until(lambda before=before: len(owners(delivery) - before) == 2, 30, "two other owners")  # type: ignore[misc]
            wait_until(lambda: moves_everywhere(delivery), 30, "all partitions to move")
    delivery.wait_drained()
    delivery.assert_exactly_once()
    assert not daemon.logged("action=fenced")


def test_another_program_in_the_group(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(delivery.route, kafka={**GROUP, "group_id": delivery.topic}, workers={"count": 1})
    mine = {"bootstrap.servers": delivery.bootstrap_servers, "group.id": delivery.topic, "client.id": "reports"}
    with closing(Consumer(mine)) as other:  # it shares by range, as most do
        other.subscribe([delivery.topic])
        wait_until(lambda: other.poll(0.1) or other.assignment(), 30, "the other program's partitions")
        daemon.start()
        daemon.wait_for_log("reports on 127.0.0.1: none of this pipeline's workers", 20)
        daemon.wait_for_log("action=group_refused", 20)
        checked = daemon.command("check")
        assert f"in group {delivery.topic}, which shares by range and takes nobody who does not" in checked.stdout
    delivery.send(100)
    delivery.wait_drained()
    delivery.assert_exactly_once()


def claimed(daemon: Daemon) -> list[str]:
    return daemon.logged("action=claim")


def claims(delivery: Delivery) -> dict[int, tuple[object, object]]:
    """Return who has each partition that was claimed, and under which epoch."""
    rows = delivery.query("SELECT partition, pid, epoch FROM kbatchd.progress WHERE pid IS NOT NULL")
    return {number: (pid, epoch) for number, pid, epoch in rows if isinstance(number, int)}


def owners(delivery: Delivery) -> set[object]:
    """Return the workers that have partitions, and whose sessions are there."""
    statement = "SELECT DISTINCT p.pid FROM kbatchd.progress AS p JOIN pg_stat_activity AS a ON a.pid = p.backend_pid"
    return {pid for (pid,) in delivery.query(statement)}


def moves_everywhere(delivery: Delivery) -> bool:
    """Tell whether every partition's progress has moved in the last two seconds."""
    statement = "SELECT bool_and(updated_at > clock_timestamp() - interval '2 seconds') FROM kbatchd.progress"
    return delivery.query(statement) == [(True,)]
