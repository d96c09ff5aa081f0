"""`[gateway]`: the table of the HTTP gateway; with its tokens, its certificate and its limits."""

from __future__ import annotations

import ssl
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from kbatchd.config.credentials import find
from kbatchd.config.faults import fault
from kbatchd.config.table import Address, Beside, Command, Host, Origin, Table, host_and_port, private, readable

#: The systemd credential that holds the gateway's tokens: `LoadCredential=gateway_tokens:/path`.
TOKENS_CREDENTIAL = "gateway_tokens"


class Gateway(Table):
    """`[gateway]`: HTTP requests into Kafka; only if the table is in the file."""

    listen: Address = Field(default="127.0.0.1:8080", description="Where to listen: host:port.")
    workers: int = Field(default=1, ge=1, le=256, description="Gateway processes; they share the port.")
    validate_records: bool = Field(
        default=True,
        alias="validate",
        description="Check records against the route's table at the door: what does not fit is answered 422.",
    )
    tokens_file: Beside | None = Field(
        default=None,
        strict=False,
        description="File of bearer tokens, mode 0600 or 0400, read again on SIGHUP. Default: the systemd credential "
        f"{TOKENS_CREDENTIAL}, if any; else everybody may send.",
    )
    tokens_command: Command | None = Field(
        default=None,
        strict=False,
        description="Program and arguments whose output is the tokens, in the file's form; run without a shell.",
    )
    tls_certificate_file: Beside | None = Field(
        default=None, strict=False, description="Certificate chain in PEM; with it the gateway speaks HTTPS only."
    )
    tls_key_file: Beside | None = Field(default=None, strict=False, description="The certificate's key in PEM.")
    cors_origins: tuple[Origin, ...] = Field(
        default=(), strict=False, description='Origins whose web pages may send, "*" for all; others are answered 403.'
    )
    hosts: tuple[Host, ...] = Field(
        default=(),
        strict=False,
        description="Names that the gateway may be asked for by, beside localhost. Default: any, but on a loopback "
        "address none.",
    )
    max_body_bytes: int = Field(
        default=10_485_760, ge=1_024, le=1_073_741_824, description="A request's body, unpacked."
    )
    max_header_bytes: int = Field(default=32_768, ge=1_024, le=1_048_576, description="A request's line and headers.")
    max_connections: int = Field(default=10_000, ge=1, le=1_000_000, description="Connections of one process.")
    max_queued_records: int = Field(
        default=500_000,
        ge=1_000,
        le=10_000_000,
        description="Records of one process that Kafka has yet to acknowledge.",
    )
    max_queued_bytes: int = Field(
        default=268_435_456, ge=1_048_576, le=17_179_869_184, description="The same in bytes; beyond either: 503."
    )
    max_held_bytes: int = Field(
        default=134_217_728,
        ge=1_048_576,
        le=17_179_869_184,
        description="Bytes that one process holds of requests that are unfinished or not yet sent on, and of answers "
        "not yet read; at least twice max_body_bytes. Beyond: 503.",
    )
    max_waiting_requests: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Requests of one process that wait for the table at a time; beyond: 429.",
    )
    header_timeout_seconds: float = Field(default=10.0, ge=0.1, le=3600, description="For a request's headers.")
    body_timeout_seconds: float = Field(default=30.0, ge=0.1, le=3600, description="For a request's body.")
    idle_timeout_seconds: float = Field(
        default=75.0, ge=0.1, le=3600, description="How long a connection may stay without a request."
    )
    delivery_timeout_seconds: float = Field(
        default=10.0, ge=0.5, le=3600, description="How long Kafka may take to acknowledge; then 504."
    )
    max_wait_seconds: float = Field(
        default=30.0, ge=0.1, le=3600, description="The longest that `ack=db` and `Prefer: wait=` wait for the table."
    )
    grace_seconds: float = Field(default=5.0, ge=0.1, le=600, description="At a stop, the time to answer.")

    @field_validator("tokens_file")
    @classmethod
    def _tokens_file_is_private(cls, path: Path | None) -> Path | None:
        return private(path)

    @field_validator("tls_certificate_file")
    @classmethod
    def _certificate_is_readable(cls, path: Path | None) -> Path | None:
        return readable(path)

    @field_validator("tls_key_file")
    @classmethod
    def _key_belongs_to_certificate(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if (path is None) != (info.data.get("tls_certificate_file", path) is None):
            raise fault("goes with tls_certificate_file; allowed: both or none")
        certificate = info.data.get("tls_certificate_file")
        if private(path) is not None and certificate is not None:
            try:
                # A key that asks for a password shall fail, not ask on the terminal.
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, path, password="")
            except OSError as error:  # ssl.SSLError too
                raise fault(f"is {path}, which cannot be used with tls_certificate_file: {_why(error)}") from error
        return path

    @field_validator("tokens_command")
    @classmethod
    def _tokens_have_one_origin(cls, command: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if command is not None and info.data.get("tokens_file") is not None:
            raise fault("stands beside tokens_file; allowed: one of them")
        return command

    def read_tokens(self) -> str | None:
        """Return the tokens' text from where the file says; None when nobody needs one. Raises ConfigError."""
        return find(self.tokens_file, self.tokens_command, TOKENS_CREDENTIAL)

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port of `listen`."""
        return host_and_port(self.listen)


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return "it is the key of another certificate"
    return "both must be PEM, the key without a password"
