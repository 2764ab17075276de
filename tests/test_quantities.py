from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.quantities import (
    format_bytes,
    format_count,
    format_seconds,
    parse_bytes,
    parse_multiple,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10m", 600),
        ("1h30m", 5400),
        ("90 s", 90),
        ("2.24ms", 0.00224),
        ("1d 2h", 93600),
        ("500us", 5e-4),
        ("3 Minutes", 180),
    ],
)
def test_durations(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "m", "-3s", "0s", "10 parsecs", "1h x", 10, None, ["1h"], "1e3s"])
def test_what_is_no_duration_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="needs a duration with a unit, as 10m"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("text", "size"), [("20MB", 20_000_000), ("8GiB", 8 * 2**30), ("1.5 GB", 1_500_000_000), ("512KiB", 524_288)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "20", "0MB", "-1GB", "MB", 20, None, "20 apples"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="needs a size with a unit, as 20MB"):
        parse_bytes(text)


@given(st.integers(1, 10**6), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_a_duration_of_two_parts_is_the_sum_of_both(count, unit):
    assert parse_seconds(f"{count}{unit}2s") == pytest.approx(parse_seconds(f"{count}{unit}") + 2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00224, "2.24 ms"),
        (4.12, "4.1 s"),
        (42, "42 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_for_people(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(512, "512 B"), (23_700_000, "23.7 MB"), (999_600_000, "1000 MB"), (1.5e9, "1.5 GB"), (2e13, "20000 GB")],
)
def test_sizes_for_people(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(("count", "text"), [(512, "512"), (4_400_000, "4.4M"), (22_700_000, "22.7M"), (7e9, "7B")])
def test_counts_for_people(count, text):
    assert format_count(count) == text


def test_multiples_are_told_from_durations():
    assert [parse_multiple(text) for text in ("4x", " 2.5X ", "90s", "x", 4)] == [4.0, 2.5, None, None, None]
    with pytest.raises(ValueError, match="at least 1x"):
        parse_multiple("0.5x")
