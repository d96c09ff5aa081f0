"""What Kafka's admin client is asked: do the topics exist, under which id, with how many partitions and which offsets.

Called by the start-up checks and the operator's commands, which wait for the answers, and by each worker's poll loop,
which must not: it asks with `describe_async()` or `ends_async()` and looks at `done()` each turn. An admin client has
threads of its own, so it is made after the fork.

A topic's id tells it from another of the same name that was made later; brokers give it since 2.8.
"""

from __future__ import annotations

from concurrent.futures import wait
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
    Uuid,
    libversion,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec

from kbatchd.errors import ConfigError, KbatchError, ServerUnavailable, SourceError
from kbatchd.model import Partition
from kbatchd.rdkafka_log import rdkafka_log

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from concurrent.futures import Future
    from typing import Any

    from kbatchd import config
    from kbatchd.config_faults import Where

#: Answers come at once or not at all; the poll loop asks again every 10 s.
REQUEST_TIMEOUT_SECONDS = 10.0

#: What a broker without topic ids answers.
_NO_ID = str(Uuid(0, 0))

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: `_NOENT` is "no leaders found": a partition that does not exist, or has nobody to ask.
_MISSING = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
    KafkaError._NOENT,  # noqa: SLF001
}

_REFUSED = {
    KafkaError._AUTHENTICATION,  # noqa: SLF001
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
}

_UNAVAILABLE = {
    KafkaError._TIMED_OUT,  # noqa: SLF001
    KafkaError._TRANSPORT,  # noqa: SLF001
    KafkaError._RESOLVE,  # noqa: SLF001
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.NOT_CONTROLLER,
}

_Asked = TypeVar("_Asked")

#: For those who look: librdkafka's own version.
LIBRDKAFKA_VERSION: str = libversion()[0]


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """A topic as it is now."""

    topic: str
    topic_id: str
    partitions: int


class Admin(AdminClient):
    """An admin client that remembers why it has no connection: a request itself only says "timed out"."""

    def __init__(self, kafka: config.Kafka) -> None:
        """Start librdkafka's threads and connect in the background; never fails for want of a broker."""
        self.trouble = _Trouble()
        properties: dict[str, Any] = {
            **kafka.client,
            "error_cb": self.trouble.note,
        }
        try:
            super().__init__(properties, logger=rdkafka_log)
        except (KafkaException, TypeError, ValueError) as error:
            raise ConfigError(f"kafka.librdkafka: {_text(error)}") from error


class _Question(Generic[_Asked]):
    """A question to the brokers that is under way, with one future for each thing it is asked about."""

    def __init__(self, admin: Admin, futures: dict[_Asked, Future[Any]]) -> None:
        self._admin = admin
        self._futures = futures

    def done(self) -> bool:
        """Tell whether `result()` would return at once; also hands librdkafka's log lines on."""
        self._admin.poll(0)
        return all(future.done() for future in self._futures.values())


class Inquiry(_Question[str]):
    """What topics are."""

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the end, not longer than this; tell whether it has come."""
        return not wait(self._futures.values(), timeout_seconds).not_done

    def result(self) -> dict[str, TopicDescription | None]:
        """Wait for the answer: None for a topic that does not exist. Raises ServerUnavailable or ConfigError."""
        _wait(self._admin, self._futures.values())
        descriptions: dict[str, TopicDescription | None] = {}
        for topic, future in self._futures.items():
            error = future.exception()
            if error is None:
                descriptions[topic] = _description(topic, future.result())
            elif _code(error) in _MISSING:
                descriptions[topic] = None
            else:
                raise _our_error(self._admin, f"topic {topic} cannot be described", error) from error
        return descriptions


class EndsInquiry(_Question[TopicPartition]):
    """Where partitions end."""

    def result(self) -> dict[Partition, int]:
        """Return the ends, when `done()`; without the partitions that have no leader, or nobody to ask."""
        return {
            Partition(key.topic, key.partition): int(future.result().offset)
            for key, future in self._futures.items()
            if future.exception() is None
        }


def make_admin(kafka: config.Kafka) -> Admin:
    """Make an admin client; librdkafka's log lines go to our logger."""
    return Admin(kafka)


