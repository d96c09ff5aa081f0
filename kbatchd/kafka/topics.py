"""What Kafka's admin client is asked: do the topics exist, under which id, with how many partitions. See also offsets.

Called by the start-up checks and the operator's commands, which wait for the answers, and by each worker's poll loop,
which must not: it asks with `describe_async()` and looks at `done()` each turn. An admin client has threads of its own,
so it is made after the fork.

A topic's id tells it from another of the same name that was made later; brokers give it since 2.8.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection, Uuid, libversion
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from kbatchd.errors import ConfigError, KbatchError, ServerUnavailable
from kbatchd.kafka import oauth
from kbatchd.kafka.client_log import rdkafka_log
from kbatchd.kafka.errors import LOGIN_ADVICE, NO_TOPIC, REFUSED, code_of, our_error, text_of
from kbatchd.kafka.settings import NOT_TAKEN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from concurrent.futures import Future
    from typing import Any

    from kbatchd import config

#: Answers come at once or not at all; the poll loop asks again every 10 s.
REQUEST_TIMEOUT_SECONDS = 10.0

#: How soon an admin client hears that another broker takes its questions. Each goes to the "controller", which in Kafka
#: is any broker that is alive; when that one died, 5 of 6 clients asked nobody else for librdkafka's five minutes.
REFRESH_MS = 3_000

#: Between two answers of which the second confirms the first.
PAUSE_SECONDS = 0.5

#: To librdkafka an admin client is a producer: it sends nothing, and must not meet a producer's errors.
OURS: dict[str, str | int | float | bool] = {"enable.idempotence": False}

#: What a broker without topic ids answers.
_NO_ID = str(Uuid(0, 0))

_Asked = TypeVar("_Asked")

#: For those who look: librdkafka's own version.
LIBRDKAFKA_VERSION: str = libversion()[0]


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """A topic as it is now."""

    topic: str
    topic_id: str
    partitions: int
    #: Those that nobody can read or write at the moment.
    leaderless: frozenset[int] = frozenset()


class Admin(AdminClient):
    """An admin client that remembers why it has no connection: a request itself only says "timed out"."""

    def __init__(self, kafka: config.Kafka) -> None:
        """Start librdkafka's threads and connect in the background; never fails for want of a broker."""
        self.trouble = _Trouble()
        properties: dict[str, Any] = {
            "topic.metadata.refresh.interval.ms": REFRESH_MS,
            **kafka.client,
            **OURS,
            "error_cb": self.trouble.note,
            **oauth.callbacks(kafka),
        }
        try:
            super().__init__(properties, logger=rdkafka_log)
        except NOT_TAKEN as error:
            oauth.refuse(error)
            raise ConfigError(f"kafka.librdkafka: {text_of(error)}") from error


class Question(Generic[_Asked]):
    """A question to the brokers that is under way, with one future for each thing it is asked about."""

    def __init__(self, admin: Admin, futures: dict[_Asked, Future[Any]]) -> None:
        self.admin = admin
        self.futures = futures

    def done(self) -> bool:
        """Tell whether `result()` would return at once; also hands librdkafka's log lines on."""
        self.admin.poll(0)
        return all(future.done() for future in self.futures.values())

    async def ended(self) -> None:
        """Wait, on an event loop, until `done()`."""
        if self.futures:
            await asyncio.wait([asyncio.wrap_future(future) for future in self.futures.values()])

    def wait_for_all(self) -> None:
        """Wait for the answers. They end by themselves, with librdkafka's own timeout; a refused login ends it sooner.

        Raises ConfigError where the brokers do not let us in.
        """
        waiting = list(self.futures.values())
        while not all(future.done() for future in waiting):
            self.admin.poll(0.05)
            self.admin.trouble.refuse()
        if all(future.exception() is None for future in waiting):
            self.admin.trouble.last = None  # whatever it was, it is over

    def meaning(self, what: str, error: BaseException) -> KbatchError:
        """Return what an answer that is an error means."""
        return our_error(what, error, self.admin.trouble.last)


class Described(NamedTuple):
    """What the brokers say of topics: None of one that does not exist; and why they do not say it of others."""

    known: dict[str, TopicDescription | None]
    silent: dict[str, KbatchError]


