"""A gateway process: its HTTP server, and what lives beside it on the event loop.

The supervisor calls `run_gateway` in a freshly forked process. All gateway processes bind the same address, and the
kernel shares the connections out (SO_REUSEPORT). SIGTERM: no new connection, what is in flight is answered, exit 0.
SIGHUP: the tokens are read again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import ssl
import sys
from functools import partial
from typing import TYPE_CHECKING

import uvloop

from kbatchd.errors import EX_OK, EX_SOFTWARE, ConfigError, KbatchError
from kbatchd.gateway.app import App
from kbatchd.gateway.database import Database
from kbatchd.gateway.guard import Guard
from kbatchd.gateway.listener import BACKLOG, HANDSHAKE_SECONDS, announce, answer_mark, listen, overlook_new
from kbatchd.gateway.logs import Logs
from kbatchd.gateway.protocol import TOLD_CONNECTIONS, Connection
from kbatchd.gateway.tokens import Tokens
from kbatchd.kafka.producer import GatewayProducer
from kbatchd.kafka.topics import make_admin
from kbatchd.log import tell_repeats
from kbatchd.stats.slots import Field, Slot, State

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from kbatchd.config import Config, Gateway
    from kbatchd.gateway.exchange import Application

log = logging.getLogger(__name__)

#: How often the event loop says that it goes round.
BEAT_SECONDS = 0.2

#: The threads beside the loop (large bodies, PostgreSQL) give it back soon, and it them.
SWITCH_INTERVAL_SECONDS = 0.0005

#: So many new objects before the collector looks at the young ones: Python's own 700 are a few requests' worth, and
#: cost 7 % at 512 connections.
YOUNG_OBJECTS = 50_000

#: Files of a gateway that are no clients' connections: Kafka's brokers, PostgreSQL, the log.
OWN_FILES = 256

#: How long a new gateway waits for Kafka and its tables before it listens. Then it listens all the same, to say what is
#: missing.
REACH_SECONDS = 5.0

#: What is left of the grace period for writing the answers, when waiting for tables has been given up.
ANSWER_SECONDS = 1.0

#: How long requests that are cancelled at the end of the grace period may take to be answered.
CANCEL_SECONDS = 0.5


def run_gateway(config: Config, index: int, slot: Slot) -> int:
    """Run gateway `index` until SIGTERM; return the exit code. For a process of its own, just forked."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    assert config.gateway is not None
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(config, config.gateway, index, slot))
    except KbatchError as error:
        log.error(str(error), extra={"action": "gateway_failed"})
        return error.exit_code


async def _run(config: Config, gateway: Gateway, index: int, slot: Slot) -> int:
    _raise_open_files(gateway)
    name = f"gateway-{index}"
    producer = GatewayProducer(config.kafka, gateway, f"{config.pipeline}-{name}")
    tokens = Tokens(gateway)
    database = Database(config, name)
    logs = Logs(make_admin(config.kafka), {route.topic for route in config.route})
    app = App(gateway, config.route, producer, database, logs, tokens)
    database.on_tables = app.use_tables
    database.start()
    server = Server(gateway, app)
    asking = asyncio.create_task(logs.watch())
    asking.add_done_callback(partial(_end_after, server))
    reaching = asyncio.create_task(_reach_servers(producer, database, logs))
    _on_signals(server, database, tokens, gateway, reaching)
    beating = asyncio.create_task(beat(slot))
    watching = asyncio.create_task(_end_with(producer, server))
    # Only now: the kernel sends its share of the connections to each that listens.
    await asyncio.wait([reaching])
    mark = announce(gateway, config.pipeline)
    loop = asyncio.get_running_loop()
    loop.add_reader(mark, answer_mark, mark)
    listener = listen(gateway, "gateway", shared=True)
    slot[Field.STATE] = State.RUNNING
    log.info("gateway listening", extra={"action": "gateway_listening", "address": gateway.listen})
    # What was made so far stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    await server.serve(listener)
    loop.remove_reader(mark)
    mark.close()
    beating.cancel()
    watching.cancel()
    failed = asking.done()
    asking.cancel()
    await asyncio.to_thread(database.stop)
    producer.close()
    return EX_SOFTWARE if failed or producer.fatal.is_set() else EX_OK


