"""Load on an HTTP server: keep-alive connections, on each one request after the other, each answer's status checked.

http.py calls `run_load`, which lets wrk do it where it is installed, else this file itself: as a program it is one
process of our own client. That client costs as little as Python can (the server under it shares the machine's cores):
whole requests made beforehand, one socket call to send and one to receive, answers only measured off, not parsed.

Both take their requests from one file, in turn, from a place of their own on.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from array import array
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Between two requests in their file: never in HTTP, never in JSON.
END = b"\0"

#: The load before the measuring: connections are being accepted. (wrk has none.)
RAMP_SECONDS = 0.5

#: An answer that takes longer is none.
ANSWER_SECONDS = 20.0

#: One process is faster than any Python server; more of them only for those that use many cores.
PROCESSES = max(1, (os.cpu_count() or 1) // 4)

#: The percentiles that are asked for; wrk.lua has the same.
PERCENTILES = (50.0, 99.0, 99.9)

Latencies = tuple[float, float, float]

#: Only 202 is a success. What follows the head is as long as it says.
_ANSWER = re.compile(
    rb"HTTP/1\.1 202 [^\r\n]*\r\n"
    rb"(?:[^\r\n]+\r\n)*?content-length: *(\d+)\r\n(?:[^\r\n]+\r\n)*\r\n",
    re.IGNORECASE,
)

_WRK_SCRIPT = Path(__file__).with_name("wrk.lua")


class Load(NamedTuple):
    """What one load was answered, all with 202."""

    #: All answers, those of the ramp and those that came when the time was over.
    answers: int
    #: Requests under way at the end whose outcome nobody has waited for.
    unanswered: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    client_cpu_seconds: float


def client() -> str:
    """Name the client that is going to be used."""
    return "wrk" if shutil.which("wrk") else "python"


def write_requests(path: Path, target: str, content_type: str, bodies: Iterable[bytes]) -> None:
    """Write whole requests, one a body."""
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: "
    path.write_bytes(END.join(b"%b%d\r\n\r\n%b" % (head.encode(), len(body), body) for body in bodies))


def ask(address: tuple[str, int], requests: Path) -> bytes:
    """Send the file's first request, alone; return the answer: a 202, or whatever the server said."""
    with socket.create_connection(address, timeout=ANSWER_SECONDS) as connection:
        connection.sendall(requests.read_bytes().partition(END)[0])
        answer = b""
        while not _is_whole(answer) and (data := connection.recv(65_536)):
            answer += data
            if not answer.startswith(b"HTTP/1.1 202 "):
                break
        return answer


def run_load(address: tuple[str, int], requests: Path, connections: int, seconds: float) -> Load:
    """Send requests for so long; raise RuntimeError when one is not answered with 202."""
    before = os.times()
    processes = min(connections, PROCESSES)
    if client() == "wrk":
        answers, unanswered, rate, latency_ms = _run_wrk(address, requests, connections, seconds, processes)
    else:
        answers, unanswered, rate, latency_ms = _run_ours(address, requests, connections, seconds, processes)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Load(answers, unanswered, rate, *latency_ms, cpu)


def _run_wrk(
    address: tuple[str, int], requests: Path, connections: int, seconds: float, threads: int
) -> tuple[int, int, float, Latencies]:
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    command += [f"--timeout={ANSWER_SECONDS:.0f}s", f"--script={_WRK_SCRIPT}", "http://{}:{}/".format(*address)]
    result = subprocess.run([*command, "--", requests], capture_output=True, text=True, check=True)
    said = json.loads(result.stdout.splitlines()[-1])
    if any(said["errors"].values()) or not said["requests"]:
        raise RuntimeError(f"of {said['requests']} requests not all were answered with 202: {said['errors']}")
    p50, p99, p999 = (value / 1000 for value in said["latency_us"])
    return said["requests"], connections, said["requests"] / said["duration_us"] * 1e6, (p50, p99, p999)


