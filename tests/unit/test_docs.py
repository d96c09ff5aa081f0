"""The documentation tells the truth, as far as a program can see."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kbatchd.cli import main
from tests.faults import report
from tests.faults.matrix import FAULTS
from tests.house import house
from tests.reference import reference

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")])

LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def test_the_reference_is_that_of_the_models() -> None:
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == reference(), "make docs writes it again"


def test_the_picture_of_the_house_is_that_of_the_floors() -> None:
    assert (ROOT / "docs/house.svg").read_text(encoding="utf-8") == house(), "make docs draws it"


def test_the_page_of_faults_has_the_rows_of_the_matrix() -> None:
    page = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    shown = [row.split(" | ")[:2] for row in report.rows_of(page).values()]
    assert shown == [[f"| {fault}", promise] for fault, promise in FAULTS.items()], "make faults writes it again"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link, _ in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    pages = {page.name for page in ROOT.glob("docs/*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {page for page in pages if f"](docs/{page})" not in readme} == set()


def test_commands_in_the_documentation_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    known = _commands(capsys)
    shown = set(re.findall(r"(?:^|`)(?:\$ )?kbatchd ([a-z][a-z-]*)", text, re.MULTILINE))
    assert shown - known == set()
    assert known - shown == set()


def test_every_command_has_its_own_manual(capsys: pytest.CaptureFixture[str]) -> None:
    for command in sorted(_commands(capsys)):
        manual = _help(capsys, command)
        actions = re.findall(r"^    ([a-z]+) ", manual, re.MULTILINE) if "\nactions:\n" in manual else []
        for action in actions or [""]:
            name = f"{command} {action}".strip()
            if name != "demo":  # which takes nothing
                assert f"examples:\n  kbatchd {name} --" in _help(capsys, *name.split()), name


def _commands(capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Return the commands that the command line lists."""
    return set(re.findall(r"^    ([a-z][a-z-]+)(?: |$)", _help(capsys), re.MULTILINE))


def _help(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    return capsys.readouterr().out
