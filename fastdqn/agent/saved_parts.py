"""Refusals of parts and settings beside which the saved parameters would mean something else."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from fastdqn.agent.saved_description import SavedDescription
from fastdqn.algorithms.distributional import C51Objective
from fastdqn.algorithms.quantiles import IQNObjective, QRObjective
from fastdqn.config import Config
from fastdqn.errors import CheckpointError, UsageError
from fastdqn.foundation.scalars import python_scalar

__all__ = [
    "refuse_missing_objective",
    "refuse_other_activation",
    "refuse_other_objective",
    "refuse_other_parts",
]

Q_VALUES = ("dqn", "munchausen")
"""Objectives whose networks give the same thing, Q-values."""
OF_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "c51": ("num_atoms", "v_min", "v_max"),
    "qr": ("num_quantiles",),
}
"""Objective -> settings that say what its network's outputs mean. IQN's fractions are drawn anew
for each pass, and their number may change."""
NAMES: Mapping[type, str] = {C51Objective: "c51", IQNObjective: "iqn", QRObjective: "qr"}
"""Class of an objective, a subclass first -> its name."""


def refuse_missing_objective(objective: Any, saved: str | None, folder: str) -> None:
    """Refuse no objective for a policy that learned by one of the caller's, which no file holds.

    Raises:
        CheckpointError: Names the saved one.
    """
    if objective is None and saved is not None:
        raise CheckpointError(
            f"{folder} was trained with an objective of the caller's own, "
            f"{saved}: pass it, DQN.load(folder, objective=...)"
        )


def refuse_other_activation(saved: SavedDescription, given: Mapping[str, Any], folder: str) -> None:
    """Refuse another activation than the saved one, whose parameters are of the same shapes.

    Raises:
        UsageError: Names both.
    """
    was = saved.settings.get("activation", Config.activation)
    if given.get("activation", was) != was:
        got = f"activation={given['activation']!r} for {folder}"
        raise UsageError(got, f"its network was trained with {was}", "Leave it out.")


def refuse_other_objective(
    saved: SavedDescription, given: Mapping[str, Any], own: Any, folder: str
) -> None:
    """Refuse an objective that reads something else in the saved network's outputs.

    Parameters of the same shapes give the logits of atoms to one objective and quantiles to
    another, and the same logits are other returns on another support.

    Args:
        saved: Of the file; an objective of the caller's own is compared by its class, elsewhere.
        given: The caller's settings.
        own: The caller's own objective, or None; one of an unknown class passes.
        folder: Of the saved policy.

    Raises:
        UsageError: Names the setting, and the saved value.
    """
    chosen = {**given, **_named(own)} if own is not None else given
    if saved.objective is not None or (own is not None and "objective" not in chosen):
        return
    trained = str(_saved(saved, "objective"))
    named = ["objective", *OF_OUTPUTS.get(trained, ())]
    for name in filter(chosen.__contains__, named):
        was, found = _saved(saved, name), python_scalar(chosen[name])
        alike = name == "objective" and {str(was), str(found)} <= set(Q_VALUES)
        if isinstance(found, str | float | int) and found != was and not alike:
            raise UsageError(
                f"{name}={chosen[name]!r} for {folder}",
                f"its network was trained with {name}={was!r}, and its outputs would be taken for "
                "something else",
                "Leave it out, or train anew.",
            )


def _saved(saved: SavedDescription, name: str) -> Any:
    return saved.settings.get(name, getattr(Config, name))


def _named(objective: Any) -> dict[str, Any]:
    """Return an object of a known class as its name, with what says what it reads."""
    for kind, name in NAMES.items():
        if isinstance(objective, kind):
            numbers = {number: getattr(objective, number) for number in OF_OUTPUTS.get(name, ())}
            return {"objective": name, **numbers}
    return {}


def refuse_other_parts(saved: SavedDescription, passed: Mapping[str, str], folder: str) -> None:
    """Refuse an objective or a sampler of another class than the saved one; modules may move.

    Raises:
        CheckpointError: Names both.
    """
    for part in ("objective", "sampler"):
        was, found = getattr(saved, part), passed.get(part)
        trained = f"{folder} was trained with the {part} {was}"
        way_out = f"pass it, DQN.load(folder, {part}=...)"
        if was is not None and found is None:
            message = f"{trained}, and learning goes on without: {way_out}"
            warnings.warn(message, UserWarning, stacklevel=3)
        elif was is not None and was.rpartition(".")[2] != str(found).rpartition(".")[2]:
            raise CheckpointError(f"{trained}, and this is {found}: {way_out}")
