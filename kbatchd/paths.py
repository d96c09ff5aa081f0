"""Paths to a field inside a JSON value: `city`, `address.city`, `items[0].sku`, `"a.b"[2]`.

A name with a dot, a bracket or a quote stands in quotes, as JSON writes it. Parsed when the file is loaded, followed by
the row encoder (encode/rows.py, encode/fast.py) in the worker's poll loop. Pure functions, no I/O.
"""

from __future__ import annotations

import json
import re

#: The steps to a field: names of objects' fields and indexes of arrays.
Path = tuple[str | int, ...]

_STEP = re.compile(r'(?:(?P<name>[^.\[\]"]+)|(?P<quoted>"(?:[^"\\]|\\.)*")|\[(?P<index>[0-9]{1,9})\])')


def parse_path(text: str) -> Path:
    """Read a path; ValueError says what is wrong with it."""
    steps: list[str | int] = []
    at = 0
    while at < len(text) or not steps:
        if steps and text[at] == ".":
            at += 1
        match = _STEP.match(text, at)
        after_dot = bool(steps) and text[at - 1 : at] == "."
        if match is None or (match["index"] is None) is not (after_dot or not steps):
            raise ValueError(f"{text!r} is not a path at character {at + 1}")
        steps.append(_step(match))
        at = match.end()
    return tuple(steps)


def _step(match: re.Match[str]) -> str | int:
    if match["index"] is not None:
        return int(match["index"])
    quoted = match["quoted"]
    return str(json.loads(quoted)) if quoted is not None else str(match["name"])


def show_path(path: Path) -> str:
    """Write a path as the file has it."""
    shown = ""
    for step in path:
        if isinstance(step, int):
            shown += f"[{step}]"
        else:
            plain = _STEP.fullmatch(step)
            name = step if plain and plain["name"] else json.dumps(step, ensure_ascii=False)
            shown += f".{name}" if shown else name
    return shown
