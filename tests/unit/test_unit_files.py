"""The unit files, as far as they can be read without systemd; `make test-systemd` asks systemd itself."""

from __future__ import annotations

from pathlib import Path

SYSTEMD = Path(__file__).parent.parent.parent / "systemd"


def test_the_template_is_the_service_for_a_file_of_its_own() -> None:
    service = (SYSTEMD / "kbatchd.service").read_text()
    for old, new in (
        ("Description=kbatchd:", "Description=kbatchd %i:"),
        ("/etc/kbatchd/kbatchd.toml", "/etc/kbatchd/%i.toml"),
        ("/etc/kbatchd/environment", "/etc/kbatchd/%i.environment"),
        (":kbatchd.", ":kbatchd-%i."),
        ("StateDirectory=kbatchd\n", "StateDirectory=kbatchd/%i\n"),
    ):
        assert old in service
        service = service.replace(old, new)
    comment, unit, rest = (SYSTEMD / "kbatchd@.service").read_text().partition("[Unit]")
    assert all(line.startswith("#") for line in comment.splitlines())
    assert unit + rest == service


def test_no_core_holds_secrets() -> None:
    for unit in SYSTEMD.glob("*.service"):
        assert "\nLimitCORE=0\n" in unit.read_text()
