"""One look of `kbatchd status`: what was found, and the document that it comes to. Pure; called by the command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kbatchd.config import Config
from kbatchd.monitor import standing
from kbatchd.monitor.lag import PartitionLag
from kbatchd.schema.pausing import Pause


@dataclass(slots=True)
class Look:
    """What one look has found."""

    at: float
    lags: Sequence[PartitionLag] = ()
    waits: dict[tuple[str, int], float | None] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    #: By route, those that are paused.
    pauses: dict[str, Pause] = field(default_factory=dict)
    #: What the monitor says of its daemon: routes that are on hold, partitions that are halted.
    on_hold: set[str] = field(default_factory=set)
    halted: dict[tuple[str, int], str] = field(default_factory=dict)
    #: The partitions that it speaks of, and those of them whose worker waits for PostgreSQL.
    owned: set[tuple[str, int]] = field(default_factory=set)
    waiting: set[tuple[str, int]] = field(default_factory=set)
    #: Routes whose every record is refused, and for how many records.
    refused: dict[str, int] = field(default_factory=dict)
    #: What could not be asked, in words.
    trouble: list[str] = field(default_factory=list)


def document_of(config: Config, look: Look) -> dict[str, Any]:
    """Return what `--json` prints."""
    partitions = [_partition(lag, look, config.batch.linger_seconds) for lag in look.lags]
    routes = [_route(config, name, partitions, look) for name in (route.name for route in config.route)]
    warnings = [
        standing.refused(route.name, count)
        for route in config.route
        if (count := look.refused.get(route.name, 0)) >= standing.REFUSED_IN_A_ROW
    ]
    return {
        "pipeline": config.pipeline,
        "at": look.at,
        "fine": not look.trouble and not warnings and {route["state"] for route in routes} <= standing.FINE,
        "trouble": look.trouble,
        "warnings": warnings,
        "routes": routes,
        "hosts": _hosts(partitions),
        "partitions": partitions,
    }


def _hosts(partitions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add up what each host has, of the partitions that somebody has."""
    by_host: dict[str, list[dict[str, Any]]] = {}
    for partition in partitions:
        if partition["held"]:
            by_host.setdefault(partition["host"] or "", []).append(partition)
    return [
        {
            "host": host,
            "workers": len({each["pid"] for each in own}),
            "partitions": len(own),
            "since": min((each["since"] for each in own if each["since"]), default=None),
            "lag": sum(each["lag"] or 0 for each in own) if any(each["lag"] is not None for each in own) else None,
        }
        for host, own in sorted(by_host.items())
    ]


def _route(config: Config, name: str, partitions: Sequence[dict[str, Any]], look: Look) -> dict[str, Any]:
    pause = look.pauses.get(name)
    own = [partition for partition in partitions if partition["route"] == name]
    lags = [partition["lag"] for partition in own if partition["lag"] is not None]
    waits = [partition["lag_seconds"] for partition in own if partition["lag_seconds"] is not None]
    return {
        "route": name,
        "table": next(route.table for route in config.route if route.name == name),
        "rows_per_second": round(look.rates.get(name, 0.0), 1),
        "lag": sum(lags) if lags else None,
        "lag_seconds": max(waits, default=None),
        "dead_letters": look.dead_letters.get(name, 0),
        "paused": None if pause is None else {"by": pause.by, "since": pause.at.timestamp()},
        "state": standing.of_route(partition["state"] for partition in own),
    }


def _partition(lag: PartitionLag, look: Look, linger_seconds: float) -> dict[str, Any]:
    claimed = lag.progress
    key = claimed.route, claimed.partition
    waits = look.waits.get(key)
    state = standing.of_partition(
        lag,
        claimed.halted or look.halted.get(key),
        waits,
        linger_seconds,
        is_paused=claimed.route in look.pauses,
        is_on_hold=key in look.owned and claimed.route in look.on_hold,
        waits_for_postgres=key in look.waiting,
        is_known=key in look.owned,
    )
    return {
        "route": claimed.route,
        "topic": claimed.topic,
        "partition": claimed.partition,
        "owner": claimed.owner,
        "held": claimed.is_held,
        "host": claimed.host,
        "pid": claimed.pid,
        "since": claimed.claimed_at.timestamp() if claimed.claimed_at else None,
        "next_offset": claimed.next_offset,
        "start": lag.start,
        "end": lag.end,
        "lag": lag.records,
        "lag_seconds": waits,
        "updated_at": claimed.updated_at.timestamp(),
        "state": state,
    }
