"""Tokens of a command: what it may write, and when it is asked again."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import time

import pytest

from kbatchd.errors import ConfigError, ServerUnavailable
from kbatchd.kafka import oauth
from kbatchd.kafka.oauth import Token, TokenKeeper, parse
from tests.fix_daemon import wait_until

NOW = 1_800_000_000.0


def jwt(**claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'RS256'})}.{part(claims)}.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "token"),
    [
        (f"{jwt(exp=NOW + 60)}\n", Token(jwt(exp=NOW + 60), NOW + 60)),
        (f'{{"token": "t", "expires_at": {NOW + 60}}}', Token("t", NOW + 60)),
        ('{"token": "t", "expires_at": "2027-01-15T08:01:00Z"}', Token("t", NOW + 60)),
        ('{"token": "t", "expires_in": 60}', Token("t", NOW + 60)),
        # As RFC 6749 has it, and as some issuers have it instead.
        ('{"access_token": "t", "token_type": "Bearer", "expires_in": 60, "scope": "s"}', Token("t", NOW + 60)),
        ('{"access_token": "t", "expires_in": "60"}', Token("t", NOW + 60)),
        # The earlier of two ends.
        (json.dumps({"token": jwt(exp=NOW + 60), "expires_in": 3600}), Token(jwt(exp=NOW + 60), NOW + 60)),
        (json.dumps({"token": jwt(exp=NOW + 60), "expires_in": 30}), Token(jwt(exp=NOW + 60), NOW + 30)),
        (
            '{"token": "t", "expires_in": 60, "extensions": {"logicalCluster": "lkc-1"}}',
            Token("t", NOW + 60, {"logicalCluster": "lkc-1"}),
        ),
    ],
)
def test_what_a_command_may_write(text: str, token: Token) -> None:
    assert parse(text, NOW) == token


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "wrote no token"),
        ("{}", "wrote no token"),
        ('{"token": 5, "expires_in": 60}', "wrote no token"),
        ('{"token": "s3cret"', "wrote an object that is not JSON"),
        ("s3cret", "does not say when the token expires"),
        ("a.s3cret.c", "does not say when the token expires"),
        (jwt(sub="s3cret"), "does not say when the token expires"),
        ('{"token": "s3cret"}', "does not say when the token expires"),
        ('{"token": "s3cret", "expires_at": 60}', "does not say when the token expires"),  # no time of these years
        (f'{{"token": "s3cret", "expires_at": {1_000 * (NOW + 60)}}}', "does not say when the token expires"),  # ms
        (f'{{"token": "s3cret", "expires_in": "{"9" * 400}"}}', "does not say when the token expires"),  # infinite
        ('{"token": "s3cret", "expires_at": "2027-01-15T08:01:00"}', "does not say when the token expires"),
        ('{"token": "s3cret", "expires_in": true}', "does not say when the token expires"),
        (jwt(exp=NOW - 5), "wrote a token that expired 5 s ago"),
        ('{"token": "s3cret", "expires_in": 0}', "wrote a token that expired 0 s ago"),
        ("s3 cret", "wrote a token with spaces"),
        ("s3\ncret", "wrote a token with spaces"),
        ('{"token": "s3crét", "expires_in": 60}', "wrote a token with spaces or other characters"),
        ('{"token": "s3cret", "expires_in": 60, "extensions": {"auth": "x"}}', "wrote extensions"),
        ('{"token": "s3cret", "expires_in": 60, "extensions": {"a-b": "x"}}', "wrote extensions"),
        ('{"token": "s3cret", "expires_in": 60, "extensions": ["x"]}', "wrote extensions"),
        ('{"token": "s3cret", "expires_in": 60, "extensions": {"a": 1}}', "wrote extensions"),
    ],
)
def test_what_it_may_not(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse(text, NOW)
    assert "cr" not in str(caught.value).replace("extensions that", "")


class Command:
    """Gives tokens that live so long; `fault` is raised instead."""

    def __init__(self, life_seconds: float) -> None:
        self.life_seconds = life_seconds
        self._numbers = itertools.count()
        self.fault: Exception | None = None
        self.asked = 0

    def end(self) -> None:
        """Give one that lives so long that nobody asks again."""
        self.life_seconds, self.fault = 1e6, None
        asked = self.asked
        wait_until(lambda: self.asked > asked, 15, "the last run")

    def __call__(self) -> str:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        return json.dumps({"token": f"t{next(self._numbers)}", "expires_in": self.life_seconds})


def test_a_token_is_renewed_before_it_expires() -> None:
    command = Command(4.0)
    keeper = TokenKeeper(command)
    keeper.begin()
    keeper.begin()  # for another client
    assert command.asked == 1
    began = time.time()
    assert keeper.show("")[0] == "t0"
    wait_until(lambda: keeper.show("")[0] == "t1", 4, "another token")
    assert time.time() >= began + 1.9
    command.end()


def test_what_librdkafka_is_shown_is_asked_for_again_soon() -> None:
    keeper = TokenKeeper(lambda: '{"token": "t", "expires_in": 1000000, "extensions": {"a": "b"}}')
    keeper.begin()
    token, expires_at, _, extensions = keeper.show("")
    assert (token, extensions) == ("t", {"a": "b"})
    assert expires_at < time.time() + 5


@pytest.mark.parametrize("fault", [ConfigError("cat ended with exit status 1"), ValueError("x"), RuntimeError("x")])
def test_a_command_that_fails_is_run_again(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(oauth, "RETRY_SECONDS", 0.02)
    command = Command(0.1)
    keeper = TokenKeeper(command)
    keeper.begin()
    command.fault = fault
    with caplog.at_level(logging.INFO):
        wait_until(lambda: command.asked > 3, 10, "some runs")
        assert keeper.show("")[0]  # though it has expired
        command.fault = None
        wait_until(lambda: "kafka_token_back" in [getattr(each, "action", "") for each in caplog.records], 10, "news")
    told = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert f"kafka.token_command: {fault}" in {vars(each)["error"] for each in told}
    command.end()


def test_the_first_one_is_waited_for() -> None:
    command = Command(60.0)
    command.fault = ConfigError("cat ended with exit status 1")
    keeper = TokenKeeper(command)
    with pytest.raises(ServerUnavailable, match=r"no token for Kafka: kafka\.token_command: cat ended"):
        keeper.begin()
    command.fault, command.life_seconds = None, 1e6
    keeper.begin()
    assert keeper.show("")[0] == "t0"
