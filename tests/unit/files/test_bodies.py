"""A body is unpacked within its bound, and its records are slices of it: those a JSON parser would find."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import time
import zlib
from typing import TYPE_CHECKING

import pytest
import zstandard

from kbatchd.door.door import Door
from kbatchd.files.bodies import Malformed, Records, TooLarge, split, split_exactly, split_lines, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

MANY = 1_000
PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstandard.compress}
#: Whatever could be taken for the end of a record, or hide one.
STRINGS = ["", "}, {", "},{", "}", "{", "]", "[", ",", '"', "\\", '\\"},{"', "\n", "\r\n", "ü€😀", "\u2028", "\0"]
BLANKS = ["", "", "", " ", "\n", "\t \r\n"]


def whole(body: bytes) -> Records:
    """Split as the gateway does: guess, and parse when a piece is not JSON."""
    records = split(body, MANY)
    if any(refusal.code == "not_json" for _, refusal in Door(None, None).check(records.values)):
        return split_exactly(body, MANY)
    return records


def some_value(chance: random.Random, depth: int) -> object:
    kind = chance.randrange(7 if depth else 4)
    match kind:
        case 0:
            return chance.choice(STRINGS)
        case 1:
            return chance.choice([None, True, False])
        case 2:
            return chance.choice([0, -1, 1.5, 1e-7, 2**70])
        case 3:
            return "".join(chance.choices(STRINGS, k=3))
        case 4:
            return [some_value(chance, depth - 1) for _ in range(chance.randrange(4))]
        case _:
            return some_object(chance, depth - 1)


def some_object(chance: random.Random, depth: int) -> dict[str, object]:
    return {chance.choice(STRINGS) + str(n): some_value(chance, depth) for n in range(chance.randrange(4))}


def written(value: object, chance: random.Random) -> str:
    """Write JSON with blanks wherever they may be."""
    if isinstance(value, dict):
        pairs = (written(k, chance) + ":" + written(v, chance) for k, v in value.items())
        text = "{" + ",".join(pairs) + chance.choice(BLANKS) + "}"
    elif isinstance(value, list):
        text = "[" + ",".join(written(v, chance) for v in value) + chance.choice(BLANKS) + "]"
    else:
        text = json.dumps(value, ensure_ascii=chance.random() < 0.5)
    return chance.choice(BLANKS) + text + chance.choice(BLANKS)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_array_is_split_as_a_json_parser_would(depth: int) -> None:
    chance = random.Random(random.random())
    for _ in range(500):
        records = [some_object(chance, depth) for _ in range(chance.randrange(6))]
        body = written(records, chance).encode()
        found = whole(body)
        assert [json.loads(value) for value in found.values] == json.loads(body)
        assert all(value in body and value == value.strip() for value in found.values)
        assert list(found.lines) == list(range(1, len(records) + 1))
        assert not found.single
        assert split_exactly(body, MANY) == found


def test_array_of_anything_is_split_into_its_elements() -> None:
    chance = random.Random(random.random())
    for _ in range(1_000):
        body = written([some_value(chance, 2) for _ in range(chance.randrange(5))], chance).encode()
        assert [json.loads(value) for value in whole(body).values] == json.loads(body)


def test_damaged_array_is_refused_or_is_what_a_json_parser_says() -> None:
    chance = random.Random(random.random())
    refused = 0
    for _ in range(1_000):
        body = bytearray(written([some_object(chance, 1) for _ in range(3)], chance).encode())
        at = chance.randrange(len(body))
        body[at : at + chance.randrange(2)] = chance.choice([b"", b",", b"}", b"{", b"[", b"]", b'"', b"\\", b"\xff"])
        try:
            expected = json.loads(body.decode())
        except ValueError:
            with pytest.raises(Malformed):
                _judged(bytes(body))
            refused += 1
        else:
            assert _judged(bytes(body)) == (expected if isinstance(expected, list) else [expected])
    assert refused > 150


def _judged(body: bytes) -> list[object]:
    """Return what is sent; an element that is no object is refused later, by its place."""
    return [json.loads(value) for value in whole(body).values]


def test_object_is_one_record() -> None:
    body = b'\n {"a": [{"b": 1}, {"b": 2}]} \r\n'
    assert split(body, MANY) == Records([body.strip()], (1,), single=True)


@pytest.mark.parametrize("body", [b"", b" ", b"1", b'"a"', b"null", b"[", b"]", b'[{"a":1}', b"a", b"\xff\xfe{\0}\0"])
def test_neither_object_nor_array_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed, match="neither a JSON object nor an array"):
        split(body, MANY)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"a":1}{"a":2}', "unexpected text at character 8"),
        (b'{"a":1},{"a":2}', "unexpected text at character 8"),
        (b'{"a":1', "delimiter"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'[{"a":-Infinity}]', "-Infinity is not JSON"),
        (b'[{"a":1},]', "Expecting value"),
        (b'[,{"a":1}]', "Expecting value"),
        (b'[{"a":1},,{"a":2}]', "Expecting value"),
        (b'[{"a":1} {"a":2}]', "neither a comma nor the array's end at character 10"),
        (b"[[1]", "neither a comma nor the array's end at character 5"),
        (b'[{"a":1}]]', "unexpected text at character 10"),
        (b'[{"a":"\xff"}]', "utf-8"),
        (b'[{"a":"\n"}]', "control character"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_json_is_malformed(body: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        whole(body)


def test_what_only_the_stricter_parser_refuses_is_left_to_the_door() -> None:
    # Half of a surrogate pair: a record that does not fit, with its place, and not a body without any.
    assert whole(b'{"a":"\\ud800"}') == Records([b'{"a":"\\ud800"}'], range(1, 2), single=True)
    assert whole(b'[{}, {"a":"\\ud800"}]') == Records([b"{}", b'{"a":"\\ud800"}'], range(1, 3))


def test_array_has_at_most_so_many_records() -> None:
    body = b'[{"a":1},{"a":2},{"a":3}]'
    assert len(split(body, 3).values) == len(split_exactly(body, 3).values) == 3
    for splitter in split, split_exactly:
        with pytest.raises(TooLarge, match="more than 2 records"):
            splitter(body, 2)


def test_splitting_takes_time_in_proportion() -> None:
    # Blanks behind each brace make a careless pattern try all their lengths.
    def seconds(blanks: int) -> float:
        body = b"[" + (b"}" + b" " * blanks) * 20 + b"]"
        start = time.thread_time()  # what others take of the processor is not counted
        split(body, MANY)
        return time.thread_time() - start

    assert min(seconds(100_000) for _ in range(7)) < 50 * max(1e-4, min(seconds(10_000) for _ in range(7)))


def test_lines_keep_their_numbers() -> None:
    body = b'{"a":1}\r\n\n  \t\r\n {"a":2} \n{"a":\r3}'
    assert split_lines(body, MANY) == Records([b'{"a":1}', b'{"a":2}', b'{"a":\r3}'], [1, 4, 5])


@pytest.mark.parametrize("body", [b"", b"\n", b"\r\n\r\n", b"  "])
def test_no_line_is_no_record(body: bytes) -> None:
    assert split_lines(body, MANY) == Records([], [])


def test_only_a_line_feed_ends_a_line() -> None:
    text = '{"a":"\x85\u2028\u2029"}'
    assert split_lines(f"{text}\n{text}".encode(), MANY).values == [text.encode()] * 2


def test_so_many_lines_are_allowed_with_a_line_feed_at_the_end_or_without() -> None:
    assert len(split_lines(b"{}\n{}\n{}", 3).values) == len(split_lines(b"{}\n{}\n{}\n", 3).values) == 3
    for body in b"{}\n{}\n{}\n{}", b"\n\n\n\n":
        with pytest.raises(TooLarge, match="more than 3 lines"):
            split_lines(body, 3)


def test_byte_order_mark_is_ignored_at_the_beginning_only() -> None:
    mark = b"\xef\xbb\xbf"
    assert split(mark + b'{"a":1}', MANY).values == [b'{"a":1}']
    assert whole(mark + b'[{"a":[{},{}]}]').values == [b'{"a":[{},{}]}']
    assert split_lines(mark + b"{}\n{}", MANY).values == [b"{}", b"{}"]
    assert split_lines(b"{}\n" + mark + b"{}", MANY).values == [b"{}", mark + b"{}"]


@pytest.mark.parametrize("encoding", PACKERS)
@pytest.mark.parametrize("size", [0, 1, 511, 100_000])
def test_unpacks_what_was_packed(encoding: str, size: int) -> None:
    body = random.randbytes(size)
    assert unpack(PACKERS[encoding](body), encoding, size) == body


@pytest.mark.parametrize("encoding", PACKERS)
def test_members_follow_each_other(encoding: str) -> None:
    pack = PACKERS[encoding]
    packed = b"".join(map(pack, [b"a" * 1_000, b"", random.randbytes(2_000), b"c"]))
    assert len(unpack(packed, encoding, 3_001)) == 3_001
    with pytest.raises(TooLarge, match="more than 3000 bytes"):
        unpack(packed, encoding, 3_000)


def test_zstd_frames_that_hold_nothing_are_skipped() -> None:
    skippable = b"\x50\x2a\x4d\x18" + (700).to_bytes(4, "little") + bytes(700)
    assert unpack(skippable + zstandard.compress(b"a") + skippable, "zstd", 1) == b"a"


@pytest.mark.parametrize("encoding", PACKERS)
def test_truncated_is_malformed_wherever_it_ends(encoding: str) -> None:
    # Lines that are whole in what is left must not pass for the whole body.
    packed = PACKERS[encoding](b'{"a":1}\n' * 1_000 + random.randbytes(1_000))
    for end in range(len(packed)):
        with pytest.raises(Malformed, match=f"the body is not (a whole )?{encoding}"):
            unpack(packed[:end], encoding, 100_000)


@pytest.mark.parametrize("encoding", PACKERS)
def test_garbage_is_malformed(encoding: str) -> None:
    packed = PACKERS[encoding](b"a" * 1_000)
    damaged = packed[:-5] + bytes([packed[-5] ^ 1]) + packed[-4:]
    for body in b"no", b"\0" * 600, packed + b"\0", packed + b"more", *([damaged] if encoding == "gzip" else []):
        with pytest.raises(Malformed, match=f"the body is not (a whole )?{encoding}"):
            unpack(body, encoding, 100_000)


def test_zstd_window_is_bounded() -> None:
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    packed = packer.compress(bytes(1_000)) + packer.flush()
    with pytest.raises(Malformed, match="memory"):
        unpack(packed, "zstd", 100_000)


@pytest.mark.parametrize("encoding", PACKERS)
def test_many_empty_members_end_soon(encoding: str) -> None:
    packed = PACKERS[encoding](b"") * 500_000
    start = time.thread_time()
    with pytest.raises(TooLarge, match=f"more than 1000 {encoding} members"):
        unpack(packed, encoding, 100_000)
    assert time.thread_time() - start < 2


def test_bomb_takes_no_memory() -> None:
    """A gigabyte of zeros in 1 MB of gzip and 33 KB of zstd; in a process of its own, whose peak can be told."""
    before, after = map(int, subprocess.check_output([sys.executable, "-c", BOMBS], text=True).split())
    assert after - before < 40_000, "KiB: a body of 10 MB, and 16 MiB more, are allowed"


BOMBS = """
import resource, zlib, zstandard
from kbatchd.files.bodies import TooLarge, unpack

gzip = zlib.compressobj(9, zlib.DEFLATED, 31)
zstd = zstandard.ZstdCompressor(level=1).compressobj()
zeros = bytes(1 << 20)
first, again = [gzip.compress(zeros) + gzip.flush(zlib.Z_FULL_FLUSH) for _ in range(2)]
packed = {"gzip": first + 1023 * again,
          "zstd": b"".join([*(zstd.compress(zeros) for _ in range(1024)), zstd.flush()])}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for encoding, body in packed.items():
    try:
        unpack(body, encoding, 10_000_000)
    except TooLarge:
        continue
    raise AssertionError(encoding)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_zlib_without_gzip_is_malformed() -> None:
    with pytest.raises(Malformed):
        unpack(zlib.compress(b"a"), "gzip", 10)
