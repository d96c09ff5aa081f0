"""libpq's connection string, and the password that is kept apart from it.

The configuration file may be read by many, so its connection string holds no password: that comes from a private file
or a systemd credential and is added here. libpq itself takes the string apart; of it, these functions only tell its two
forms (a URI, or keywords and values) and whether there is a password in it.

Called by config.py while the file is loaded, before anything is forked. Faults are ConfigErrors, worded to follow the
name of a key; none shows a password.
"""

from __future__ import annotations

import re
import stat
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlsplit

from kbatchd.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

#: The systemd credential that holds the password: `LoadCredential=postgres_password:/path`.
CREDENTIAL = "postgres_password"

_KEYWORD_VALUE = re.compile(r"\s*(\w+)\s*=\s*(?:'((?:\\.|[^'\\])*)'|((?:\\.|[^\s\\])*))", re.DOTALL)
_URI = re.compile(r"postgres(?:ql)?://")


def is_conninfo(dsn: str) -> bool:
    """Tell whether it begins as a connection string must."""
    return bool(_URI.match(dsn) or _KEYWORD_VALUE.match(dsn))


def has_password(dsn: str) -> bool:
    """Tell whether there is a password in it, be it empty."""
    if _URI.match(dsn):
        uri = urlsplit(dsn)
        return uri.password is not None or any(key == "password" for key, _ in parse_qsl(uri.query))
    return any(keyword == "password" for keyword, *_ in _KEYWORD_VALUE.findall(dsn))


def with_password(dsn: str, password: str) -> str:
    """Add the password at the end: libpq takes the last one it meets."""
    if _URI.match(dsn):
        return f"{dsn}{'&' if '?' in dsn else '?'}password={quote(password, safe='')}"
    escaped = password.replace("\\", r"\\").replace("'", r"\'")
    return f"{dsn} password='{escaped}'"


def read_credential(directory: Path) -> str | None:
    """Read the password from systemd's directory of credentials; None when the unit has no such credential."""
    path = directory / CREDENTIAL
    # systemd keeps the directory private; the mode within is its own affair (0440 for a unit with User=).
    return _read(path) if path.exists() else None


def read_password(path: Path) -> str:
    """Read the password from a file, whose mode must keep everybody else out."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise _unreadable(path, error) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"is {path} with mode {mode:04o}; allowed: 0600 or 0400 (chmod 600 {path})")
    return _read(path)


def _read(path: Path) -> str:
    try:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"is {path}, which is not UTF-8") from error
    if not password or "\0" in password:
        raise ConfigError(f"is {path}, which holds no password; allowed: one line")
    return password


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"is {path}, which cannot be read: {error.strerror}")
