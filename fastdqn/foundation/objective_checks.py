"""Settings of objectives: which belong to which, and supports that can be."""

from __future__ import annotations

from fastdqn.errors import UsageError

__all__ = ["ARGUMENTS", "OF_OBJECTIVES", "refuse_support"]

OF_OBJECTIVES: dict[str, tuple[str, ...]] = {
    "num_atoms": ("c51",),
    "v_min": ("c51",),
    "v_max": ("c51",),
    "num_quantiles": ("qr", "iqn"),
    "munchausen_alpha": ("munchausen",),
    "munchausen_temperature": ("munchausen",),
    "munchausen_clip": ("munchausen",),
}
"""Setting -> the objectives that read it."""
ARGUMENTS = ("double", "loss", *OF_OBJECTIVES)
"""Settings that objectives are built from, beside their name."""
CLOSEST = 2.0**-20
"""Distance of two atoms, as a fraction of the largest, below which float32 blurs them."""
LARGEST = 1e30
"""Magnitude of values whose products float32 still holds."""


def refuse_support(v_min: float, v_max: float, num_atoms: int) -> None:
    """Refuse a support of no width, or with atoms that float32 cannot keep apart.

    Raises:
        UsageError: Names the flags.
    """
    got = f"--v-min {v_min} and --v-max {v_max}"
    if not v_min < v_max:
        reason = "the support reaches from the smaller to the larger one"
        raise UsageError(got, reason, "Choose --v-min below --v-max.")
    largest = max(abs(v_min), abs(v_max))
    if largest > LARGEST or (v_max - v_min) / (num_atoms - 1) < CLOSEST * largest:
        reason = f"float32 does not keep {num_atoms} atoms between them apart"
        raise UsageError(got, reason, "Choose a support nearer to 0, or wider, or fewer atoms.")
