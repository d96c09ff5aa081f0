"""`[postgres]`: how the database is reached. Its password comes from elsewhere; see credentials.py.

Reads DATABASE_URL from the environment.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PrivateAttr, SecretStr, ValidationInfo, field_validator, model_validator

from kbatchd.config.conninfo import CREDENTIAL, is_conninfo, names_in, secrets, unverified_hosts, with_password
from kbatchd.config.credentials import find_password
from kbatchd.config.faults import fault
from kbatchd.config.table import Beside, Command, Table, identifier, password_file, read_password


@dataclass(frozen=True, slots=True)
class _Asked:
    """When the password was asked for: no part of what makes two tables differ, which a reload looks at."""

    at: float = field(compare=False)


class Postgres(Table):
    """`[postgres]`: where the rows go. `conninfo` is what to connect with; it alone holds the password."""

    dsn: str | None = Field(
        default=None,
        validate_default=True,
        description="libpq connection string without a password. Default: $DATABASE_URL.",
    )
    password_file: Beside | None = Field(
        default=None,
        strict=False,
        description=f"File with the password, mode 0600 or 0400. Default: the systemd credential {CREDENTIAL}, if any.",
    )
    password_command: Command | None = Field(
        default=None,
        strict=False,
        description="Program and arguments whose output is the password; run without a shell, whenever needed.",
    )
    password_keep_seconds: float = Field(
        default=300.0,
        ge=0,
        le=86_400,
        description="How long a password is used for new connections before its source is asked again. One that the "
        "server refuses is asked for again at once.",
    )
    allow_insecure: bool = Field(
        default=False,
        validate_default=True,
        description="Let a host beyond this machine do without sslmode=verify-full.",
    )
    synchronous_commit: Literal["off", "local", "remote_write", "on", "remote_apply"] = Field(
        default="off",
        description='"off" is safe: after a crash rows and progress are back together, and are read again.',
    )
    connect_timeout_seconds: float = Field(
        default=5.0, ge=1, le=300, description="How long one attempt to connect may take."
    )
    lock_timeout_seconds: float = Field(
        default=5.0, ge=0.1, le=300, description="How long a flush waits for a lock of others."
    )

    _conninfo: SecretStr = PrivateAttr()
    _asked: _Asked = PrivateAttr()

    @property
    def conninfo(self) -> str:
        """The connection string with its password: hand it to libpq, never to a log."""
        return self._conninfo.get_secret_value()

    @property
    def is_password_old(self) -> bool:
        """Whether it was asked for longer ago than it may be kept."""
        return time.monotonic() - self._asked.at > self.password_keep_seconds

    def ask_password(self) -> bool:
        """Ask the password's source again; tell whether there is another one now. ConfigError: it cannot be had."""
        before = self.conninfo
        self._asked = _Asked(time.monotonic())
        self._keep(find_password(self.password_file, self.password_command, CREDENTIAL))
        return self.conninfo != before

    @field_validator("dsn")
    @classmethod
    def _dsn_is_usable(cls, dsn: str | None) -> str | None:
        if dsn is not None and (held := secrets(dsn)):
            raise fault(
                f"holds {', '.join(held)}; put a password into a file with mode 0600 and name that in "
                f"postgres.password_file, or into the systemd credential {CREDENTIAL}; anything else into a service "
                "file (service=NAME) that nobody else can read",
            )
        if dsn is None and not os.environ.get("DATABASE_URL"):
            raise fault(
                'is missing, and so is $DATABASE_URL; allowed: a string such as "postgresql://user@host/database"'
            )
        if not is_conninfo(os.environ["DATABASE_URL"] if dsn is None else dsn):
            source = "is" if dsn is not None else "is missing, and $DATABASE_URL is"
            raise fault(
                f'{source} not a connection string; allowed: "postgresql://user@host/database" or "host=... dbname=..."'
            )
        for name in names_in(os.environ["DATABASE_URL"] if dsn is None else dsn):
            identifier(name)
        return dsn

    @field_validator("password_file")
    @classmethod
    def _password_file_is_private(cls, path: Path | None) -> Path | None:
        return password_file(path)

    @field_validator("allow_insecure")
    @classmethod
    def _host_is_known(cls, allow: bool, info: ValidationInfo) -> bool:
        if "dsn" not in info.data:  # which has a fault of its own
            return allow
        hosts = unverified_hosts(info.data["dsn"] or os.environ["DATABASE_URL"])
        if hosts and not allow:
            raise fault(
                f"is false, and {', '.join(hosts)} is beyond this machine without sslmode=verify-full; write that into "
                "the connection string (with sslrootcert=system or a file), or set this to true"
            )
        return allow

    @model_validator(mode="after")
    def _build_conninfo(self) -> Self:
        self._asked = _Asked(time.monotonic())
        self._keep(read_password(self.password_file, self.password_command, CREDENTIAL))
        return self

    def _keep(self, password: str | None) -> None:
        conninfo = self.dsn or os.environ["DATABASE_URL"]
        self._conninfo = SecretStr(conninfo if password is None else with_password(conninfo, password))
