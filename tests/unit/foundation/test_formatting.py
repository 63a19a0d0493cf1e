"""Numbers as a person reads them."""

from __future__ import annotations

import math

import pytest

from fastdqn.foundation.formatting import (
    format_bytes,
    format_duration,
    format_figure,
    format_return,
    format_spread,
    format_threshold,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.955, "0.955"),
        (1.0, "1.00"),
        (9.371, "9.37"),
        (246.44, "246.4"),
        (-129.04, "-129.0"),
        (9_999.4, "9,999.4"),
        (12_345.6, "12,346"),
        (-1e7, "-10,000,000"),
        (2.5e15, "2.5e+15"),
        (0.05, "0.0500"),
        (0.00123, "0.00123"),
        (-0.04, "-0.0400"),
        (1.234e-8, "1.23e-08"),
        (0.0, "0.0"),
        (-0.0, "0.0"),
        (math.nan, "-"),
        (math.inf, "-"),
        (-math.inf, "-"),
    ],
)
def test_a_return_has_digits_by_its_magnitude(value: float, text: str) -> None:
    assert format_return(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9996, "1.00"), (9.996, "10.0"), (0.09996, "0.100"), (9_999.96, "10,000"), (99.96, "100.0")],
)
def test_a_return_that_rounding_lifts_over_a_bound_is_written_as_what_lies_beyond(
    value: float, text: str
) -> None:
    assert format_return(value) == text
    assert format_return(-value) == f"-{text}"


def test_what_rounding_errors_leave_beside_another_number_is_zero() -> None:
    assert format_return(1.1e-16, beside=0.955) == "0.0"
    assert format_return(-1e-14, beside=200.0, signed=True) == "+0.0"
    assert format_return(1e-6, beside=1.0) == "1.00e-06"
    assert format_return(0.5, beside=math.nan) == "0.500"


@pytest.mark.parametrize(
    ("mean", "spread", "text"),
    [
        (246.4, 52.3, "52.3"),
        (310.4, 9.79, "9.8"),
        (0.955, 0.1234, "0.123"),
        (0.955, 0.0123, "0.012"),
        (0.955, 0.00123, "0.0012"),
        (0.955, 52.34, "52.3"),
        (9.25, 0.433, "0.43"),
        (499.8, 0.05, "0.050"),
        (13.5, 0.5, "0.50"),
        (0.955, 1.23e-6, "1.23e-06"),
        (12_345.6, 55.5, "56"),
        (12_345.6, 5.3, "5.3"),
        (1e15, 2.5, "0.0"),
        (500.0, 0.0, "0.0"),
        (0.955, 1.1e-16, "0.0"),
        (math.nan, math.nan, "-"),
    ],
)
def test_a_deviation_has_places_that_fit_its_mean(mean: float, spread: float, text: str) -> None:
    assert format_spread(spread, mean) == text


@pytest.mark.parametrize(("value", "text"), [(-2.5, "-2.50"), (100.0, "+100.0"), (0.0, "+0.0")])
def test_a_rise_has_a_sign(value: float, text: str) -> None:
    assert format_return(value, signed=True) == text


@pytest.mark.parametrize(
    ("value", "text"), [(200.0, "200"), (0.955, "0.955"), (-110, "-110"), (1234567.0, "1,234,567")]
)
def test_a_threshold_is_written_as_it_was_given(value: float, text: str) -> None:
    assert format_threshold(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0:00"),
        (11.6, "0:12"),
        (59.6, "1:00"),
        (725.0, "12:05"),
        (3723.0, "1:02:03"),
        (86_399.0, "23:59:59"),
        (2 * 86_400 + 3 * 3600 + 65.0, "2d 03:01:05"),
        (math.nan, "-"),
        (math.inf, "-"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [
        (1234.56, 1, "1,234.6"),
        (21_340.4, 0, "21,340"),
        (0.5, 0, "0"),
        (0.34, 2, "0.34"),
        (0.00123456, 2, "0.00123"),
        (0.0, 2, "0.00"),
        (-0.0, 2, "0.00"),
        (-0.3, 0, "0"),
        (-math.inf, 2, "-"),
    ],
)
def test_format_figure(value: float, places: int, text: str) -> None:
    assert format_figure(value, places) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * 2**10, "1.5 MiB")),
        *((2**20 - 1, "1.0 MiB"), (2**30 - 1, "1.0 GiB"), (2**30, "1.0 GiB")),
        *((4_509_715_661, "4.2 GiB"), (1000 * 2**30, "1,000.0 GiB"), (2**40, "1.0 TiB")),
        *((2**60, "1.0 EiB"), (3 * 2**72, "12,288.0 EiB"), (2**70 - 1, "1,024.0 EiB")),
    ],
)
def test_bytes_have_one_place_and_the_largest_unit_below_them(count: int, text: str) -> None:
    assert format_bytes(count) == text
