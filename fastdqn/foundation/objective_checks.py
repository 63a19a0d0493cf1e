"""Checks of the settings of objectives: which belong to which, and supports that can be."""

from __future__ import annotations

from typing import Any

from fastdqn.errors import UsageError

__all__ = ["OF_OBJECTIVES", "check_objective", "idle_in", "refuse_support"]

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
CLOSEST = 2.0**-20
"""Distance of two atoms, as a fraction of the largest, below which float32 blurs them."""
LARGEST = 1e30
"""Magnitude of values whose products float32 still holds."""


def check_objective(config: Any) -> None:
    """Refuse settings of an objective that cannot be, or that the chosen one does not read.

    Raises:
        UsageError: Names the flags.
    """
    chosen = config.objective
    for name, objectives in OF_OBJECTIVES.items():
        value, default = getattr(config, name), config.__dataclass_fields__[name].default
        if chosen not in objectives and value != default:
            raise UsageError(
                f"--{name.replace('_', '-')} {value} with --objective {chosen}",
                "it does not read it",
                f"Add --objective {' or '.join(objectives)}, or leave it out.",
            )
    if config.loss != "huber" and chosen in {"c51", "qr", "iqn"}:
        kind = "a cross entropy" if chosen == "c51" else "the Huber loss of its quantiles"
        raise UsageError(
            f"--loss {config.loss} with --objective {chosen}",
            f"it minimizes {kind}, and has no other loss",
            "Use --loss huber, which is the default, or --objective dqn or munchausen.",
        )
    refuse_support(config.v_min, config.v_max, config.num_atoms)


def idle_in(objective: str) -> set[str]:
    """Return the settings that an objective does not read."""
    return {name for name, objectives in OF_OBJECTIVES.items() if objective not in objectives}


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
