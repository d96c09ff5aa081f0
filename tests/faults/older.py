"""kbatchd as it was before the newest migration: `python -m tests.faults.older DIRECTORY --config FILE`, or a command.

`before_the_newest_migration` takes its files from this checkout's history, so that needs git, and more than its last
commits.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def before_the_newest_migration(directory: Path) -> Path:
    """Put the package and its SQL of then into a directory; return it."""
    newest = max(ROOT.glob("sql/[0-9]*.sql")).relative_to(ROOT)
    added = _git("log", "--diff-filter=A", "--format=%H", "--", str(newest)).decode().split()
    assert added, f"{newest} is not in git's history"
    directory.mkdir()
    subprocess.run(["tar", "-x", "-C", directory], input=_git("archive", f"{added[-1]}~", "kbatchd", "sql"), check=True)
    return directory


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True).stdout


def main() -> int:
    """Be that program."""
    directory = sys.argv.pop(1)
    sys.path.insert(0, directory)
    from kbatchd import cli  # noqa: PLC0415 - not before the path is set

    assert Path(cli.__file__).is_relative_to(directory), cli.__file__
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
