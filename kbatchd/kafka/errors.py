"""What Kafka's error codes mean to us: a thing is missing, it will pass, or somebody has to act.

Only what is known to stay as it is, however often one asks, is a ConfigError, which ends a start for good; all else is
asked again. A new code of a newer broker is waited for, and named. Called wherever an answer of librdkafka's is judged.
"""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException

from kbatchd.errors import ConfigError, KbatchError, ServerUnavailable, SourceError

#: There is no such topic, as a broker says that was asked for it.
NO_TOPIC = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})  # noqa: SLF001 - librdkafka's own

#: Or no such partition. `_NOENT` is "no leaders found": a partition that does not exist, or has nobody to ask.
MISSING = NO_TOPIC | {KafkaError._UNKNOWN_PARTITION, KafkaError._NOENT}  # noqa: SLF001

#: We are not let in.
REFUSED = frozenset(
    {
        KafkaError._AUTHENTICATION,  # noqa: SLF001
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    }
)

#: What helps then, as the end of a sentence.
LOGIN_ADVICE = "check kafka.sasl_username and its password, or whom the token is for"

#: To ask again does not help.
_FINAL = REFUSED | {
    KafkaError._INVALID_ARG,  # noqa: SLF001
    KafkaError._INVALID_TYPE,  # noqa: SLF001
    KafkaError._NOT_CONFIGURED,  # noqa: SLF001
    KafkaError._NOT_IMPLEMENTED,  # noqa: SLF001
    KafkaError._READ_ONLY,  # noqa: SLF001
    KafkaError._UNSUPPORTED_FEATURE,  # noqa: SLF001
    KafkaError.DELEGATION_TOKEN_AUTHORIZATION_FAILED,
    KafkaError.DELEGATION_TOKEN_AUTH_DISABLED,
    KafkaError.DELEGATION_TOKEN_EXPIRED,
    KafkaError.DELEGATION_TOKEN_NOT_FOUND,
    KafkaError.DELEGATION_TOKEN_OWNER_MISMATCH,
    KafkaError.DELEGATION_TOKEN_REQUEST_NOT_ALLOWED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.ILLEGAL_SASL_STATE,
    KafkaError.INVALID_CONFIG,
    KafkaError.INVALID_GROUP_ID,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_PRINCIPAL_TYPE,
    KafkaError.INVALID_REPLICA_ASSIGNMENT,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.INVALID_REQUEST,
    KafkaError.POLICY_VIOLATION,
    KafkaError.PRINCIPAL_DESERIALIZATION_FAILURE,
    KafkaError.SECURITY_DISABLED,
    KafkaError.TOPIC_ALREADY_EXISTS,
    KafkaError.TOPIC_DELETION_DISABLED,
    KafkaError.TOPIC_EXCEPTION,  # no name for a topic
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.UNACCEPTABLE_CREDENTIAL,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
    KafkaError.UNSUPPORTED_VERSION,
}

#: Nobody answers: why not, librdkafka has said before.
_AWAY = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
        KafkaError._RESOLVE,  # noqa: SLF001
        KafkaError._TIMED_OUT,  # noqa: SLF001
        KafkaError._TIMED_OUT_QUEUE,  # noqa: SLF001
        KafkaError._TRANSPORT,  # noqa: SLF001
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.BROKER_NOT_AVAILABLE,
    }
)

#: What librdkafka says of a batch of records that it cannot read; it leaves it out, and would read on behind it.
UNREADABLE = frozenset({
    KafkaError._BAD_MSG,  # noqa: SLF001
    KafkaError._BAD_COMPRESSION,  # noqa: SLF001
    KafkaError._NOT_IMPLEMENTED,  # noqa: SLF001
    KafkaError._UNDERFLOW,  # noqa: SLF001
    KafkaError.MSG_SIZE_TOO_LARGE,
})  # fmt: skip


def our_error(what: str, error: BaseException, trouble: KafkaError | None = None) -> KbatchError:
    """Return what an answer means; `trouble` is the last thing that librdkafka complained of by itself."""
    code = code_of(error)
    if code in _AWAY:
        return ServerUnavailable(f"Kafka cannot be reached: {text_of(error) if trouble is None else trouble.str()}")
    kind = SourceError if code in MISSING else ConfigError if code in _FINAL else ServerUnavailable
    return kind(f"{what}: {text_of(error)}")


def code_of(error: BaseException) -> int | None:
    """Return Kafka's code, if the error has one."""
    cause = error.args[0] if isinstance(error, KafkaException) else None
    return cause.code() if isinstance(cause, KafkaError) else None


def text_of(error: BaseException) -> str:
    """Return an error's text in one line."""
    cause = error.args[0] if isinstance(error, KafkaException) else error
    return " ".join((cause.str() if isinstance(cause, KafkaError) else str(cause)).split())


def cause_of(error: KafkaException | SystemError) -> KafkaError:
    """Return librdkafka's error.

    A fatal one becomes an exception between two delivery reports; calling the next one, Python finds that odd.
    """
    cause = error if isinstance(error, KafkaException) else error.__cause__
    if not isinstance(cause, KafkaException):
        raise error
    kafka_error: KafkaError = cause.args[0]
    return kafka_error
