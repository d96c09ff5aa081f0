"""Whether librdkafka takes the file's [kafka.librdkafka], by itself and together with what kbatchd sets.

Each kind of client is made as the daemon and its commands make it, but with no broker to connect to, and dropped again.
Called by `check-config`, `check` and the start-up checks: in processes where clients may be made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, libversion
from confluent_kafka.admin import AdminClient

from kbatchd.kafka import produce_settings, producer, reader_settings, topics
from kbatchd.kafka.client_log import rdkafka_log
from kbatchd.kafka.errors import text_of
from kbatchd.kafka.settings import NOT_TAKEN, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kbatchd.config import Config, Where

_TABLE = ("kafka", "librdkafka")

#: librdkafka 2.15, since which a member of such a group behaves as one of a classic group does.
_CONSUMER_GROUPS_SINCE = 0x020F0000

_BROKERS = {"bootstrap.servers", "metadata.broker.list"}


def judge(config: Config) -> dict[Where, str]:
    """Return what is wrong, by key. Connects to nothing."""
    faults = check_librdkafka(config.kafka.librdkafka)
    version, number = libversion()
    if config.kafka.group_protocol == "consumer" and number < _CONSUMER_GROUPS_SINCE:
        needs = f'"consumer" needs librdkafka 2.15 or later, and this is {version}; upgrade confluent-kafka'
        faults["kafka", "group_protocol"] = needs
    if faults or not config.kafka.librdkafka:
        return faults
    properties = {name: value for name, value in config.kafka.client.items() if name not in _BROKERS}
    for kind, settings in _clients(config):
        what = _fault(kind, settings, properties)
        if what:
            faults.setdefault(_at_fault(kind, settings, properties, config.kafka.librdkafka), what)
    return faults


def _clients(config: Config) -> Iterator[tuple[Callable[..., object], Settings]]:
    """Say what is made: workers, those who ask about topics, `kbatchd produce`, gateways."""
    yield Consumer, reader_settings.settings(config.kafka, "check")
    yield AdminClient, Settings(topics.OURS)
    yield Producer, produce_settings.plain(config.startup_timeout_seconds)
    yield Producer, produce_settings.transactions("check")
    yield Consumer, produce_settings.bookmarks("check", stable=True)
    if config.gateway is not None:
        yield Producer, producer.settings(config.gateway, "check")


def _at_fault(
    kind: Callable[..., object], settings: Settings, properties: Mapping[str, str | int | float | bool],
    suspects: Mapping[str, object],
) -> Where:  # fmt: skip
    """Find the one property without which all is well; the whole table where there is none."""
    for name in suspects:
        if not _fault(kind, settings, {each: value for each, value in properties.items() if each != name}):
            return (*_TABLE, name)
    return _TABLE


def _fault(
    kind: Callable[..., object], settings: Settings, properties: Mapping[str, str | int | float | bool]
) -> str:  # fmt: skip
    try:
        settings.make(kind, properties)
    except NOT_TAKEN as error:
        cause = error.args[0] if isinstance(error, KafkaException) else error
        text = cause.str() if isinstance(cause, KafkaError) else str(cause)
        return f"does not go together with what kbatchd sets itself: {' '.join(text.split())}"
    return ""


def check_librdkafka(properties: Mapping[str, str | int | float | bool]) -> dict[Where, str]:
    """Let librdkafka judge its own properties; return what it finds wrong, by key. Connects to nothing."""
    table = ("kafka", "librdkafka")
    faults: dict[Where, str] = {}
    for name, value in properties.items():
        # librdkafka stops at the first fault. One that is certain, behind the property, proves the property good,
        # and no client with its threads is made (0.02 ms instead of 1 ms).
        fault = _consumer_fault({"group.id": "check", name: value, _SENTINEL: ""})
        if _SENTINEL not in fault:
            faults[*table, name] = fault
    if not faults and properties:
        fault = _consumer_fault({"group.id": "check", **properties})
        if fault:
            faults[table] = fault
    return faults


_SENTINEL = "kbatchd.no.such.property"


def _consumer_fault(properties: dict[str, str | int | float | bool]) -> str:
    try:
        Consumer(properties, logger=rdkafka_log).close()
    except NOT_TAKEN as error:
        return text_of(error)
    return ""
