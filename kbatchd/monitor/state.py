"""The daemon's state in plain values: what /status.json says, and whether the daemon is ready, with reasons.

Put together on the event loop from the workers' slots and the watcher's view; no I/O.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from kbatchd import __version__
from kbatchd.monitor import standing
from kbatchd.monitor.lag import PartitionLag, PartitionState
from kbatchd.monitor.standing import Word
from kbatchd.schema.halting import Halt
from kbatchd.stats.slots import Count, Field, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from kbatchd.config import Config
    from kbatchd.monitor.watcher import Contact, View
    from kbatchd.schema.overview import Cause
    from kbatchd.stats.slots import RouteSlot, Slot, Slots

#: A worker's loop comes round ten times a second; one that does not for this long is told of.
SILENT_SECONDS = 5.0

#: The supervisor's comes round five times a second; who sees it stand still this long may end the daemon.
SUPERVISOR_SILENT_SECONDS = 10.0

#: Of the partitions that a word holds for, so many are named.
SHOWN_PARTITIONS = 20

#: Warnings and errors that are shown, of all processes together.
SHOWN_NOTES = 30


class Readiness(NamedTuple):
    """Whether all is as it should be: what keeps the daemon from its work, and what else somebody should look at."""

    reasons: list[str]
    warnings: list[str]

    @property
    def ready(self) -> bool:
        """Whether nothing keeps it from its work."""
        return not self.reasons


class Daemon:
    """The daemon as the monitor sees it."""

    def __init__(self, config: Config, slots: Slots) -> None:
        """Look at these slots from now on."""
        self.config = config
        self.slots = slots
        self._host = socket.gethostname()

    def owners(self) -> dict[tuple[str, int], int]:
        """Return the worker of each partition that is this daemon's, by route and number."""
        owners = {}
        for index, slot in enumerate(self.slots.of("worker")):
            for name, route in slot.routes.items():
                owners.update(dict.fromkeys(((name, number) for number in route.owned), index))
        return owners

    def fault(self) -> str | None:
        """Say why this daemon is to be started again: nobody looks after its processes. Servers are no reason."""
        silence = self.slots.supervisor.silence_seconds()
        return f"the supervisor has been silent for {silence:.0f} s" if silence > SUPERVISOR_SILENT_SECONDS else None

    def readiness(self, view: View) -> Readiness:
        """Judge."""
        reasons: list[str] = []
        for index, slot in enumerate(self.slots.of("worker")):
            reasons += [f"worker {index} {what}" for what in _trouble(slot)]
        for name, contact in (("PostgreSQL", view.postgres), ("Kafka", view.kafka)):
            if not contact.is_up:
                reasons.append(f"{name} does not answer the monitor{f': {contact.error}' if contact.error else ''}")
        if not reasons:
            reasons += self._idleness(view)
        return Readiness(reasons, self._warnings(view))

    def _idleness(self, view: View) -> Iterator[str]:
        """Say when this daemon consumes nothing of what it should."""
        partitions = [each for each in self._partitions(view) if each["word"] != Word.PAUSED]
        own = [each["word"] for each in partitions if each["ours"]]
        if own and all(map(standing.consumes_nothing, own)):
            yield f"nothing is consumed: {standing.of_route(own)}"
        without = sum(each["word"] == Word.NO_OWNER for each in partitions)
        if without and not any(each["ours"] for each in partitions):
            yield f"no partition is owned here, and {without} have no owner at all"

    def _warnings(self, view: View) -> list[str]:
        warnings = []
        for index, slot in enumerate(self.slots.of("worker")):
            if slot[Field.STATE] == State.STANDBY:
                warnings.append(f"worker {index} stands by: another daemon has partitions of its")
            for name, route in slot.routes.items():
                if route.on_hold:
                    warnings.append(f"worker {index} has put route {name} on hold")
                if halted := sorted(route.halted - route.tripped):
                    warnings.append(f"route {name}: halted partitions: {_listed(halted)}")
        faulty = [lag for lag in view.lags if lag.state is not PartitionState.OK]
        warnings += [f"route {lag.progress.route}: {lag.partition}: {lag.state}" for lag in faulty]
        return [*warnings, *self._words_of_many(view), *self._refused(view)]

    def _words_of_many(self, view: View) -> Iterator[str]:
        """Say what holds for partitions of a route, often for all of them: a line each."""
        partitions = self._partitions(view)
        for route in self.config.route:
            own = [each for each in partitions if each["route"] == route.name]
            for word in (Word.BREAKER, Word.NO_OWNER, Word.STILL):
                if numbers := [each["partition"] for each in own if each["word"] == word]:
                    yield f"route {route.name}: {word}: partitions {_listed(numbers)}"

    def _refused(self, view: View) -> Iterator[str]:
        for route in self.config.route:
            if (count := view.refused.get(route.name, 0)) >= standing.REFUSED_IN_A_ROW:
                yield standing.refused(route.name, count)

    def status(self, view: View) -> dict[str, Any]:
        """Return all of it, for JSON."""
        readiness = self.readiness(view)
        partitions = self._partitions(view)
        return {
            "version": __version__,
            "pipeline": self.config.pipeline,
            "host": self._host,
            "at": time.time(),
            "ready": readiness.ready,
            "reasons": readiness.reasons,
            "warnings": readiness.warnings,
            "postgres": _contact(view.postgres),
            "kafka": _contact(view.kafka),
            "processes": [
                _process(kind, index, slot)
                for kind in ("worker", "gateway", "monitor")
                for index, slot in enumerate(self.slots.of(kind))
            ],
            "routes": [self._route(route.name, partitions, view) for route in self.config.route],
            "partitions": partitions,
            "dead_letters": [_cause(cause, show=self._shows_records) for cause in view.causes],
            "gaps": [
                {**{name: getattr(gap, name) for name in gap.__slots__}, "recorded_at": _seconds(gap.recorded_at)}
                for gap in view.gaps
            ],
            "notes": self._notes(),
        }

    def words(self, view: View) -> Counter[tuple[str, str]]:
        """Count the partitions of each route by their word."""
        return Counter((each["route"], each["word"]) for each in self._partitions(view))

    def _partitions(self, view: View) -> list[dict[str, Any]]:
        owners, workers = self.owners(), self.slots.of("worker")
        partitions = []
        for lag in _all(view):
            owner = owners.get((lag.progress.route, lag.progress.partition))
            waits = lag.waits(view.oldest.get((lag.progress.route, lag.partition)))
            partition = {**_partition(lag, waits), "ours": owner is not None}
            partitions.append({**partition, **self._word(lag, waits, view, None if owner is None else workers[owner])})
        return partitions

    def _word(self, lag: PartitionLag, waits: float | None, view: View, slot: Slot | None) -> dict[str, Any]:
        """Say how a partition stands; `slot` is that of the worker that owns it, if it is this daemon's."""
        route = slot.routes[lag.progress.route] if slot else None
        halt = _halt(route, lag.progress.partition) if route else lag.progress.halted
        word = standing.of_partition(
            lag,
            halt,
            waits,
            self.config.batch.linger_seconds,
            is_paused=lag.progress.route in view.pauses,
            is_on_hold=route is not None and route.on_hold,
            waits_for_postgres=not view.postgres.is_up or (slot is not None and slot[Field.POSTGRES_WAIT_SINCE] > 0),
            is_known=slot is not None,
        )
        return {"halt": halt, "halted": halt is not None, "word": word}

    @property
    def _shows_records(self) -> bool:
        return self.config.monitor is None or self.config.monitor.show_records

    def _route(self, name: str, partitions: Sequence[dict[str, Any]], view: View) -> dict[str, Any]:
        route = next(route for route in self.config.route if route.name == name)
        pause = view.pauses.get(name)
        numbers = [slot.routes[name] for slot in self.slots.of("worker")]
        own = [partition for partition in partitions if partition["route"] == name]
        lags = [partition["lag"] for partition in own if partition["lag"] is not None]
        waits = [partition["lag_seconds"] for partition in own if partition["lag_seconds"] is not None]
        return {
            "name": name,
            "topic": route.topic,
            "table": route.table,
            "paused": None if pause is None else {"by": pause.by, "since": _seconds(pause.at)},
            "rows": sum(each[Count.ROWS] for each in numbers),
            "records": sum(each[Count.RECORDS] for each in numbers),
            "dead_letters": sum(sum(each.dead_letters.values()) for each in numbers),
            "batches": sum(sum(each.batches.values()) for each in numbers),
            "partitions": len(own),
            "halted": sum(partition["halted"] for partition in own),
            "aside": any(each.on_hold for each in numbers),
            "word": standing.of_route(partition["word"] for partition in own),
            "lag": sum(lags) if lags else None,
            "lag_seconds": max(waits, default=None),
        }

    def _notes(self) -> list[dict[str, Any]]:
        slots = [slot for kind in ("worker", "gateway", "monitor") for slot in self.slots.of(kind)]
        notes = sorted((note for slot in (self.slots.supervisor, *slots) for note in slot.notes.read()), reverse=True)
        return [note._asdict() for note in notes[:SHOWN_NOTES]]


