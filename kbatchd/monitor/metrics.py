"""The metrics: one table of them, and the collector that fills it at each scrape.

Runs on the monitor's event loop; reads the workers' slots and the watcher's view, and asks nobody. Labels come from the
file (routes), from the topics (partitions) and from closed lists (reasons, states), so that their number is bounded; of
dead letters' codes a worker counts the first 24 by name. Counters are kept when a worker is replaced, and begin at
0 with the daemon.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from kbatchd import __version__
from kbatchd.kafka.topics import LIBRDKAFKA_VERSION
from kbatchd.monitor.state import state_of
from kbatchd.monitor.watcher import STALE_SECONDS
from kbatchd.stats.histograms import FILL, FLUSH_SECONDS, FRESHNESS_SECONDS, Histogram
from kbatchd.stats.slots import Count, Field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from kbatchd.monitor.state import Daemon
    from kbatchd.monitor.watcher import View
    from kbatchd.stats.slots import RouteSlot

WORKER_STATES = ("down", "starting", "running", "standby", "waiting", "silent")


@dataclass(frozen=True, slots=True)
class Described:
    """A metric as the documentation has it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


_PARTITION = ("route", "topic", "partition")

#: Every metric there is; docs/monitor.md is compared with it.
METRICS = (
    Described("kbatchd_build_info", "gauge", ("version", "python", "librdkafka", "pipeline"), "Always 1."),
    Described("kbatchd_records_total", "counter", ("route",), "Records that are in the table or a dead letter."),
    Described("kbatchd_rows_total", "counter", ("route",), "Rows committed to the table."),
    Described("kbatchd_bytes_total", "counter", ("route",), "Bytes of the records' values, of committed batches."),
    Described("kbatchd_batches_total", "counter", ("route", "reason"), "Batches committed, by why they were closed."),
    Described("kbatchd_dead_letters_total", "counter", ("route", "code"), "Records that became dead letters, by code."),
    Described("kbatchd_retries_total", "counter", ("route",), "Flushes that failed in a way that passes."),
    Described("kbatchd_fences_total", "counter", ("route",), "Flushes refused as another session owns a partition."),
    Described(
        "kbatchd_gaps_total", "counter", ("route", "kind"), "Gaps found: offsets that are not in Kafka any more."
    ),
    Described("kbatchd_partitions_owned", "gauge", ("route",), "Partitions that this daemon's workers own."),
    Described("kbatchd_partitions_halted", "gauge", ("route",), "Those that stand still until somebody acts."),
    Described(
        "kbatchd_partitions_tripped",
        "gauge",
        ("route",),
        "Those of them that the breaker has halted: too many dead letters in a row.",
    ),
    Described("kbatchd_partitions_state", "gauge", ("route", "state"), "Partitions by the word that the page has."),
    Described(
        "kbatchd_refused_in_a_row", "gauge", ("route",), "Dead letters since the last row, of the last hour; 0 if none."
    ),
    Described("kbatchd_workers_aside", "gauge", ("route",), "Workers that have put the route on hold, for its table."),
    Described(
        "kbatchd_lag_records",
        "gauge",
        _PARTITION,
        "Offsets not in the table yet, up to the last stable one. Owned partitions only.",
    ),
    Described(
        "kbatchd_lag_seconds",
        "gauge",
        _PARTITION,
        "Age of the oldest unwritten record; 0 if there is none. Owned partitions only.",
    ),
    Described(
        "kbatchd_next_offset",
        "gauge",
        _PARTITION,
        "The offset progress stands at, in PostgreSQL. Owned partitions only.",
    ),
    Described(
        "kbatchd_freshness_seconds",
        "histogram",
        ("route",),
        "From a record's timestamp to its commit; of a batch of more than 32 a sample of 8 to 32.",
    ),
    Described("kbatchd_flush_seconds", "histogram", ("route",), "A batch's transaction, in seconds."),
    Described(
        "kbatchd_batch_fill_ratio",
        "histogram",
        ("route",),
        "Records of a committed batch, as a part of batch.max_rows.",
    ),
    Described("kbatchd_worker_state", "gauge", ("worker", "state"), "1 for the state a worker is in."),
    Described("kbatchd_worker_restarts_total", "counter", ("worker",), "How often a worker was started again."),
    Described(
        "kbatchd_worker_silence_seconds", "gauge", ("worker",), "Time since a worker's poll loop last came round."
    ),
    Described(
        "kbatchd_worker_postgres_wait_seconds",
        "gauge",
        ("worker",),
        "How long a worker has been waiting for PostgreSQL; 0 if it is not.",
    ),
    Described("kbatchd_worker_buffer_bytes", "gauge", ("worker",), "Bytes of a worker's pool of batch buffers."),
    Described("kbatchd_worker_buffer_used_bytes", "gauge", ("worker",), "Bytes of it that are lent to batches."),
    Described("kbatchd_gateway_restarts_total", "counter", ("gateway",), "How often a gateway was started again."),
    Described("kbatchd_server_up", "gauge", ("server",), "1 if PostgreSQL, or Kafka, answers the monitor."),
    Described(
        "kbatchd_server_answer_age_seconds",
        "gauge",
        ("server",),
        "Age of its last answer; lag is left out when Kafka's is older than 10 s.",
    ),
    Described("kbatchd_ready", "gauge", (), "1 if /health/ready says yes."),
)

_FAMILIES = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}


