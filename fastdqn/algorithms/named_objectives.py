"""The objectives that settings can name."""

from __future__ import annotations

from collections.abc import Callable

from fastdqn.algorithms.distributional import C51Objective
from fastdqn.algorithms.munchausen import MunchausenObjective
from fastdqn.algorithms.objectives import Objective, objective_of
from fastdqn.algorithms.quantiles import IQNObjective, QRObjective

__all__ = ["named_objective"]


def named_objective(
    name: str,
    *,
    double: bool,
    loss: str,
    num_atoms: int,
    v_min: float,
    v_max: float,
    num_quantiles: int,
    munchausen_alpha: float,
    munchausen_temperature: float,
    munchausen_clip: float,
) -> Objective:
    """Build the objective of a name; it takes what it reads of the settings.

    Args:
        name: `dqn`, `munchausen`, `c51`, `qr` or `iqn`.
        double: See `objective_of` and `DistributionalObjective`.
        loss: See `DQNObjective`.
        num_atoms: See `C51Objective`.
        v_min: Likewise.
        v_max: Likewise.
        num_quantiles: See `QRObjective`.
        munchausen_alpha: See `MunchausenObjective`.
        munchausen_temperature: Likewise.
        munchausen_clip: Likewise.

    Raises:
        UsageError: A value that cannot be used.
    """
    numbers = munchausen_alpha, munchausen_temperature, munchausen_clip
    made: dict[str, Callable[[], Objective]] = {
        "dqn": lambda: objective_of(None, double, loss),
        "munchausen": lambda: MunchausenObjective(loss, *numbers),
        "c51": lambda: C51Objective(double=double, num_atoms=num_atoms, v_min=v_min, v_max=v_max),
        "qr": lambda: QRObjective(double=double, num_quantiles=num_quantiles),
        "iqn": lambda: IQNObjective(double=double, num_quantiles=num_quantiles),
    }
    return made[name]()