def _trouble(slot: Slot) -> list[str]:
    """Tell what keeps a worker from its work."""
    if not slot[Field.PID]:
        return ["is not running"]
    silence = slot.silence_seconds()
    trouble = [f"has been silent for {silence:.0f} s"] if silence > SILENT_SECONDS else []
    if slot[Field.POSTGRES_WAIT_SINCE]:
        trouble.append(f"has been waiting for PostgreSQL for {_since(slot[Field.POSTGRES_WAIT_SINCE]):.0f} s")
    elif slot[Field.STATE] == State.STARTING:
        trouble.append("has not claimed its partitions yet")
    return trouble


def _all(view: View) -> Sequence[PartitionLag]:
    """Return each partition with the last progress known, and what Kafka has said of it, if anything.

    Where Kafka is away, its last numbers are shown as old, and how the partition stands is not known.
    """
    said = {(lag.progress.route, lag.partition): lag for lag in view.lags}
    lags = []
    for claimed in view.claimed:
        bare = PartitionLag(claimed, PartitionState.UNKNOWN, None, None)
        lag = said.get((claimed.route, bare.partition), bare)
        state = lag.state if view.kafka.is_up else PartitionState.UNKNOWN
        lags.append(lag._replace(progress=claimed, state=state))
    return lags


def _halt(route: RouteSlot, number: int) -> Halt | None:
    """Say what has halted a partition of this daemon's."""
    if number in route.tripped:
        return Halt.BREAKER
    return Halt.GAP if number in route.halted else None


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:SHOWN_PARTITIONS]))
    return shown if len(numbers) <= SHOWN_PARTITIONS else f"{shown} and {len(numbers) - SHOWN_PARTITIONS} more"


