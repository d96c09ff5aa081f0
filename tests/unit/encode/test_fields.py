"""The bytes of one field. test_types.py compares those of every type with PostgreSQL, through the row encoder."""

from __future__ import annotations

import struct

import pytest

from kbatchd.encode.numbers import pack_numeric


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("0", (0, 0, 0, 0)),
        ("-0.00", (0, 0, 0, 2)),
        ("1", (1, 0, 0, 0, 1)),
        ("-12.30", (2, 0, 0x4000, 2, 12, 3000)),
        ("10000", (1, 1, 0, 0, 1)),
        ("0.0001", (1, -1, 0, 4, 1)),
        ("0.00001", (1, -2, 0, 5, 1000)),
        ("1.5e3", (1, 0, 0, 0, 1500)),
        ("1e-5", (1, -2, 0, 5, 1000)),
        ("123456.789", (3, 1, 0, 3, 12, 3456, 7890)),
        ("NaN", (0, 0, 0xC000, 0)),
    ],
)
def test_numerics_in_base_ten_thousand(text: str, encoded: tuple[int, ...]) -> None:
    assert pack_numeric(text) == struct.pack(f">HhHH{len(encoded) - 4}H", *encoded)
