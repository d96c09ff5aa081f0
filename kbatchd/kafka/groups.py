"""What the brokers tell of our consumer group: who else is in it, and its timeouts where these are the brokers'.

Asked by the start-up checks and by `kbatchd check`, which wait for the answers; each needs a right of its own (DESCRIBE
on the group, DESCRIBE_CONFIGS), so no answer is no fault.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from confluent_kafka import KafkaException
from confluent_kafka.admin import ConfigResource

from kbatchd.errors import KbatchError
from kbatchd.kafka.topics import REQUEST_TIMEOUT_SECONDS, Question

if TYPE_CHECKING:
    from kbatchd.kafka.topics import Admin

#: What the newer protocol's timeouts are called as settings of a group.
_TIMEOUTS = ("consumer.session.timeout.ms", "consumer.heartbeat.interval.ms")

#: The assignor of our members of a classic group.
_OURS = "cooperative-sticky"


class Group(NamedTuple):
    """A group as it is now."""

    #: "classic" or "consumer".
    protocol: str
    assignor: str
    #: Each member's client id and host.
    members: tuple[tuple[str, str], ...]

    def strangers(self, pipeline: str) -> list[str]:
        """Return the members that are none of the pipeline's workers, on whichever host."""
        ours = re.compile(rf"{re.escape(pipeline)}-worker-\d+")
        others = [(name, host) for name, host in self.members if not ours.fullmatch(name)]
        return sorted({f"{name} on {host.removeprefix('/')}" for name, host in others})

    @property
    def takes_us(self) -> bool:
        """Whether the group takes a member that shares as ours do; one of the newer protocol takes any."""
        return not self.members or self.protocol == "consumer" or self.assignor == _OURS


def describe(admin: Admin, group_id: str, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> Group | None:
    """Ask who is in the group; None where the brokers do not say."""
    answer = _ask(admin, admin.describe_consumer_groups([group_id], request_timeout=timeout_seconds), group_id)
    if answer is None:
        return None
    members = tuple((str(member.client_id), str(member.host)) for member in answer.members)
    return Group(answer.type.name.lower(), str(answer.partition_assignor), members)


def timeouts(admin: Admin, group_id: str, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> dict[str, str]:
    """Ask for the timeouts that the brokers have set for a group of the newer protocol; {} where they do not say."""
    resource = ConfigResource(ConfigResource.Type.GROUP, group_id)
    answer = _ask(admin, admin.describe_configs([resource], request_timeout=timeout_seconds), resource)
    return {name: str(answer[name].value) for name in _TIMEOUTS if answer and name in answer}


def _ask(admin: Admin, futures: dict[Any, Any], of: object) -> Any:  # noqa: ANN401 - the library's classes, untyped
    try:
        Question(admin, futures).wait_for_all()
        return futures[of].result()
    except (KafkaException, KbatchError, LookupError):
        return None
