"""A server for http.py to measure, in a process of its own: `python -P bench/serve.py gateway|floor|uvicorn FILE`.

"gateway" is what the supervisor runs in a gateway process, without the supervisor and the workers: those would take
from the cores what the figures are about. "floor" is the same server, set up in the same way, before an application
that reads the body and answers 202: no check, no Kafka. "uvicorn" is that application on uvicorn as it
comes, with uvloop and httptools.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import uvicorn
import uvloop

from kbatchd import config, log
from kbatchd.gateway.listener import BACKLOG
from kbatchd.gateway.server import SWITCH_INTERVAL_SECONDS, Server, run_gateway
from kbatchd.stats import Slots

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from kbatchd.config import Gateway
    from kbatchd.gateway.app import App

    Message = dict[str, Any]

#: As long as what the gateway answers for one record.
_BODY = b'{"topic":"bench-0123456789ab","partition":0,"offset":123456}'
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY))]


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
    if what == "floor":
        server: uvicorn.Server = Server(gateway, cast("App", _answer))
    else:
        server = _Stock(uvicorn.Config(_answer, http="httptools", lifespan="off", log_config=None, ws="none"))
    listener = socket.create_server(gateway.address, backlog=BACKLOG, reuse_port=True)
    listener.setblocking(False)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: setattr(server, "should_exit", True))
    gc.collect()
    gc.freeze()
    await server.serve([listener])
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
