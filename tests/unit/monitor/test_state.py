"""The monitor's figures, without servers: every metric as described, old answers shown as old."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kbatchd.config import Config
from kbatchd.model import FlushReason, Partition
from kbatchd.monitor.history import DAY_BIN_SECONDS, History
from kbatchd.monitor.lag import PartitionLag, PartitionState
from kbatchd.monitor.metrics import METRICS, Metrics
from kbatchd.monitor.state import Daemon
from kbatchd.monitor.watcher import STALE_SECONDS, Contact, View
from kbatchd.schema.overview import Bin, Claimed
from kbatchd.stats.histograms import FRESHNESS_SECONDS
from kbatchd.stats.slots import Field, Slots, State
from tests.records import Sent

DOCS = Path(__file__).parents[3] / "docs/monitor.md"


@pytest.fixture
def daemon() -> Daemon:
    config = Config.model_validate(
        {
            "kafka": {"bootstrap_servers": "localhost:9"},
            "postgres": {"dsn": "postgresql://localhost/x"},
            "route": [{"topic": "requests", "table": "public.requests"}],
            "workers": {"count": 2},
            "monitor": {},
        }
    )
    return Daemon(config, Slots({"gateway": 1, "worker": 2, "monitor": 1}, ["requests"]))


def view(kafka_age_seconds: float = 0.0) -> View:
    claimed = Claimed(
        "requests", "requests", "id", 3, 40, 1, "worker-0", "t", datetime.now(UTC), None, None, None, None, is_held=True
    )
    lag = PartitionLag(claimed, PartitionState.OK, 0, 100)
    oldest = {("requests", Partition("requests", 3)): time.time() - 5}
    now = time.time()
    return View(Contact(now), Contact(now - kafka_age_seconds), (claimed,), (lag,), oldest)


def scrape(daemon: Daemon, what: View) -> dict[str, dict[tuple[str, ...], float]]:
    registry = CollectorRegistry()
    registry.register(Metrics(daemon, lambda: what))
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_every_metric_is_described_and_documented(daemon: Daemon) -> None:
    registry = CollectorRegistry()
    registry.register(Metrics(daemon, view))
    text = generate_latest(registry).decode()
    shown = dict(re.findall(r"# HELP (\S+) (.*)", text))
    assert shown == {metric.name: metric.help for metric in METRICS}
    kinds = dict(re.findall(r"# TYPE (\S+) (.*)", text))
    assert kinds == {metric.name: metric.kind for metric in METRICS}
    documented = re.findall(r"^\| `(kbatchd_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", DOCS.read_text(), re.MULTILINE)
    assert documented == [
        (metric.name, metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help)
        for metric in METRICS
    ]


def test_lag_is_of_owned_partitions_only(daemon: Daemon) -> None:
    assert "kbatchd_lag_records" not in scrape(daemon, view())
    daemon.slots.of("worker")[1].routes["requests"].show_partitions({3, 4_000}, {4_000}, on_hold=False)
    figures = scrape(daemon, view())
    assert figures["kbatchd_lag_records"] == {("3", "requests", "requests"): 60}
    assert 5 <= figures["kbatchd_lag_seconds"]["3", "requests", "requests"] < 60
    assert figures["kbatchd_partitions_owned"] == {("requests",): 2}
    assert figures["kbatchd_partitions_halted"] == {("requests",): 1}


def test_lag_that_is_old_is_no_metric(daemon: Daemon) -> None:
    daemon.slots.of("worker")[0].routes["requests"].show_partitions({3}, set(), on_hold=False)
    figures = scrape(daemon, view(kafka_age_seconds=STALE_SECONDS + 1))
    assert "kbatchd_lag_records" not in figures
    assert figures["kbatchd_server_up"] == {("kafka",): 0, ("postgres",): 1}
    assert figures["kbatchd_next_offset"] == {("3", "requests", "requests"): 40}
    status = daemon.status(view(kafka_age_seconds=STALE_SECONDS + 1))
    assert not status["kafka"]["up"]
    assert status["kafka"]["age_seconds"] >= STALE_SECONDS


def test_counters_outlive_a_worker_and_add_up(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    records = [Sent(at, sent_at_ms=now // 1_000_000 - 2_000) for at in range(1_000)]
    for slot in daemon.slots.of("worker"):
        numbers = slot.routes["requests"]
        numbers.add_batch(FlushReason.FULL, records, 2_000, 1.0, 0.03)
        numbers.add_dead_letters({"22001": 2, "not_json": 1})
        slot.reset()
    figures = scrape(daemon, view())
    assert figures["kbatchd_batches_total"]["full", "requests"] == 2
    assert figures["kbatchd_dead_letters_total"] == {("22001", "requests"): 4, ("not_json", "requests"): 2}
    assert figures["kbatchd_freshness_seconds_count"] == {("requests",): 2_000}
    assert figures["kbatchd_freshness_seconds_sum"]["requests",] == pytest.approx(4_000, rel=0.1)
    buckets = [value for labels, value in figures["kbatchd_freshness_seconds_bucket"].items()]
    assert len(buckets) == len(FRESHNESS_SECONDS.bounds) + 1
    assert buckets == sorted(buckets)


def test_codes_are_bounded(daemon: Daemon) -> None:
    numbers = daemon.slots.of("worker")[0].routes["requests"]
    numbers.add_dead_letters({f"code_{number}": 1 for number in range(100)})
    numbers.add_dead_letters({"code_0": 1, "code_99": 1})
    codes = numbers.dead_letters
    assert (len(codes), codes["code_0"], codes["other"], sum(codes.values())) == (25, 2, 77, 102)


def test_readiness_gives_its_reasons(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = daemon.slots.of("worker")
    for slot in workers:
        slot.reset()
        slot[Field.PID], slot[Field.STATE] = 1, State.RUNNING
    assert daemon.readiness(view()).ready
    workers[0][Field.PID] = 0
    now = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    workers[1][Field.POSTGRES_WAIT_SINCE] = now - 7_000_000_000
    what = replace(view(), kafka=Contact(time.time(), "no broker"))
    assert daemon.readiness(what).reasons == [
        "worker 0 is not running",
        "worker 1 has been waiting for PostgreSQL for 7 s",
        "Kafka does not answer the monitor: no broker",
    ]


def test_it_is_not_ready_while_it_consumes_nothing(daemon: Daemon) -> None:
    workers = daemon.slots.of("worker")
    for slot in workers:
        slot.reset()
        slot[Field.PID], slot[Field.STATE] = 1, State.RUNNING
    numbers = workers[0].routes["requests"]
    numbers.show_partitions({3}, set(), on_hold=False)
    assert daemon.readiness(view()).ready
    numbers.show_partitions({3}, {3}, on_hold=False)
    assert daemon.readiness(view()).reasons == ["nothing is consumed: halted"]
    numbers.show_partitions({3}, set(), on_hold=True)
    assert daemon.readiness(view()).reasons == ["nothing is consumed: on hold"]


def test_it_is_not_ready_without_a_partition_while_some_have_no_owner(daemon: Daemon) -> None:
    for slot in daemon.slots.of("worker"):
        slot.reset()
        slot[Field.PID], slot[Field.STATE] = 1, State.RUNNING
    [claimed], [lag] = view().claimed, view().lags
    free = claimed._replace(is_held=False)
    nobodys = replace(view(), claimed=(free,), lags=(lag._replace(progress=free),))
    assert daemon.readiness(nobodys).reasons == ["no partition is owned here, and 1 have no owner at all"]
    assert daemon.readiness(view()).ready  # another daemon owns it


def test_it_lives_as_long_as_its_supervisor_beats(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    daemon.slots.supervisor.beat()
    assert daemon.fault() is None
    now += 12_000_000_000
    assert daemon.fault() == "the supervisor has been silent for 12 s"


def test_history_joins_the_ledger_and_the_samples() -> None:
    history = History()
    now = time.time() // 2 * 2
    history.begin([Bin(now - 10, "requests", 40, 0, 0.1)])
    history.add({"requests": 100}, {"requests": 7}, now - 2)
    history.add({"requests": 100}, {"requests": 9}, now)
    samples = history.recent(0)
    assert [sample["rates"] for sample in samples if sample["at"] == now - 10] == [{"requests": 20.0}]
    assert samples[-1]["lags"] == {"requests": 9}
    assert [sample["at"] for sample in samples] == sorted(sample["at"] for sample in samples)
    assert len(history.recent(samples[-1]["at"] - 0.001)) == 1
    this_bin = now // DAY_BIN_SECONDS * DAY_BIN_SECONDS
    history.add_day([Bin(this_bin, "requests", 40, 1, 0.1)], now)
    history.add_day([Bin(this_bin, "requests", 60, 1, 0.2)], now)
    [line] = history.day()
    assert (line["rows"], line["lag"], line["slowest_seconds"]) == (60, 9, 0.2)
    assert history.day_known_to == this_bin
