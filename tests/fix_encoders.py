"""Rows with the compiled encoder and without: what a user has depends on the compiler at the installation."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest

from kbatchd.encode import rows
from kbatchd.encode.compiled import COMPILED

#: Python's own headers and a compiler: then there must be a compiled encoder, or it would never be tested.
CAN_COMPILE = Path(sysconfig.get_path("include"), "Python.h").exists() and any(
    map(shutil.which, ("cc", "gcc", "clang"))
)

ENCODERS = [False, True] if COMPILED or CAN_COMPILE else [False]


@pytest.fixture(params=ENCODERS, ids=lambda compiled: "compiled" if compiled else "python")
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Let `build_encoder` make encoders of this kind."""
    wanted: bool = request.param
    assert COMPILED or not wanted, "the compiled encoder was not built, though it could be: pip install -e '.[test]'"
    defaults = rows.build_encoder.__kwdefaults__ or {}
    monkeypatch.setattr(rows.build_encoder, "__kwdefaults__", {**defaults, "compiled": wanted})
    return wanted
