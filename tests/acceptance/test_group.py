"""assignment = "group": Kafka shares the partitions among daemons that come and go."""

from __future__ import annotations

from tests.fix_daemon import Daemon, MakeDaemon, wait_until
from tests.fix_load import Delivery

#: The shortest that a broker allows by default: after a kill, nobody reads those partitions for so long.
SESSION_SECONDS = 6


def test_two_daemons_of_a_group_share_and_take_over(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    kafka = {"assignment": "group", "librdkafka.session.timeout.ms": SESSION_SECONDS * 1000}
    first = make_daemon(delivery.route, kafka=kafka).start()
    second = make_daemon(config=first.config).start()
    with delivery.load(per_second=2_000):
        # Given: both have partitions, one for each of the four workers.
        wait_until(lambda: claimed(first) and claimed(second), 30, "claims of both daemons")
        wait_until(lambda: delivery.rows() > 2_000, 15, "rows of both")

        # When: one leaves in good order, the other goes on with all of them.
        claims = len(claimed(second))
        assert first.stop() == 0
        wait_until(lambda: len(claimed(second)) > claims and moves_everywhere(delivery), 30, "all partitions to move")

        # And: the first comes back, and the other is killed.
        first.start()
        wait_until(lambda: claimed(first), 30, "claims of the daemon that came back")
        second.kill()
        wait_until(lambda: moves_everywhere(delivery), 60, "all partitions to move after the kill")
    delivery.wait_drained()
    delivery.assert_exactly_once()
    assert first.stop() == 0


def test_the_newer_group_protocol(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    kafka = {"assignment": "group", "group_protocol": "consumer"}
    first = make_daemon(delivery.route, kafka=kafka).start()
    second = make_daemon(config=first.config).start()
    with delivery.load(per_second=2_000):
        wait_until(lambda: claimed(first) and claimed(second), 30, "claims of both daemons")
        wait_until(lambda: delivery.rows() > 2_000, 15, "rows of both")
        assert first.stop() == 0
        wait_until(lambda: moves_everywhere(delivery), 30, "all partitions to move")
    delivery.wait_drained()
    delivery.assert_exactly_once()


def claimed(daemon: Daemon) -> list[str]:
    return daemon.logged("action=claim")


def moves_everywhere(delivery: Delivery) -> bool:
    """Tell whether every partition's progress has moved in the last two seconds."""
    statement = "SELECT bool_and(updated_at > clock_timestamp() - interval '2 seconds') FROM kbatchd.progress"
    return delivery.query(statement) == [(True,)]
