"""Which topic a name stands for: the one truth of the poll loop and of the flusher.

A topic may be deleted and recreated under its name, and librdkafka then reads on in the new one, at the old offset. Its
id never comes back. So `TopicIds` keeps, for each topic, the id that holds now and those that it has had: a former one
is told by a broker that lags behind the others, and is no news. The topic watch, in the poll loop, asks every few
seconds and decides. The flusher only doubts: it asks while a batch is on its way to PostgreSQL, after the batch has
been read and before its commit (a millisecond or two, in which the rows are copied), and on another answer drops the
batch and claims nothing of the topic before the watch has looked.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from kbatchd.errors import KbatchError, TopicRecreated
from kbatchd.kafka import topics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kbatchd.kafka.topics import Admin, Inquiry

log = logging.getLogger(__name__)

#: How long an answer is waited for. Without one the batch goes in: from brokers that are away nothing new was read.
ANSWER_SECONDS = 1.0


class TopicIds:
    """The ids of a worker's topics; called by both of its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: dict[str, str] = {}
        self._former: dict[str, set[str]] = {}
        self._doubted: set[str] = set()

    @property
    def in_doubt(self) -> bool:
        """Whether some topic may be another one than it was: the watch looks soon."""
        return bool(self._doubted)

    def settled(self, topic: str) -> str | None:
        """Return the topic's id; None while it is not known, or in doubt."""
        with self._lock:
            return None if topic in self._doubted else self._current.get(topic)

    def last(self, topic: str) -> str:
        """Return the topic's id as it was last settled; "" if it never was."""
        with self._lock:
            return self._current.get(topic, "")

    def is_former(self, topic: str, topic_id: str) -> bool:
        """Tell whether the topic had this id before the one it has."""
        with self._lock:
            return topic_id in self._former.get(topic, ())

    def doubt(self, topic: str) -> None:
        """Note that an answer spoke of another topic."""
        with self._lock:
            self._doubted.add(topic)

    def settle(self, topic: str, topic_id: str) -> None:
        """Note what the watch has made out."""
        with self._lock:
            before = self._current.get(topic, topic_id)
            if before != topic_id:
                self._former.setdefault(topic, set()).add(before)
            self._current[topic] = topic_id
            self._doubted.discard(topic)

    def remember(self, topic: str, former: Iterable[str]) -> None:
        """Note ids that are known to be former ones. If the topic's is among them, a broker that lags gave it."""
        with self._lock:
            known = self._former.setdefault(topic, set())
            known.update(former)
            if self._current.get(topic) in known:
                del self._current[topic]
                self._doubted.add(topic)


class Identity:
    """The question of one flush."""

    def __init__(self, admin: Admin, ids: TopicIds, topic: str, topic_id: str) -> None:
        """Ask, without waiting; `topic_id` is the one that the batch's partitions were claimed under."""
        self._ids = ids
        self._topic = topic
        self._topic_id = topic_id
        self._inquiry: Inquiry = topics.describe_async(admin, [topic], ANSWER_SECONDS)

    def confirm(self) -> None:
        """Raise TopicRecreated if the topic is another one now; before each commit of the flush."""
        if not self._inquiry.wait(ANSWER_SECONDS):
            return
        try:
            description = self._inquiry.result()[self._topic]
        except KbatchError:
            return
        # A topic that is gone has no new records yet; a former id tells nothing.
        if description is None or self._ids.is_former(self._topic, description.topic_id):
            return
        if description.topic_id != self._topic_id:
            raise TopicRecreated(self._topic, description.topic_id)
