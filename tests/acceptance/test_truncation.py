"""An unclean leader election: the follower's log takes the leader's place, and has other records at the same offsets.

Leader and follower have 500 records, the leader alone 500 more, which are read. Then the follower leads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.stage import Stage, route
from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.brokers import Brokers
    from tests.faults.oracle import Oracle
    from tests.faults.postgres_wire import PostgresWire
    from tests.fix_daemon import Daemon, MakeDaemon

#: An election among these brokers, then the daemon's questions.
NOTICED_SECONDS = 60.0


@pytest.fixture
def stage(two_brokers: Brokers, database: str, postgres_wire: PostgresWire, make_daemon: MakeDaemon) -> Stage:
    return Stage(two_brokers, database, postgres_wire, make_daemon)


def a_topic(stage: Stage) -> Oracle:
    return stage.oracle(replicas=(1, 2), unclean_leader_election_enable="true")


def read_what_only_the_leader_has(stage: Stage, oracle: Oracle, start: Callable[[], Daemon]) -> Daemon:
    """Fill and read the topic: 500 records of both brokers, and 500 of the first alone."""
    stage.send(oracle, 500)
    wait_until(lambda: stage.brokers.in_sync(oracle.topic) == {1, 2}, 30, "both to have it all")
    stage.brokers.kill(2)
    wait_until(lambda: stage.brokers.in_sync(oracle.topic) == {1}, 30, "the leader to be alone")
    stage.send(oracle, 500)
    daemon = start()
    wait_until(lambda: rows(stage, oracle) == 1_000, 30, "what the leader has")
    return daemon


def let_the_follower_lead(stage: Stage, oracle: Oracle) -> None:
    oracle.remember()
    stage.brokers.kill(1)
    stage.brokers.start(2)
    stage.brokers.elect(oracle.topic)
    stage.brokers.wait_for_leader(oracle.topic, 2)


def rows(stage: Stage, oracle: Oracle) -> object:
    return stage.execute(f"SELECT count(*) FROM {oracle.table}")[0][0]


def gaps(stage: Stage) -> list[tuple[object, ...]]:
    return stage.execute("SELECT route, kind, first_offset, last_offset FROM kbatchd.gaps ORDER BY id")


@pytest.mark.parametrize(
    ("running", "new"),
    [
        pytest.param(True, 1_500, id="running-longer"),
        pytest.param(True, 300, id="running-shorter", marks=pytest.mark.soak),
        pytest.param(False, 1_500, id="stopped-longer", marks=pytest.mark.soak),
        pytest.param(False, 300, id="stopped-shorter"),
    ],
)
def test_what_stands_in_the_log_now_is_read(stage: Stage, running: bool, new: int) -> None:
    oracle = a_topic(stage)
    daemon = stage.daemon(route(oracle, on_gap="record"), batch={"linger_seconds": 0.1})
    read_what_only_the_leader_has(stage, oracle, daemon.start)
    if not running:
        assert daemon.stop() == 0
    let_the_follower_lead(stage, oracle)
    stage.send(oracle, new)
    if not running:
        daemon.start()

    # Then: where the logs part is named, and what stands there now is read.
    wait_until(lambda: rows(stage, oracle) == 1_000 + new, NOTICED_SECONDS, "the new records")
    stage.settle(daemon)
    assert gaps(stage) == [(oracle.topic, "truncation", 500, 1_000)]
    assert rows(stage, oracle) == 1_000 + new
    stage.check()


def test_it_halts_until_it_is_accepted(stage: Stage) -> None:
    oracle = a_topic(stage)
    daemon = stage.daemon(route(oracle), batch={"linger_seconds": 0.1})
    read_what_only_the_leader_has(stage, oracle, daemon.start)
    let_the_follower_lead(stage, oracle)
    stage.send(oracle, 1_500)

    # Then: it halts, and names where the logs part.
    daemon.wait_for_log("action=halt", NOTICED_SECONDS)
    assert daemon.logged(f"{oracle.topic}[0]: its log was truncated at 500")
    assert rows(stage, oracle) == 1_000

    # And: once accepted it reads on from there.
    accepted = stage.command(daemon, "progress", "accept", oracle.topic)
    assert "truncated at 500" in accepted.stdout, accepted.stderr
    wait_until(lambda: rows(stage, oracle) == 2_500, NOTICED_SECONDS, "the new records")
    assert gaps(stage) == [(oracle.topic, "truncation", 500, 1_000)]
    stage.check()


@pytest.mark.soak
def test_each_route_of_a_topic_finds_it(stage: Stage) -> None:
    """Of two routes the one that is behind is asked about first; what the other has read is another log's as well."""
    oracle = a_topic(stage)
    behind = stage.oracle(topic=oracle.topic)
    behind.route = "behind"
    ahead = route(oracle, on_gap="record", name="ahead")
    oracle.route = "ahead"
    daemon = stage.daemon(ahead, route(behind, on_gap="record"), batch={"linger_seconds": 0.1})

    def start() -> Daemon:
        daemon.start()
        wait_until(lambda: rows(stage, behind) == 1_000, 30, "both routes to have all")
        return daemon

    read_what_only_the_leader_has(stage, oracle, start)
    assert daemon.stop() == 0
    set_back = stage.command(daemon, "progress", "set", "behind", "0", "100")
    assert set_back.returncode == 0, set_back.stderr
    stage.execute(f'DELETE FROM {behind.table} WHERE "offset" >= 100')
    let_the_follower_lead(stage, oracle)
    behind.remember()
    stage.send(oracle, 1_500)
    daemon.start()

    wait_until(lambda: rows(stage, oracle) == 2_500, NOTICED_SECONDS, "the new records of the one ahead")
    wait_until(lambda: rows(stage, behind) == 2_000, NOTICED_SECONDS, "all records of the one behind")
    assert gaps(stage) == [("ahead", "truncation", 500, 1_000)]


def test_an_election_that_loses_nothing_is_no_gap(stage: Stage) -> None:
    oracle = a_topic(stage)
    daemon = stage.daemon(route(oracle), batch={"linger_seconds": 0.1}).start()
    for leader in (2, 1, 2):
        stage.send(oracle, 100)
        wait_until(lambda: stage.brokers.in_sync(oracle.topic) == {1, 2}, 30, "both to have it all")
        stage.brokers.stop(3 - leader)
        stage.brokers.wait_for_leader(oracle.topic, leader)
        stage.send(oracle, 100)
        stage.brokers.start(3 - leader)
    stage.settle(daemon)
    assert not daemon.logged("action=halt")
    assert not daemon.logged("action=truncated")
    [(epoch, epochs)] = stage.execute("SELECT leader_epoch, leader_epochs FROM kbatchd.progress")
    assert isinstance(epochs, list)
    assert epochs[-1][0] == epoch
    stage.check()

    # And: nothing that was read is left, and reading goes on.
    assert daemon.stop() == 0
    stage.delete_records(oracle, 600)
    stage.brokers.stop(1)
    stage.brokers.start(1)
    wait_until(lambda: stage.brokers.in_sync(oracle.topic) == {1, 2}, 30, "both to have it all")
    stage.send(oracle, 100)
    daemon.start()
    stage.settle(daemon)
    assert rows(stage, oracle) == 700
    stage.check()


def test_the_oracle_sees_what_is_behind_deleted_records(stage: Stage) -> None:
    oracle = stage.oracle()
    stage.send(oracle, 100)
    stage.delete_records(oracle, 50)
    stage.send(oracle, 10)
    assert [record.offset for record in oracle.edition().records] == list(range(50, 110))
