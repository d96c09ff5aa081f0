"""An outage of Kafka, as one worker sees it: told soon, told once, and told when it is over, with its true length.

librdkafka tells of brokers that refuse or cut a connection, at once. Of one that hangs it knows nothing before
`socket.timeout.ms` (60 s): what is noticed here is that the topic watch's question has no answer. The worker's poll
loop calls everything here, in its main thread; errors come from within the consumer's poll.
"""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

#: A question that has waited this long will not be answered soon. With the watch's interval it is less than 10 s.
SILENCE_SECONDS = 4.0

#: A connection that is cut may be made again at once, and what an outage has cut may be told of after its end: so long
#: an error must have stood without an answer to be told. The watch asks 1 s after one.
BLIP_SECONDS = 2.0

#: When our own turns were this far apart, it was we who did not listen.
LATE_SECONDS = 2.0


class Outage:
    """The outage there is, if there is one; see the module."""

    def __init__(self) -> None:
        #: Since when, by the first question that had no answer or the first error.
        self._since: float | None = None
        self._error, self._errors = "", 0
        self._told = False
        #: Since when a question has waited for its answer, as far as we have listened.
        self._waits_since: float | None = None
        self._looked_at = self._listens_since = time.monotonic()

    def look(self, asked_at: float | None) -> None:
        """Notice a question, asked then, that has no answer yet, or an error that stands; once a turn."""
        now = time.monotonic()
        if now - self._looked_at > LATE_SECONDS:
            self._listens_since = now
        self._looked_at = now
        self._waits_since = None if asked_at is None else max(asked_at, self._listens_since)
        if self._told:
            return
        if self._since is not None and now - self._since > BLIP_SECONDS:
            self._told = True
            repeated = {"repeated": self._errors - 1} if self._errors > 1 else {}
            log.warning("trouble with Kafka", extra={"action": "kafka_error", "error": self._error, **repeated})
        elif self._waits_since is not None and now - self._waits_since > SILENCE_SECONDS:
            self._since, self._told = self._waits_since, True
            about = {"action": "kafka_silent", "seconds": round(now - self._since, 1)}
            log.warning("Kafka does not answer", extra=about)

    def note(self, error: str, *, says_less: bool = False) -> None:
        """Take an error of a broker's connection, which librdkafka repairs by itself.

        `says_less`: if there was another one in this outage, it tells more.
        """
        if not (says_less and self._errors):
            self._error = error
        self._errors += 1
        if self._since is None:
            self._since = time.monotonic() if self._waits_since is None else self._waits_since
        if self._told:
            log.warning("trouble with Kafka", extra={"action": "kafka_error", "error": self._error})

    def end(self) -> None:
        """Take note that the brokers have answered a question: whatever the trouble was, it is over."""
        if self._told and self._since is not None:
            seconds = round(time.monotonic() - self._since, 1)
            log.warning("Kafka is back", extra={"action": "kafka_back", "seconds": seconds})
        self._since, self._told, self._errors = None, False, 0
