"""The best policy of a run, on disk: checkpoints/best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdqn.errors import CheckpointError
from fastdqn.foundation.policy_folders import CHECKPOINTS, has_best
from fastdqn.foundation.saved_files import without_nan
from fastdqn.training.checkpoint import load_best, save_best
from fastdqn.training.events import BestPolicy

__all__ = ["BestPolicyFolder", "Unsaved"]

Unsaved = tuple[dict[str, Tensor], dict[str, Any]]
"""A best policy that a full disk refused: its tensors by name, and its description."""

KEY = "evaluation"
"""Of the description; its value holds the fields of a BestPolicy."""


class BestPolicyFolder:
    """Saves the best policy; what a full disk refuses is kept, and written when there is room.

    Args:
        run_dir: The run's folder.
        parameters: Returns the tensors of the policy, by name.
        describe: Returns its description, plain JSON values.
        unsaved: What an earlier call of `learn` could not write; or None.

    Attributes:
        unsaved: The best policy, if it waits for room; or None.
    """

    def __init__(
        self,
        run_dir: Path,
        parameters: Callable[[], Mapping[str, Tensor]],
        describe: Callable[[], Mapping[str, Any]],
        unsaved: Unsaved | None = None,
    ) -> None:
        self._run_dir, self._parameters, self._describe = run_dir, parameters, describe
        self.unsaved = unsaved

    def save(self, best: BestPolicy) -> None:
        """Save the policy of this moment, which is the best one.

        Raises:
            OSError: It cannot be written; a copy waits for `flush`.
        """
        evaluated = {"env_steps": best.env_step, KEY: without_nan(asdict(best))}
        description = {**self._describe(), **evaluated}
        self.unsaved = None
        try:
            save_best(self._run_dir / CHECKPOINTS, self._parameters(), description)
        except OSError:
            copies = {
                name: tensor.to("cpu", copy=True) for name, tensor in self._parameters().items()
            }
            self.unsaved = copies, description
            raise

    def flush(self) -> None:
        """Save the best policy, if it could not be saved before.

        Raises:
            OSError: It still cannot be written.
        """
        if self.unsaved is not None:
            save_best(self._run_dir / CHECKPOINTS, *self.unsaved)
            self.unsaved = None

    def read(self) -> BestPolicy | None:
        """Return what an earlier call of `learn` found; None if it saved no best policy.

        Raises:
            CheckpointError: It cannot be read.
        """
        if self.unsaved is not None:
            return _best_in(self.unsaved[1].get(KEY), "the best policy that waits for room")
        if not has_best(self._run_dir):
            return None
        saved = load_best(self._run_dir)
        return _best_in(saved.description.get(KEY), str(saved.folder))


def _best_in(evaluation: Any, folder: str) -> BestPolicy:
    found: dict[str, Any] = evaluation if isinstance(evaluation, dict) else {}
    values: list[Any] = [found.get(field.name) for field in fields(BestPolicy)]
    env_step, mean, std, episodes = values
    counts = type(env_step) is type(episodes) is int
    if not counts or type(mean) is not float or type(std) not in {float, type(None)}:
        raise CheckpointError(f"{folder} says of no evaluation that made it the best policy")
    return BestPolicy(env_step, mean, math.nan if std is None else std, episodes)