def _run_ours(
    address: tuple[str, int], requests: Path, connections: int, seconds: float, processes: int
) -> tuple[int, int, float, Latencies]:
    shares = [len(range(index, connections, processes)) for index in range(processes)]
    # -I -S: it needs nothing that is installed, and this directory's http.py must not hide Python's own http.
    command = [sys.executable, "-I", "-S", __file__, address[0], str(address[1]), str(requests)]
    running = [
        subprocess.Popen([*command, str(share), str(seconds), str(index)], stdout=subprocess.PIPE)
        for index, share in enumerate(shares)
    ]
    outputs = [process.communicate(timeout=seconds + 3 * ANSWER_SECONDS)[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("not all requests were answered with 202")
    answers, rate, latencies = 0, 0.0, array("d")
    for output in outputs:
        head, _, body = output.partition(b"\n")
        said = json.loads(head)
        answers += said["answers"]
        rate += said["requests_per_second"]
        latencies.frombytes(body)
    latencies = array("d", sorted(latencies))
    p50, p99, p999 = (_percentile(latencies, percent) * 1000 for percent in PERCENTILES)
    return answers, 0, rate, (p50, p99, p999)


def _percentile(ordered: Sequence[float], percent: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


class _Connection:
    """One connection, with the request that is under way on it."""

    __slots__ = ("answer", "recv", "rest", "send", "sent_at", "socket")

    def __init__(self, address: tuple[str, int], size: int) -> None:
        self.socket = socket.create_connection(address, timeout=ANSWER_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A whole request fits: the client need not come back for the rest of it.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * size)
        self.socket.setblocking(False)
        self.send, self.recv = self.socket.send, self.socket.recv
        self.sent_at = 0.0
        self.answer = b""
        self.rest = memoryview(b"")


class _Client:
    """One process's connections."""

    def __init__(self, address: tuple[str, int], requests: deque[bytes], connections: int) -> None:
        self._requests = requests
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        size = max(map(len, requests))
        for _ in range(connections):
            connection = _Connection(address, size)
            self._connections[connection.socket.fileno()] = connection
            self._epoll.register(connection.socket, select.EPOLLIN)
        self.answers = 0

    def run(self, seconds: float) -> array[float]:
        """Keep a request under way on every connection; return the latencies of the answers in that time."""
        begin = time.perf_counter()
        for connection in self._connections.values():
            self._send(connection)
        self._answer_until(begin + RAMP_SECONDS)
        latencies = self._answer_until(begin + RAMP_SECONDS + seconds)
        self._finish()
        return latencies

    def _answer_until(self, end: float) -> array[float]:
        """Take answers and send the next requests."""
        poll, connections, latencies, clock = self._epoll.poll, self._connections, array("d"), time.perf_counter
        match, note, send = _ANSWER.match, latencies.append, self._send
        now = clock()
        while now < end:
            events = poll(ANSWER_SECONDS)
            if not events:
                raise RuntimeError(f"no answer for {ANSWER_SECONDS:.0f} s")
            for number, event in events:
                connection = connections[number]
                if event & select.EPOLLOUT:
                    self._send_rest(connection)
                    continue
                data = connection.recv(65_536)
                found = match(data)
                # Nearly always: one answer, whole, in one piece.
                is_whole = found is not None and not connection.answer and found.end() + int(found[1]) == len(data)
                if not is_whole and not _append(connection, data):
                    continue
                now = clock()
                note(now - connection.sent_at)
                send(connection)
            now = clock()
        self.answers += len(latencies)
        return latencies

    def _send(self, connection: _Connection) -> None:
        requests = self._requests
        request = requests[0]
        requests.rotate(-1)
        connection.sent_at = time.perf_counter()
        sent = connection.send(request)
        if sent != len(request):
            connection.rest = memoryview(request)[sent:]
            self._epoll.modify(connection.socket, select.EPOLLOUT)

    def _send_rest(self, connection: _Connection) -> None:
        connection.rest = connection.rest[connection.send(connection.rest) :]
        if not connection.rest:
            self._epoll.modify(connection.socket, select.EPOLLIN)

    def _finish(self) -> None:
        """Wait for the answers that are under way, each of which counts."""
        for connection in self._connections.values():
            connection.socket.setblocking(True)
            connection.socket.settimeout(ANSWER_SECONDS)
            connection.socket.sendall(connection.rest)
            while not _append(connection, connection.recv(65_536)):
                pass
            connection.socket.close()
            self.answers += 1


def _append(connection: _Connection, data: bytes) -> bool:
    """Take a piece of an answer; tell whether it is whole now. Any answer but 202 is an error."""
    connection.answer += data
    if not data or not connection.answer.startswith(b"HTTP/1.1 202 "[: len(connection.answer)]):
        raise RuntimeError(f"not answered with 202 but with {connection.answer[:1000]!r}")
    if not _is_whole(connection.answer):
        return False
    connection.answer = b""
    return True


def _is_whole(answer: bytes) -> bool:
    found = _ANSWER.match(answer)
    return found is not None and found.end() + int(found[1]) == len(answer)


def main() -> None:
    """Be one process of the client: print a line of JSON, then the latencies in seconds, as doubles."""
    host, port, path, connections, seconds, place = sys.argv[1:]
    requests = deque(Path(path).read_bytes().split(END))
    requests.rotate(-int(place) * len(requests) // 7)
    running = _Client((host, int(port)), requests, int(connections))
    latencies = running.run(float(seconds))
    said = {"answers": running.answers, "requests_per_second": len(latencies) / float(seconds)}
    sys.stdout.buffer.write(json.dumps(said).encode() + b"\n" + latencies.tobytes())


if __name__ == "__main__":
    main()
