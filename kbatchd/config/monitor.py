"""`[monitor]`: the table of the monitor: metrics, health and the status page."""

from __future__ import annotations

from pydantic import Field

from kbatchd.config.table import Address, Table


class Monitor(Table):
    """`[monitor]`: metrics, health and the status page; only if the table is in the file."""

    listen: Address = Field(
        default="127.0.0.1:9464", description="Where to listen: host:port. It has no password: keep it on this host."
    )
    show_records: bool = Field(
        default=True, description="Let the status page show the bytes of a dead letter: they may be personal data."
    )
