"""Partitions whose beginning is not known yet: their broker was away when their topic was read first.

Such a partition has a line in kbatchd.progress without a next_offset, with the `start` that held then. Its owner
asks until two answers say the same, so a partition begins where the route meant it to, however late; the others have
begun without it. Called by the flusher, in its thread, before each claim; it never waits for an answer.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING, cast

from kbatchd.errors import KbatchError
from kbatchd.kafka.offsets import At, Beginnings
from kbatchd.model import Partition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kbatchd.kafka.topics import Admin
    from kbatchd.schema.claiming import Unbegun

log = logging.getLogger(__name__)


class Starting:
    """The question of one route, where partitions of its topic begin."""

    def __init__(self, admin: Admin, topic: str) -> None:
        self._admin = admin
        self._topic = topic
        self._question: Beginnings | None = None
        #: Why the brokers are silent: each reason is told of once.
        self._told: dict[Partition, str] = {}

    def look(self, unbegun: Mapping[int, Unbegun], topic_ids: Mapping[int, str]) -> dict[int, int]:
        """Ask, or take the answer that has come; return where partitions of those given begin, by their numbers."""
        # Recreated before anything was read: like a partition that appears later it is read from 0, all of it.
        offsets = {number: 0 for number, line in unbegun.items() if line.topic_id != topic_ids[number]}
        asked = {number: line.start for number, line in unbegun.items() if number not in offsets}
        if self._question is None and asked:
            start = next(iter(asked.values()))
            partitions = [Partition(self._topic, number) for number, other in asked.items() if other == start]
            self._question = Beginnings(self._admin, partitions, _at(start))
        return offsets | self._take(asked)

    def _take(self, asked: Mapping[int, str]) -> dict[int, int]:
        if self._question is None:
            return {}
        try:
            answers = self._question.look()
        except KbatchError as error:
            self._question = None
            self._tell({Partition(self._topic, number): error for number in asked})
            return {}
        if answers is None:
            return {}
        self._question = None
        self._tell(answers.silent)
        return {partition.number: offset for partition, offset in answers.known.items() if partition.number in asked}

    def _tell(self, silent: Mapping[Partition, KbatchError]) -> None:
        for partition, error in silent.items():
            if self._told.get(partition) != str(error):
                about = {"partition": str(partition), "error": str(error)}
                log.warning("not known yet where to begin", extra={"action": "start_unknown", **about})
        self._told = {partition: str(error) for partition, error in silent.items()}


def _at(start: str) -> At:
    return cast("At", start) if start in {"earliest", "latest"} else datetime.fromisoformat(start)