def _on_signals(
    server: Server, database: Database, tokens: Tokens, gateway: Gateway, reaching: asyncio.Task[None]
) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.stop()
        reaching.cancel()
        # Who waits for the table is answered in time: the records are in Kafka.
        loop.call_later(max(0.0, gateway.grace_seconds - ANSWER_SECONDS), database.give_up)

    def renew() -> None:
        tokens.reload()
        server.renew_certificate()

    loop.add_signal_handler(signal.SIGTERM, stop)
    # In a thread: a command for the tokens may take its time.
    loop.add_signal_handler(signal.SIGHUP, lambda: loop.run_in_executor(None, renew))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


async def _reach_servers(producer: GatewayProducer, database: Database, logs: Logs) -> None:
    """Return when requests can be taken, or after a while."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REACH_SECONDS):
            await producer.up.wait()
            await database.looked.wait()
            await logs.looked.wait()


async def beat(slot: Slot) -> None:
    """Say that the event loop goes round, until cancelled; the monitor's does so too."""
    while True:
        slot.beat()
        tell_repeats()
        await asyncio.sleep(BEAT_SECONDS)


async def _end_with(producer: GatewayProducer, server: Server) -> None:
    await producer.fatal.wait()
    server.stop()


def _end_after(server: Server, task: asyncio.Task[None]) -> None:
    """End with a task that never ends by itself: a new process may do better."""
    if not task.cancelled():
        log.error("the gateway cannot go on", exc_info=task.exception(), extra={"action": "gateway_failed"})
        server.stop()


class Server:
    """Accepts connections, and gives them up in good order."""

    def __init__(self, gateway: Gateway, app: Application) -> None:
        """Prepare, within the event loop; ConfigError when the certificate or its key cannot be used."""
        self._gateway = gateway
        self._tls = _tls_context(gateway)
        self.guard = Guard(app, gateway)
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Let `serve` come to its end."""
        self._stopped.set()

    def renew_certificate(self) -> None:
        """Read the certificate and its key again, for the connections from now on; a faulty pair stays out."""
        if self._tls is None:
            return
        try:
            _tls_context(self._gateway)  # tried on another first: half a change would be no use to anybody
            self._tls.load_cert_chain(*_certificate(self._gateway))
        except (ConfigError, OSError) as error:
            log.error("certificate not read, the former one stays: %s", error, extra={"action": "certificate_kept"})
            return
        log.info("certificate read", extra={"action": "certificate_read"})

    async def serve(self, listener: socket.socket) -> None:
        """Serve until `stop`, and then what is in flight, for the grace period at most."""
        loop = asyncio.get_running_loop()
        watching = loop.create_task(self.guard.watch())
        server = await loop.create_server(
            lambda: Connection(self.guard, loop),
            sock=listener,
            backlog=BACKLOG,
            ssl=self._tls,
            ssl_handshake_timeout=self._gateway.header_timeout_seconds if self._tls else None,
        )
        await self._stopped.wait()
        overlook_new(listener)
        await asyncio.sleep(HANDSHAKE_SECONDS)  # meanwhile those that are connected are accepted, and all go on as ever
        self.guard.stop()
        server.close()
        listener.close()
        await self._finish()
        watching.cancel()

    async def _finish(self) -> None:
        """Wait until all is answered; at the end of the grace period say that it is not."""
        guard = self.guard
        try:
            async with asyncio.timeout(self._gateway.grace_seconds):
                await guard.empty.wait()
                if guard.tasks:  # their clients have gone
                    await asyncio.wait(guard.tasks)
        except TimeoutError:
            log.error("requests given up", extra={"action": "requests_given_up", "connections": len(guard.connections)})
            for connection in list(guard.connections):
                connection.give_up()
            if guard.tasks:  # cancelled: they still say so to their clients
                await asyncio.wait(guard.tasks, timeout=CANCEL_SECONDS)
        for connection in list(guard.connections):
            connection.hang_up()


def _tls_context(gateway: Gateway) -> ssl.SSLContext | None:
    if gateway.tls_certificate_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(*_certificate(gateway))
    except OSError as error:  # ssl.SSLError too
        raise ConfigError(f"gateway.tls_certificate_file: {error}") from error
    return context


def _certificate(gateway: Gateway) -> tuple[Path, Path | None]:
    assert gateway.tls_certificate_file is not None
    return gateway.tls_certificate_file, gateway.tls_key_file


def _raise_open_files(gateway: Gateway) -> None:
    """Allow this process as many sockets as it may have connections: many systems allow 1,024 unless asked."""
    needed = gateway.max_connections + TOLD_CONNECTIONS + OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        log.warning(
            "fewer open files allowed than gateway.max_connections needs",
            extra={"action": "open_files_limited", "allowed": allowed, "needed": needed},
        )
