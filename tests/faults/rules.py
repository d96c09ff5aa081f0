"""Rules: which frame on a wire is swallowed, held, delayed, cut, doubled or answered by somebody else.

The test's thread makes a rule and waits for its hits; the wire's threads ask it about each frame. A rule's `act` gets
the frame and the connection it came on, and does with it what it likes: not to forward it is to swallow it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.wire import Connection

#: What is waited for comes within a request's own timeout, also on a busy machine.
PATIENCE_SECONDS = 60.0


class Side(Enum):
    """Which way a frame goes."""

    REQUEST = "request"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Frame:
    """One message of a protocol."""

    side: Side
    #: The protocol's own name or number of the kind: of an answer, that of its request where the protocol pairs them.
    kind: int | str
    data: bytes
    #: Kafka: what an answer must have in common with its question, without the correlation id. PostgreSQL: the SQL.
    about: bytes = b""
    #: Kafka's version of the kind, and its correlation id.
    version: int = 0
    correlation: int = 0
    #: PostgreSQL: it is of a transaction that has copied rows, or begun to.
    in_batch: bool = False


Act = Callable[[Frame, "Connection"], None]
When = Callable[[Frame], bool]


def swallow(_frame: Frame, _connection: Connection) -> None:
    """Let it vanish; the connection stays."""


def cut(_frame: Frame, connection: Connection) -> None:
    """End the connection, and the frame with it."""
    connection.close()


def cut_behind(frame: Frame, connection: Connection) -> None:
    """Let it pass, and end the connection then: the other side has it, the sender cannot know."""
    connection.forward(frame)
    connection.close()


def delay(seconds: float) -> Act:
    """Let it pass later; what comes behind it on the same way waits, too."""

    def act(frame: Frame, connection: Connection) -> None:
        connection.closed.wait(seconds)
        connection.forward(frame)

    return act


def alter(change: Callable[[bytes], bytes]) -> Act:
    """Let something else pass in its place."""

    def act(frame: Frame, connection: Connection) -> None:
        connection.send(frame.side, change(frame.data))

    return act


@dataclass(eq=False)
class Rule:
    """What is done with the frames that it is for: at most `times` of them, after `skip` that pass."""

    when: When
    act: Act
    times: int | None = None
    skip: int = 0
    hits: int = 0
    _lifted: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def takes(self, frame: Frame) -> bool:
        """Tell whether this frame is this rule's, and count it then."""
        with self._changed:
            if self._lifted or (self.times is not None and self.hits >= self.times) or not self.when(frame):
                return False
            if self.skip:
                self.skip -= 1
                return False
            self.hits += 1
            self._changed.notify_all()
            return True

    def wait(self, hits: int = 1, seconds: float = PATIENCE_SECONDS) -> None:
        """Return when so many frames were hit; fail the test when they were not."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.hits >= hits, seconds):
                pytest.fail(f"a rule had {self.hits} of {hits} hits within {seconds:.0f} s")

    def lift(self) -> None:
        """Let everything pass from now on, also what `hold` has."""
        with self._changed:
            self._lifted = True
            self._changed.notify_all()

    def hold(self, frame: Frame, connection: Connection) -> None:
        """Keep it until the rule is lifted: an `act`."""
        with self._changed:
            # Looks up now and then: the connection may have ended meanwhile.
            while not self._lifted and not connection.closed.is_set():
                self._changed.wait(0.05)
        connection.forward(frame)


def holding(when: When, times: int | None = 1, skip: int = 0) -> Rule:
    """Make a rule that keeps what it hits until it is lifted."""
    rule = Rule(when, swallow, times, skip)
    rule.act = rule.hold
    return rule
