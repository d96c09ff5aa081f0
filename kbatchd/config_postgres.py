"""`[postgres]`: how the database is reached. Its password comes from elsewhere; see credentials.py.

Reads DATABASE_URL from the environment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PrivateAttr, SecretStr, ValidationInfo, field_validator, model_validator

from kbatchd.config_faults import fault
from kbatchd.config_table import Beside, Command, Table, identifier, password_file, read_password
from kbatchd.conninfo import CREDENTIAL, has_password, is_conninfo, names_in, unverified_hosts, with_password


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
        description="Program and arguments whose output is the password; run without a shell, at a start and a reload.",
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

    @property
    def conninfo(self) -> str:
        """The connection string with its password: hand it to libpq, never to a log."""
        return self._conninfo.get_secret_value()

    @field_validator("dsn")
    @classmethod
    def _dsn_is_usable(cls, dsn: str | None) -> str | None:
        if dsn is not None and has_password(dsn):
            raise fault(
                "holds a password; put it into a file with mode 0600 and name that in postgres.password_file, "
                f"or into the systemd credential {CREDENTIAL}",
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
        conninfo = self.dsn or os.environ["DATABASE_URL"]
        password = read_password(self.password_file, self.password_command, CREDENTIAL)
        self._conninfo = SecretStr(conninfo if password is None else with_password(conninfo, password))
        return self
