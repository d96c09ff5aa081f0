"""kbatchd with a clock that jumps: `python -m tests.faults.jumping FILE --config FILE`, or a command.

The first file says how much the time of day differs: `+3600`. Its processes read it at each look at the clock, through
libfaketime; durations, which are measured by the monotonic clock, stay what they are.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path


def main() -> None:
    """Become that program."""
    spec = importlib.util.find_spec("libfaketime")
    assert spec is not None, "libfaketime is not installed"
    assert spec.origin is not None
    environment = {
        **os.environ,
        "LD_PRELOAD": str(Path(spec.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"),
        "FAKETIME_TIMESTAMP_FILE": sys.argv[1],
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    os.execve(sys.executable, [sys.executable, "-m", "kbatchd", *sys.argv[2:]], environment)


if __name__ == "__main__":
    main()
