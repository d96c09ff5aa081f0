"""A producer as C programs have it, through librdkafka itself: confluent_kafka sends only names that are UTF-8."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Final

import confluent_kafka

if TYPE_CHECKING:
    from collections.abc import Sequence

#: rd_kafka_vtype_t, and rd_kafka_type_t's producer.
_END, _TOPIC, _VALUE, _KEY, _MSGFLAGS, _HEADERS = 0, 1, 4, 5, 7, 10
_PRODUCER, _COPY = 0, 2

_POINTER, _TEXT, _INT, _SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
_FUNCTIONS: Final = {
    "rd_kafka_conf_new": (_POINTER, []),
    "rd_kafka_conf_set": (_INT, [_POINTER, _TEXT, _TEXT, _TEXT, _SIZE]),
    "rd_kafka_new": (_POINTER, [_INT, _POINTER, _TEXT, _SIZE]),
    "rd_kafka_headers_new": (_POINTER, [_SIZE]),
    "rd_kafka_header_add": (_INT, [_POINTER, _TEXT, ctypes.c_ssize_t, _TEXT, ctypes.c_ssize_t]),
    "rd_kafka_flush": (_INT, [_POINTER, _INT]),
    "rd_kafka_destroy": (None, [_POINTER]),
}


def send_raw(
    bootstrap_servers: str,
    topic: str,
    records: Sequence[tuple[bytes | None, Sequence[tuple[bytes, bytes | None]]]],
    key: bytes | None = None,
) -> None:
    """Send records, each a value and headers whose names are any bytes; return when they are in the topic."""
    (path,) = Path(confluent_kafka.__file__).parent.parent.glob("confluent_kafka.libs/librdkafka*")
    library = ctypes.CDLL(str(path))
    for called, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, called)
        function.restype, function.argtypes = result, arguments
    settings = library.rd_kafka_conf_new()
    assert library.rd_kafka_conf_set(settings, b"bootstrap.servers", bootstrap_servers.encode(), None, 0) == 0
    producer = library.rd_kafka_new(_PRODUCER, settings, None, 0)
    for value, pairs in records:
        headers = library.rd_kafka_headers_new(len(pairs))
        for name, content in pairs:
            size = -1 if content is None else len(content)
            assert library.rd_kafka_header_add(headers, name, len(name), content, size) == 0
        sent = library.rd_kafka_producev(
            _POINTER(producer),
            *(_INT(_TOPIC), _TEXT(topic.encode())),
            *(_INT(_VALUE), _TEXT(value), _SIZE(len(value or b""))),
            *(_INT(_KEY), _TEXT(key), _SIZE(len(key or b""))),
            *(_INT(_MSGFLAGS), _INT(_COPY)),
            *(_INT(_HEADERS), _POINTER(headers)),
            _INT(_END),
        )
        assert sent == 0
    assert library.rd_kafka_flush(producer, 30_000) == 0
    library.rd_kafka_destroy(producer)
