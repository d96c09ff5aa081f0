"""librdkafka's own lines, in our log: our levels, our fields, and none of those that say nothing new.

Each of its clients is given this logger.
"""

from __future__ import annotations

import logging
import time

rdkafka_log = logging.getLogger("kbatchd.librdkafka")

#: Connections that fail, up to 20 times a second, and requests without an answer: the clients' own callbacks tell of
#: them, and what it means for us.
_TOLD_ELSEWHERE = {"FAIL", "ERROR", "REQTMOUT"}

#: A broker that has just started reads its transactions' log first, and librdkafka asks again every half second:
#: that is no fault, unless it takes longer than this.
_LOADING = "Coordinator load in progress: retrying"
LOADING_SECONDS = 10.0


class _Translation(logging.Filter):
    """Changes each record on its way to the handlers."""

    def __init__(self) -> None:
        super().__init__()
        #: By client: when its coordinator was first said to be loading, and when last.
        self._loading: dict[str, tuple[float, float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite a line; nothing that librdkafka tries again by itself is an ERROR."""
        if not isinstance(record.args, tuple) or len(record.args) != 3:  # noqa: PLR2004 - facility, client, text
            return True
        facility, client, text = map(str, record.args)
        if facility in _TOLD_ELSEWHERE:
            return False
        # The file's consumer properties are of no use to an admin client, which to librdkafka is a producer.
        if facility == "CONFWARN" and text.endswith("this producer instance"):
            return False
        level = min(record.levelno, logging.WARNING)
        if text.endswith(_LOADING) and not self._lasts(client):
            level = logging.DEBUG
        record.levelno, record.levelname = level, logging.getLevelName(level)
        record.msg, record.args = f"librdkafka: {facility}", ()
        vars(record).update(action="librdkafka", client=client, error=text)
        return rdkafka_log.isEnabledFor(level)

    def _lasts(self, client: str) -> bool:
        now = time.monotonic()
        since, last = self._loading.get(client, (now, now))
        since = now if now - last > LOADING_SECONDS else since  # it was over in between
        self._loading[client] = since, now
        return now - since > LOADING_SECONDS


rdkafka_log.addFilter(_Translation())
