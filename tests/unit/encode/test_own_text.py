"""JSON goes in as it was written, in every encoder: what is beside it, or before its record, changes nothing of it."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from kbatchd.config import RouteMapping
from kbatchd.encode.rows import RowEncoder, build_encoder
from kbatchd.postgres.table import Column

pytestmark = pytest.mark.usefixtures("compiled")

TEXTS = [
    '{"a":1e9,"b":1.50}', '{ "a" : 1e9 , "b" : [ 1.50, -0, -0.0, 1E+2 ] }', "1e9", "1.50", "-0", "-0.0", "0e5", "100.0",
    '"x"', '"\\u00fc\\/"', "true", "[]", "[1.50]", '{"a":1,"a":2.50}', "[18446744073709551616]",
    "[0.1234567890123456789]",
    '{"j":1.50,"deep":{"j":2.50}}', "[1.5, 1.50]", "1.5", '{"n":null}', "[[[[1.0]]]]", "12345678901234567890",
]  # fmt: skip

#: What may stand beside it, and before it in the same chunk.
BESIDE = ["", ',"\\u0078":0', ',"x":1e400', ',"x":0.12345678901234567890', ',"x":"\\u0000"', ',"x":"j"', ',"x":{"j":1}',
          ',"\u00fc":"\u00e9"', ',"x":"\\\\"', ',"x":18446744073709551616', ',"x":-0']  # fmt: skip
BEFORE: list[list[bytes | None]] = [[], [None], [b'{"\\u0078":0}'], [b"{"], [b'{"x":1e400}'], [b'{"j":1}'] * 3]

ROUTES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "binary": ({"id": "int8", "j": "KIND"}, {}),
    "with another type": ({"id": "int8", "j": "KIND", "m": "mood"}, {}),
    "text": ({"id": "int8", "j": "KIND", "r": "int4range"}, {}),
    "careful": ({"id": "int8", "j": "KIND", "n": "timestamptz"}, {"columns": {"n": {"source": "now"}}}),
    "default": ({"id": "int8", "j": "KIND"}, {"columns": {"j": {"field": "j", "default": [1.5]}}}),
    "envelope": ({"id": "int8", "j": "KIND"}, {"value_field": "in"}),
    "nested": ({"id": "int8", "v": "KIND"}, {"columns": {"v": "in.j"}}),
    "rest": ({"id": "int8", "rest": "KIND"}, {"unknown_fields": "rest"}),
}


def encoder_of(name: str, kind: str) -> RowEncoder:
    types, said = ROUTES[name]
    made = [
        Column(column, number, type_name.replace("KIND", kind), -1, not_null=False)
        for number, (column, type_name) in enumerate(types.items(), 1)
    ]
    return build_encoder(made, RouteMapping.model_validate(said))


def field(encoder: RowEncoder, row: bytes, kind: str) -> str:
    """Read the JSON column of a row in either format."""
    at = next(i for i, name in enumerate(encoder.columns) if name in {"j", "v", "rest"})
    if encoder.copy_format.value == "text":
        text = row.decode().rstrip("\n").split("\t")[at]
        return text.replace("\\\\", "\\")
    start = 2
    for _ in range(at):
        (size,) = struct.unpack_from(">i", row, start)
        start += 4 + max(size, 0)
    (size,) = struct.unpack_from(">i", row, start)
    return row[start + 4 + (kind == "jsonb") : start + 4 + size].decode()


@pytest.mark.parametrize("kind", ["json", "jsonb"])
@pytest.mark.parametrize("name", ROUTES)
def test_json_is_the_field_s_own_text(name: str, kind: str) -> None:
    encoder = encoder_of(name, kind)
    for text in TEXTS:
        for beside in BESIDE:
            inner = f'"id":7,"j":{text}{beside}'
            value = f'{{"in":{{{inner}}}}}' if name in {"envelope", "nested"} else f"{{{inner}}}"
            expected = f'{{"j":{text}{beside}}}' if name == "rest" else text
            if name == "rest" and ("u0000" in beside or "u0078" in beside):
                continue  # names are rewritten, and jsonb takes no NUL
            for before in BEFORE:
                rows: list[bytes] = []
                refused = encoder.encode((), [*before, value.encode()], rows).refused
                assert len(before) not in [index for index, _ in refused], (value, refused)
                assert field(encoder, rows[-1], kind) == expected, (value, before)


@pytest.mark.parametrize("more", [{}, {"n": "numeric"}, {"r": "int4range"}])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_time_that_is_a_number_is_read_from_its_own_text(unit: str, more: dict[str, str]) -> None:
    """Half a microsecond, in more digits than a double has: without a numeric beside it, nobody looks for those."""
    seconds = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[unit]
    whole = 1_763_855_045 * seconds
    digits = {"s": "1234565000000001", "ms": "4565000000001", "us": "5000000001", "ns": "0"}[unit]
    types = {"at": "timestamptz", **more}
    made = [Column(name, n, kind, -1, not_null=False) for n, (name, kind) in enumerate(types.items(), 1)]
    encoder = build_encoder(made, RouteMapping.model_validate({"columns": {"at": {"field": "at", "unit": unit}}}))
    rows: list[bytes] = []
    assert encoder.encode((), [f'{{"at":{whole}.{digits}}}'.encode()], rows).refused == []
    expected = (1_763_855_045 - 946_684_800) * 1_000_000 + {"s": 123_457, "ms": 457, "us": 1, "ns": 0}[unit]
    if encoder.copy_format.value == "text":
        assert f"{expected % 1_000_000:06d}+00" in rows[0].decode()
    else:
        assert struct.pack(">q", expected) in rows[0]
