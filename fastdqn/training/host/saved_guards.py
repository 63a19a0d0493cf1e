"""What a training saves of the guards of its environments, and what it has counted by them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from fastdqn.foundation.state import PartState
from fastdqn.training.host.guard import Guard
from fastdqn.training.nonfinite import Tally

__all__ = ["SavedGuards", "spoiled_in"]


def spoiled_in(state: PartState, num_envs: int) -> npt.NDArray[np.bool_]:
    """Return of a state of `SavedGuards` [N] bool, whose next row is no transition."""
    like = torch.empty(num_envs, dtype=torch.bool, device="meta")
    found = state.tensor("spoiled", like).cpu().contiguous()
    spoiled: npt.NDArray[np.bool_] = found.view(torch.uint8).numpy() != 0  # whatever the bytes
    return spoiled


class SavedGuards:
    """State of the guards of N environments, which count together.

    Args:
        guards: One for each group, in the order of the groups.
        tally: Their counts.
    """

    def __init__(self, guards: Sequence[Guard], tally: Tally) -> None:
        self._guards, self._tally = guards, tally

    def state(self) -> PartState:
        """Return the counts, and what is not over yet; copies."""
        spoiled = np.concatenate([guard.spoiled for guard in self._guards])
        tensors = {"spoiled": torch.from_numpy(spoiled)}
        returns = [guard.returns for guard in self._guards if guard.returns is not None]
        if returns:
            tensors["returns"] = torch.from_numpy(np.concatenate(returns))
        return PartState(self._tally.state().values, tensors)

    def restore(self, state: PartState) -> None:
        """Go on from a state of as many environments and guards of the same kind.

        Raises:
            CheckpointError: Names a value that is missing or cannot be.
        """
        num_envs = sum(len(guard.spoiled) for guard in self._guards)
        spoiled = spoiled_in(state, num_envs)
        returns = np.zeros(num_envs)
        if any(guard.returns is not None for guard in self._guards):
            returns = state.finite("returns", torch.from_numpy(returns)).cpu().numpy()
        if spoiled.any() and not self._guards[0].skips:
            raise state.refusal("spoiled", "true somewhere, and nothing is skipped")
        self._tally.restore(state)
        for guard in self._guards:
            own = slice(guard.first_env, guard.first_env + len(guard.spoiled))
            guard.go_on_from(spoiled[own], returns[own])
