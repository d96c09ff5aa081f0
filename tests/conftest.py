"""What all tests share: the real servers, each in a file of its own."""

from __future__ import annotations

pytest_plugins = ("tests.fix_daemon", "tests.fix_kafka", "tests.fix_load", "tests.fix_postgres")
