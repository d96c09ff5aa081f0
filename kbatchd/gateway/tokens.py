"""Bearer tokens: who may send, and to which routes.

A file with one token a line, the routes it is for behind it; a token alone is for all routes:

    # the shop
    3q2-7wAAAB...  orders refunds
    9f86d081884c7d65...

Several are valid at once, so that one can be replaced without a pause. Used by a gateway's event loop; read again on
SIGHUP. Only digests are kept, and all of them are compared, each in constant time.
"""

from __future__ import annotations

import hmac
import logging
import re
from hashlib import sha256
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from kbatchd.errors import ConfigError
from kbatchd.gateway.problems import Problem

if TYPE_CHECKING:
    from kbatchd.config import Gateway

log = logging.getLogger(__name__)

#: Shorter ones can be guessed.
MINIMUM_LENGTH = 16
#: What a bearer token may be made of (RFC 6750).
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
#: A "#" within a word is no comment, but a fault of it.
_COMMENT = re.compile(r"(?:^|\s)#.*")

_CHALLENGE = {b"www-authenticate": b"Bearer"}


class Grant(NamedTuple):
    """A token's digest and the routes it is for; None means all."""

    digest: bytes
    routes: frozenset[str] | None


class Tokens:
    """The tokens that are valid now."""

    def __init__(self, gateway: Gateway) -> None:
        """Read them; ConfigError when they cannot be had."""
        self._gateway = gateway
        self._grants = self._read()

    @property
    def needed(self) -> bool:
        """Whether a request needs one."""
        return self._grants is not None

    def reload(self) -> None:
        """Read them again; what cannot be read changes nothing, nor does a credential that is gone let everybody in."""
        try:
            grants = self._read()
        except ConfigError as error:
            # The reason in the message: a new mistake is not a repetition of the last one, which would be folded.
            log.error("tokens not read, the former ones stay: %s", error, extra={"action": "tokens_kept"})
            return
        if self.needed and grants is None:
            log.error("tokens are gone, the former ones stay", extra={"action": "tokens_kept"})
            return
        self._grants = grants
        log.info("tokens read", extra={"action": "tokens_read", "count": len(grants or ())})

    def check(self, authorization: bytes | None, route: str) -> None:
        """Raise 401 for a token that is missing or unknown, 403 for one of other routes; without any all may send."""
        if self._grants is None:
            return
        scheme, _, token = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            raise Problem(HTTPStatus.UNAUTHORIZED, "unauthorized", "a bearer token is needed", headers=_CHALLENGE)
        digest = sha256(token.strip()).digest()
        grants = [grant for grant in self._grants if hmac.compare_digest(grant.digest, digest)]
        if not grants:
            raise Problem(HTTPStatus.UNAUTHORIZED, "unauthorized", "the token is not known", headers=_CHALLENGE)
        if not any(grant.routes is None or route in grant.routes for grant in grants):
            raise Problem(HTTPStatus.FORBIDDEN, "forbidden", f"the token is not for route {route}")

    def _read(self) -> tuple[Grant, ...] | None:
        try:
            text = self._gateway.read_tokens()
        except ConfigError as error:
            raise ConfigError(f"gateway.tokens_file: {error}") from error
        return None if text is None else tuple(_parse(text))


def _parse(text: str) -> list[Grant]:
    grants = []
    for number, line in enumerate(text.splitlines(), 1):
        token, *routes = _COMMENT.sub("", line).split() or [""]
        if not token:
            continue
        if len(token) < MINIMUM_LENGTH or not _TOKEN.fullmatch(token):
            # The token itself is a secret, even a bad one.
            raise ConfigError(
                f"gateway.tokens_file: line {number}: not a token; allowed: {MINIMUM_LENGTH} or more letters, digits "
                "and -._~+/, then the names of its routes, if it is not for all"
            )
        grants.append(Grant(sha256(token.encode()).digest(), frozenset(routes) or None))
    if not grants:
        raise ConfigError("gateway.tokens_file: holds no token; leave the key out to let everybody send")
    return grants
