"""`kbatchd create-topic`: the routes' topics, as the file describes them."""

from __future__ import annotations

import argparse

from kbatchd import topics
from kbatchd.commands import load_config, route_named
from kbatchd.errors import EX_OK

#: Somebody waits at the terminal: less than the daemon's own patience.
TIMEOUT_SECONDS = 15.0


def run(arguments: argparse.Namespace) -> int:
    """Make the topics that are not there yet."""
    config = load_config(arguments)
    routes = [route_named(config, name) for name in arguments.route] or config.route
    admin = topics.make_admin(config.kafka)
    for topic, created in topics.create_topics(admin, routes, min(TIMEOUT_SECONDS, config.startup_timeout_seconds)):
        print(f"{topic}: {'created' if created else 'exists already'}")
    return EX_OK
