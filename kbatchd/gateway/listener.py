"""The socket that a server accepts connections on, and how it is given up without a loss.

A listener that is closed resets the connections that its process has not accepted yet, and those whose handshake is
half done, though their clients have been told that they are connected. So the kernel is first told to overlook new
ones; those under way are accepted as ever, and then there is nothing left to reset. A client that was overlooked asks
again after a second, by itself: then it reaches another gateway, or is refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import secrets
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from kbatchd.errors import ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd.config import Gateway

#: Connections the kernel keeps for us while the loop is busy.
BACKLOG = 4_096

#: How long a handshake that is under way may take; longer than a way around the world is for no gateway.
HANDSHAKE_SECONDS = 0.1

#: Linux's number, which the socket module does not name.
_SO_ATTACH_FILTER = 26

#: A program for the kernel, run on each packet to the listener: byte 13 of TCP's header holds the flags, 2 is SYN.
_NO_SYN = [
    (0x30, 0, 0, 13),  # load the byte
    (0x45, 0, 1, 0x02),  # without SYN skip the next instruction
    (0x06, 0, 0, 0),  # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # take all of it
]


def listen(settings: Gateway, table: str, *, shared: bool) -> socket.socket:
    """Return a socket at `listen` of the file's table; ServerUnavailable when it cannot be had.

    `shared`: with other processes. Else alone: two daemons on one address would answer in turns.
    """
    with _explained(settings, table):
        family, kind, protocol, _, address = socket.getaddrinfo(*settings.address, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def announce(settings: Gateway, pipeline: str) -> socket.socket:
    """Say whose gateways share an address, as long as the returned socket is open; refuse another pipeline's.

    With SO_REUSEPORT the kernel would give each a share of the connections; but only to sockets of one user, so another
    user's mark means nothing. The sockets' abstract names are seen by all in the same network, as the address is, and
    vanish with their process. Each is named first, and then looks: of two that begin at the same time, one sees the
    other at least. To be called before listening: a listener has a share. `answer_mark` is for those who look.
    """
    with _explained(settings, "gateway"):
        host, port = map(str, socket.getaddrinfo(*settings.address, type=socket.SOCK_STREAM)[0][4][:2])
    whose = hashlib.blake2b(pipeline.encode(), digest_size=8).hexdigest()
    ours = f"@kbatchd/{host}/{port}/{whose}/"
    mark = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mark.setblocking(False)
    # Nobody can guess the name, and take it before.
    mark.bind(f"\0{ours[1:]}{secrets.token_hex(8)}")
    mark.listen()
    lines: list[str] = []
    with contextlib.suppress(OSError):  # where a sandbox hides it, nobody is refused
        lines = Path("/proc/self/net/unix").read_text(errors="replace").splitlines()
    for name in (line.rpartition(" ")[2] for line in lines):
        if name.startswith(f"@kbatchd/{host}/{port}/") and not name.startswith(ours):
            pid, user = _owner(name)
            if user == os.geteuid():
                mark.close()
                raise ServerUnavailable(
                    f"gateway.listen: {settings.listen}: the gateway of another pipeline listens there (pid {pid}): "
                    "give this file a listen of its own"
                )
    return mark


def answer_mark(mark: socket.socket) -> None:
    """Let go of those who have looked, so that the next ones can."""
    with contextlib.suppress(OSError):
        while True:
            mark.accept()[0].close()


def _owner(name: str) -> tuple[int, int | None]:
    """Return the process and the user that listen at an abstract name, from the kernel; None where nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as looking:
        looking.setblocking(False)
        try:
            looking.connect(f"\0{name[1:]}")
            credentials = looking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:  # it has just gone, or is of another kind, or answers nobody
            return 0, None
    pid, user, _ = struct.unpack("3i", credentials)
    return pid, user


@contextlib.contextmanager
def _explained(settings: Gateway, table: str) -> Iterator[None]:
    """Name the address that cannot be had."""
    try:
        yield
    except OSError as error:
        raise ServerUnavailable(f"{table}.listen: {settings.listen}: {error.strerror}") from error


def overlook_new(listener: socket.socket) -> None:
    """Have the kernel drop new connections' first packets; HANDSHAKE_SECONDS later the listener may be closed."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _NO_SYN))
    with contextlib.suppress(OSError):  # a sandbox may forbid it: then a few may be reset
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_NO_SYN), ctypes.addressof(program))
        )
