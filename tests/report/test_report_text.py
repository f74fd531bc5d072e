"""Numbers as text, and the interval."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbnn.report import text, wilson


def plain(words: str) -> str:
    return words.replace("\u00a0", " ")


def test_wilson_by_hand():
    """p = 8/10: centre (p + z²/2n) / (1 + z²/n), half width z·sqrt(p(1-p)/n + z²/4n²) / (1 + z²/n)."""
    z, p, n = 1.959963984540054, 0.8, 10
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert wilson(0.8, 10) == pytest.approx((centre - half, centre + half))


@given(st.integers(1, 5000), st.floats(0, 1))
def test_the_interval_holds_the_accuracy(samples, fraction):
    right = round(fraction * samples)
    low, high = wilson(right / samples, samples)
    assert 0 <= low <= right / samples + 1e-12
    assert right / samples - 1e-12 <= high <= 1
    assert low < high


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (text.size, 0, "0 B"),
        (text.size, 999, "999 B"),
        (text.size, 1000, "1.00 kB"),
        (text.size, 12800, "12.8 kB"),
        (text.size, 999_960, "1.00 MB"),
        (text.size, 3_200_000_000, "3.20 GB"),
        (text.short, 950, "950"),
        (text.short, 999_499, "999 k"),
        (text.short, 12.345, "12.3"),
        (text.share, 0.94718, "94.72 %"),
        (text.share, 0.0, "0.00 %"),
        (text.share, 0.000314, "0.031 %"),
        (text.share, math.nan, "nan"),
        (text.brief_share, 0.09, "9.0 %"),
        (text.brief_share, 0.0042, "0.42 %"),
        (text.count, 1234567, "1,234,567"),
        (text.count, math.inf, "inf"),
        (text.number, 3.0, "3"),
        (text.number, 0.00012345, "1.234e-04"),
        (text.number, 0.4, "0.4"),
        (text.number, 12345.67, "12,345.7"),
        (text.number, True, "yes"),
        (text.number, None, "–"),
        (text.number, "words", "words"),
        (text.shape, (2, 34, 34), "2 × 34 × 34"),
        (text.shape, "2x34", "2x34"),
    ],
)
def test_numbers(write, value, expected):
    assert plain(write(value)) == expected


@pytest.mark.parametrize(
    ("dense", "small", "expected"), [(320, 10, "32×"), (12345, 1, "12,345×"), (9.5, 2, "4.75×"), (5, 0, "–")]
)
def test_ratio(dense, small, expected):
    assert text.ratio(dense, small) == expected


def test_interval_text():
    assert plain(text.interval_text(0.5, 100)) == "40.4–59.6 %"
    assert text.interval_text(0.5, None) == "–"
    assert text.interval_text(None, 100) == "–"
