"""Secrets that cannot be read: exit code 78 and one line that names the key and the remedy, never a traceback."""

from __future__ import annotations

import importlib
import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from kbatchd import log
from kbatchd.cli import main
from kbatchd.config import Gateway, credentials
from kbatchd.config.conninfo import CREDENTIAL as POSTGRES_CREDENTIAL
from kbatchd.config.kafka import CREDENTIAL as KAFKA_CREDENTIAL
from kbatchd.errors import ConfigError
from kbatchd.gateway.tokens import Tokens
from tests.fix_daemon import is_alive, wait_until
from tests.minimal import MINIMAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65_534


@pytest.fixture(autouse=True)
def _leave_the_log_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "setup", lambda *_: None)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that others may enter, unlike tmp_path."""
    with TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@contextmanager
def _as_somebody() -> Iterator[None]:
    """Permissions mean nothing to root."""
    is_root = not os.geteuid()
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def _complaint(place: Path, text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Check a file that has one fault; return the line about it, without the file's name and line."""
    file = place / "kbatchd.toml"
    file.write_text(text)
    importlib.import_module("kbatchd.commands.check_config")  # while its file can be read
    with _as_somebody():
        code = main(["check-config", "--config", str(file)])
    assert code == 78
    [line] = capsys.readouterr().err.splitlines()
    return line.removeprefix(f"kbatchd: {file}:").partition(": ")[2]


DIRECTORIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "is not there": (Path.exists, "No such file or directory"),
    "is a file": (Path.touch, "Not a directory"),
    "is a loop": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "is locked": (lambda path: path.mkdir(mode=0o000), "Permission denied"),
}


@pytest.mark.parametrize("kind", DIRECTORIES)
def test_a_directory_that_cannot_be_searched(
    kind: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, why = DIRECTORIES[kind]
    directory = place / "credentials"
    make(directory)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    found = f"$CREDENTIALS_DIRECTORY, which is {directory} and cannot be searched: {why}; "
    remedy = "let this user search it, or unset the variable"
    assert _complaint(place, MINIMAL, capsys) == f"postgres: password: is looked for in {found}{remedy}"
    with _as_somebody(), pytest.raises(ConfigError) as raised:
        Tokens(Gateway())
    assert str(raised.value) == f"gateway.tokens_file: is looked for in {found}{remedy}"


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "is locked": (lambda path: path.touch(mode=0o000), "Permission denied"),
    "is a directory": (Path.mkdir, "Is a directory"),
    "is a loop": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "leads nowhere": (lambda path: path.symlink_to(path.with_name("gone")), "No such file or directory"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_credential_that_cannot_be_read(
    kind: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, why = FILES[kind]
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(place))
    credential = place / POSTGRES_CREDENTIAL
    make(credential)
    line = _complaint(place, MINIMAL, capsys)
    assert line.startswith(f"postgres: password: is {credential}, which cannot be read: {why}; allowed: ")


def test_kafka_asks_for_a_password_only_where_it_logs_in(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(place))
    credential = place / KAFKA_CREDENTIAL
    credential.mkdir()
    for login in ('sasl_mechanism = "PLAIN"\nsasl_username = "u"', 'librdkafka."sasl.mechanism" = "PLAIN"'):
        line = _complaint(place, MINIMAL.replace("[postgres]", f"tls = true\n{login}\n[postgres]"), capsys)
        assert line.startswith(f"kafka: password: is {credential}, which cannot be read: Is a directory; allowed: ")
    (place / "kbatchd.toml").write_text(MINIMAL)
    assert main(["check-config", "--config", str(place / "kbatchd.toml")]) == 0


def test_a_file_in_a_locked_directory(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "secrets").mkdir(mode=0o000)
    text = MINIMAL.replace("[postgres]", '[postgres]\npassword_file = "secrets/password"')
    line = _complaint(place, text, capsys)
    path = place / "secrets" / "password"
    assert line.startswith(f"postgres.password_file: is {path}, which cannot be read: Permission denied; allowed: ")


def test_a_credential_that_is_not_there_is_no_fault(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(place))
    assert credentials.find(None, None, POSTGRES_CREDENTIAL) is None


@pytest.mark.parametrize("words", ["sleep 600 & echo $! > {0}; sleep 600", "sleep 600 & echo $! > {0}"])
def test_a_command_that_hangs_ends_with_all_it_has_started(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "COMMAND_SECONDS", 0.5)
    note = tmp_path / "pid"
    with pytest.raises(ConfigError, match="sh did not end within"):
        credentials.run(["sh", "-c", words.format(note)])
    pid = int(note.read_text())
    wait_until(lambda: not is_alive(pid), 5, "the end of what it has started")
