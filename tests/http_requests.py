"""Requests as bytes: what HTTP/1.1 allows, what it does not, and how each is to be answered.

Whatever a server would wrongly make of an invalid one is a sound record for the route `r`: it would be seen.
"""

from __future__ import annotations

from typing import NamedTuple

RECORD = b'{"partition":0,"seq":1}'
SIZE = len(RECORD)

POST = b"POST /v1/r HTTP/1.1\r\n"
GET = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"


class Request(NamedTuple):
    """Bytes, the statuses of the answers to them, and how many whole requests the application gets."""

    data: bytes
    statuses: tuple[int, ...] = (400,)
    taken: int = 0


def _post(*fields: bytes, body: bytes = RECORD, line: bytes = POST) -> bytes:
    """Make a request of exactly these fields behind Host."""
    return b"".join([line, b"Host: a\r\n", *(field + b"\r\n" for field in fields), b"\r\n", body])


def _sized(*fields: bytes, line: bytes = POST) -> bytes:
    """Make a request that is sound but for what is given."""
    return _post(b"Content-Length: %d" % SIZE, *fields, line=line)


def _chunked(body: bytes, *fields: bytes) -> bytes:
    return _post(b"Transfer-Encoding: chunked", *fields, body=body)


def _chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


_CHUNKS = _chunk(RECORD) + b"0\r\n\r\n"
_BAD_CHUNK_SIZES = {
    "nothing": b"",
    "negative": b"-17",
    "plus": b"+17",
    "0x": b"0x17",
    "underscore": b"1_7",
    "not hex": b"1g",
    "comma": b"17,17",
    "space before": b" 17",
    "space behind": b"17 ",
    "tab behind": b"17\t",
    "overflow": b"10000000000000017",
    "overflow by far": b"f" * 100,
    "NUL behind": b"17\0",
}

_BAD_LENGTHS = {
    "empty": b"",
    "plus": b"+23",
    "minus": b"-23",
    "minus nothing": b"-0",
    "hex": b"0x17",
    "point": b"23.0",
    "exponent": b"2e1",
    "underscore": b"2_3",
    "list": b"23, 23",
    "list of two": b"23, 24",
    "two words": b"2 3",
    "quoted": b'"23"',
    "overflow": b"18446744073709551639",
    "overflow by far": b"9" * 400,
    "not ASCII": b"\xb2\xb3",
    "vertical tab": b"\x0b23",
}

_BAD_CODINGS = {
    "identity": b"identity",
    "empty": b"",
    "twice": b"chunked, chunked",
    "not last": b"chunked, gzip",
    "identity first": b"identity, chunked",
    "unknown first": b"cow, chunked",
    "comma first": b", chunked",
    "comma last": b"chunked,",
    "longer": b"xchunked",
    "shorter": b"chunke",
    "parameter": b"chunked;q=1",
    "quoted": b'"chunked"',
    "vertical tab": b"\x0bchunked",
    "NUL": b"chunked\0",
}

_BAD_NAMES = {
    "empty": b"",
    "space within": b"X Y",
    "space behind": b"X ",
    "tab behind": b"X\t",
    "NUL": b"X\0",
    "control character": b"X\x01",
    "DEL": b"X\x7f",
    "not ASCII": b"X\xe4",
    "bracket": b"X[",
    "slash": b"X/",
    "quote": b'X"',
    "bare CR": b"X\r",
}

_BAD_VALUES = {
    "NUL": b"a\0b",
    "control character": b"a\x01b",
    "escape": b"a\x1bb",
    "vertical tab": b"a\x0bb",
    "DEL": b"a\x7fb",
    "bare CR": b"a\rb",
    "bare CR first": b"\rb",
    "bare CR last": b"a\r",
    "bare LF": b"a\nContent-Language: b",
    "line folded with a space": b"a\r\n b",
    "line folded with a tab": b"a\r\n\tb",
    "line folded to nothing": b"a\r\n ",
}