def describe_async(admin: Admin, topics: Collection[str], timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> Inquiry:
    """Ask what the topics are, without waiting."""
    if not topics:  # librdkafka refuses an empty question
        return Inquiry(admin, {})
    return Inquiry(admin, admin.describe_topics(TopicCollection(list(topics)), request_timeout=timeout_seconds))


def describe(
    admin: Admin, topics: Collection[str], timeout_seconds: float = REQUEST_TIMEOUT_SECONDS
) -> dict[str, TopicDescription | None]:
    """Ask what the topics are: None for one that does not exist. Raises ServerUnavailable or ConfigError."""
    return describe_async(admin, topics, timeout_seconds).result()


def list_offsets(
    admin: Admin,
    partitions: Iterable[Partition],
    at: Literal["earliest", "latest"] | datetime,
    timeout_seconds: float = REQUEST_TIMEOUT_SECONDS,
) -> dict[Partition, int]:
    """Return each partition's first offset, its end, or its first offset at or after a time (the end if there is none).

    The end is that of a reader of committed records: before the first open transaction.
    Raises SourceError for a partition that does not exist or has no leader, else ServerUnavailable or ConfigError.
    """
    asked = list(partitions)
    offsets = _list_offsets(admin, asked, at, timeout_seconds)
    beyond = [partition for partition, offset in offsets.items() if offset < 0]
    if beyond:
        offsets.update(_list_offsets(admin, beyond, "latest", timeout_seconds))
    return offsets


def ends_async(admin: Admin, partitions: Iterable[Partition]) -> EndsInquiry:
    """Ask for the partitions' ends, those of a reader of committed records, without waiting."""
    return EndsInquiry(admin, _ask_offsets(admin, partitions, "latest", REQUEST_TIMEOUT_SECONDS))


def watermarks(
    admin: Admin, partitions: Iterable[Partition], timeout_seconds: float = REQUEST_TIMEOUT_SECONDS
) -> dict[Partition, tuple[int, int]]:
    """Return each partition's first offset and its end."""
    asked = list(partitions)
    low = list_offsets(admin, asked, "earliest", timeout_seconds)
    high = list_offsets(admin, asked, "latest", timeout_seconds)
    return {partition: (low[partition], high[partition]) for partition in asked}


def is_compacted(admin: Admin, topic: str, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> bool:
    """Tell whether Kafka deletes records of a topic that have a newer one of their key; False where it does not say."""
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    futures = admin.describe_configs([resource], request_timeout=timeout_seconds)
    try:
        _wait(admin, futures.values())
        return "compact" in str(futures[resource].result()["cleanup.policy"].value)
    except (KafkaException, KbatchError, LookupError):  # to describe a topic's settings is a right of its own
        return False


def create_topics(
    admin: Admin, routes: Iterable[config.Route], timeout_seconds: float = REQUEST_TIMEOUT_SECONDS
) -> list[tuple[str, bool]]:
    """Make the routes' topics; return each with False where it was there already, however many partitions it has.

    Of several routes on one topic the first says how it is made.
    Raises ConfigError with a line for each topic the brokers refuse; the others are made all the same.
    """
    makers: dict[str, config.Route] = {}
    for route in routes:
        makers.setdefault(route.topic, route)
    topics = [NewTopic(topic, route.partitions, route.replication_factor) for topic, route in makers.items()]
    futures = admin.create_topics(topics, operation_timeout=timeout_seconds, request_timeout=timeout_seconds)
    _wait(admin, futures.values())
    outcome = []
    faults = []
    for topic, future in futures.items():
        error = future.exception()
        if error is None or _code(error) == KafkaError.TOPIC_ALREADY_EXISTS:
            outcome.append((topic, error is None))
            continue
        ours = _our_error(admin, f"topic {topic} cannot be created", error)
        if isinstance(ours, ServerUnavailable):
            raise ours from error
        faults.append(str(ours))
    if faults:
        raise ConfigError(*faults)
    return outcome


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


class _Trouble:
    """The last thing librdkafka complained of. Apart from `Admin`, so that the two do not hold each other alive."""

    def __init__(self) -> None:
        self.last: KafkaError | None = None

    def note(self, error: KafkaError) -> None:
        """Take librdkafka's error callback; `_ALL_BROKERS_DOWN` says less than what came before it."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self.last = error


def _list_offsets(
    admin: Admin, partitions: list[Partition], at: Literal["earliest", "latest"] | datetime, timeout_seconds: float
) -> dict[Partition, int]:
    futures = _ask_offsets(admin, partitions, at, timeout_seconds)
    _wait(admin, futures.values())
    offsets = {}
    for key, future in futures.items():
        partition = Partition(key.topic, key.partition)
        error = future.exception()
        if error is not None:
            raise _our_error(admin, f"the offsets of {partition} cannot be read", error) from error
        offsets[partition] = int(future.result().offset)
    return offsets


def _ask_offsets(
    admin: Admin, partitions: Iterable[Partition], at: Literal["earliest", "latest"] | datetime, timeout_seconds: float
) -> dict[TopicPartition, Future[Any]]:
    spec = _offset_spec(at)
    asked = {TopicPartition(partition.topic, partition.number): spec for partition in partitions}
    if not asked:  # librdkafka refuses an empty question
        return {}
    futures: dict[TopicPartition, Future[Any]] = admin.list_offsets(
        asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=timeout_seconds
    )
    return futures


def _offset_spec(at: Literal["earliest", "latest"] | datetime) -> Any:  # noqa: ANN401 - untyped in the library
    if at == "earliest":
        return OffsetSpec.earliest()  # type: ignore[no-untyped-call]
    if at == "latest":
        return OffsetSpec.latest()  # type: ignore[no-untyped-call]
    # Rounded up, as records have whole milliseconds; not below 0, where Kafka's special values are.
    milliseconds = -((_EPOCH - at) // timedelta(milliseconds=1))
    return OffsetSpec.for_timestamp(max(milliseconds, 0))


def _description(topic: str, answer: Any) -> TopicDescription:  # noqa: ANN401 - the library's own class, untyped
    topic_id = str(answer.topic_id)
    if topic_id == _NO_ID:
        raise ConfigError(
            f"topic {topic} has no id: the brokers are older than Kafka 2.8; upgrade them "
            "(without ids a topic made anew cannot be told from the old one)"
        )
    return TopicDescription(topic, topic_id, len(answer.partitions))


def _wait(admin: Admin, futures: Iterable[Future[Any]]) -> None:
    """Wait for all answers. They end by themselves, with librdkafka's own timeout; a refused login ends it sooner."""
    waiting = list(futures)
    while not all(future.done() for future in waiting):
        admin.poll(0.05)
        trouble = admin.trouble.last
        if trouble is not None and trouble.code() in _REFUSED:
            raise ConfigError(
                f"kafka: the brokers refuse us: {trouble.str()}; check kafka.sasl_username and its password"
            )
        if trouble is not None and trouble.code() == KafkaError._SSL and "certificate" in trouble.str():  # noqa: SLF001
            raise ConfigError(
                f"kafka: TLS fails: {' '.join(trouble.str().split())}; check kafka.tls_ca_file, and the name and the "
                "dates in the broker's certificate"
            )
    if all(future.exception() is None for future in waiting):
        admin.trouble.last = None  # whatever it was, it is over


def _our_error(admin: Admin, what: str, error: BaseException) -> KbatchError:
    code = _code(error)
    if code in _UNAVAILABLE:
        reason = admin.trouble.last.str() if admin.trouble.last is not None else _text(error)
        return ServerUnavailable(f"Kafka cannot be reached: {reason}")
    return SourceError(f"{what}: {_text(error)}") if code in _MISSING else ConfigError(f"{what}: {_text(error)}")


def _consumer_fault(properties: dict[str, str | int | float | bool]) -> str:
    try:
        Consumer(properties, logger=rdkafka_log).close()
    except (KafkaException, TypeError, ValueError) as error:
        return _text(error)
    return ""


def _code(error: BaseException) -> int | None:
    cause = error.args[0] if isinstance(error, KafkaException) else None
    return cause.code() if isinstance(cause, KafkaError) else None


def _text(error: BaseException) -> str:
    cause = error.args[0] if isinstance(error, KafkaException) else error
    return " ".join((cause.str() if isinstance(cause, KafkaError) else str(cause)).split())
