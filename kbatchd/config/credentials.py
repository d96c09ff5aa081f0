"""Where passwords and tokens come from: a private file, a systemd credential, or a command's output; nowhere else.

Called while the file is loaded, before anything is forked, or in a reload's own process; for the gateway's tokens in
the gateway too. Reads CREDENTIALS_DIRECTORY. Faults are ConfigErrors, worded to follow the name of a key; none shows a
secret, nor what a command has written.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from kbatchd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How long a command may take: it may ask a server of its own.
COMMAND_SECONDS = 10.0


def find_password(file: Path | None, command: Sequence[str] | None, credential: str) -> str | None:
    """Return the password from the first of these that there is; None when there is none."""
    text = find(file, command, credential)
    if text is None:
        return None
    password = text.rstrip("\r\n")
    if not password or "\0" in password or "\n" in password:
        where = f"is {file}, which" if file else f"{command[0]}" if command else f"the credential {credential}"
        raise ConfigError(f"{where} holds no password; allowed: one line")
    return password


def find(file: Path | None, command: Sequence[str] | None, credential: str) -> str | None:
    """Return the text of the first of these that there is; None when there is none."""
    if file is not None:
        return read_private(file)
    if command:
        return run(command)
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return _read_credential(Path(directory), credential) if directory else None


def read_private(path: Path) -> str:
    """Read a file of secrets, whose mode must keep everybody else out."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise _unreadable(path, error) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"is {path} with mode {mode:04o}; allowed: 0600 or 0400 (chmod 600 {path})")
    return _read(path)


def _read_credential(directory: Path, name: str) -> str | None:
    """Return a credential of systemd's; None when the unit has none of this name, which is no fault.

    systemd keeps the directory private; the mode within is its own affair (0440 for a unit with User=).
    """
    path = directory / name
    try:
        path.lstat()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and directory.is_dir():
            return None
        raise ConfigError(
            f"is looked for in $CREDENTIALS_DIRECTORY, which is {directory} and cannot be searched: {error.strerror}; "
            "let this user search it, or unset the variable"
        ) from error
    return _read(path)


def run(command: Sequence[str]) -> str:
    """Return what a command writes to its standard output. No shell: its words mean nothing else."""
    # What it writes elsewhere may hold the secret as well. DATABASE_URL may hold another one, which is none of its.
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    try:
        # A session of its own: at the time limit all that it has started ends with it, also behind a pipe.
        process = subprocess.Popen(  # noqa: S603 - the operator's own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigError(f"{command[0]} cannot be run: {error.strerror}") from error
    with process:
        try:
            output, _ = process.communicate(timeout=COMMAND_SECONDS)
        except BaseException as error:  # an operator's Ctrl-C does not reach it
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise ConfigError(f"{command[0]} did not end within {COMMAND_SECONDS:.0f} s") from None
            raise
    if process.returncode:
        raise ConfigError(f"{command[0]} ended with exit status {process.returncode}")
    try:
        return output.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{command[0]} wrote something that is not UTF-8") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError:
        raise ConfigError(f"is {path}, which is not UTF-8") from None


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"is {path}, which cannot be read: {error.strerror}; allowed: a file that this user can read")
