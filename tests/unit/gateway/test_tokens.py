"""Who may send, and where; a file that is wrong stops the start, and changes nothing later."""

from __future__ import annotations

import hmac
import json
import logging
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path

import pytest

from kbatchd.config import Gateway
from kbatchd.config.gateway import TOKENS_CREDENTIAL
from kbatchd.errors import ConfigError
from kbatchd.gateway.problems import Problem
from kbatchd.gateway.tokens import MINIMUM_LENGTH, Tokens

ALL, ORDERS, BOTH = "all-4f1c9b2a7e33d0", "ord-9f86d081884c7d==", "two_3q2+7w/AAAB~x.y"
FILE = f"""
# the shop
{ALL}
{ORDERS}\torders   # and no other
  {BOTH} orders refunds
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    write(path, FILE)
    return path


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)


def tokens(path: Path) -> Tokens:
    return Tokens(Gateway(tokens_file=path))


def status(tokens: Tokens, authorization: str | None, route: str = "orders") -> int:
    """Return what the token's holder would hear; 200 stands for no problem."""
    try:
        tokens.check(None if authorization is None else authorization.encode(), route)
    except Problem as problem:
        code, headers, body = problem.answer()
        assert json.loads(body)["status"] == code
        assert (b"www-authenticate", b"Bearer") in headers or code != HTTPStatus.UNAUTHORIZED
        return code
    return 200


@pytest.mark.parametrize(
    ("token", "orders", "refunds", "other"),
    [(ALL, 200, 200, 200), (ORDERS, 200, 403, 403), (BOTH, 200, 200, 403), ("unknown-token-0123", 401, 401, 401)],
)
def test_each_token_is_for_its_routes(path: Path, token: str, orders: int, refunds: int, other: int) -> None:
    valid = tokens(path)
    assert [status(valid, f"Bearer {token}", route) for route in ("orders", "refunds", "other")] == [
        orders,
        refunds,
        other,
    ]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_scheme_has_no_case(path: Path, scheme: str) -> None:
    assert status(tokens(path), f"{scheme} {ALL}") == 200
    assert status(tokens(path), f"{scheme}   {ALL}  ") == 200


@pytest.mark.parametrize(
    "authorization",
    [None, "", ALL, "Bearer", "Bearer ", f"Basic {ALL}", f"Bearer{ALL}", f"Bearer {ALL.upper()}", f"Bearer {ALL}x",
     f"Bearer {ALL[:-1]}", f"Bearer {ALL} orders", "Bearer #",
     f"Bearer {sha256(ALL.encode()).hexdigest()}", "Bearer ü"],
)  # fmt: skip
def test_anything_else_is_no_token(path: Path, authorization: str | None) -> None:
    assert status(tokens(path), authorization) == 401


def test_one_token_on_two_lines_is_for_the_routes_of_both(path: Path) -> None:
    write(path, f"{ORDERS} orders\n{ORDERS} refunds\n")
    valid = tokens(path)
    assert [status(valid, f"Bearer {ORDERS}", route) for route in ("orders", "refunds", "other")] == [200, 200, 403]


def test_problem_does_not_show_the_token(path: Path) -> None:
    for token in ("unknown-token-0123", ORDERS):
        with pytest.raises(Problem) as raised:
            tokens(path).check(f"Bearer {token}".encode(), "other")
        assert token.encode() not in raised.value.answer()[2]


def test_without_a_file_everybody_may_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    open_to_all = Tokens(Gateway())
    assert not open_to_all.needed
    assert status(open_to_all, None) == status(open_to_all, "Bearer whatever") == 200


def test_every_digest_is_compared_in_constant_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    valid = tokens(path)
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    digests = [sha256(token.encode()).digest() for token in (ALL, ORDERS, BOTH)]
    for token in (ALL, BOTH, "unknown-token-0123"):
        compared.clear()
        status(valid, f"Bearer {token}")
        assert compared == [(digest, sha256(token.encode()).digest()) for digest in digests]


FAULTS = [
    ("", "holds no token"),
    ("# nothing\n\n", "holds no token"),
    (f"{ALL}\n{'x' * (MINIMUM_LENGTH - 1)} orders\n", "line 2: not a token"),
    (f"{ALL}ü\n", "line 1: not a token"),
    (f'"{ALL}"\n', "line 1: not a token"),
    (f"{ALL}#comment\n", "line 1: not a token"),
    (f"Bearer {ALL}\n", "line 1: not a token"),
    (f"# the shop\n\ntoken={ALL}\n", "line 3: not a token"),
    (f"\ufeff{ALL}\n", "line 1: not a token"),
]


@pytest.mark.parametrize(("text", "fault"), FAULTS)
def test_wrong_file_is_refused_without_showing_it(path: Path, text: str, fault: str) -> None:
    write(path, text)
    with pytest.raises(ConfigError, match=rf"gateway\.tokens_file: .*{fault}") as raised:
        tokens(path)
    assert ALL not in str(raised.value)
    assert raised.value.exit_code == 78


def test_shortest_token() -> None:
    assert MINIMUM_LENGTH == 16


def test_reload_takes_the_new_tokens(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    valid = tokens(path)
    write(path, f"{ORDERS}\n")
    assert status(valid, f"Bearer {ALL}") == 200
    with caplog.at_level(logging.INFO):
        valid.reload()
    assert status(valid, f"Bearer {ALL}") == 401
    assert status(valid, f"Bearer {ORDERS}", "other") == 200
    assert caplog.records[0].__dict__["action"] == "tokens_read"


@pytest.mark.parametrize("text", [*(text for text, _ in FAULTS), None, "mode"])
def test_reload_keeps_the_former_tokens_where_the_new_ones_are_wrong(
    path: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    valid = tokens(path)
    if text is None:
        path.unlink()
    elif text == "mode":
        path.chmod(0o644)
    else:
        write(path, text)
    valid.reload()
    assert status(valid, f"Bearer {ALL}") == 200
    assert status(valid, f"Bearer {ORDERS}", "refunds") == 403
    assert status(valid, None) == 401
    [record] = caplog.records
    assert (record.__dict__["action"], record.levelname) == ("tokens_kept", "ERROR")
    assert ": gateway.tokens_file: " in record.getMessage()
    assert ALL not in record.getMessage()


def test_credential_that_is_gone_does_not_let_everybody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    credential = tmp_path / TOKENS_CREDENTIAL
    write(credential, FILE)
    valid = Tokens(Gateway())
    assert valid.needed
    credential.unlink()
    valid.reload()
    assert status(valid, None) == 401
    assert status(valid, f"Bearer {ALL}") == 200
    assert caplog.records[0].__dict__["action"] == "tokens_kept"


def test_tokens_of_a_command(path: Path) -> None:
    valid = Tokens(Gateway(tokens_command=("cat", str(path))))
    assert status(valid, f"Bearer {ALL}") == 200
    assert status(valid, None) == 401
    path.unlink()
    valid.reload()  # the command fails: the former ones stay
    assert status(valid, f"Bearer {ALL}") == 200
    path.write_text(FILE)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="stands beside tokens_file"):
        Gateway(tokens_file=path, tokens_command=("true",))
