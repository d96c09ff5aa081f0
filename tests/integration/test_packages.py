"""The sdist, and the wheel made from it: all that a user needs. `.ci/run` installs both into empty environments."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from sysconfig import get_config_var

import pytest
import tomli

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the sdist from the checkout's own files, and the wheel from the sdist alone."""
    directory = tmp_path_factory.mktemp("packages")
    source = directory / "source"
    source.mkdir()
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, files.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--outdir", str(directory), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (sdist,), (wheel,) = directory.glob("*.tar.gz"), directory.glob("*.whl")
    return sdist, wheel


def test_the_sdist_has_the_sources(packages: tuple[Path, Path]) -> None:
    with tarfile.open(packages[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "sql/roles.sql"} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "kbatchd/encode/native").iterdir()} <= names
    assert {f"systemd/{path.name}" for path in (ROOT / "systemd").iterdir()} <= names


def test_the_wheel_has_everything(packages: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(packages[1]) as archive:
        names = set(archive.namelist())
        metadata = next(archive.read(name).decode() for name in names if name.endswith("METADATA"))
    wanted = {path.relative_to(ROOT).as_posix() for pattern in ("*.py", "*.html", "*.pyi") for path in _ours(pattern)}
    wanted |= {f"kbatchd/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "sql").rglob("*.sql")}
    wanted |= {"kbatchd/py.typed", "kbatchd/devstack/demo.toml"}
    assert wanted - names == set()
    shared = {name.partition(".data/data/")[2] for name in names}
    units = {f"share/kbatchd/systemd/{path.name}" for path in (ROOT / "systemd").iterdir()}
    assert units | {"share/kbatchd/sql/roles.sql", "share/kbatchd/config/kbatchd.toml"} <= shared
    assert [name for name in names if name.startswith(("tests", "bench"))] == []
    for extra in tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]:
        assert f"Provides-Extra: {extra}" in metadata


def test_the_compiled_encoder_is_in_the_wheel(packages: tuple[Path, Path]) -> None:
    # The tests compare the encoders, so there is a compiler where they run.
    with zipfile.ZipFile(packages[1]) as archive:
        assert f"kbatchd/encode/_native{get_config_var('EXT_SUFFIX')}" in archive.namelist()


def _ours(pattern: str) -> list[Path]:
    return [path for path in (ROOT / "kbatchd").rglob(pattern) if "__pycache__" not in path.parts]
