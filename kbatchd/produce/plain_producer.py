"""Sends what cannot be read again: each record once, as long as this process lives.

Used by `kbatchd produce`, in its main thread.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException

from kbatchd.errors import ServerUnavailable
from kbatchd.kafka import produce_settings
from kbatchd.kafka.errors import cause_of
from kbatchd.produce.delivery import SLICE_SECONDS, Acknowledged, Reports, make_producer, refuse, send_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kbatchd import config
    from kbatchd.produce.bookmark import Bookmark
    from kbatchd.produce.delivery import Headers, Patience
    from kbatchd.shapes.samples import Label


class PlainProducer:
    """Sends records that cannot be read again."""

    def __init__(
        self,
        kafka: config.Kafka,
        topic: str,
        timeout_seconds: float,
        patience: Patience,
        labels: Iterator[Label] | None = None,
    ) -> None:
        """Connect in the background. Each record gets the next label: headers, and a key if it has none of its own."""
        self.acknowledged = Acknowledged()
        self._topic = topic
        self._patience = patience
        self._labels = labels
        self._reports = Reports()
        self._producer = make_producer(kafka, produce_settings.plain(timeout_seconds), patience)

    def add(self, values: Sequence[bytes], keys: Sequence[bytes | None]) -> None:
        """Send records; raises for any record before these that was not acknowledged."""
        headers: list[Headers] | None = None
        if self._labels is not None:
            labels = list(islice(self._labels, len(values)))
            headers = [[*label.headers] for label in labels]
            keys = [label.key if key is None else key for key, label in zip(keys, labels, strict=True)]
        with self._ended_by_fatal_errors():
            send_all(self._producer, self._topic, values, keys, self._reports, self._make_room, headers)
        self._poll(0)

    def is_full(self) -> bool:
        """Never: there is nothing to commit."""
        return False

    def is_open(self) -> bool:
        """Never."""
        return False

    def commit(self, bookmark: Bookmark) -> None:  # noqa: ARG002 - nobody could go on there
        """Return when all is acknowledged."""
        while len(self._producer):  # not flush(): it would go on with the reports behind a fatal error
            if not self._poll(SLICE_SECONDS):
                self._patience.wait("it does not acknowledge the records")
        self._check()

    def close(self) -> None:
        """Count what was acknowledged, and drop the rest."""
        with suppress(KafkaException, SystemError):  # after a fatal error, which was told already
            self._producer.purge()
            self._producer.flush(SLICE_SECONDS)
        self.acknowledged.add(self._reports.offsets)
        self._reports.offsets = []

    def _make_room(self) -> None:
        self._patience.wait("it does not acknowledge the records")
        self._poll(SLICE_SECONDS)

    def _poll(self, seconds: float) -> int:
        with self._ended_by_fatal_errors():
            told = self._producer.poll(seconds)
        self._check()
        return told

    @contextmanager
    def _ended_by_fatal_errors(self) -> Iterator[None]:
        """Say what a fatal error means; librdkafka's Python side raises one wherever it finds it."""
        try:
            yield
        except (KafkaException, SystemError) as error:
            fatal = cause_of(error)
            refuse(fatal, self._reports.error)
            raise ServerUnavailable(f"Kafka cannot be sent to: {fatal.str()}") from error

    def _check(self) -> None:
        reports = self._reports
        if reports.error is not None:
            refuse(reports.error, None)
            raise ServerUnavailable(f"Kafka cannot be reached: {self._patience.trouble or reports.error.str()}")
        if reports.offsets:
            self.acknowledged.add(reports.offsets)
            reports.offsets = []
            self._patience.content()
