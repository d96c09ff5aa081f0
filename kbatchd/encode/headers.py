r"""A record's headers, whatever bytes their names are.

Kafka's names are bytes; the client decodes them as UTF-8, and a name that is none (one C producer is enough) makes
`Message.headers` raise SystemError, once: after that it returns tuples with nothing where the name should be, and
touching one of them ends the process. So the first call must succeed. Python looks up how to treat bytes that are no
UTF-8 by the name "strict", also for C code: while the headers of a record are read, in the thread that reads them, such
bytes are escaped instead, as `caf\xe9`. (A NUL ends a name: the client knows names as C's strings.)

The only code that asks a record for its headers. Called by the careful encoder in a worker's poll loop, and by the sink
in its flusher's thread; hence the lock.
"""

from __future__ import annotations

import codecs
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.model import Record

_lock = threading.Lock()


def read_headers(record: Record) -> Sequence[tuple[str, bytes | None]]:
    """Return a record's headers in their order, what is no UTF-8 in their names escaped."""
    reader = threading.get_ident()

    def escape(error: UnicodeError) -> tuple[str | bytes, int]:
        if threading.get_ident() == reader and isinstance(error, UnicodeDecodeError):
            return codecs.backslashreplace_errors(error)
        raise error

    with _lock:
        strict = codecs.lookup_error("strict")
        codecs.register_error("strict", escape)
        try:
            return record.headers() or ()
        finally:
            codecs.register_error("strict", strict)