_BAD_LINES = {
    "lower-case method": b"post /v1/r HTTP/1.1\r\n",
    "unknown method": b"FOO /v1/r HTTP/1.1\r\n",
    "method not ASCII": b"P\xd6ST /v1/r HTTP/1.1\r\n",
    "no method": b" /v1/r HTTP/1.1\r\n",
    "space before the method": b" POST /v1/r HTTP/1.1\r\n",
    "tab behind the method": b"POST\t/v1/r HTTP/1.1\r\n",
    "no target": b"POST HTTP/1.1\r\n",
    "target without a slash": b"POST v1/r HTTP/1.1\r\n",
    "target with a space": b"POST /v1/r x HTTP/1.1\r\n",
    "target with a fragment": b"POST /v1/r#x HTTP/1.1\r\n",
    "target not ASCII": b"POST /v1/\xe4 HTTP/1.1\r\n",
    "target with NUL": b"POST /v1/r\0 HTTP/1.1\r\n",
    "target with a control character": b"POST /v1/r\x01 HTTP/1.1\r\n",
    "target with DEL": b"POST /v1/r\x7f HTTP/1.1\r\n",
    "another scheme": b"POST ftp://a/v1/r HTTP/1.1\r\n",
    "a URL without a host": b"POST http:///v1/r HTTP/1.1\r\n",
    "a URL with a user": b"POST http://u:p@a/v1/r HTTP/1.1\r\n",
    "a URL with a fragment": b"POST http://a/v1/r#x HTTP/1.1\r\n",
    "asterisk for POST": b"POST * HTTP/1.1\r\n",
    "lower-case http": b"POST /v1/r http/1.1\r\n",
    "no version": b"POST /v1/r\r\n",
    "no version's number": b"POST /v1/r HTTP/\r\n",
    "version 0.9": b"POST /v1/r HTTP/0.9\r\n",
    "version 1": b"POST /v1/r HTTP/1\r\n",
    "version 1.2": b"POST /v1/r HTTP/1.2\r\n",
    "version 1.10": b"POST /v1/r HTTP/1.10\r\n",
    "version 01.1": b"POST /v1/r HTTP/01.1\r\n",
    "version 2.0": b"POST /v1/r HTTP/2.0\r\n",
    "version 3.0": b"POST /v1/r HTTP/3.0\r\n",
    "another protocol": b"POST /v1/r SMTP/1.1\r\n",
    "space behind the version": b"POST /v1/r HTTP/1.1 \r\n",
    "bare LF behind the version": b"POST /v1/r HTTP/1.1\n",
    "bare CR behind the version": b"POST /v1/r HTTP/1.1\r",
    "a space before the first field": POST + b" ",
}

_BAD_HOSTS = {
    "slash": b"a/b",
    "user": b"u@a",
    "space": b"a b",
    "list": b"a, b c",
    "quote": b'a"',
    "port no number": b"a:b",
    "two ports": b"a:1:2",
    "bracket open": b"[::1",
    "bracket with a name": b"[a.example]",
    "percent alone": b"a%zz",
    "not ASCII": b"\xe4",
}

