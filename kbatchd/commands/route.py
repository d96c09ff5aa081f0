"""`kbatchd route pause|resume`: let a route stand still on all hosts, and go on."""

from __future__ import annotations

import argparse
import getpass
import os
import socket

from kbatchd.commands import load_config, route_named
from kbatchd.errors import EX_OK
from kbatchd.postgres.connection import connect, explained
from kbatchd.schema import pausing
from kbatchd.schema.migrations import check_version


def pause(arguments: argparse.Namespace) -> int:
    """Pause a route; one that is paused already stays as it was."""
    config = load_config(arguments)
    route = route_named(config, arguments.route).name
    with connect(config.postgres, "kbatchd route pause") as connection, explained():
        check_version(connection)
        is_new = pausing.pause(connection, config.pipeline, route, _who())
        found = pausing.read_pauses(connection, config.pipeline).get(route)
    said = found or "not paused any more"  # somebody else was quick
    print(f"route {route} is {said}" if is_new else f"route {route} was paused before: it is {said}")
    return EX_OK


def resume(arguments: argparse.Namespace) -> int:
    """Let a route go on."""
    config = load_config(arguments)
    route = route_named(config, arguments.route).name
    with connect(config.postgres, "kbatchd route resume") as connection, explained():
        check_version(connection)
        former = pausing.resume(connection, config.pipeline, route)
    print(f"route {route} is not paused" if former is None else f"route {route} goes on; it was {former}")
    return EX_OK


def _who() -> str:
    """Name who runs this, and where."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # in a container, a user without an entry
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"
