"""The scanner must name the right line for every way TOML has to write a key."""

from __future__ import annotations

import pytest
import tomli

from kbatchd.config.toml_lines import find_line, key_lines, key_path

TEXT = '''\
pipeline = "x"  # line 1; [not.a.header]
kafka.bootstrap_servers = "h:1"

[kafka.librdkafka]
"fetch.wait.max.ms" = 50
queued.min.messages = 1
'single' = """
[fake]
key = 1 \\"""
""" # line 10

[workers]
count = 2
[batch]
x = { a = 1, b = { c = [1, 2] }, "d.e" = 5 }
list = [
  "one", # ]
  { deep = 1 },
  [3,
   4],
]
[[route]]
topic = "a"
omit = ["c",
        "d"]
[route.columns]
id = 1
[[route]]
topic = "b"
at = 2026-01-01 12:00:00Z
[[route.rules]]
n = 1
[[route.rules]]
n = 2
[ "quoted table" . inner ]
k = 'a # b'
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("pipeline",), 1),
        (("kafka", "bootstrap_servers"), 2),
        (("kafka", "librdkafka"), 4),
        (("kafka", "librdkafka", "fetch.wait.max.ms"), 5),
        (("kafka", "librdkafka", "queued.min.messages"), 6),
        (("kafka", "librdkafka", "single"), 7),
        (("workers",), 12),
        (("workers", "count"), 13),
        (("batch", "x", "b", "c", 1), 15),
        (("batch", "x", "d.e"), 15),
        (("batch", "list", 0), 17),
        (("batch", "list", 1, "deep"), 18),
        (("batch", "list", 2, 1), 20),
        (("route",), 22),
        (("route", 0, "topic"), 23),
        (("route", 0, "omit", 1), 25),
        (("route", 0, "columns"), 26),
        (("route", 0, "columns", "id"), 27),
        (("route", 1), 28),
        (("route", 1, "topic"), 29),
        (("route", 1, "at"), 30),
        (("route", 1, "rules", 1, "n"), 34),
        (("quoted table", "inner", "k"), 36),
    ],
)
def test_finds_the_line(path: tuple[str | int, ...], line: int) -> None:
    tomli.loads(TEXT)
    assert find_line(key_lines(TEXT), path) == line


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("workers", "buffer_bytes"), 12),
        (("route", 1, "table"), 28),
        (("route", 7, "table"), 22),
        (("log", "level"), 1),
        (("fake", "key"), 1),
    ],
)
def test_falls_back_to_the_nearest_table(path: tuple[str | int, ...], line: int) -> None:
    assert find_line(key_lines(TEXT), path) == line


def test_windows_line_ends_count_once() -> None:
    assert find_line(key_lines(TEXT.replace("\n", "\r\n")), ("workers", "count")) == 13


@pytest.mark.parametrize("text", ["", "\n", "# nothing", "a", "a =", "[", "[[", "a = [1, {", 'a = "', "= 1", "}", "]"])
def test_ends_on_any_text(text: str) -> None:
    assert find_line(key_lines(text), ("nowhere",)) == 1


def test_path_as_people_read_it() -> None:
    assert key_path(("route", 1, "omit", 0)) == "route[1].omit[0]"
