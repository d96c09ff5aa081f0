"""Whether a topic is still the one that progress is of, asked while its batch is on its way to PostgreSQL.

A topic may be deleted and made anew between two looks of the topic watch, and librdkafka then reads on in the new one,
at the old offset. So the brokers are asked after the batch has been read, and must have answered before its commit: a
topic's id never comes back. The question takes a millisecond or two, in which the rows are copied. Called by the
flusher, in its thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbatchd import topics
from kbatchd.errors import KbatchError, TopicMadeAnew

if TYPE_CHECKING:
    from kbatchd.topics import Admin, Inquiry

#: How long an answer is waited for. Without one the batch goes in: from brokers that are away nothing new was read.
ANSWER_SECONDS = 1.0


class Identity:
    """The question of one flush."""

    def __init__(self, admin: Admin, topic: str, topic_id: str) -> None:
        """Ask, without waiting; `topic_id` is the one that progress is of."""
        self._topic = topic
        self._topic_id = topic_id
        self._inquiry: Inquiry = topics.describe_async(admin, [topic], ANSWER_SECONDS)

    def confirm(self) -> None:
        """Raise TopicMadeAnew if the topic is another one now; before each commit of the flush."""
        if not self._inquiry.wait(ANSWER_SECONDS):
            return
        try:
            description = self._inquiry.result()[self._topic]
        except KbatchError:
            return
        # A topic that is gone has no new records yet.
        if description is not None and description.topic_id != self._topic_id:
            raise TopicMadeAnew(self._topic, description.topic_id)
