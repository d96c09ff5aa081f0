"""`make demo`: from nothing to the proof, as the first thing that anybody does."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import closing, suppress

from kbatchd.commands.demo import PAGE_PORT, _page_address
from kbatchd.devstack.process import free_ports
from tests.fix_daemon import wait_until

RECORDS = 30_000


def test_the_demo_proves_itself_on_servers_of_its_own() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in {"KBATCHD_KAFKA", "KBATCHD_DSN"}}
    command = [sys.executable, "-m", "kbatchd", "demo", "--records", str(RECORDS), "--keep"]
    with (
        _taken(PAGE_PORT),
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo,
    ):
        assert demo.stdout is not None
        try:
            output = ""
            while "Ctrl-C stops it all" not in output and (line := demo.stdout.readline()):
                output += line
            assert f"Proven: {RECORDS:,} records" in output, output
            page = re.search(r"(http://127.0.0.1:([0-9]+)/) is the status page", output)
            assert page is not None
            assert int(page[2]) != PAGE_PORT
            wait_until(lambda: _answers(page[1]), 30.0, "the status page")
            demo.send_signal(signal.SIGINT)
            assert demo.wait(60) == 0, demo.stdout.read()
        finally:
            demo.terminate()  # where an assertion failed


def test_the_status_page_has_its_own_port_where_that_is_free() -> None:
    [port] = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        assert _page_address(port) != f"127.0.0.1:{port}"
    assert _page_address(port) == f"127.0.0.1:{port}"


def _taken(port: int) -> closing[socket.socket]:
    """Listen on a port, unless somebody does already."""
    listener = socket.socket()
    with suppress(OSError):
        listener.bind(("127.0.0.1", port))
        listener.listen()
    return closing(listener)


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return b"kbatchd" in answer.read()
    return False
