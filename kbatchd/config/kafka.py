"""`[kafka]`: how the brokers are reached, who we are to them, and how we know them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, SecretStr, ValidationInfo, field_validator, model_validator

from kbatchd.config.credentials import run
from kbatchd.config.faults import fault
from kbatchd.config.table import (
    Beside,
    Command,
    Name,
    Properties,
    Table,
    password_file,
    private,
    read_password,
    readable,
)

#: The systemd credential that holds the SASL password: `LoadCredential=kafka_password:/path`.
CREDENTIAL = "kafka_password"

#: The names of those of librdkafka's properties that are secrets, of versions to come as well; a private key is one.
#: `sasl.oauthbearer.config` and `sasl.jaas.config` may hold any. What names a file holds none.
_SECRET = re.compile(r"(secret|password|passphrase|token|key\.pem|bearer\.config|jaas\.config|^ssl_key)$")

#: An address with a login in it, or a secret in its query, such as that of a proxy or of a token's endpoint. A name
#: alone may be a token.
_LOGIN = re.compile(
    r"//[^/@?#\s]+@|//[^/@\s]*:[^@\s]*@|[?&][^=&#\s]*(secret|password|token|api_?-?key)=", re.IGNORECASE
)

#: Properties that kbatchd cannot be run with, and why.
_IMPOSSIBLE = {
    "transactional.id": "a producer with one sends nothing outside of transactions, which a gateway does not begin; "
    "`kbatchd produce` has one of its own for each file",
    "group.instance.id": "each member of a group needs one of its own; all workers would have the same, and the "
    "brokers would throw out all but one",
    "group.protocol": "it is group_protocol, in [kafka] itself",
}

#: librdkafka's own default, which is the brokers' as well, less what a record's frame may take.
_MESSAGE_MAX_BYTES = 1_000_000
_FRAME_BYTES = 512

#: librdkafka's own names for the choice of a login.
_MECHANISMS = {"sasl.mechanism", "sasl.mechanisms"}

#: With this one a token is shown; where librdkafka gets it by itself (OIDC), the password is the client's secret, which
#: has two names there.
_OAUTH = "OAUTHBEARER"
_METHOD = "sasl.oauthbearer.method"
_CLIENT_SECRET = "sasl.oauthbearer.client.credentials.client.secret"  # noqa: S105 - a name
_CLIENT_ID = "sasl.oauthbearer.client.credentials.client.id"


class Kafka(Table):
    """`[kafka]`: where the records come from. `client` is what librdkafka is given; it alone holds the password."""

    bootstrap_servers: Name = Field(description="Brokers to start from: host:port, more after commas. Required.")
    assignment: Literal["pinned", "group"] = Field(
        default="pinned",
        description='"pinned": worker i of N owns its partitions; "group": Kafka shares them among all daemons.',
    )
    group_protocol: Literal["classic", "consumer"] = Field(
        default="classic",
        description='How a group shares them: "classic", any Kafka; "consumer", Kafka 4.0 and later: its timeouts are '
        "the brokers'.",
    )
    group_id: Name = Field(
        default="", description="Consumer group; offsets go there for display. Default: the pipeline."
    )
    tls: bool = Field(default=False, description="Speak TLS, and check the brokers' names and certificates.")
    tls_ca_file: Beside | None = Field(
        default=None,
        strict=False,
        description="Who signs the brokers' certificates, in PEM. Default: the system's list.",
    )
    tls_certificate_file: Beside | None = Field(
        default=None, strict=False, description="The client certificate in PEM, where the brokers ask for one."
    )
    tls_key_file: Beside | None = Field(
        default=None, strict=False, description="Its key in PEM, without a password, mode 0600 or 0400."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        default=None, description="How to log in. Default: not at all."
    )
    sasl_username: Name | None = Field(default=None, description="Who we are; with OIDC the client's id.")
    password_file: Beside | None = Field(
        default=None,
        strict=False,
        description="File with the SASL password, or with OAUTHBEARER the client's secret; mode 0600 or 0400. "
        f"Default: the systemd credential {CREDENTIAL}.",
    )
    password_command: Command | None = Field(
        default=None,
        strict=False,
        description="Program and arguments whose output is the password; run without a shell, at a start and a reload.",
    )
    token_command: Command | None = Field(
        default=None,
        strict=False,
        description="With OAUTHBEARER: program and arguments whose output is a token and its end, a JWT or a JSON "
        "object; run without a shell, again when half of the token's life is over.",
    )
    librdkafka: Properties = Field(
        default={}, description="Any other librdkafka property, with its dots; what kbatchd itself sets wins."
    )
    allow_insecure: bool = Field(
        default=False,
        validate_default=True,
        description="Let SASL do without TLS, or TLS without checking whom it speaks to.",
    )

    _password: SecretStr | None = PrivateAttr(default=None)

    @property
    def client(self) -> dict[str, str | int | float | bool]:
        """What every client is made with, the password among it: hand it to librdkafka, never to a log."""
        ours: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": _protocol(tls=self.tls, sasl=self.sasl_mechanism) if self._is_ours else None,
            "ssl.ca.location": self.tls_ca_file and str(self.tls_ca_file),
            "ssl.certificate.location": self.tls_certificate_file and str(self.tls_certificate_file),
            "ssl.key.location": self.tls_key_file and str(self.tls_key_file),
            "sasl.mechanism": self.sasl_mechanism,
            _CLIENT_ID if self._is_oauth else "sasl.username": self.sasl_username,
            self._password_property: self._password and self._password.get_secret_value(),
        }
        ours = {name: value for name, value in ours.items() if value is not None}
        # Ours last: librdkafka obeys the last of a property and its aliases, such as `metadata.broker.list`.
        return {**{name: value for name, value in self.librdkafka.items() if name not in ours}, **ours}

    @property
    def _password_property(self) -> str:
        """What librdkafka calls the password: with OAUTHBEARER it is the client's secret, by the name of its id."""
        if not self._is_oauth:
            return "sasl.password"
        named = self.sasl_username is not None or _CLIENT_ID in self.librdkafka
        return _CLIENT_SECRET if named else "sasl.oauthbearer.client.secret"

    @property
    def _is_oauth(self) -> bool:
        """Whether a token is shown, by our own key or librdkafka's."""
        theirs = (self.librdkafka.get(name, "") for name in _MECHANISMS)
        return any(str(mechanism).upper() == _OAUTH for mechanism in (self.sasl_mechanism, *theirs))

    def ask_token(self) -> str:
        """Run `token_command`; return what it has written. ConfigError: nothing that could be a token."""
        assert self.token_command is not None
        return run(self.token_command)

    @property
    def max_record_bytes(self) -> int:
        """How large a record may be that a producer sends, key and value together."""
        return int(self.librdkafka.get("message.max.bytes", _MESSAGE_MAX_BYTES)) - _FRAME_BYTES

    @property
    def _is_ours(self) -> bool:
        """Whether these keys choose the protocol, and not librdkafka's own."""
        return self.tls or self.sasl_mechanism is not None

    @property
    def _logs_in(self) -> bool:
        """Whether a password is of use; for a mechanism of librdkafka's own as well."""
        return self.sasl_mechanism is not None or not _MECHANISMS.isdisjoint(self.librdkafka)

    @field_validator("tls_ca_file", "tls_certificate_file")
    @classmethod
    def _is_readable(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if readable(path) is not None and not info.data.get("tls", True):
            raise fault("goes with tls = true")
        return path

    @field_validator("tls_key_file")
    @classmethod
    def _key_is_private(cls, path: Path | None) -> Path | None:
        return private(path)

    @field_validator("password_file")
    @classmethod
    def _password_file_is_private(cls, path: Path | None) -> Path | None:
        return password_file(path)

    @field_validator("token_command")
    @classmethod
    def _token_command_is_there(cls, command: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if command is not None and shutil.which(command[0]) is None:
            raise fault(f"names {command[0]}, and there is no such program that this user may run")
        return command

    @field_validator("librdkafka")
    @classmethod
    def _holds_no_secret(cls, properties: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
        secret = sorted(name for name, value in properties.items() if _SECRET.search(name) or _LOGIN.search(str(value)))
        if secret:
            raise fault(
                f"holds {', '.join(secret)}; put a password, or a client's secret, into kafka.password_file, "
                f"kafka.password_command or the systemd credential {CREDENTIAL}, and a key into a file of its own"
            )
        impossible = [f"{name} ({why})" for name, why in _IMPOSSIBLE.items() if name in properties]
        if impossible:
            raise fault(f"holds {'; and '.join(impossible)}; take it out")
        largest = str(properties.get("message.max.bytes", _MESSAGE_MAX_BYTES))
        if not (largest.isascii() and largest.isdecimal()):  # librdkafka takes 0x100000 and "1000000 bytes" as well
            raise fault("holds a message.max.bytes that is not a whole number; allowed: such as 1_000_000")
        return properties

    @field_validator("allow_insecure")
    @classmethod
    def _is_secure(cls, allow: bool, info: ValidationInfo) -> bool:
        properties = info.data.get("librdkafka", {})
        tls, sasl = info.data.get("tls", False), info.data.get("sasl_mechanism")
        chosen = _protocol(tls=tls, sasl=sasl) if tls or sasl else str(properties.get("security.protocol", "")).lower()
        unchecked = [
            name
            for name, value in (
                ("enable.ssl.certificate.verification", "false"),
                ("ssl.endpoint.identification.algorithm", "none"),
            )
            if str(properties.get(name, "")).lower() == value
        ]
        if allow:
            return allow
        if chosen == "sasl_plaintext":
            raise fault("is false, and SASL without TLS shows the login to the network; set kafka.tls, or this to true")
        if chosen.endswith("ssl") and unchecked:
            raise fault(
                f"is false, and {', '.join(unchecked)} lets anybody pass for a broker; take it out, or set this to true"
            )
        return allow

    @model_validator(mode="after")
    def _read_password(self) -> Self:
        if self.sasl_mechanism == _OAUTH or self.token_command:
            self._judge_oauth()
        elif (self.sasl_mechanism is None) != (self.sasl_username is None):
            raise fault("has one of sasl_mechanism and sasl_username; allowed: both or none")
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise fault("has one of tls_certificate_file and tls_key_file; allowed: both or none")
        password = None
        if (self._logs_in and not self.token_command) or self.password_file or self.password_command:
            password = read_password(self.password_file, self.password_command, CREDENTIAL)
        if self.sasl_mechanism not in {None, _OAUTH} and password is None:
            raise fault(
                f"has sasl_mechanism and no password; allowed: password_file, password_command, or the credential "
                f"{CREDENTIAL}"
            )
        self._password = SecretStr(password) if password is not None else None
        return self

    def _judge_oauth(self) -> None:
        """See to it that there is one way to a token."""
        if self.sasl_mechanism != _OAUTH:
            raise fault(f'has token_command; allowed with sasl_mechanism = "{_OAUTH}" only')
        oidc = str(self.librdkafka.get(_METHOD, "")).lower() == "oidc"
        if oidc == (self.token_command is not None):
            raise fault(
                f'has sasl_mechanism = "{_OAUTH}" and {"two ways" if oidc else "no way"} to a token; allowed: '
                f'token_command, or "{_METHOD}" = "oidc" in kafka.librdkafka'
            )
        if self.token_command and (self.sasl_username or self.password_file or self.password_command):
            raise fault("has token_command; allowed: without sasl_username and a password, the token says who we are")


def record_too_large(size: int, limit: int) -> str:
    """Say of a record that it is beyond `max_record_bytes`, whose limit that is, and where it is raised."""
    return (
        f"a record of {size:,} bytes; kbatchd's own limit as a client of Kafka is {limit:,}: it is raised by "
        """"message.max.bytes" in [kafka.librdkafka], and the topic's max.message.bytes must allow it too"""
    )


def _protocol(*, tls: bool, sasl: str | None) -> str:
    return ("sasl_" * (sasl is not None)) + ("ssl" if tls else "plaintext")
