"""Whether a folder holds a whole training, and whether an agent can go on with it."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from pathlib import Path

from fastdqn.agent.loading import Restored
from fastdqn.checkpoint.layout import STATE, steps
from fastdqn.checkpoint.reader import SavedTraining, newest_training
from fastdqn.checkpoint.saved_policy import ONLINE
from fastdqn.config import Config
from fastdqn.errors import CheckpointError, UsageError
from fastdqn.foundation.changed_settings import MAY_CHANGE
from fastdqn.foundation.policy_folders import CHECKPOINTS, kept
from fastdqn.training.checkpoint import SavedPolicy

__all__ = ["goes_on", "holds_training", "training_in"]

OF_THE_ENV = {"env_id", "env_kwargs", "wrapper"}
"""Settings that say how environments are made, which a factory does as well."""
POLICY_ALONE = "DQN.load(folder, training=False) loads the newest policy that is whole"


def training_in(
    saved: str | Path | SavedPolicy, policy: str, *, asked: bool | None
) -> SavedTraining | None:
    """Read the newest whole training of a folder, or of a run; None for a policy alone.

    A UserWarning names newer checkpoints that were skipped, since the policy is an older one, too.

    Args:
        saved: The folder, or a policy that was read from one.
        policy: `best` or `last`; which one of a run.
        asked: Whether the caller asked for it; None takes it where there is one.

    Raises:
        CheckpointError: One was asked for, or is there, and cannot be read.
        UsageError: One was asked for of a policy that has none.
    """
    if asked is False:
        return None
    if isinstance(saved, SavedPolicy) or policy != "last":
        if asked:
            reason = "only the newest policy of a folder may have a training"
            raise UsageError("training=True", reason, "Pass the folder, and policy='last'.")
        return None
    path = Path(saved).absolute()
    if not asked and not holds_training(path):
        return None
    try:
        training = newest_training(path)
    except CheckpointError as error:
        raise error if asked else CheckpointError(f"{error}. {POLICY_ALONE}") from error
    if ONLINE in training.state.values and not asked:
        return None  # its policy has made the last updates, which the training has yet to make
    if training.skipped:
        skipped = "; ".join(training.skipped)
        loaded = f"{training.folder.name} is loaded, and not a newer one"
        warnings.warn(f"{loaded}: {skipped}. {POLICY_ALONE}.", stacklevel=3)
    return replace(training, policy=replace(training.policy, skipped=training.skipped))


def holds_training(folder: Path) -> bool:
    """Return whether a checkpoint, or one of a run, has the files of a whole training."""
    inner = folder / CHECKPOINTS
    folders = steps(inner) if inner.is_dir() else [kept(folder)]
    return any((each / STATE).exists() for each in folders)


def goes_on(config: Config, restored: Restored, *, asked: bool | None) -> bool:
    """Return whether an agent has the settings that a training was saved with, but `MAY_CHANGE`.

    Args:
        config: Of the agent.
        restored: What was saved, and where its environment comes from.
        asked: See `training_in`.

    Raises:
        UsageError: It was asked for, and a setting is another one.
    """
    free = MAY_CHANGE | {"run_dir", "preset"} | (OF_THE_ENV if restored.from_file else set())
    saved = restored.saved.settings
    for name in (field.name for field in fields(Config)):
        now = getattr(config, name)
        if name in free or now == saved.get(name, now):
            continue
        if asked:
            got = f"{name}={now!r} with training=True"
            reason = f"the training in {restored.folder} was saved with {saved[name]!r}"
            raise UsageError(got, reason, "Leave it out, or pass training=False.")
        return False
    return True
