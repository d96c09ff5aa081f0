"""libpq's connection string: whether it is one, what it must not hold, and whether it may be trusted.

The configuration file may be read by many, so its connection string holds no password: that is kept apart from it, and
added here.

Called while the file is loaded, before anything is forked.
"""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from urllib.parse import parse_qsl, quote

from psycopg import Error
from psycopg.conninfo import conninfo_to_dict

#: The systemd credential that holds the password: `LoadCredential=postgres_password:/path`.
CREDENTIAL = "postgres_password"

#: The options that libpq itself shows as stars, and the keys that stand for a password.
_SECRETS = {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}

_KEYWORD_VALUE = re.compile(r"\s*(\w+)\s*=\s*(?:'((?:\\.|[^'\\])*)'|((?:\\.|[^\s\\])*))", re.DOTALL)
_URI = re.compile(r"postgres(?:ql)?://")


def is_conninfo(dsn: str) -> bool:
    """Tell whether it begins as a connection string must."""
    return bool(_URI.match(dsn) or _KEYWORD_VALUE.match(dsn))


def secrets(dsn: str) -> list[str]:
    """Return the options in it that are secrets, be they empty.

    libpq's own reading decides: it finds the end of an address elsewhere than others do (in `u:p#ss@h` it sees a
    password). It tells nothing of a string with a fault, so that one is searched as well.
    """
    try:
        given = set(conninfo_to_dict(dsn))
    except Error:
        given = set()
    if _URI.match(dsn):
        authority, _, query = dsn.partition("?")
        given |= {"password"} if re.search("//[^/@]*:[^@]*@", authority) else set()
        given |= {key.lower() for key, _ in parse_qsl(query, keep_blank_values=True)}
    else:
        given |= {keyword.lower() for keyword, *_ in _KEYWORD_VALUE.findall(dsn)}
    return sorted(given & _SECRETS)


def with_password(dsn: str, password: str) -> str:
    """Add the password at the end: libpq takes the last one it meets."""
    if _URI.match(dsn):
        return f"{dsn}{'&' if '?' in dsn else '?'}password={quote(password, safe='')}"
    escaped = password.replace("\\", r"\\").replace("'", r"\'")
    return f"{dsn} password='{escaped}'"


def names_in(dsn: str) -> list[str]:
    """Return the role's and the database's name; of a string that libpq does not take it complains itself, later."""
    try:
        given = conninfo_to_dict(dsn)
    except Error:
        return []
    return [str(given[key]) for key in ("user", "dbname") if given.get(key)]


def unverified_hosts(dsn: str) -> list[str]:
    """Return the hosts beyond this machine that it may connect to without sslmode=verify-full: anybody could be there.

    What it does not say libpq takes from the environment. A service is a file that only libpq reads: it counts as a
    host beyond, unless the string names its own. Of a string that libpq does not take it complains itself, later.
    """
    try:
        given = conninfo_to_dict(dsn)
    except Error:
        return []
    if (given.get("sslmode") or os.environ.get("PGSSLMODE")) == "verify-full":
        return []
    addresses = given.get("hostaddr") or os.environ.get("PGHOSTADDR")
    hosts = str(addresses or given.get("host") or os.environ.get("PGHOST") or "")
    service = given.get("service") or os.environ.get("PGSERVICE")
    if service and not hosts:
        return [f"service {service}"]
    return [host for host in hosts.split(",") if not _is_here(host)]


def _is_here(host: str) -> bool:
    """Whether a host is this machine: a socket's directory, or an address that is looped back."""
    if not host or host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
