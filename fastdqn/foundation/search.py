"""Finds a whole number by halving."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["largest_that"]


def largest_that(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to `most` that fits, 0 if not even 1 does.

    Where a larger number may fit though a smaller one does not, one of those is returned that fit
    while the next one does not.

    Args:
        fits: Whether a number of at least 1 does; called about log2(most) times.
        most: At least 0, of any size.
    """
    fine, beyond = 0, most + 1
    while beyond - fine > 1:
        middle = (fine + beyond) // 2
        fine, beyond = (middle, beyond) if fits(middle) else (fine, middle)
    return fine