def _partition(lag: PartitionLag, waits: float | None) -> dict[str, Any]:
    claimed = lag.progress
    return {
        "route": claimed.route,
        "topic": claimed.topic,
        "partition": claimed.partition,
        "owner": claimed.owner,
        "host": claimed.host,
        "pid": claimed.pid,
        "since": _seconds(claimed.claimed_at),
        "held": claimed.is_held,
        "state": str(lag.state),
        "next_offset": claimed.next_offset,
        "start": lag.start,
        "end": lag.end,
        "lag": lag.records,
        "lag_seconds": waits,
        "lost": lag.lost,
        "epoch": claimed.epoch,
        "updated_at": _seconds(claimed.updated_at),
    }


def _process(kind: str, index: int, slot: Slot) -> dict[str, Any]:
    return {
        "kind": kind,
        "index": index,
        "pid": slot[Field.PID] or None,
        "state": state_of(slot),
        "restarts": max(0, slot[Field.STARTS] - 1),
        "uptime_seconds": round(_since(slot[Field.STARTED_AT]), 1) if slot[Field.PID] else None,
        "silence_seconds": round(slot.silence_seconds(), 1) if slot[Field.PID] else None,
        "postgres_wait_seconds": round(_since(wait), 1) if (wait := slot[Field.POSTGRES_WAIT_SINCE]) else 0.0,
        "claimed": slot[Field.CLAIMED],
        "halted": slot[Field.HALTED],
        "buffer_used_bytes": slot[Field.BUFFER_USED_BYTES],
        "buffer_bytes": slot[Field.BUFFER_BYTES],
        "rows": slot.total(Count.ROWS),
    }


def state_of(slot: Slot) -> str:
    """Return a process's state in a word."""
    if not slot[Field.PID]:
        return "down"
    if slot.silence_seconds() > SILENT_SECONDS:
        return "silent"
    if slot[Field.POSTGRES_WAIT_SINCE]:
        return "waiting"
    return State(slot[Field.STATE]).name.lower()


def _cause(cause: Cause, *, show: bool) -> dict[str, Any]:
    return {
        "route": cause.route,
        "code": cause.code,
        "column": cause.column,
        "count": cause.count,
        "first_at": _seconds(cause.first_at),
        "last_at": _seconds(cause.last_at),
        "topic": cause.topic,
        "partition": cause.partition,
        "offset": cause.offset,
        "message": cause.message if show else None,
        "key": _text(cause.key) if show else None,
        "value": _text(cause.value) if show else None,
        "value_bytes": cause.value_bytes,
    }


def _text(value: bytes | None) -> str | None:
    """Show bytes as text where they are, else escaped."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode(errors="backslashreplace")


def _contact(contact: Contact) -> dict[str, Any]:
    age = contact.age_seconds
    return {"up": contact.is_up, "age_seconds": None if age is None else round(age, 1), "error": contact.error}


def _seconds(at: datetime | None) -> float | None:
    return None if at is None else round(at.timestamp(), 3)


def _since(monotonic_ns: int) -> float:
    return max(0.0, (time.monotonic_ns() - monotonic_ns) / 1e9)
