"""Each planted defect still is one: the text that it takes out stands in its module, once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.faults.defects import DEFECTS


@pytest.mark.parametrize("name", DEFECTS)
def test_the_text_is_there_once(name: str) -> None:
    for change in DEFECTS[name].changes:
        spec = importlib.util.find_spec(change.module)
        assert spec is not None, change.module
        assert spec.origin is not None, change.module
        assert Path(spec.origin).read_text(encoding="utf-8").count(change.old) == 1, change
