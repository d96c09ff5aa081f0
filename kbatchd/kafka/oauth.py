"""Tokens of OAUTHBEARER by `kafka.token_command`: one for all clients of a process, renewed before it expires.

The command may take long, and librdkafka asks for a token in threads that have other things to do: in its background
thread, which hands out an admin client's answers, or, before confluent-kafka 2.12, in the poll loop. So it is only ever
told the token at hand, and asks again every other second. The command runs in a thread of this module's own, as soon
as half of the token's life is over, and again until there is a new one; the first time before there is a client.

A token that has expired, by our clock, is shown all the same: the brokers decide, and librdkafka goes on trying, as in
any other outage. Called by the modules that make clients, after the fork. OIDC is librdkafka's own affair.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
import signal
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson
from confluent_kafka import KafkaError, KafkaException

from kbatchd.errors import ConfigError, ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kbatchd import config

log = logging.getLogger(__name__)

#: What librdkafka is told of a token's life: it asks again when 80 % of that are over, and looks once a second.
SHOWN_SECONDS = 2.5

#: How soon the command is run again when it has failed; twice as long each time, up to the second. Also the least time
#: between two runs: some sources give the same token until shortly before its end.
RETRY_SECONDS, RETRY_MAX_SECONDS = 1.0, 10.0

#: How long the renewing thread sleeps before it looks at the clocks again.
_SLICE_SECONDS = 5.0

#: A name for librdkafka's own messages: who we are stands in the token.
_PRINCIPAL = "kbatchd"

#: How librdkafka begins to tell that it has got no token.
_NO_TOKEN = "Failed to acquire SASL OAUTHBEARER token"  # noqa: S105

#: What an issuer says of a client, again and again (RFC 6749, 5.2).
_UNKNOWN_TO_ISSUER = re.compile(
    r'"(invalid_client|unauthorized_client|invalid_grant|unsupported_grant_type|invalid_scope|invalid_request)"'
)

#: Whole seconds since 1970 of this year at the earliest: what is less is no time.
_EARLIEST = 1_000_000_000

#: Of the year 2286: what is more is in milliseconds, or no number at all, and would never be renewed.
_LATEST = 10_000_000_000


@dataclass(frozen=True, slots=True)
class Token:
    """What the brokers are shown, until when, and what they are told beside it."""

    value: str = field(repr=False)
    #: Seconds since 1970.
    expires_at: float
    extensions: Mapping[str, str] = field(default_factory=dict)


def parse(text: str, now: float) -> Token:
    """Read what a command has written: a JWT, or a JSON object with the token and its end.

    Raises ValueError, whose text shows nothing of it.
    """
    text = text.strip()
    found: Any = {"token": text}
    if text.startswith("{"):
        try:
            found = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise ValueError("wrote an object that is not JSON") from None
    value = found.get("token", found.get("access_token"))
    if not isinstance(value, str) or not value:
        raise ValueError('wrote no token; allowed: a JWT, or an object with "token" or "access_token"')
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ValueError("wrote a token with spaces or other characters that no token has")
    ends = [at for at in (_time_in(found, now), _time_of(value)) if at is not None and at < _LATEST]
    if not ends:
        raise ValueError('does not say when the token expires; allowed: "expires_in", "expires_at", or a JWT with exp')
    expires_at = min(ends)
    if expires_at <= now:
        raise ValueError(f"wrote a token that expired {now - expires_at:.0f} s ago")
    extensions = found.get("extensions", {})
    if not isinstance(extensions, dict) or not all(map(_is_extension, extensions.items())):
        raise ValueError("wrote extensions that are no object of strings, each by a name of letters")
    return Token(value, expires_at, extensions)


def _time_in(found: Mapping[str, Any], now: float) -> float | None:
    """Return the end that an object names: after so many seconds, or a time, in seconds since 1970 or RFC 3339."""
    if (after := _number(found.get("expires_in"))) is not None:
        return now + after
    at = found.get("expires_at")
    number = _number(at)
    if number is not None and number >= _EARLIEST:
        return number
    if isinstance(at, str):
        try:
            time_of_day = datetime.fromisoformat(at)
        except ValueError:
            return None
        return time_of_day.timestamp() if time_of_day.tzinfo is not None else None
    return None


def _is_extension(item: tuple[str, object]) -> bool:
    """Tell whether librdkafka takes it (RFC 7628, 3.1)."""
    name, value = item
    return name.isascii() and name.isalpha() and name != "auth" and isinstance(value, str) and value.isprintable()


def _number(value: object) -> float | None:
    """Return a number; some issuers write theirs as strings."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _time_of(token: str) -> float | None:
    """Return the `exp` of a JWT (RFC 7519); None of anything else."""
    parts = token.split(".")
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (IndexError, binascii.Error, orjson.JSONDecodeError):
        return None
    return _number(claims.get("exp")) if isinstance(claims, dict) else None


