"""`kbatchd verify`: what is missing or doubled is found and named, whatever it is, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.fix_load import Delivery, value

if TYPE_CHECKING:
    from tests.fix_daemon import Command, Daemon, MakeDaemon
    from tests.fix_load import MakeDelivery

#: With columns that say where a row is from; one value is refused.
PLACED = """
CREATE TABLE public.placed (
    id bigint GENERATED ALWAYS AS IDENTITY, partition int NOT NULL, seq bigint NOT NULL CHECK (seq <> 7),
    topic text NOT NULL, kafka_partition int NOT NULL, kafka_offset bigint NOT NULL)
"""
COLUMNS = {
    "topic": {"source": "topic"},
    "kafka_partition": {"source": "partition"},
    "kafka_offset": {"source": "offset"},
}
PARTITIONS = 2

Verify = Callable[..., tuple[int, dict[tuple[str, int], Any]]]


@pytest.fixture
def filled(make_delivery: MakeDelivery, make_daemon: MakeDaemon) -> tuple[Delivery, Daemon]:
    """A topic with transactions, every other one aborted, and a few dead letters, in two tables."""
    plain = replace(make_delivery(PARTITIONS, "public.plain"), name="plain")
    placed = replace(plain, table="public.placed", name="placed")
    placed.execute(PLACED)
    producer = Producer({"bootstrap.servers": plain.bootstrap_servers, "transactional.id": plain.topic})
    producer.init_transactions()
    for transaction in range(10):
        producer.begin_transaction()
        for seq in range(transaction * 20, transaction * 20 + 20):
            for partition in range(PARTITIONS):
                producer.produce(plain.topic, value(partition, seq), partition=partition)
        producer.flush(30)
        (producer.abort_transaction if transaction % 2 else producer.commit_transaction)()
    daemon = make_daemon(plain.route, {**placed.route, "columns": COLUMNS}, batch={"max_rows": 30}).start()
    daemon.wait_ready()
    for delivery in (plain, placed):
        delivery.wait_drained()
    return placed, daemon


@pytest.fixture
def verify(filled: tuple[Delivery, Daemon], command: Command) -> Verify:
    """Run the command; return its exit code, and what it says of each route and partition."""
    _, daemon = filled

    def run(*arguments: str) -> tuple[int, dict[tuple[str, int], Any]]:
        code, said = command(daemon, "verify", "--json", *arguments)
        shown = json.loads(said)
        assert shown["fine"] == (code == 0)
        return code, {
            (route["route"], each["partition"]): each for route in shown["routes"] for each in route["partitions"]
        }

    return run


def test_all_is_there_beside_markers_and_dead_letters(
    filled: tuple[Delivery, Daemon], verify: Verify, command: Command
) -> None:
    placed, daemon = filled
    code, found = verify()
    assert code == 0
    assert {each["verdict"] for each in found.values()} == {"fine"}
    assert [(each["records"], each["rows"], each["dead_letters"]) for each in found.values()] == [
        (100, None, 0), (100, None, 0), (100, 99, 1), (100, 99, 1),
    ]  # fmt: skip
    assert all(each["end"] > 200 for each in found.values()), "aborted records and markers"

    # The daemon has not noticed: nobody was fenced, and it goes on.
    placed.send(5, first=1_000)
    placed.wait_drained()
    warnings = daemon.logged(" WARNING ")
    assert warnings == daemon.logged("action=dead_letters"), "nobody was fenced"
    assert verify("placed")[1]["placed", 1]["records"] >= 102

    # A letter that was replayed is a row; for people there is a table.
    placed.execute("ALTER TABLE public.placed DROP CONSTRAINT placed_seq_check")
    assert command(daemon, "dead-letters", "replay", "--route", "placed")[0] == 0
    assert verify("placed")[0] == 0
    code, said = command(daemon, "verify", "placed")
    assert (code, [line.split("\t")[-1] for line in said.splitlines()[:3]]) == (0, ["verdict", "fine", "fine"])


def test_a_restored_table_is_found(filled: tuple[Delivery, Daemon], verify: Verify) -> None:
    """Rows that are missing and rows that are there twice, while Kafka has them and when it has them no more."""
    placed, _ = filled
    ends = placed.ends()
    # Given: the table as it was before, without its newest rows.
    [(last,)] = placed.query("SELECT max(kafka_offset) FROM public.placed WHERE kafka_partition = 0")
    assert isinstance(last, int)
    placed.execute("CREATE TABLE public.whole AS TABLE public.placed")
    placed.execute(f"DELETE FROM public.placed WHERE kafka_partition = 0 AND kafka_offset >= {last} - 4")
    code, found = verify()
    assert code == 3
    assert found["placed", 0]["verdict"] == "missing"
    assert [found["placed", 0]["missing"], found["placed", 1]["missing"]] == [[[last - 4, last + 1]], []]
    assert {found[key]["verdict"] for key in (("placed", 1), ("plain", 0), ("plain", 1))} == {"fine"}

    # The same rows twice, and one that progress has not come to.
    again = "INSERT INTO public.placed OVERRIDING SYSTEM VALUE SELECT * FROM public.whole WHERE kafka_partition = 0"
    for _ in range(2):
        placed.execute(f"{again} AND kafka_offset >= {last} - 4")
    code, found = verify("placed")
    assert (code, found["placed", 0]["verdict"], found["placed", 0]["doubled"]) == (
        3,
        "doubled",
        [[last - 4, last + 1]],
    )
    placed.execute("TRUNCATE public.placed")
    placed.execute("INSERT INTO public.placed OVERRIDING SYSTEM VALUE TABLE public.whole")
    assert verify("placed")[0] == 0
    placed.execute(
        "INSERT INTO public.placed (partition, seq, topic, kafka_partition, kafka_offset) "
        f"SELECT 1, 1, '{placed.topic}', 1, {ends[1]}"
    )
    code, found = verify("placed")
    assert (code, found["placed", 1]["verdict"]) == (3, "doubled")
    placed.execute(f"DELETE FROM public.placed WHERE kafka_partition = 1 AND kafka_offset = {ends[1]}")

    # Kafka has only the last records any more: the ledger's counts tell of the others, and without it nobody can.
    admin = AdminClient({"bootstrap.servers": placed.bootstrap_servers})
    marks = [TopicPartition(placed.topic, number, last - 5) for number in range(PARTITIONS)]
    for future in admin.delete_records(marks).values():
        future.result()
    code, found = verify()
    assert code == 0, found
    assert {each["compared"][0] for each in found.values()} == {last - 5}
    assert all("no more" in each["unknown"][0] for each in found.values())
    placed.execute("DELETE FROM public.placed WHERE kafka_partition = 1 AND kafka_offset = 3")
    code, found = verify("placed")
    assert (code, found["placed", 1]["verdict"], found["placed", 1]["missing"]) == (3, "missing", [])
    assert "rows of" in found["placed", 1]["lost"][0]
    placed.execute("DELETE FROM kbatchd.batches")
    assert verify()[0] == 0


def test_the_ledger_is_compared(filled: tuple[Delivery, Daemon], verify: Verify, command: Command) -> None:
    placed, daemon = filled
    assert daemon.stop() == 0
    lines = placed.query("SELECT id FROM kbatchd.batches WHERE route = 'plain' AND rows > 1 ORDER BY id")

    # A line that has written less than Kafka has, and more.
    for change, verdict in (("- 1", "missing"), ("+ 1", "doubled")):
        placed.execute("CREATE TABLE public.kept AS TABLE kbatchd.batches")
        placed.execute(f"UPDATE kbatchd.batches SET rows = rows {change} WHERE id = {lines[0][0]}")
        code, found = verify()
        assert (code, {found["plain", number]["verdict"] for number in range(PARTITIONS)} - {"fine"}) == (3, {verdict})
        assert {found["placed", number]["verdict"] for number in range(PARTITIONS)} == {"fine"}
        restore(placed)

    # A line that is gone: without columns in the table nobody knows that its records were written.
    [_, (middle,), *_] = placed.query(
        "SELECT id FROM kbatchd.batches WHERE route = 'plain' AND rows > 1 AND spans -> %s ? '0' ORDER BY id",
        placed.topic,
    )
    placed.execute(f"DELETE FROM kbatchd.batches WHERE id = {middle}")
    code, found = verify("plain")
    assert code == 3
    texts = [text for each in found.values() for text in each["lost"]]
    assert texts
    assert all(text.startswith("no line of the ledger has") for text in texts)

    # Progress of a backup that is older than the ledger: its records will come again.
    before = placed.query("SELECT next_offset FROM kbatchd.progress WHERE route = 'placed' AND partition = 0")
    placed.execute("UPDATE kbatchd.progress SET next_offset = 20 WHERE route = 'placed' AND partition = 0")
    code, found = verify("placed")
    assert (code, found["placed", 0]["verdict"], found["placed", 1]["verdict"]) == (3, "doubled", "fine")
    assert any("come again" in text for text in found["placed", 0]["twice"])
    placed.execute(f"UPDATE kbatchd.progress SET next_offset = {before[0][0]} WHERE route = 'placed' AND partition = 0")

    # What was skipped by hand is told, and is no loss.
    assert command(daemon, "progress", "set", "placed", "0", "0")[0] == 0
    assert verify("placed")[1]["placed", 0]["verdict"] == "doubled"
    assert command(daemon, "progress", "set", "placed", "0", str(before[0][0]))[0] == 0
    code, found = verify("placed")
    assert (code, found["placed", 0]["verdict"]) == (0, "fine")
    assert found["placed", 0]["passed_over"] == [[0, before[0][0]]]

    # Progress of one partition is gone.
    placed.execute("DELETE FROM kbatchd.progress WHERE route = 'placed' AND partition = 1")
    code, found = verify("placed", "--since", "2020-01-01T00:00:00Z")
    assert (code, found["placed", 0]["verdict"], found["placed", 1]["verdict"]) == (3, "fine", "missing")


def restore(placed: Delivery) -> None:
    placed.execute(
        "DELETE FROM kbatchd.batches; INSERT INTO kbatchd.batches OVERRIDING SYSTEM VALUE TABLE public.kept; "
        "DROP TABLE public.kept"
    )
