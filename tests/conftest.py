"""What all tests share: the real servers, each in a file of its own."""

from __future__ import annotations

import gc
import logging
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = (
    "tests.fix_daemon",
    "tests.fix_browser",
    "tests.fix_http",
    "tests.fix_kafka",
    "tests.fix_encoders",
    "tests.fix_load",
    "tests.fix_monitor",
    "tests.fix_postgres",
    "tests.fix_produce",
    "tests.fix_tls",
    "tests.fix_systemd",
    "tests.fix_faults",  # imports others of them
)

# A shell starts what runs in its background with SIGINT ignored, and whatever the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


#: What takes long comes first: at the end, no process waits for another one's last long file.
ORDER = ("acceptance", "integration")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long tests first, in the random order that they have among each other."""
    items.sort(key=lambda item: next((i for i, part in enumerate(ORDER) if part in item.path.parts), len(ORDER)))


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A command that a test calls sets up the log of its own process, which is every later test's too."""
    root, ours = logging.getLogger(), logging.getLogger("kbatchd")
    handlers, root_level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = handlers
    root.setLevel(root_level)
    ours.setLevel(our_level)


@pytest.fixture(scope="module", autouse=True)
def _garbage_is_collected_here() -> Iterator[None]:
    """What pytest keeps of an expected error holds the test's clients, until the collector comes.

    It comes in whatever thread has just made an object: also in librdkafka's, when that calls Python, and a client that
    is destroyed there ends the process.
    """
    gc.disable()
    yield
    gc.collect()