INVALID: dict[str, Request] = {
    # Where does the body end? RFC 9112 section 6.3: who answers that in another way than we do smuggles requests.
    "length and chunked": Request(_post(b"Content-Length: %d" % SIZE, b"Transfer-Encoding: chunked", body=_CHUNKS)),
    "chunked and length": Request(_post(b"Transfer-Encoding: chunked", b"Content-Length: %d" % SIZE, body=_CHUNKS)),
    "length of the chunks and chunked": Request(
        _post(b"Content-Length: %d" % len(_CHUNKS), b"Transfer-Encoding: chunked", body=_CHUNKS)
    ),
    "length 0 and chunked": Request(_post(b"Content-Length: 0", b"Transfer-Encoding: chunked", body=_CHUNKS)),
    "two lengths": Request(_sized(b"Content-Length: 24")),
    "two equal lengths": Request(_sized(b"Content-Length: %d" % SIZE)),
    "two codings": Request(_chunked(_CHUNKS, b"Transfer-Encoding: chunked")),
    "two codings, identity first": Request(
        _post(b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked", body=_CHUNKS)
    ),
    "two codings, identity last": Request(_chunked(_CHUNKS, b"Transfer-Encoding: identity")),
    "chunked before a colon with a space": Request(_post(b"Transfer-Encoding : chunked", body=_CHUNKS)),
    "chunked in HTTP/1.0": Request(_post(b"Transfer-Encoding: chunked", body=_CHUNKS, line=b"POST /v1/r HTTP/1.0\r\n")),
    "chunked behind a folded line": Request(_post(b"Transfer-Encoding:\r\n chunked", body=_CHUNKS)),
    "another coding": Request(_post(b"Transfer-Encoding: gzip, chunked", body=_CHUNKS), (501,)),
    "no length, but a body": Request(GET + RECORD, (200, 400), 1),
    **{f"length: {name}": Request(_post(b"Content-Length: " + value)) for name, value in _BAD_LENGTHS.items()},
    **{
        f"coding: {name}": Request(_post(b"Transfer-Encoding: " + value, body=_CHUNKS))
        for name, value in _BAD_CODINGS.items()
    },
    # RFC 9112 section 7.1: chunks.
    **{
        f"chunk size: {name}": Request(_chunked(b"%b\r\n%b\r\n0\r\n\r\n" % (size, RECORD)))
        for name, size in _BAD_CHUNK_SIZES.items()
    },
    "chunk longer than it says": Request(_chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE - 1, RECORD))),
    "chunk shorter than it says": Request(_chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE + 1, RECORD))),
    "chunk without its CRLF": Request(_chunked(b"%x\r\n%b0\r\n\r\n" % (SIZE, RECORD))),
    "bare LF behind a chunk": Request(_chunked(b"%x\r\n%b\n0\r\n\r\n" % (SIZE, RECORD))),
    "bare CR behind a chunk": Request(_chunked(b"%x\r\n%b\r0\r\n\r\n" % (SIZE, RECORD))),
    "bare LF behind a chunk size": Request(_chunked(b"%x\n%b\r\n0\r\n\r\n" % (SIZE, RECORD))),
    "bare CR behind a chunk size": Request(_chunked(b"%x\r%b\r\n0\r\n\r\n" % (SIZE, RECORD))),
    "bare LF behind the last chunk": Request(_chunked(_chunk(RECORD) + b"0\n\r\n")),
    "bare LF at the end": Request(_chunked(_chunk(RECORD) + b"0\r\n\n")),
    "second chunk bad": Request(_chunked(_chunk(RECORD) + b"x\r\n")),
    "extension with a bare LF": Request(_chunked(_chunk(RECORD, b";a\n") + b"0\r\n\r\n")),
    "extension with a bare CR": Request(_chunked(_chunk(RECORD, b";a\rb") + b"0\r\n\r\n")),
    "extension with NUL": Request(_chunked(_chunk(RECORD, b";a=\0") + b"0\r\n\r\n")),
    "extension with CRLF in quotes": Request(_chunked(_chunk(RECORD, b';a="b\r\nc"') + b"0\r\n\r\n")),
    "trailer with a length": Request(_chunked(_chunk(RECORD) + b"0\r\nContent-Length: 5\r\n\r\n")),
    "trailer with a coding": Request(_chunked(_chunk(RECORD) + b"0\r\nTransfer-Encoding: chunked\r\n\r\n")),
    "trailer folded": Request(_chunked(_chunk(RECORD) + b"0\r\nA: b\r\n c\r\n\r\n")),
    "trailer with a bare LF": Request(_chunked(_chunk(RECORD) + b"0\r\nA: b\n\r\n")),
    "trailer without a colon": Request(_chunked(_chunk(RECORD) + b"0\r\nA\r\n\r\n")),
    # RFC 9112 section 5: fields.
    **{f"field's name: {name}": Request(_sized(value + b": a")) for name, value in _BAD_NAMES.items()},
    **{f"field's value: {name}": Request(_sized(b"X: " + value)) for name, value in _BAD_VALUES.items()},
    "field without a colon": Request(_sized(b"X")),
    "bare LF behind a field": Request(POST + b"Host: a\nContent-Length: %d\r\n\r\n%b" % (SIZE, RECORD)),
    "bare LF at the head's end": Request(POST + b"Host: a\r\nContent-Length: %d\r\n\n%b" % (SIZE, RECORD)),
    "bare LF everywhere": Request(_sized().replace(b"\r", b"")),
    "bare CR everywhere": Request(_sized().replace(b"\n", b"")),
    "two Content-Types": Request(_sized(b"Content-Type: application/json", b"Content-Type: text/plain")),
    "two Authorizations": Request(_sized(b"Authorization: Bearer a", b"authorization: Bearer b")),
    # RFC 9112 section 3: the request line, and 3.2: the host.
    **{f"line: {name}": Request(_sized(line=line)) for name, line in _BAD_LINES.items()},
    "HTTP/0.9": Request(b"GET /openapi.json\r\n\r\n"),
    "HTTP/2's preface": Request(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "CONNECT": Request(b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", (405,)),
    "TLS": Request(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32)),
    "no Host": Request(POST + b"Content-Length: %d\r\n\r\n%b" % (SIZE, RECORD)),
    "two Hosts": Request(_sized(b"Host: b")),
    "two equal Hosts": Request(_sized(b"Host: a")),
    **{
        f"host: {name}": Request(POST + b"Host: %b\r\nContent-Length: %d\r\n\r\n%b" % (host, SIZE, RECORD))
        for name, host in _BAD_HOSTS.items()
    },
    "another expectation": Request(_sized(b"Expect: 200-ok"), (417,)),
    # What comes before an invalid request is answered; what comes behind it is not.
    "valid, then invalid": Request(_sized() + _sized(b"X : y"), (202, 400), 1),
    "valid, then bad chunks": Request(_sized() + _chunked(b"x\r\n"), (202, 400), 1),
    "two valid, then invalid": Request(_sized() + GET + _sized(b"X : y"), (202, 200, 400), 2),
    "invalid, then valid": Request(_sized(b"X : y") + _sized()),
    "bad chunks, then valid": Request(_chunked(b"x\r\n") + _sized()),
    "length too short, so another request": Request(_sized() + b"}" + _sized(), (202, 400), 1),
}

