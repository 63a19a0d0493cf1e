"""The best policy of a run, on disk: checkpoints/best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdqn.errors import CheckpointError
from fastdqn.foundation.saved_files import without_nan
from fastdqn.training.checkpoint import BEST, CHECKPOINTS, load_best, save_best
from fastdqn.training.events import BestPolicy

__all__ = ["BestPolicyFolder"]

KEY = "evaluation"
"""Of the description; its value holds the fields of a BestPolicy."""


class BestPolicyFolder:
    """Saves the best policy; what a full disk refuses is kept, and written when there is room.

    Args:
        run_dir: The run's folder.
        parameters: Returns the tensors of the policy, by name.
        describe: Returns its description, plain JSON values.
    """

    def __init__(
        self,
        run_dir: Path,
        parameters: Callable[[], Mapping[str, Tensor]],
        describe: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._run_dir, self._parameters, self._describe = run_dir, parameters, describe
        self._unsaved: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def save(self, best: BestPolicy) -> None:
        """Save the policy of this moment, which is the best one.

        Raises:
            OSError: It cannot be written; a copy waits for `flush`.
        """
        evaluated = {"env_steps": best.env_step, KEY: without_nan(asdict(best))}
        description = {**self._describe(), **evaluated}
        self._unsaved = None
        try:
            save_best(self._run_dir / CHECKPOINTS, self._parameters(), description)
        except OSError:
            copies = {
                name: tensor.to("cpu", copy=True) for name, tensor in self._parameters().items()
            }
            self._unsaved = copies, description
            raise

    def flush(self) -> None:
        """Save the best policy, if it could not be saved before.

        Raises:
            OSError: It still cannot be written.
        """
        if self._unsaved is not None:
            save_best(self._run_dir / CHECKPOINTS, *self._unsaved)
            self._unsaved = None

    def read(self) -> BestPolicy | None:
        """Return what an earlier call of `learn` found; None if it saved no best policy.

        Raises:
            CheckpointError: It cannot be read.
        """
        if not (self._run_dir / CHECKPOINTS / BEST).exists():
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
