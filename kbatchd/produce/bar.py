"""The progress bar of `kbatchd produce`: records, megabytes, records a second, the time left. On a terminal only.

Drawn to standard error by the thread that sends, ten times a second.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from kbatchd.printable import printable

_REFRESH_SECONDS: Final = 0.1
_NUMBERS: Final = "{task.fields[records]:>13,} records {task.fields[megabytes]:>9,.1f} MB {task.fields[rate]:>9,.0f}/s"


class Bar:
    """One bar at a time; and words about what we wait for."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._refresh_at = self._began_at = 0.0
        self._began_with = 0

    def open(self, name: str, total: int | None, done: int, records: int) -> None:
        """Begin a bar; `total` and `done` are of one kind, bytes as the input is stored or records."""
        self._began_at, self._began_with = time.monotonic(), records
        if self._console.is_terminal:
            name_column = TextColumn("{task.description}", markup=False)  # whatever the file is called
            columns = name_column, BarColumn(), TextColumn(_NUMBERS), TimeRemainingColumn()
            self._progress = Progress(*columns, console=self._console, auto_refresh=False)
            self._progress.add_task(
                printable(Path(name).name), total=total, completed=done, records=records, megabytes=0.0, rate=0.0
            )
            self._progress.start()

    def show(self, done: int, records: int, size_bytes: int, *, last: bool = False) -> None:
        """Draw how far it is: `size_bytes` of the unpacked input."""
        now = time.monotonic()
        if self._progress is None or (now < self._refresh_at and not last):
            return
        self._refresh_at = now + _REFRESH_SECONDS
        rate = (records - self._began_with) / max(now - self._began_at, _REFRESH_SECONDS)
        [task] = self._progress.task_ids
        self._progress.update(
            task, completed=done, records=records, megabytes=size_bytes / 1e6, rate=rate, refresh=True
        )

    def say(self, text: str) -> None:
        """Print a line to standard error, above the bar."""
        self._console.print(f"kbatchd: {printable(text)}")

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
