"""[kafka.librdkafka] beside what kbatchd sets: what contradicts is found before anything runs, mere likes give way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Consumer, Producer

from kbatchd.cli import main
from kbatchd.config import Gateway, Kafka, load
from kbatchd.errors import EX_CONFIG, EX_OK
from kbatchd.kafka import produce_settings, producer, reader_settings
from tests.minimal import MINIMAL

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kbatchd.toml"


def write(file: Path, tables: str = "", **properties: object) -> None:
    lines = [f"{json.dumps(name.replace('_', '.'))} = {json.dumps(value)}\n" for name, value in properties.items()]
    file.write_text(f"{MINIMAL}[kafka.librdkafka]\n{''.join(lines)}{tables}", encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("retries", 0, "`retries`"),
        ("message_send_max_retries", 0, "`retries`"),
        ("max_in_flight", 10, "`max.in.flight`"),
        ("max_in_flight_requests_per_connection", 6, "`max.in.flight`"),
        ("queuing_strategy", "lifo", "`queuing.strategy`"),
        ("linger_ms", 900_000, "`linger.ms`|`message.timeout.ms`"),
        ("reconnect_backoff_ms", 3_600_001, "3600001"),
        ("no_such_property", 1, "No such configuration property"),
        ("linger_ms", 20_000, "`linger.ms`|`message.timeout.ms`"),  # of the transactions of `kbatchd produce`
        ("enable_gapless_guarantee", True, "`enable.gapless.guarantee` requires"),  # of who asks about topics
        ("default_topic_config", "x", "keys"),
        ("delivery_report_only_error", "yes", "bool"),
    ],
)
def test_what_contradicts_is_found_at_its_line(
    file: Path, name: str, value: object, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(file, "[gateway]\n", **{name: value})
    assert main(["check-config", "--config", str(file)]) == EX_CONFIG
    said = capsys.readouterr().err
    assert said.startswith(f"kbatchd: {file}:9: kafka.librdkafka.{name.replace('_', '.')}: ")
    assert any(each in said for each in why.split("|"))


def test_the_timeouts_of_the_newer_group_protocol_are_the_brokers(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = MINIMAL.replace("[kafka]\n", '[kafka]\ngroup_protocol = "consumer"\n')
    file.write_text(text)
    made = reader_settings.settings(load(file).kafka, "c")
    theirs = {"partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"}
    assert theirs.isdisjoint([*made.defaults, *made.ours])
    made.make(Consumer, {}).close()
    for name in ("session.timeout.ms", "heartbeat.interval.ms"):
        file.write_text(f'{text}[kafka.librdkafka]\n"{name}" = 7_000\n')
        assert main(["check-config", "--config", str(file)]) == EX_CONFIG
        assert "It is defined broker side" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0x100000", "2e6", "x", "2000000 bytes", 2e6, True])
def test_the_largest_record_is_a_whole_number(file: Path, value: object, capsys: pytest.CaptureFixture[str]) -> None:
    write(file, message_max_bytes=value)
    assert main(["check-config", "--config", str(file)]) == EX_CONFIG
    assert "message.max.bytes that is not a whole number" in capsys.readouterr().err
    write(file, message_max_bytes="2000000")
    assert load(file).kafka.max_record_bytes == 2_000_000 - 512


def test_each_acknowledgement_is_heard_of(file: Path) -> None:
    write(file, delivery_report_only_error=True)
    assert main(["check-config", "--config", str(file)]) == EX_OK
    made: list[dict[str, object]] = []

    def make(properties: dict[str, object], **_: object) -> Producer:
        made.append(properties)
        return Producer(properties)

    given = {"delivery.report.only.error": True}
    producer.settings(Gateway(), "c").make(make, given)
    produce_settings.plain(60.0).make(make, given)
    produce_settings.transactions("x").make(make, given)
    assert [properties["delivery.report.only.error"] for properties in made] == [False] * 3


def test_the_brokers_are_those_of_the_file_s_own_key(file: Path) -> None:
    write(file, bootstrap_servers="127.0.0.1:1", metadata_broker_list="127.0.0.1:1")
    names = list(load(file).kafka.client)
    assert names.index("bootstrap.servers") > names.index("metadata.broker.list"), "librdkafka obeys the last"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("transactional_id", "sends nothing outside of transactions"),
        ("group_instance_id", "all workers would have the same"),
        ("group_protocol", "it is group_protocol, in [kafka] itself"),
    ],
)
def test_what_kbatchd_cannot_run_with_is_refused_with_the_reason(
    file: Path, name: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(file, **{name: "x"})
    assert main(["check-config", "--config", str(file)]) == EX_CONFIG
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    "properties",
    [
        {"reconnect_backoff_ms": 2_000},
        {"socket_timeout_ms": 300_000},
        {"reconnect_backoff_ms": 1_000, "retry_backoff_ms": 50},
        {"session_timeout_ms": 45_000, "heartbeat_interval_ms": 3_000},
        {"max_partition_fetch_bytes": 2_097_152},
        {"fetch_max_bytes": 1_500_000, "message_max_bytes": 1_400_000},
        {"acks": 1, "request_required_acks": "1", "enable_auto_commit": True, "auto_offset_reset": "latest"},
        {"socket_keepalive_enable": False, "compression_codec": "gzip", "queue_buffering_max_ms": 7},
    ],
)
def test_what_kbatchd_merely_prefers_gives_way(file: Path, properties: dict[str, object]) -> None:
    write(file, "[gateway]\n", **properties)
    assert main(["check-config", "--config", str(file)]) == EX_OK
    kafka = load(file).kafka
    given = {**kafka.client, "bootstrap.servers": ""}
    reader_settings.settings(kafka, "c").make(Consumer, given).close()
    producer.settings(Gateway(), "c").make(Producer, given)
    produce_settings.plain(60.0).make(Producer, given)


def test_only_what_contradicts_gives_way() -> None:
    made: list[dict[str, object]] = []

    def make(properties: dict[str, object], **_: object) -> Consumer:
        consumer = Consumer(properties)
        made.append(properties)
        return consumer

    settings = reader_settings.settings(Kafka(bootstrap_servers="b:1", group_id="g"), "c")
    settings.make(make, {"reconnect.backoff.ms": 2_000}).close()
    [properties] = made
    assert "reconnect.backoff.max.ms" not in properties
    assert properties["fetch.queue.backoff.ms"] == 5
    assert properties["isolation.level"] == "read_committed"


def test_what_kbatchd_needs_is_obeyed_whatever_name_the_file_gives_it() -> None:
    made: list[list[str]] = []

    def make(properties: dict[str, object], **_: object) -> Producer:
        made.append(list(properties))
        return Producer(properties)

    given = {"acks": 1, "request.required.acks": 1, "enable.idempotence": False}
    producer.settings(Gateway(), "c").make(make, given)
    [names] = made
    assert names.index("acks") > names.index("request.required.acks"), "librdkafka obeys the last of the two"
