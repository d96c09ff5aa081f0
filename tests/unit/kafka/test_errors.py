"""What Kafka's codes mean: which end a start for good, and which are asked again."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from kbatchd.errors import ConfigError, ServerUnavailable, SourceError
from kbatchd.kafka.errors import our_error


def meaning(code: int) -> type[Exception]:
    return type(our_error("what", KafkaException(KafkaError(code))))


@pytest.mark.parametrize(
    "name",
    [
        "COORDINATOR_LOAD_IN_PROGRESS",
        "COORDINATOR_NOT_AVAILABLE",
        "ELIGIBLE_LEADERS_NOT_AVAILABLE",
        "FENCED_LEADER_EPOCH",  # "Leader epoch is older": of a broker that hangs
        "INCONSISTENT_TOPIC_ID",
        "KAFKA_STORAGE_ERROR",
        "LEADER_NOT_AVAILABLE",
        "LISTENER_NOT_FOUND",
        "NETWORK_EXCEPTION",
        "NOT_CONTROLLER",
        "NOT_COORDINATOR",
        "NOT_LEADER_FOR_PARTITION",
        "OFFSET_NOT_AVAILABLE",
        "PREFERRED_LEADER_NOT_AVAILABLE",
        "REBOOTSTRAP_REQUIRED",
        "REPLICA_NOT_AVAILABLE",
        "REQUEST_TIMED_OUT",
        "STALE_BROKER_EPOCH",
        "THROTTLING_QUOTA_EXCEEDED",
        "UNKNOWN",
        "UNKNOWN_LEADER_EPOCH",
        "UNKNOWN_TOPIC_ID",
        "_ALL_BROKERS_DOWN",
        "_BAD_MSG",
        "_DESTROY_BROKER",
        "_FAIL",
        "_RESOLVE",
        "_TIMED_OUT",
        "_TRANSPORT",
        "_WAIT_CACHE",
        "_WAIT_COORD",
    ],
)
def test_what_passes_is_asked_again(name: str) -> None:
    assert meaning(getattr(KafkaError, name)) is ServerUnavailable


def test_a_code_that_nobody_knows_yet_is_asked_again() -> None:
    assert meaning(9_999) is ServerUnavailable


@pytest.mark.parametrize(
    "name",
    [
        "CLUSTER_AUTHORIZATION_FAILED",
        "INVALID_CONFIG",
        "INVALID_PARTITIONS",
        "INVALID_REPLICATION_FACTOR",
        "POLICY_VIOLATION",
        "SASL_AUTHENTICATION_FAILED",
        "SECURITY_DISABLED",
        "TOPIC_AUTHORIZATION_FAILED",
        "TOPIC_EXCEPTION",
        "UNSUPPORTED_VERSION",
        "_AUTHENTICATION",
        "_INVALID_ARG",
        "_UNSUPPORTED_FEATURE",
    ],
)
def test_what_stays_is_a_fault(name: str) -> None:
    assert meaning(getattr(KafkaError, name)) is ConfigError


@pytest.mark.parametrize("name", ["UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "_NOENT"])
def test_what_is_missing(name: str) -> None:
    assert meaning(getattr(KafkaError, name)) is SourceError


def test_no_transient_code_is_final() -> None:
    """Kafka's protocol marks these errors retriable (org.apache.kafka.common.errors.RetriableException)."""
    retriable = {2, 3, 5, 6, 7, 8, 9, 13, 14, 15, 16, 19, 20, 41, 51, 56, 70, 71, 72, 74, 75, 78, 80, 83, 84, 88, 89}
    retriable |= {100, 103, 106, 119, 122, 123, 124, 129} - {119}
    assert not [code for code in retriable if meaning(code) is ConfigError]
