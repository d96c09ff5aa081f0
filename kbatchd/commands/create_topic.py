"""`kbatchd create-topic`: the routes' topics, as the file describes them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial

from kbatchd import log
from kbatchd.commands import load_config, route_named
from kbatchd.errors import EX_OK
from kbatchd.kafka import offsets, topics
from kbatchd.model import Partition

#: Somebody waits at the terminal: less than the daemon's own patience.
TIMEOUT_SECONDS = 15.0


def run(arguments: argparse.Namespace) -> int:
    """Make the topics that are not there yet."""
    config = load_config(arguments)
    routes = [route_named(config, name) for name in arguments.route] or config.route
    admin = topics.make_admin(config.kafka)
    patience = min(TIMEOUT_SECONDS, config.startup_timeout_seconds)
    outcome = topics.create_topics(admin, routes, patience)
    for topic, created in outcome:
        print(f"{topic}: {'created' if created else 'exists already'}")
    _wait_for_leaders(admin, [topic for topic, created in outcome if created], time.monotonic() + patience)
    return EX_OK


def _wait_for_leaders(admin: topics.Admin, names: Sequence[str], deadline: float) -> None:
    """Return when the leaders of all partitions answer: the next command finds a topic that is there."""
    described = topics.describe(admin, names)
    while time.monotonic() < deadline and not all(described.values()):  # a broker has not heard of it yet
        described = topics.describe(admin, names)
    for topic in filter(None, described.values()):
        partitions = [Partition(topic.topic, number) for number in range(topic.partitions)]
        ask = partial(offsets.list_offsets, admin, at="latest")
        for error in offsets.patiently(ask, partitions, deadline - time.monotonic()).silent.values():
            log.complain([f"topic {topic.topic} is created, and not all its partitions answer yet: {error}"])
