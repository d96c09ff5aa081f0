"""`kbatchd --config FILE`, without a command: the daemon, put together from its parts.

The only place that knows both the supervisor and what its children do. Nothing here makes a thread or a connection: the
supervisor forks first.
"""

from __future__ import annotations

import argparse
import faulthandler
import signal
from functools import partial

from kbatchd import log
from kbatchd.check.preflight import run_preflight
from kbatchd.commands import load_config, missing_extras
from kbatchd.config import Config
from kbatchd.daemon.plan import Group, Plan
from kbatchd.daemon.prune import run_prune
from kbatchd.daemon.reload import FileReader
from kbatchd.daemon.supervisor import Supervisor
from kbatchd.door.tables import is_cached
from kbatchd.errors import ConfigError
from kbatchd.stats import notes
from kbatchd.stats.slots import Slot, Slots
from kbatchd.stats.suspicions import End, Suspicions
from kbatchd.worker.worker import run_worker


def run(arguments: argparse.Namespace) -> int:
    """Run the daemon with the file that the arguments name; return its exit code."""
    config = load_config(arguments)
    _log_as("supervisor", config)
    make = partial(make_plan, suspicions=Suspicions())
    plan = make(config)
    notes.keep(plan.slots.supervisor.notes, "supervisor")
    return Supervisor(plan, FileReader(arguments.config, config, plan, make)).run()


def make_plan(config: Config, former: Plan | None = None, *, suspicions: Suspicions) -> Plan:
    """Say which processes the file asks for. ConfigError when it needs a library that is not installed."""
    if missing := missing_extras(config):
        raise ConfigError(*map(": ".join, missing))

    def check() -> int:
        _log_as("check", config)
        log.fold()
        return run_preflight(config)

    def prune() -> int:
        _log_as("prune", config)
        return run_prune(config)

    counts = {"gateway": config.gateway.workers if config.gateway else 0, "worker": config.workers.count}
    counts["monitor"] = 1 if config.monitor else 0
    slots = Slots(counts, [route.name for route in config.route])
    if former is not None and former.slots.fits(slots):
        slots = former.slots  # so that what was counted is kept, and a process that stays is seen by those that come
    groups = (*_gateways(config, slots), _workers(config, suspicions), *_monitor(config, slots))
    workers = config.workers
    return Plan(groups, slots, check, prune, workers.heartbeat_timeout_seconds, workers.restart_backoff_max_seconds)


def _log_as(role: str, config: Config) -> None:
    log.setup(config.log.level, role, config.log.format)


def _begin(role: str, config: Config, slot: Slot) -> None:
    """Set up what all children that were just forked have alike: the log, where warnings are kept, two signals."""
    _log_as(role, config)
    notes.keep(slot.notes, role)
    log.fold()
    faulthandler.enable()  # SIGABRT from the supervisor then tells where a silent child hangs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor tells us


def _workers(config: Config, suspicions: Suspicions) -> Group:
    routes = [route.name for route in config.route]

    def work(index: int, slot: Slot) -> int:
        _begin(f"worker {index}", config, slot)
        return run_worker(config, index, slot, suspicions.heed())

    def note(slot: Slot, end: End) -> None:
        for found in (slot.place.read(), slot.letters.read()):
            suspicions.note(found, routes, end)

    return Group(
        "worker",
        config.workers.count,
        work,
        config.workers.grace_seconds,
        takes=frozenset({signal.SIGUSR1}),
        on_end=note,
    )


def _gateways(config: Config, slots: Slots) -> list[Group]:
    """Prepare the gateways, if the file has any."""
    gateway = config.gateway
    if gateway is None:
        return []
    from kbatchd.gateway.server import run_gateway

    def serve(index: int, slot: Slot) -> int:
        _begin(f"gateway {index}", config, slot)
        return run_gateway(config, index, slot)

    settings = config.model_copy(update={"workers": None, "batch": None}), slots
    return [
        Group(
            "gateway",
            gateway.workers,
            serve,
            gateway.grace_seconds,
            settings=settings,
            at_once=is_cached(config),
            new_first=True,
            takes=frozenset({signal.SIGHUP}),
        )
    ]


def _monitor(config: Config, slots: Slots) -> list[Group]:
    """Prepare the monitor, if the file has one."""
    if config.monitor is None:
        return []
    from kbatchd.monitor.server import run_monitor

    def show(_: int, slot: Slot) -> int:
        _begin("monitor", config, slot)
        return run_monitor(config, slots, slot)

    return [Group("monitor", 1, show, 1.0, settings=(config, slots), at_once=True, is_vital=False)]
