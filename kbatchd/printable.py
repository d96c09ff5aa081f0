"""Text of others, shown so that it can do nothing but be read: it begins no line, and a terminal obeys none of it.

What is no printable character (ESC, BEL, CR, NUL, marks that turn the writing direction, half a surrogate) is written
as an escape. Pure; used wherever a record's text, or a message that may quote one, is shown to people.
"""

from __future__ import annotations

import json


def printable(text: str, keep: str = "") -> str:
    """Write it in one line, what cannot be printed as an escape; characters of `keep` stay as they are."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else repr(each)[1:-1] for each in text)


def printable_value(text: str) -> str:
    """Write a record's value: JSON over several lines stays so, since no line within it can look like one of ours."""
    if "\n" in text:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return printable(text)
    return printable(text, keep="\n\t")


def printable_json(text: str) -> str:
    """Write JSON of the same meaning, what cannot be printed as JSON's own escapes."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)
