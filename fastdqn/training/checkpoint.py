"""A saved policy: tensors in safetensors, the rest in JSON; whole or absent, never unpickled."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from fastdqn.checkpoint.disk import sync
from fastdqn.checkpoint.layout import DESCRIPTION, MODEL, foreign_entry, put_in_place, steps
from fastdqn.checkpoint.saved_policy import SavedPolicy, policy_files, read_policy
from fastdqn.errors import CheckpointError, UsageError
from fastdqn.foundation.policy_folders import BEST, CHECKPOINTS, has_best, kept

__all__ = [
    "SavedPolicy",
    "load_best",
    "load_policy",
    "newest_checkpoint",
    "save_best",
    "save_checkpoint",
    "save_policy",
]

KEEP_LAST = 3


def save_policy(
    folder: Path, parameters: Mapping[str, Tensor], description: Mapping[str, object]
) -> None:
    """Write a policy so that a crash at any moment leaves the old folder or the new one.

    Args:
        folder: Its folder; a saved policy in it is replaced.
        parameters: By name; copied to the host.
        description: Plain JSON values.

    Raises:
        OSError: The disk is full or the folder cannot be written.
        UsageError: The folder holds something else than a saved policy.
    """
    folder = folder.absolute()
    if folder.exists() and foreign_entry(folder) is not None:
        raise UsageError(
            f"save to {folder}", "it holds something else than a saved policy", "Choose another."
        )
    try:
        _save_whole(folder, parameters, description)
    except OSError as error:
        reason = f"the policy was not saved: {error.strerror or error}"
        raise OSError(error.errno, reason, str(folder)) from error


def _save_whole(
    folder: Path, parameters: Mapping[str, Tensor], description: Mapping[str, object]
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        for name, content in policy_files(parameters, description).items():
            (draft / name).write_bytes(content)
        for path in (draft / MODEL, draft / DESCRIPTION, draft):
            sync(path)
        put_in_place(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def save_checkpoint(
    checkpoints: Path,
    env_steps: int,
    parameters: Mapping[str, Tensor],
    description: Mapping[str, object],
) -> Path:
    """Save a policy as `step-<12 digits>`, if that is not there, and keep only the newest few.

    Returns:
        The folder of the saved policy.
    """
    folder = checkpoints / f"step-{env_steps:012d}"
    if not folder.exists():
        save_policy(folder, parameters, description)
    for old in steps(checkpoints)[:-KEEP_LAST]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def save_best(
    checkpoints: Path, parameters: Mapping[str, Tensor], description: Mapping[str, object]
) -> None:
    """Save the best policy of a run as `best`, in the place of the one before.

    Raises:
        OSError: The disk is full, or something else lies there.
    """
    try:
        save_policy(checkpoints / BEST, parameters, description)
    except UsageError as error:
        raise OSError(errno.EEXIST, error.reason, str(checkpoints / BEST)) from error


def load_policy(folder: Path, policy: str = "last") -> SavedPolicy:
    """Read a saved policy, or one of a run, and check it against its description.

    Args:
        folder: Of a policy or of a run.
        policy: Of a run: `last`, the newest, or `best`, that with the highest mean of a full
            evaluation.

    Raises:
        CheckpointError: A file is missing, damaged or of another schema, or a run has no best
            policy.
        UsageError: `policy` is neither, or `best` of a folder that holds one policy.
    """
    folder = folder.absolute()
    if policy not in {"best", "last"}:
        raise UsageError(f"policy={policy!r}", "there is no such policy", "Choose best or last.")
    if (folder / CHECKPOINTS).is_dir():
        return newest_checkpoint(folder) if policy == "last" else load_best(folder)
    if policy == "best":
        raise UsageError(
            f"the best policy of {folder}",
            "it is no folder of a run, which has a best and a last policy",
            "Name the folder of the run, or leave the choice out.",
        )
    return read_policy(kept(folder))


def load_best(run_dir: Path) -> SavedPolicy:
    """Load the best policy of a run.

    Raises:
        CheckpointError: It has none, or one that cannot be read.
    """
    if not has_best(run_dir):
        raise CheckpointError(
            f"{run_dir} holds no best policy: no full evaluation of a policy was played. "
            "Its last policy, --policy last, may be there; --eval-interval and --eval-episodes of "
            "fastdqn train say when policies are evaluated."
        )
    return read_policy(kept(run_dir / CHECKPOINTS / BEST))


def newest_checkpoint(run_dir: Path) -> SavedPolicy:
    """Load the newest policy of a run that can be read; `skipped` says why newer ones cannot.

    Raises:
        CheckpointError: There is none; the message says what is wrong with each.
    """
    reasons: list[str] = []
    for folder in reversed(steps(run_dir / CHECKPOINTS)):
        try:
            return replace(read_policy(folder), skipped=tuple(reasons))
        except CheckpointError as error:
            reasons.append(str(error))
    detail = "; ".join(reasons) or "there is no checkpoints/step-*"
    if has_best(run_dir):
        detail += ". It holds a best policy: --policy best, or DQN.load(folder, policy='best')"
    raise CheckpointError(f"{run_dir} holds no saved policy: {detail}")
