"""The shape that a route's mapping reads: a tree of the nodes of a JSON text, each with the feeds that take it.

The gateway writes it as a JSON schema (gateway/records.py), and made-up records are written along it (samples.py).
Pure functions, no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kbatchd.encode.mapping import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kbatchd.config import RouteMapping
    from kbatchd.encode.mapping import Feed
    from kbatchd.paths import Path


class Node:
    """A node of a JSON text: who takes what stands there, and what is within it."""

    def __init__(self) -> None:
        self.feeds: list[Feed] = []
        self.within: dict[str | int, Node] = {}
        #: Whether it must be there in every record.
        self.required = False

    def at(self, path: Path, *, required: bool) -> Node:
        """Return a node within; what is required must be there all the way."""
        node = self
        for step in path:
            node = node.within.setdefault(step, Node())
            node.required |= required
        return node

    def add(self, feed: Feed) -> None:
        """Add who takes what is at the feed's own path."""
        self.at(feed.path, required=_is_required(feed)).feeds.append(feed)


class Shape(NamedTuple):
    """A record's value: all of it, and the object whose fields are the columns'; with an envelope that is within."""

    root: Node
    inner: Node


def of_value(feeds: Sequence[Feed], mapping: RouteMapping) -> Shape:
    """Return the shape of a route's values."""
    root = Node()
    root.required = True
    inner = root.at(mapping.envelope, required=True)
    for feed in feeds:
        if feed.source in {Source.FIELD, Source.VALUE}:
            (inner if feed.source is Source.FIELD else root).add(feed)
    return Shape(root, inner)


def of_text(feeds: Iterable[Feed]) -> Node:
    """Return the shape of a key or a header that these feeds take."""
    root = Node()
    root.required = True
    for feed in feeds:
        root.add(feed)
    return root


def _is_required(feed: Feed) -> bool:
    if feed.literal is not None or feed.on_missing == "default":
        return False
    return feed.column.not_null or feed.on_missing == "reject"
