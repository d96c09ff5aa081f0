"""The daemon with one mechanism taken out: `python -m tests.faults.planted DEFECT --config FILE`, or any command.

A defect is a text in a module's source that is replaced before the module is imported; a text that is not there ends
the program, so that a defect whose mechanism has moved is noticed. `defects.py` has them, with the scenario that finds
each.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.faults.defects import DEFECTS, Change

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class _Altered(importlib.machinery.SourceFileLoader):
    """Loads a module with changes in its source, past the cache of compiled ones."""

    def __init__(self, name: str, path: str, changes: Sequence[Change]) -> None:
        super().__init__(name, path)
        self._changes = changes

    def path_stats(self, path: str) -> dict[str, float]:
        """Have no cache."""
        raise OSError(path)

    def get_data(self, path: str) -> bytes:
        """Return the source, changed."""
        text = super().get_data(path).decode()
        for change in self._changes:
            if text.count(change.old) != 1:
                sys.exit(f"{path} has {text.count(change.old)} times, not once: {change.old!r}")
            text = text.replace(change.old, change.new)
        return text.encode()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that are to be changed."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = changes

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec with our loader."""
        changes = [change for change in self._changes if change.module == fullname]
        if not changes:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None, fullname
        assert spec.origin is not None, fullname
        spec.loader = _Altered(fullname, spec.origin, changes)
        return spec


def main() -> int:
    """Plant the defect, then be kbatchd."""
    name = sys.argv.pop(1)
    changes = DEFECTS[name].changes
    loaded = {change.module for change in changes} & set(sys.modules)
    assert not loaded, f"too late for {loaded}"
    sys.meta_path.insert(0, _Finder(changes))
    from kbatchd import cli  # noqa: PLC0415 - not before the finder is there

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
