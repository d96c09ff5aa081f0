"""What the clients of `kbatchd produce` are made with: its two producers, and the look at a file's bookmark.

For these, and for what judges a file (check/properties.py).
"""

from __future__ import annotations

from typing import Final

from kbatchd.kafka.settings import Properties, Settings

#: What exactness needs; the file's [kafka.librdkafka] cannot change these.
_OURS: Final[Properties] = {
    "enable.idempotence": True,  # with acks=all: a retry within librdkafka is no second record, and none overtakes
    # Else librdkafka's producers ask brokers to: a topic that was deleted would come back, with one partition.
    "allow.auto.create.topics": False,
    "acks": "all",
    "delivery.report.only.error": False,  # else nobody hears of a record that is there
    "client.id": "kbatchd-produce",
}

#: What it would like; the file may say otherwise.
_DEFAULTS: Final[Properties] = {
    "linger.ms": 5,
    "compression.type": "lz4",
    "partitioner": "murmur2_random",  # the same partition for a key as the gateway, and Java's clients, choose
    "reconnect.backoff.max.ms": 500,
    "socket.keepalive.enable": True,
    "log.connection.close": False,
    "queue.buffering.max.messages": 200_000,
    "queue.buffering.max.kbytes": 131_072,
}

#: The broker aborts a transaction that is open for longer.
TRANSACTION_TIMEOUT_SECONDS: Final = 10.0


def plain(timeout_seconds: float) -> Settings:
    """Say what the producer of input that cannot be read again is made with."""
    return Settings({**_OURS, "delivery.timeout.ms": round(timeout_seconds * 1000)}, _DEFAULTS)


def transactions(identity: str) -> Settings:
    """Say what the producer of a file's transactions is made with."""
    timeout_ms = round(TRANSACTION_TIMEOUT_SECONDS * 1000)
    ours = {
        **_OURS,
        "transactional.id": identity,
        "transaction.timeout.ms": timeout_ms,
        "delivery.timeout.ms": timeout_ms,
        # The file may say more, for its consumers; librdkafka takes no more than a transaction's time.
        "socket.timeout.ms": timeout_ms,
    }
    return Settings(ours, _DEFAULTS)


def bookmarks(identity: str, *, stable: bool) -> Settings:
    """Say what the client for the bookmark, a group's offset, is made with."""
    isolation = "read_committed" if stable else "read_uncommitted"
    return Settings({"group.id": identity, "enable.auto.commit": False, "isolation.level": isolation})
