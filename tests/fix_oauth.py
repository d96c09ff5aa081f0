"""An issuer of signed tokens that live for seconds, by a command and by OIDC; and the broker that checks them."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
import uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from kbatchd.devstack.kafka import Listeners

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AUDIENCE = "kafka"
CLIENT, SECRET = "kbatchd", "cl1ent-s3cret"

#: The broker asks again within the token's life, and at the latest after a minute. By default it would take an expired
#: token for half a minute more; and, unless the validator is named, and that not by listener, Kafka 4.1 checks neither
#: signature nor audience.
OAUTH_LISTENER = """
listener.name.oauth.ssl.keystore.type=PEM
listener.name.oauth.ssl.keystore.location={keystore}
listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.oauth.oauthbearer.sasl.jaas.config=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;
listener.name.oauth.oauthbearer.sasl.server.callback.handler.class=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler
listener.name.oauth.oauthbearer.connections.max.reauth.ms=60000
sasl.oauthbearer.jwt.validator.class=org.apache.kafka.common.security.oauthbearer.BrokerJwtValidator
sasl.oauthbearer.jwks.endpoint.url={jwks}
sasl.oauthbearer.expected.audience={audience}
sasl.oauthbearer.clock.skew.seconds=0
"""


class Issuer:
    """Signs tokens; `behave` says what becomes of who asks for one."""

    def __init__(self, directory: Path, life_seconds: float) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._life_seconds = life_seconds
        #: Whom they are for.
        self.audience = AUDIENCE
        self.jwks = directory / "jwks.json"
        self.jwks.write_text(json.dumps({"keys": [self._public()]}))
        #: What kafka.token_command is.
        self.command = ["sh", str(directory / "token.sh")]
        self._token, self._mode = directory / "token", directory / "mode"
        self._asked = directory / "asked"
        (directory / "token.sh").write_text(f"echo >> {self._asked}\n. {self._mode}\ncat {self._token}\n")
        self._asked.write_text("")
        self.behave()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._mint_for_ever, daemon=True)
        self.mint()
        self._thread.start()

    def behave(self, how: str = "true") -> None:
        """Let the command do this first, in the shell's words: "exit 1", "exec sleep 600"."""
        self._write(self._mode, f"{how}\n")

    @property
    def asked(self) -> int:
        """How often the command has begun."""
        return len(self._asked.read_text())

    def token(self) -> str:
        """Return a new one."""
        now, life = time.time(), self._life_seconds
        claims = {"sub": CLIENT, "iss": "test", "aud": self.audience, "iat": now - 1, "exp": now + life}
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "k"}, claims))
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_encoded(signature)}"

    def mint(self) -> None:
        """Let the command give a new one."""
        self._write(self._token, self.token())

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()

    def listeners(self, keystore: Path) -> Listeners:
        """The broker's side: a listener OAUTH, with TLS."""
        url = self.jwks.as_uri()
        return Listeners(
            protocols={"OAUTH": "SASL_SSL"},
            properties=OAUTH_LISTENER.format(keystore=keystore, jwks=url, audience=AUDIENCE),
            java=(f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={url}",),
        )

    def _mint_for_ever(self) -> None:
        while not self._stopped.wait(0.5):
            self.mint()

    def _public(self) -> dict[str, str]:
        numbers = self._key.public_key().public_numbers()
        n, e = (_encoded(number.to_bytes((number.bit_length() + 7) // 8, "big")) for number in (numbers.n, numbers.e))
        return {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "k", "n": n, "e": e}

    @staticmethod
    def _write(path: Path, text: str) -> None:
        draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        draft.write_text(text)
        os.replace(draft, path)  # noqa: PTH105


class TokenEndpoint(ThreadingHTTPServer):
    """What librdkafka asks with method=oidc: a client's id and its secret for a token."""

    def __init__(self, issuer: Issuer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.issuer = issuer
        self.url = f"http://127.0.0.1:{self.server_address[1]}/token"
        #: When there was a token for somebody, and whether there is one now.
        self.given: list[float] = []
        self.is_down = False


class _Handler(BaseHTTPRequestHandler):
    server: TokenEndpoint

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        login = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if self.server.is_down:
            self._answer(503, {"error": "temporarily_unavailable"})
        elif self.headers.get("authorization") != f"Basic {login}":
            self._answer(401, {"error": "invalid_client"})
        else:
            self.server.given.append(time.monotonic())
            self._answer(200, {"access_token": self.server.issuer.token(), "token_type": "Bearer", "expires_in": 10})

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def token_endpoint(issuer: Issuer) -> Iterator[TokenEndpoint]:
    """Serve tokens by OIDC within the block."""
    with TokenEndpoint(issuer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
