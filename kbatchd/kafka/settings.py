"""What our clients of Kafka are made with: what kbatchd needs, then what the file says, then what kbatchd would like.

librdkafka judges some properties by others (`reconnect.backoff.max.ms` must not be below `reconnect.backoff.ms`). What
the file says may contradict what we would merely like: that gives way. What it may not contradict is what we need;
then no client is made, and `kbatchd check-config` says so beforehand (check/properties.py). Used by the modules that
make clients, after the fork.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from confluent_kafka import KafkaException

from kbatchd.kafka import oauth
from kbatchd.kafka.client_log import rdkafka_log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kbatchd import config

Properties = dict[str, str | int | float | bool]

#: What librdkafka, and Python's side of it, raise for settings that they do not take.
NOT_TAKEN = (KafkaException, AttributeError, TypeError, ValueError)

_Client = TypeVar("_Client")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one kind of client."""

    #: What exactness needs; the file's [kafka.librdkafka] cannot change these.
    ours: Properties
    #: What it would like; the file may say otherwise.
    defaults: Properties = field(default_factory=dict)

    def connect(self, kind: Callable[..., _Client], kafka: config.Kafka, **callbacks: Any) -> _Client:  # noqa: ANN401
        """Make a client that logs in; raises ServerUnavailable where no token can be had, or one of NOT_TAKEN."""
        return self.make(kind, kafka.client, **callbacks, **oauth.callbacks(kafka))

    def make(
        self,
        kind: Callable[..., _Client],
        given: Mapping[str, str | int | float | bool],
        **callbacks: Any,  # noqa: ANN401
    ) -> _Client:
        """Make a client, if need be without a default that contradicts; raises one of NOT_TAKEN."""
        try:
            return _make(kind, self._together(given, self.defaults), callbacks)
        except NOT_TAKEN as error:
            oauth.refuse(error)
            for defaults in self._fewer_defaults(given):
                try:
                    return _make(kind, self._together(given, defaults), callbacks)
                except NOT_TAKEN:
                    continue
            raise

    def _fewer_defaults(self, given: Mapping[str, object]) -> list[Properties]:
        """Return the defaults less each of them in turn; in the end none."""
        ours_alone = [name for name in self.defaults if name not in given]
        return [{name: value for name, value in self.defaults.items() if name != left} for left in ours_alone] + [{}]

    def _together(self, given: Mapping[str, str | int | float | bool], defaults: Properties) -> Properties:
        # Ours stand last, not where the file has them: librdkafka obeys the last of a property and its aliases.
        theirs = {name: value for name, value in {**defaults, **given}.items() if name not in self.ours}
        return {**theirs, **self.ours}


def _make(kind: Callable[..., _Client], properties: Properties, callbacks: Mapping[str, object]) -> _Client:
    return kind({**properties, **callbacks}, logger=rdkafka_log)