class TokenKeeper:
    """The token that the command gave last; see the module."""

    def __init__(self, ask: Callable[[], str]) -> None:
        """Prepare; `ask` runs the command, and raises ConfigError."""
        self._ask = ask
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._thread = threading.Thread(target=self._renew_for_ever, name="token", daemon=True)

    def begin(self) -> None:
        """Have a token, and see to it that there is always one. Raises ServerUnavailable."""
        with self._lock:
            if self._token is None or self._token.expires_at <= time.time():
                try:
                    self._token = self._new_token()
                except (ConfigError, ValueError) as error:
                    raise ServerUnavailable(f"no token for Kafka: kafka.token_command: {error}") from error
            if not self._thread.is_alive():
                self._thread.start()

    def show(self, _config: str) -> tuple[str, float, str, dict[str, str]]:
        """Return the token as librdkafka wants it; its callback."""
        assert self._token is not None
        return self._token.value, time.time() + SHOWN_SECONDS, _PRINCIPAL, dict(self._token.extensions)

    def _new_token(self) -> Token:
        text = self._ask()
        return parse(text, time.time())

    def _renew_for_ever(self) -> None:
        assert self._token is not None
        wait_seconds = 0.0  # since the last failure; none before it
        while True:
            _sleep(wait_seconds or max(RETRY_SECONDS, (self._token.expires_at - time.time()) / 2))
            # What is blocked here is blocked in the command, and in all that it starts.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            try:
                self._token = self._new_token()
            except Exception as error:  # noqa: BLE001 - whatever it is, this thread must not end
                wait_seconds = min(2 * wait_seconds or RETRY_SECONDS, RETRY_MAX_SECONDS)
                left = round(self._token.expires_at - time.time())
                about = {"action": "kafka_token", "error": f"kafka.token_command: {error}", "expires_in_seconds": left}
                log.warning("the token for Kafka cannot be renewed", extra=about)
            else:
                if wait_seconds:
                    log.info("the token for Kafka is renewed again", extra={"action": "kafka_token_back"})
                wait_seconds = 0.0


def _sleep(seconds: float) -> None:
    """Sleep so long by either clock: while a machine is suspended only the calendar's goes on."""
    due, due_by_calendar = time.monotonic() + seconds, time.time() + seconds
    while (left := min(due - time.monotonic(), due_by_calendar - time.time())) > 0:
        time.sleep(min(left, _SLICE_SECONDS))


#: One for each command: a reload may name another, in another process.
_keepers: dict[tuple[str, ...], TokenKeeper] = {}
_making = threading.Lock()


def callbacks(kafka: config.Kafka) -> dict[str, Any]:
    """Return what a client is to be given beside `kafka.client`. Raises ServerUnavailable where no token can be had."""
    if kafka.token_command is None:
        return {}
    with _making:
        keeper = _keepers.setdefault(kafka.token_command, TokenKeeper(kafka.ask_token))
    keeper.begin()
    return {"oauth_cb": keeper.show}


def refuse(error: Exception) -> None:
    """Raise ServerUnavailable for a client that could not be made for want of a token: no property is to blame."""
    cause = error.args[0] if isinstance(error, KafkaException) else None
    if isinstance(cause, KafkaError) and cause.code() == KafkaError.SASL_AUTHENTICATION_FAILED:
        raise ServerUnavailable(f"no token for Kafka: {cause.str()}") from error


def is_missing(error: KafkaError) -> bool:
    """Tell whether librdkafka has got no token by OIDC: no word of the brokers, and told in a line of its own."""
    return error.code() == KafkaError._AUTHENTICATION and error.str().startswith(_NO_TOKEN)  # noqa: SLF001


def will_pass(error: KafkaError) -> bool:
    """Tell whether it got none because the issuer is away or in trouble, and not because it does not know us."""
    return is_missing(error) and _UNKNOWN_TO_ISSUER.search(error.str()) is None
