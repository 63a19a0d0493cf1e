"""The largest number that fits, found by halving."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastdqn.foundation.search import largest_that


@given(st.integers(0, 10**40), st.integers(0, 10**40))
def test_it_is_the_bound_or_the_most(bound: int, most: int) -> None:
    asked: list[int] = []
    found = largest_that(lambda n: asked.append(n) or n <= bound, most)  # type: ignore[func-returns-value]
    assert found == min(bound, most)
    assert len(asked) <= (most + 1).bit_length()
    assert all(1 <= n <= most for n in asked)


def test_where_what_fits_has_gaps_the_next_one_does_not_fit() -> None:
    fitting = {1, 2, 3, 7, 8, 12}
    found = largest_that(fitting.__contains__, 20)
    assert found in fitting
    assert found + 1 not in fitting
