"""docs/house.svg, drawn from the table of floors: `make docs` writes it, a test compares it.

A box is a package, with the first sentence of its docstring; a line goes to what it imports. One that a longer way says
already is left out, so that the others can be followed: all of them are in tests/unit/test_floors.py.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from html import escape
from pathlib import Path
from typing import NamedTuple

import kbatchd
from tests.unit.test_floors import ALLOWED, FLOORS, GROUND, ROOF

WIDTH, MARGIN, LABEL = 1080, 24, 34
BOX_WIDTH, BOX_HEIGHT, BETWEEN = 236, 78, 40
CHARACTERS, LINE = 37, 14

HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" role="img" \
aria-labelledby="title desc">
  <title id="title">The house: the packages of kbatchd, floor by floor</title>
  <desc id="desc">{description}</desc>
  <style>
    .box {{ fill: #ffffff; stroke: #57606a; stroke-width: 1.5 }} .floor {{ fill: #f6f8fa }}
    .roof {{ fill: #ddf4e4; stroke: #1a7f37; stroke-width: 1.5 }}
    .line {{ fill: none; stroke: #0969da; stroke-width: 1.2 }}
    text {{ fill: #1f2328; font-size: 11px }} .name {{ font-size: 14px; font-weight: 600 }} .number {{ fill: #8c959f }}
    @media (prefers-color-scheme: dark) {{
      .box {{ fill: #0d1117; stroke: #8b949e }} .floor {{ fill: #161b22 }} .roof {{ fill: #12261a; stroke: #3fb950 }}
      text {{ fill: #e6edf3 }} .number {{ fill: #6e7681 }} .line {{ stroke: #58a6ff }}
    }}
  </style>
"""


class Box(NamedTuple):
    """Where a package stands: the middle of its upper edge."""

    x: float
    y: float


def house() -> str:
    """Return the picture."""
    boxes: dict[str, Box] = {}
    floors: list[str] = []
    y = 86.0
    for number, packages in sorted(FLOORS.items(), reverse=True):
        floors += _floor(number, y)
        room = WIDTH - LABEL - MARGIN
        for place, package in enumerate(packages):
            boxes[package] = Box(LABEL + room * (2 * place + 1) / (2 * len(packages)), y)
        y += BOX_HEIGHT + BETWEEN
    lines = [f'  <path class="line" d="{way}"/>' for way in _ways(boxes)]
    drawn = [line for package, box in boxes.items() for line in _box(package, box)]
    described = " ".join(
        f"Floor {number}: {', '.join(packages)}." for number, packages in sorted(FLOORS.items(), reverse=True)
    )
    head = HEAD.format(width=WIDTH, height=y + 62, description=described)
    return "\n".join([head.rstrip("\n"), *_roof(), *floors, *lines, *drawn, *_ground(y), "</svg>", ""])


def _straight(arrows: set[str]) -> set[str]:
    """Leave out what one of the others imports, itself or through others."""
    return arrows - {each for arrow in arrows for each in _below(arrow)}


def _below(package: str) -> set[str]:
    direct = ALLOWED.get(package, set())
    return direct.union(*map(_below, direct))


def _ways(boxes: dict[str, Box]) -> list[str]:
    """Return the lines; those of a box leave and reach it side by side, in the order of where they come from and go."""
    arrows = {(package, arrow) for package in boxes for arrow in _straight(ALLOWED[package])}
    down = {box: sorted({to for of, to in arrows if of == box}, key=boxes.__getitem__) for box in boxes}
    up = {box: sorted({of for of, to in arrows if to == box}, key=boxes.__getitem__) for box in boxes}
    ways = []
    for package, arrow in sorted(arrows):
        start = _port(boxes[package], down[package].index(arrow), len(down[package]))
        end = _port(boxes[arrow], up[arrow].index(package), len(up[arrow]))
        top, bottom = boxes[package].y + BOX_HEIGHT, boxes[arrow].y
        bend = (bottom - top) / 2
        ways.append(f"M{start:g} {top:g}C{start:g} {top + bend:g} {end:g} {bottom - bend:g} {end:g} {bottom:g}")
    return ways


def _port(box: Box, place: int, count: int) -> float:
    return round(box.x - BOX_WIDTH / 2 + BOX_WIDTH * (place + 1) / (count + 1), 1)


def _floor(number: int, y: float) -> list[str]:
    top, height = y - BETWEEN / 2 + 6, BOX_HEIGHT + BETWEEN - 12
    return [
        f'  <rect class="floor" x="0" y="{top:g}" width="{WIDTH}" height="{height}"/>',
        f'  <text class="number" x="12" y="{y + BOX_HEIGHT / 2:g}">{number}</text>',
    ]


def _box(package: str, box: Box) -> list[str]:
    left = box.x - BOX_WIDTH / 2
    lines = textwrap.wrap(_idea(package), CHARACTERS)
    return [
        f'  <rect class="box" x="{left:g}" y="{box.y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5"/>',
        f'  <text class="name" x="{left + 10:g}" y="{box.y + 20:g}">{package}/</text>',
        *(
            f'  <text x="{left + 10:g}" y="{box.y + 37 + LINE * at:g}">{escape(line, quote=False)}</text>'
            for at, line in enumerate(lines)
        ),
    ]


def _roof() -> list[str]:
    return [
        f'  <path class="roof" d="M0 66L{WIDTH / 2:g} 6L{WIDTH} 66z"/>',
        *_words(40, ", ".join(sorted(ROOF, reverse=True)), "the command line"),
    ]


def _ground(y: float) -> list[str]:
    return [
        f'  <rect class="roof" x="0" y="{y - 8:g}" width="{WIDTH}" height="58"/>',
        *_words(y + 16, ", ".join(sorted(GROUND - {""})), "the ground: what every floor may speak of"),
    ]


def _words(y: float, name: str, words: str) -> list[str]:
    return [
        f'  <text class="name" x="{WIDTH / 2:g}" y="{y:g}" text-anchor="middle">{name}</text>',
        f'  <text x="{WIDTH / 2:g}" y="{y + 17:g}" text-anchor="middle">{words}</text>',
    ]


def _idea(package: str) -> str:
    """Return the first sentence of a package's docstring."""
    tree = ast.parse((Path(kbatchd.__file__).parent / package / "__init__.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".").replace("`", "")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(house(), encoding="utf-8")
