"""Texts that others have collected: see README.md beside this."""

from __future__ import annotations

import lzma
import tarfile
from pathlib import Path

HERE = Path(__file__).parent


def json_test_suite() -> dict[str, bytes]:
    """Return the texts by their files' names."""
    return _members("json_test_suite.tar.xz")


def webhooks() -> dict[str, bytes]:
    """Return payloads of several vendors, as they were written, by their files' names."""
    return _members("webhooks.tar.xz")


def github_webhooks() -> list[bytes]:
    """Return `{"event": ..., "payload": ...}` of many events of one vendor."""
    return lzma.decompress((HERE / "github_webhooks.ndjson.xz").read_bytes()).splitlines()


def _members(name: str) -> dict[str, bytes]:
    found = {}
    with tarfile.open(HERE / name) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
    return found
