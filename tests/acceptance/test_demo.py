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
from pathlib import Path

from kbatchd.commands.demo import PAGE_PORT, _page_address
from kbatchd.devstack.process import free_ports
from tests.fix_daemon import wait_until

RECORDS = 30_000
README = Path(__file__).parents[2] / "README.md"


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
            _proves(output)
            assert [line for line in _readme() if line not in _without_numbers(output)] == []
            page = re.search(r"(http://127.0.0.1:([0-9]+)/) is the status page", output)
            assert page is not None
            assert int(page[2]) != PAGE_PORT
            wait_until(lambda: _answers(page[1]), 30.0, "the status page")
            demo.send_signal(signal.SIGINT)
            end = demo.stdout.read()
            assert demo.wait(60) == 0, end
            assert "What to look at next:" in end
        finally:
            demo.terminate()  # where an assertion failed


def test_the_status_page_has_its_own_port_where_that_is_free() -> None:
    [port] = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        assert _page_address(port) != f"127.0.0.1:{port}"
    assert _page_address(port) == f"127.0.0.1:{port}"


def _proves(output: str) -> None:
    """See that a worker was killed before all was written, that another came, and that each record is there once."""
    said = re.search(
        rf"^Proven: (worker [01]) killed with SIGKILL after ([0-9,]+) rows; replaced; {RECORDS:,} rows, each once\.$",
        output,
        re.MULTILINE,
    )
    assert said is not None, output
    assert int(said[2].replace(",", "")) < RECORDS
    killed = re.search(rf"kill -9 ([0-9]+): {said[1]}, in the middle of its", output)
    table = re.search(rf"{said[1]} killed +([0-9]+) +replaced by ([0-9]+)", output)
    assert killed is not None, output
    assert table is not None, output
    assert table[1] == killed[1] != table[2]
    assert not Path("/proc", killed[1]).exists()
    assert output.count(" ok\n") == 4, output


def _readme() -> list[str]:
    """Return the lines that the README shows of the demo."""
    [block] = re.findall(r"^```text\n(Sending .*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return _without_numbers(block)


def _without_numbers(output: str) -> list[str]:
    """Return the lines of an output, alike for any number of records and any processes."""
    alike = re.sub(r" +", " ", re.sub(r"[0-9]+(,[0-9]+)*", "N", output))
    return alike.replace("its work", "its COPY").splitlines()


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
