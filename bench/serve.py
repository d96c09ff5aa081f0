"""A server for http.py to measure, in a process of its own: `python -P bench/serve.py gateway|floor|uvicorn FILE`.

"gateway" is what the supervisor runs in a gateway process, without the supervisor and the workers: those would take
from the cores what the figures are about. "floor" is the same server, set up in the same way, before an application
that answers 202 at once: no check, no Kafka. "uvicorn" is an application that reads the body and answers the same, on
uvicorn as it comes, with uvloop and httptools.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
import uvloop

from kbatchd import config, log
from kbatchd.gateway.listener import BACKLOG
from kbatchd.gateway.server import SWITCH_INTERVAL_SECONDS, YOUNG_OBJECTS, Server, run_gateway
from kbatchd.stats.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from kbatchd.config import Gateway
    from kbatchd.gateway.exchange import Exchange

    Message = dict[str, Any]

#: As long as what the gateway answers for one record.
_BODY = b'{"topic":"bench-0123456789ab","partition":0,"offset":123456}'
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY))]


class _Floor:
    def answer_now(self, exchange: Exchange) -> bool:
        """Answer a request that is whole, as nearly all of a bench are."""
        exchange.answer((202, _HEADERS, _BODY))
        return True

    async def answer(self, exchange: Exchange) -> None:
        """Answer one that came in pieces."""
        while await exchange.read():
            pass
        exchange.answer((202, _HEADERS, _BODY))


async def _answer(
    _scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 202, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _BODY})


class _Stock(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to us: else it would end by one."""
        yield


async def _run_floor(what: str, gateway: Gateway) -> int:
    listener = socket.create_server(gateway.address, backlog=BACKLOG, reuse_port=True)
    listener.setblocking(False)
    on_signal = asyncio.get_running_loop().add_signal_handler
    gc.collect()
    gc.freeze()
    if what == "floor":
        floor = Server(gateway, _Floor())
        gc.set_threshold(YOUNG_OBJECTS)
        on_signal(signal.SIGTERM, floor.stop)
        await floor.serve(listener)
    else:
        stock = _Stock(uvicorn.Config(_answer, http="httptools", lifespan="off", log_config=None, ws="none"))
        on_signal(signal.SIGTERM, lambda: setattr(stock, "should_exit", True))
        await stock.serve([listener])
    return 0


def main() -> int:
    """Serve until SIGTERM; return the exit code."""
    what, file = sys.argv[1:]
    settings = config.load(Path(file))
    log.setup(settings.log.level, what)
    if what == "gateway":
        return run_gateway(settings, 0, Slots({"gateway": 1})[0])
    assert settings.gateway is not None
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run_floor(what, settings.gateway))


if __name__ == "__main__":
    sys.exit(main())