class Inquiry(Question[str]):
    """What topics are."""

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the end, not longer than this; tell whether it has come."""
        return not wait(self.futures.values(), timeout_seconds).not_done

    def answers(self) -> Described:
        """Wait for the answers. Raises ConfigError where the brokers do not let us in."""
        self.wait_for_all()
        described = Described({}, {})
        for topic, future in self.futures.items():
            error = future.exception()
            try:
                if error is None:
                    described.known[topic] = _description(topic, future.result())
                elif code_of(error) in NO_TOPIC:
                    described.known[topic] = None
                else:
                    raise self.meaning(f"topic {topic} cannot be described", error) from error
            except KbatchError as silence:
                described.silent[topic] = silence
        return described

    def result(self) -> dict[str, TopicDescription | None]:
        """Wait for all answers: None for a topic that does not exist. Raises ServerUnavailable or ConfigError."""
        described = self.answers()
        for error in described.silent.values():
            raise error
        return described.known


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
    """Ask what the topics are: None for one that does not exist. Raises ServerUnavailable or ConfigError.

    What would be the end for the caller, two answers must say: a broker may not have heard of a topic yet.
    """
    described = describe_async(admin, topics, timeout_seconds).answers()
    doubtful = [name for name, description in described.known.items() if description is None]
    doubtful += [name for name, error in described.silent.items() if isinstance(error, ConfigError)]
    if doubtful:
        time.sleep(PAUSE_SECONDS)
        again = describe_async(admin, doubtful, timeout_seconds).answers()
        silent = {name: error for name, error in described.silent.items() if name not in doubtful}
        described = Described({**described.known, **again.known}, {**silent, **again.silent})
    for error in described.silent.values():
        raise error
    return described.known


def is_compacted(admin: Admin, topic: str, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> bool:
    """Tell whether Kafka deletes records of a topic that have a newer one of their key; False where it does not say."""
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    futures = admin.describe_configs([resource], request_timeout=timeout_seconds)
    try:
        Question(admin, futures).wait_for_all()
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
    question = Question(admin, futures)
    question.wait_for_all()
    outcome = []
    faults = []
    for topic, future in futures.items():
        error = future.exception()
        if error is None or code_of(error) == KafkaError.TOPIC_ALREADY_EXISTS:
            outcome.append((topic, error is None))
            continue
        ours = question.meaning(f"topic {topic} cannot be created", error)
        if isinstance(ours, ServerUnavailable):
            raise ours from error
        faults.append(str(ours))
    if faults:
        raise ConfigError(*faults)
    return outcome


class _Trouble:
    """The last thing librdkafka complained of. Apart from `Admin`, so that the two do not hold each other alive."""

    def __init__(self) -> None:
        self.last: KafkaError | None = None

    def note(self, error: KafkaError) -> None:
        """Take librdkafka's error callback; `_ALL_BROKERS_DOWN` says less than what came before it."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self.last = error

    def refuse(self) -> None:
        """Raise ConfigError where the brokers do not let us in: no answer will come."""
        trouble = self.last
        if trouble is not None and trouble.code() in REFUSED and not oauth.will_pass(trouble):
            who = "the issuer of tokens refuses" if oauth.is_missing(trouble) else "the brokers refuse"
            raise ConfigError(f"kafka: {who} us: {trouble.str()}; {LOGIN_ADVICE}")
        if trouble is not None and trouble.code() == KafkaError._SSL and "certificate" in trouble.str():  # noqa: SLF001
            raise ConfigError(
                f"kafka: TLS fails: {' '.join(trouble.str().split())}; check kafka.tls_ca_file, and the name and the "
                "dates in the broker's certificate"
            )


def _description(topic: str, answer: Any) -> TopicDescription:  # noqa: ANN401 - the library's own class, untyped
    if answer.topic_id is None or str(answer.topic_id) == _NO_ID:
        raise ConfigError(
            f"topic {topic} has no id: the brokers are older than Kafka 2.8; upgrade them "
            "(without ids a recreated topic cannot be told from the old one)"
        )
    if not answer.partitions:
        raise ServerUnavailable(f"topic {topic} cannot be described: the answer names no partition")
    leaderless = frozenset(int(partition.id) for partition in answer.partitions if partition.leader is None)
    return TopicDescription(topic, str(answer.topic_id), len(answer.partitions), leaderless)
