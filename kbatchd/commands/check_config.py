"""`kbatchd check-config`: all faults of the file at once, and the libraries that it asks for; connects to nothing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kbatchd.check.properties import judge
from kbatchd.commands import load_config, missing_extras
from kbatchd.config import located
from kbatchd.errors import EX_OK, ConfigError

if TYPE_CHECKING:
    from kbatchd.config import Config, Where


def run(arguments: argparse.Namespace) -> int:
    """Check the file."""
    config = load_config(arguments)
    missing = missing_extras(config)
    found = located(arguments.config, judge(config) | ({} if missing else _tokens(config)))
    if faults := [*found.faults, *map(": ".join, missing)]:
        raise ConfigError(*faults)
    print(f"{arguments.config}: no fault found")
    return EX_OK


def _tokens(config: Config) -> dict[Where, str]:
    """Read the gateway's tokens as it will itself; return what is wrong with them, by key."""
    if config.gateway is None:
        return {}
    from kbatchd.gateway.tokens import Tokens

    try:
        Tokens(config.gateway)
    except ConfigError as error:
        key = "tokens_command" if config.gateway.tokens_command else "tokens_file"
        return {("gateway", key): str(error).removeprefix("gateway.tokens_file: ")}
    return {}
