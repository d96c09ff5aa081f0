"""Whose web page a request may come from.

A browser sends a page's request to any address, this host's own included, and says where it comes from: `Origin` with
every POST, and `Sec-Fetch-Site`, which no page can forge, wherever it trusts the way. What names neither is no browser.
A page whose own name has been resolved to this host's address (DNS rebinding) passes for ours, but for that name in
`Host`: a server that listens on this host only answers to no other names than its own.

Used by the applications of the gateway and of the monitor, for each request; no I/O.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    Fields = Mapping[bytes, bytes]

#: A request by one of these changes nothing, RFC 9110 section 9.2.1.
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}

#: What the answer to a browser's question before its request says.
PREFLIGHT = (
    (b"access-control-allow-methods", b"POST"),
    (
        b"access-control-allow-headers",
        b"authorization, content-type, content-encoding, record-key, idempotency-key, traceparent, prefer",
    ),
    (b"access-control-max-age", b"600"),
)

#: So many values of `Host` are remembered as ours: each port makes one more.
KNOWN_HOSTS = 100

#: The page is ours, or there is none: somebody has typed the address.
_OURS = {b"same-origin", b"none"}

_PORTS = {b"http": b":80", b"https": b":443"}


class Origins:
    """Tells our own pages, and those that are listed, from all others."""

    def __init__(
        self, listens_on: str, *, listed: Collection[str] = (), hosts: Collection[str] = (), tls: bool = False
    ) -> None:
        self.listed = {origin.encode() for origin in listed}
        self._schemes = {b"https"} if tls else {b"http", b"https"}  # a proxy before us may speak TLS for us
        self._hosts = {host.lower() for host in hosts}
        self._is_closed = bool(hosts) or is_loopback(listens_on)
        #: Hosts that were found to be ours: nearly always the same.
        self._known: set[bytes | None] = {None, b""}

    def names_us(self, fields: Fields) -> bool:
        """Tell whether a request is for one of our names; no browser leaves the name out."""
        host = fields.get(b"host")
        if not self._is_closed or host in self._known:
            return True
        name = _name(host or b"").lower()
        if not is_loopback(name) and name not in self._hosts:
            return False
        if len(self._known) < KNOWN_HOSTS:
            self._known.add(host)
        return True

    def may_send(self, fields: Fields) -> bool:
        """Tell whether a request is of no page, of ours, or of one that is listed."""
        origin, site = fields.get(b"origin"), fields.get(b"sec-fetch-site")
        if (origin is None and site is None) or origin in self.listed or b"*" in self.listed:
            return True
        if site is not None:
            return site in _OURS
        return self._is_ours(origin or b"", fields.get(b"host", b""))

    def cors(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        """Return what lets a listed page read an answer; nothing is listed: nothing."""
        if b"*" in self.listed:
            return [(b"access-control-allow-origin", b"*")]
        vary = [(b"vary", b"origin")]
        return [(b"access-control-allow-origin", origin), *vary] if origin in self.listed else vary

    def _is_ours(self, origin: bytes, host: bytes) -> bool:
        scheme, _, where = origin.partition(b"://")
        port = _PORTS.get(scheme, b"")
        return scheme in self._schemes and where.lower().removesuffix(port) == host.lower().removesuffix(port)


def is_loopback(name: str) -> bool:
    """Tell whether it names this host from within."""
    if name.lower() == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _name(host: bytes) -> str:
    """Return a Host without its port."""
    text = host.decode("latin-1")
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
