"""librdkafka's own lines, in our log: our levels, our fields, and none of those that say nothing new.

Its clients, in source, topics, producer and resumable, are given this logger.
"""

from __future__ import annotations

import logging

rdkafka_log = logging.getLogger("kbatchd.librdkafka")

#: Connections that fail, up to 20 times a second: the clients' own callbacks tell of them, and what it means for us.
_TOLD_ELSEWHERE = {"FAIL", "ERROR"}


class _Translation(logging.Filter):
    """Changes each record on its way to the handlers."""

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
        record.levelno, record.levelname = level, logging.getLevelName(level)
        record.msg, record.args = f"librdkafka: {facility}", ()
        vars(record).update(action="librdkafka", client=client, error=text)
        return rdkafka_log.isEnabledFor(level)


rdkafka_log.addFilter(_Translation())