class Metrics(Collector):
    """Fills the table."""

    def __init__(self, daemon: Daemon, view: Callable[[], View]) -> None:
        """Read `view()` at each scrape."""
        self._daemon = daemon
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """Make every metric again."""
        families: dict[str, Metric] = {
            each.name: _FAMILIES[each.kind](each.name.removesuffix("_total"), each.help, labels=each.labels)
            for each in METRICS
        }
        view = self._view()
        build = (__version__, platform.python_version(), LIBRDKAFKA_VERSION, self._daemon.config.pipeline)
        _add(families["kbatchd_build_info"], build, 1)
        self._collect_routes(families)
        self._collect_processes(families)
        self._collect_lag(families, view)
        for server, contact in (("postgres", view.postgres), ("kafka", view.kafka)):
            _add(families["kbatchd_server_up"], (server,), contact.is_up)
            if (age := contact.age_seconds) is not None:
                _add(families["kbatchd_server_answer_age_seconds"], (server,), age)
        _add(families["kbatchd_ready"], (), self._daemon.readiness(view).ready)
        yield from families.values()

    def _collect_routes(self, families: dict[str, Metric]) -> None:
        workers = self._daemon.slots.of("worker")
        for name in (route.name for route in self._daemon.config.route):
            numbers = [slot.routes[name] for slot in workers]
            for count in Count:
                _add(families[f"kbatchd_{count}_total"], (name,), sum(each[count] for each in numbers))
            for family, counts in (
                ("kbatchd_batches_total", [each.batches for each in numbers]),
                ("kbatchd_dead_letters_total", [each.dead_letters for each in numbers]),
                ("kbatchd_gaps_total", [each.gaps for each in numbers]),
            ):
                _add_each(families[family], name, counts)
            _add(families["kbatchd_partitions_owned"], (name,), sum(len(each.owned) for each in numbers))
            _add(families["kbatchd_partitions_halted"], (name,), sum(len(each.halted) for each in numbers))
            _add(families["kbatchd_partitions_tripped"], (name,), sum(len(each.tripped) for each in numbers))
            _add(families["kbatchd_workers_aside"], (name,), sum(each.on_hold for each in numbers))
            for family, histogram in (
                ("kbatchd_freshness_seconds", FRESHNESS_SECONDS),
                ("kbatchd_flush_seconds", FLUSH_SECONDS),
                ("kbatchd_batch_fill_ratio", FILL),
            ):
                _add_histogram(families[family], name, histogram, numbers)

    def _collect_processes(self, families: dict[str, Metric]) -> None:
        for index, slot in enumerate(self._daemon.slots.of("worker")):
            worker = (str(index),)
            now, wait = time.monotonic_ns(), slot[Field.POSTGRES_WAIT_SINCE]
            for state in WORKER_STATES:
                _add(families["kbatchd_worker_state"], (*worker, state), state == state_of(slot))
            _add(families["kbatchd_worker_restarts_total"], worker, max(0, slot[Field.STARTS] - 1))
            _add(families["kbatchd_worker_silence_seconds"], worker, slot.silence_seconds() if slot[Field.PID] else 0)
            _add(families["kbatchd_worker_postgres_wait_seconds"], worker, (now - wait) / 1e9 if wait else 0)
            _add(families["kbatchd_worker_buffer_bytes"], worker, slot[Field.BUFFER_BYTES])
            _add(families["kbatchd_worker_buffer_used_bytes"], worker, slot[Field.BUFFER_USED_BYTES])
        for index, slot in enumerate(self._daemon.slots.of("gateway")):
            _add(families["kbatchd_gateway_restarts_total"], (str(index),), max(0, slot[Field.STARTS] - 1))

    def _collect_lag(self, families: dict[str, Metric], view: View) -> None:
        """Add the lag of owned partitions; nothing, where the brokers' last answer is too old to be true."""
        for (route, word), count in sorted(self._daemon.words(view).items()):
            _add(families["kbatchd_partitions_state"], (route, word), count)
        for route in (route.name for route in self._daemon.config.route):
            _add(families["kbatchd_refused_in_a_row"], (route,), view.refused.get(route, 0))
        age = view.kafka.age_seconds
        owners = self._daemon.owners()
        for lag in view.lags:
            if (lag.progress.route, lag.progress.partition) not in owners:
                continue
            labels = (lag.progress.route, lag.progress.topic, str(lag.progress.partition))
            if lag.progress.next_offset is not None:
                _add(families["kbatchd_next_offset"], labels, lag.progress.next_offset)
            if age is None or age > STALE_SECONDS or lag.records is None:
                continue
            _add(families["kbatchd_lag_records"], labels, lag.records)
            seconds = lag.waits(view.oldest.get((lag.progress.route, lag.partition)))
            if seconds is not None:
                _add(families["kbatchd_lag_seconds"], labels, seconds)


def _add(family: Metric, labels: tuple[str, ...], value: float) -> None:
    assert isinstance(family, GaugeMetricFamily | CounterMetricFamily)
    family.add_metric(labels, float(value))


def _add_each(family: Metric, route: str, counts: Iterable[Mapping[Any, int]]) -> None:
    """Add up the workers' counts by label; those at zero too, as far as they are known beforehand."""
    total: dict[str, int] = {}
    for label, count in (item for each in counts for item in each.items()):
        total[str(label)] = total.get(str(label), 0) + count
    for label, count in sorted(total.items()):
        _add(family, (route, label), count)


def _add_histogram(family: Metric, route: str, histogram: Histogram, numbers: list[RouteSlot]) -> None:
    """Add the workers' buckets, cumulated as Prometheus wants them."""
    assert isinstance(family, HistogramMetricFamily)
    columns = [sum(column) for column in zip(*(each.histogram(histogram) for each in numbers), strict=True)]
    names = [*map(str, histogram.bounds), "+Inf"]
    buckets = list(zip(names, map(float, accumulate(columns[:-1])), strict=True))
    family.add_metric((route,), buckets, columns[-1] / histogram.scale)
