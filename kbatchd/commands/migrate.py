"""`kbatchd migrate`: the schema `kbatchd` made, or brought up to date."""

from __future__ import annotations

import argparse

from kbatchd.commands import load_config, print_as_utf8
from kbatchd.errors import EX_OK
from kbatchd.postgres.connection import connect
from kbatchd.schema import migrations


def run(arguments: argparse.Namespace) -> int:
    """Apply what is missing, or print all of it."""
    if arguments.print:
        print_as_utf8()
        print(migrations.script(), end="")
        return EX_OK
    with connect(load_config(arguments).postgres, "kbatchd migrate") as connection:
        applied = migrations.migrate(connection)
    for name in applied:
        print(f"applied {name}")
    if not applied:
        print("the schema kbatchd is up to date")
    return EX_OK
