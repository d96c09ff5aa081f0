"""Stopped under load, the daemon flushes what it has read and ends; the next one goes on where it ended."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.fix_daemon import MakeDaemon, is_alive, wait_until
from tests.fix_load import Delivery

STOP_SECONDS = 10.0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_loses_and_doubles_nothing(
    delivery: Delivery, make_daemon: MakeDaemon, how: signal.Signals
) -> None:
    # A long linger: at the stop there is always a batch that is partly filled.
    daemon = make_daemon(delivery.route, batch={"max_rows": 5_000, "linger_seconds": 1.0}).start()
    daemon.wait_ready()
    workers = daemon.workers()
    with delivery.load(per_second=8_000):
        wait_until(lambda: delivery.rows() > 10_000, 15, "rows before the stop")
        started = time.monotonic()
        if how == signal.SIGINT:
            os.killpg(daemon.pid, how)  # as a terminal's Ctrl-C: to the supervisor and to all workers
        else:
            os.kill(daemon.pid, how)
        assert daemon.wait(STOP_SECONDS) == 0
        assert time.monotonic() - started < STOP_SECONDS
        assert not any(map(is_alive, workers))
        [(flushed,)] = delivery.query("SELECT count(*) FROM kbatchd.batches WHERE reason = 'stop' AND rows > 0")
        # Each one's, unless it had just flushed, and nothing has come since.
        assert isinstance(flushed, int)
        assert 1 <= flushed <= len(workers)

        daemon.start()
        daemon.wait_ready()
    delivery.wait_drained()
    delivery.assert_exactly_once()
    assert daemon.stop() == 0