VALID: dict[str, Request] = {
    "length": Request(_sized(), (202,), 1),
    "length with blanks around": Request(_post(b"Content-Length: \t %d \t " % SIZE), (202,), 1),
    "length with zeros before": Request(_post(b"Content-Length: 000%d" % SIZE), (202,), 1),
    "names in any case": Request(_post(b"cONTENT-lENGTH:%d" % SIZE), (202,), 1),
    "value empty": Request(_sized(b"X:", b"Y:   "), (202,), 1),
    "value with high bytes": Request(_sized(b"X: \xe4\xff"), (202,), 1),
    "value with a tab": Request(_sized(b"X: a\tb"), (202,), 1),
    "name with all it may have": Request(_sized(b"!#$%&'*+-.^_`|~09azAZ: a"), (202,), 1),
    "a field twice": Request(_sized(b"X: a", b"X: b"), (202,), 1),
    "empty lines first": Request(b"\r\n\r\n" + _sized(), (202,), 1),
    "chunked": Request(_chunked(_CHUNKS), (202,), 1),
    "chunked in any case": Request(_post(b"Transfer-Encoding: Chunked ", body=_CHUNKS), (202,), 1),
    "chunk of each byte": Request(
        _chunked(b"".join(_chunk(bytes([byte])) for byte in RECORD) + b"0\r\n\r\n"), (202,), 1
    ),
    "chunk size with zeros and in any case": Request(
        _chunked(b"000a\r\n%b\r\n0D\r\n%b\r\n0000\r\n\r\n" % (RECORD[:10], RECORD[10:])), (202,), 1
    ),
    "extensions": Request(_chunked(_chunk(RECORD, b';a;b=c;d="e; f"') + b"0;g\r\n\r\n"), (202,), 1),
    "trailers": Request(_chunked(_chunk(RECORD) + b"0\r\nA: b\r\nAuthorization: c\r\n\r\n"), (202,), 1),
    "trailers, then another": Request(_chunked(_chunk(RECORD) + b"0\r\nHost: b\r\n\r\n") + _sized(), (202, 202), 2),
    "body of a GET": Request(
        _post(b"Content-Length: 2", body=b"{}", line=b"GET /openapi.json HTTP/1.1\r\n"), (200,), 1
    ),
    "HEAD": Request(GET.replace(b"GET", b"HEAD"), (200,), 1),
    "pipelined": Request(_sized() * 5, (202,) * 5, 5),
    "pipelined of all kinds": Request(_sized() + _chunked(_CHUNKS) + GET + _sized(), (202, 202, 200, 202), 4),
    "HTTP/1.0": Request(_sized(line=b"POST /v1/r HTTP/1.0\r\n"), (202,), 1),
    "HTTP/1.0 without a Host": Request(
        b"POST /v1/r HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (SIZE, RECORD), (202,), 1
    ),
    "HTTP/1.0, and nothing behind it": Request(_sized(line=b"POST /v1/r HTTP/1.0\r\n") + _sized(), (202,), 1),
    "connection: close": Request(_sized(b"Connection: close"), (202,), 1),
    "connection: close, and nothing behind it": Request(_sized(b"Connection: x, Close") + _sized(), (202,), 1),
    "connection: close, and garbage behind it": Request(_sized(b"Connection: close") + b"\0", (202,), 1),
    "whole URL": Request(_sized(line=b"POST http://a/v1/r HTTP/1.1\r\n"), (202,), 1),
    "whole URL of another host": Request(
        _sized(line=b"POST HTTPS://B.example:1/v1/r?ack=kafka HTTP/1.1\r\n"), (202,), 1
    ),
    "percent signs": Request(_sized(line=b"POST /v1/%72 HTTP/1.1\r\n"), (202,), 1),
    "two spaces": Request(_sized(line=b"POST  /v1/r  HTTP/1.1\r\n"), (202,), 1),
    "host with a port": Request(_sized().replace(b"Host: a", b"Host: a.example:8080"), (202,), 1),
    "host of IPv6": Request(_sized().replace(b"Host: a", b"Host: [::1]:8080"), (202,), 1),
    "host empty": Request(_sized().replace(b"Host: a", b"Host:"), (202,), 1),
    "upgrade to h2c": Request(
        _sized(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"), (202,), 1
    ),
    "upgrade of chunks, and others": Request(
        _chunked(_CHUNKS, b"Connection: Upgrade", b"Upgrade: websocket")
        + _sized(b"Connection: Upgrade, close", b"Upgrade: h2c"),
        (202, 202),
        2,
    ),
    "upgrade without a connection": Request(_sized(b"Upgrade: h2c"), (202,), 1),
}

CASES = {**INVALID, **VALID}

#: Requests that stop in the middle.
INCOMPLETE: dict[str, bytes] = {
    "nothing": b"",
    "half a line": POST[:10],
    "half a head": _sized()[:40],
    "no end of the head": _sized()[: -SIZE - 2],
    "no body": _sized()[:-SIZE],
    "body without its last byte": _sized()[:-1],
    "chunk without its end": _chunked(b"%x\r\n%b" % (SIZE, RECORD)),
    "no last chunk": _chunked(_chunk(RECORD)),
    "no end of the last chunk": _chunked(_chunk(RECORD) + b"0\r\n"),
    "no last LF": _chunked(_CHUNKS[:-1]),
    "trailer without its end": _chunked(_chunk(RECORD) + b"0\r\nA: b\r\n"),
}
