"""The monitor's process: an HTTP server for few clients, and the watcher beside it.

The supervisor calls `run_monitor` in a freshly forked process, and starts it again when it dies; the workers know
nothing of it. It runs at the lowest priority, so that even a flood of requests takes no time from them. The server and
its limits are the gateway's own (kbatchd/gateway/server.py), with shorter times.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from typing import TYPE_CHECKING

import uvloop

from kbatchd.config import Gateway
from kbatchd.errors import EX_OK, KbatchError
from kbatchd.gateway.listener import listen
from kbatchd.gateway.server import Server, beat
from kbatchd.monitor.app import App
from kbatchd.monitor.history import History
from kbatchd.monitor.state import Daemon
from kbatchd.monitor.watcher import Watcher
from kbatchd.stats.slots import Field, State

if TYPE_CHECKING:
    from kbatchd.config import Config, Monitor
    from kbatchd.stats.slots import Slot, Slots

log = logging.getLogger(__name__)

#: The least that the kernel has to give: next to a busy worker 1.5 % of a core.
NICE = 19

#: Connections that are served; more are told so, or cut off. A browser has six, Prometheus one; but who is sent away
#: and comes again takes more time than who waits for an answer. All of them together wait 6 s, less than Prometheus'
#: patience (scrape_timeout, 10 s).
MAX_CONNECTIONS = 600

#: How long a client may take for its head, and how long it may stay without a request.
HEAD_SECONDS = 3.0
IDLE_SECONDS = 30.0
GRACE_SECONDS = 0.5


def run_monitor(config: Config, slots: Slots, slot: Slot) -> int:
    """Run the monitor until SIGTERM; return the exit code. For a process of its own, just forked."""
    with contextlib.suppress(PermissionError):  # a container's filter of system calls may forbid it
        os.nice(NICE)
    assert config.monitor is not None
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(config, config.monitor, slots, slot))
    except KbatchError as error:
        log.error(str(error), extra={"action": "monitor_failed"})
        return error.exit_code


async def _run(config: Config, monitor: Monitor, slots: Slots, slot: Slot) -> int:
    limits = _limits(monitor)
    listener = listen(limits, "monitor", shared=False)
    history = History()
    watcher = Watcher(config, slots, history)
    server = Server(limits, App(Daemon(config, slots), lambda: watcher.view, history))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, server.stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    watcher.start()
    beating = loop.create_task(beat(slot))
    slot[Field.STATE] = State.RUNNING
    log.info("monitor listening", extra={"action": "monitor_listening", "address": monitor.listen})
    await server.serve(listener)
    beating.cancel()
    watcher.stop()  # not waited for: it only reads, and may be waiting for a server
    return EX_OK


def _limits(monitor: Monitor) -> Gateway:
    return Gateway(
        listen=monitor.listen,
        max_connections=MAX_CONNECTIONS,
        max_header_bytes=16_384,
        header_timeout_seconds=HEAD_SECONDS,
        body_timeout_seconds=HEAD_SECONDS,
        idle_timeout_seconds=IDLE_SECONDS,
        grace_seconds=GRACE_SECONDS,
    )
