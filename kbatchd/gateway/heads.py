"""What a request's head may be: RFC 9112's rules that llhttp lets pass, and RFC 9110's on the fields we read.

Each function raises the Problem that is the answer. Called by a reader (reader.py) for each request; pure.
"""

from __future__ import annotations

import re
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING

from kbatchd.gateway.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: uri-host [ ":" port ], RFC 9110 section 7.2 and RFC 3986 section 3.2.2; it may be empty.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9_.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?")
#: absolute-form; one without a host is no http URL (RFC 9110 section 4.2.1).
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE | re.DOTALL)
#: Sound, but codings that we do not undo.
_OTHER_CODINGS = re.compile(rb"(?:(?:(?:x-)?(?:gzip|compress)|deflate)[ \t]*,[ \t]*)+chunked", re.IGNORECASE)
#: Fields of one value, RFC 9110 section 5.3: which of two counts must not depend on who reads them.
_SINGLE = {
    b"authorization", b"content-encoding", b"content-length", b"content-type", b"host", b"idempotency-key",
    b"origin", b"record-key", b"sec-fetch-mode", b"sec-fetch-site", b"traceparent", b"transfer-encoding",
}  # fmt: skip


def malformed(detail: str) -> Problem:
    """Make the answer to what is no request."""
    return Problem(HTTPStatus.BAD_REQUEST, "bad-request", detail)


def too_long(limit: int) -> Problem:
    """Make the answer to a head that is too large."""
    detail = f"a request's line, headers and trailers may have {limit} bytes"
    return Problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large", detail)


def size(url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> int:
    """Return how many bytes a head has, line ends included."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def check_old(version: str, fields: Mapping[bytes, bytes]) -> None:
    """Refuse versions other than 1.0, and what 1.0 did not know."""
    # RFC 9112 section 2.3; llhttp also lets 0.9 and 2.0 pass.
    if version != "1.0":
        raise malformed("the version may be HTTP/1.1 or HTTP/1.0")
    # RFC 9112 section 6.1: in 1.0 it means that somebody has mixed up where the body ends.
    if b"transfer-encoding" in fields:
        raise malformed("HTTP/1.0 knows no Transfer-Encoding")


def check_doubles(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse a field that is there twice and may not be."""
    for name, count in Counter(name for name, _ in headers).items():
        if count > 1 and name in _SINGLE:
            raise malformed(f"more than one {name.decode()}")


def check_host(host: bytes | None, version: str) -> None:
    """Refuse a Host that is missing, or none."""
    # RFC 9112 section 3.2: 400 for a 1.1 request without one, or with one that is none.
    if host is None:
        if version == "1.1":
            raise malformed("the Host is missing")
    elif not _HOST.fullmatch(host):
        raise malformed("the Host is not a host")


def check_coding(coding: bytes) -> None:
    """Refuse a Transfer-Encoding other than chunked."""
    # RFC 9112 sections 6.1 and 7. llhttp wants it to end in chunked, and lets anything stand before that.
    if coding.lower() == b"chunked":
        return
    if _OTHER_CODINGS.fullmatch(coding):
        detail = "the only transfer coding is chunked"
        raise Problem(HTTPStatus.NOT_IMPLEMENTED, "transfer-coding", detail)
    raise malformed("Transfer-Encoding is not chunked")


def check_expectation(expectation: bytes) -> bool:
    """Tell that the client waits to be asked for the body; refuse to be expected anything else."""
    # RFC 9110 section 10.1.1
    if expectation.lower() != b"100-continue":
        raise Problem(HTTPStatus.EXPECTATION_FAILED, "expectation", "the only expectation is 100-continue")
    return True


def split_target(target: bytes, method: str) -> tuple[str, bytes]:
    """Return path and query of any of the four forms, RFC 9112 section 3.2."""
    if method == "CONNECT":
        allow = {b"allow": b"GET, HEAD, OPTIONS, POST"}
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, "method-not-allowed", "this is not a proxy", None, allow)
    if not target.startswith(b"/"):
        if target == b"*" and method == "OPTIONS":
            return "*", b""
        absolute = _ABSOLUTE.fullmatch(target)
        # Its host stands for the Host header, and so it must be one.
        if absolute is None or not _HOST.fullmatch(absolute[1]):
            raise malformed("the target is neither a path nor an http URL")
        target = absolute[2] or b"/"
        if target.startswith(b"?"):
            target = b"/" + target
    if b"#" in target:  # RFC 9112 section 3.2: no form has a fragment
        raise malformed("the target has a fragment")
    path, _, query = target.partition(b"?")
    return path.decode(), query
