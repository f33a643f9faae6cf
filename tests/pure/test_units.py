"""Quantities in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autosplit.errors import AutosplitError
from autosplit.units import format_bytes, format_ns, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GiB", 24 * 2**30),
        ("24GB", 24 * 10**9),
        ("24gb", None),
        ("1.5 MiB", 3 * 2**19),
        ("512", 512),
        (" 7 B ", 7),
        ("2TIB", 2 * 2**40),
    ],
)
def test_parse(text, expected):
    if expected is None:
        with pytest.raises(AutosplitError, match="means bits"):
            parse_bytes(text)
    else:
        assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("24Gb", "'Gb' means bits; write 'GB'"),
        ("24 Gib", "means bits"),
        ("24XB", "unknown unit 'XB'"),
        ("", "expected a number and a unit"),
        ("-3GB", "expected a number"),
        ("lots", "expected a number"),
        (-1, "must not be negative"),
        (True, "expected a number"),
    ],
)
def test_refused(text, message):
    with pytest.raises(AutosplitError, match=message):
        parse_bytes(text)


@given(st.integers(0, 2**50))
def test_numbers_stay_themselves(n):
    assert parse_bytes(n) == parse_bytes(str(n)) == parse_bytes(f"{n} B") == n


@given(st.integers(0, 2**63))
def test_words_are_within_a_twentieth(n):
    assert abs(parse_bytes(format_bytes(n)) - n) <= n / 20


def test_words_of_large_quantities():
    assert format_bytes(3 * 2**40) == "3.0 TiB"
    assert format_bytes(-2048) == "-2.0 KiB"
    assert format_bytes(2**62) == "4.0 EiB"
    assert format_bytes(2**80) == "more than 1024 EiB"
    assert format_bytes(-(2**80)) == "less than -1024 EiB"
    assert format_ns(90 * 10**9) == "90.0 s"
