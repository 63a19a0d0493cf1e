"""A saved policy: tensors in safetensors, the rest in JSON; whole or absent, never unpickled."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fastdqn.device import available_bytes
from fastdqn.errors import CheckpointError, UsageError
from fastdqn.foundation.policy_folders import BEST, CHECKPOINTS, aside, has_best, kept
from fastdqn.foundation.saved_files import parse_json, read_regular

__all__ = [
    "SavedPolicy",
    "load_best",
    "load_policy",
    "newest_checkpoint",
    "save_best",
    "save_checkpoint",
    "save_policy",
]

SCHEMA = 1
TENSORS, DESCRIPTION = "model.safetensors", "policy.json"
KEEP_LAST = 3
MAX_DESCRIPTION_BYTES = 1_000_000
COPIES = 3
"""Of the tensors, at once in memory while they are loaded: the file, its tensors, the network's."""


@dataclass(frozen=True)
class SavedPolicy:
    """A saved policy; see `load_policy`.

    Attributes:
        parameters: Parameters of the online network by name.
        description: Its description; see `save_policy`.
        folder: Its folder.
        skipped: Why newer policies could not be read.
    """

    parameters: dict[str, Tensor]
    description: dict[str, Any]
    folder: Path
    skipped: tuple[str, ...] = ()

    def copy_into(self, parameters: Mapping[str, Tensor]) -> None:
        """Copy the parameters into those of a network, in place.

        Raises:
            CheckpointError: Names, shapes or dtypes differ, or a number is not finite where the
                network's is; nothing is written.
        """
        for name in sorted(parameters.keys() | self.parameters.keys()):
            here, there = (_shape(name, named) for named in (parameters, self.parameters))
            if here != there:
                raise CheckpointError(
                    f"{self.folder} holds the parameters of another network: its {name} is "
                    f"{there}, this network's is {here}. "
                    "Load with the network that was saved: DQN.load(path, network=...)."
                )
            if not _as_finite(self.parameters[name], parameters[name]):
                raise CheckpointError(
                    f"{self.folder}: its {name} holds a number that is not finite"
                )
        for name, tensor in self.parameters.items():
            parameters[name].copy_(tensor)


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
    folder, ours = folder.absolute(), {TENSORS, DESCRIPTION}
    if folder.exists() and not (folder.is_dir() and {p.name for p in folder.iterdir()} <= ours):
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
        host = {name: tensor.detach().cpu().contiguous() for name, tensor in parameters.items()}
        content = save(host)  # `save_file` hides the reason of an OSError
        (draft / TENSORS).write_bytes(content)
        digest = _digest(content, description)
        text = json.dumps({**description, "schema": SCHEMA, "sha256": digest}, indent=2)
        (draft / DESCRIPTION).write_text(text + "\n")
        for path in (draft / TENSORS, draft / DESCRIPTION, draft):
            _sync(path)
        _replace(draft, folder)
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
    for old in _steps(checkpoints)[:-KEEP_LAST]:
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
    return _read(kept(folder))


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
    return _read(kept(run_dir / CHECKPOINTS / BEST))


def _read(folder: Path) -> SavedPolicy:
    try:
        description = parse_json(read_regular(folder / DESCRIPTION, MAX_DESCRIPTION_BYTES))
        most = available_bytes(torch.device("cpu")) // COPIES
        content = read_regular(folder / TENSORS, most)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no readable policy: {error}") from error
    schema = description.pop("schema", None) if isinstance(description, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        raise CheckpointError(f"{folder / DESCRIPTION} is not of schema {SCHEMA}")
    if description.pop("sha256", None) != _digest(content, description):
        raise CheckpointError(f"{folder} is damaged: its sha256 is not the saved one")
    try:
        return SavedPolicy(load(content), description, folder)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / TENSORS} cannot be read: {error}") from error


def newest_checkpoint(run_dir: Path) -> SavedPolicy:
    """Load the newest policy of a run that can be read; `skipped` says why newer ones cannot.

    Raises:
        CheckpointError: There is none; the message says what is wrong with each.
    """
    reasons: list[str] = []
    for folder in reversed(_steps(run_dir / CHECKPOINTS)):
        try:
            return replace(_read(folder), skipped=tuple(reasons))
        except CheckpointError as error:
            reasons.append(str(error))
    detail = "; ".join(reasons) or "there is no checkpoints/step-*"
    if has_best(run_dir):
        detail += ". It holds a best policy: --policy best, or DQN.load(folder, policy='best')"
    raise CheckpointError(f"{run_dir} holds no saved policy: {detail}")


def _digest(content: bytes, description: Mapping[str, object]) -> str:
    digest = hashlib.sha256(content)
    digest.update(json.dumps(description, sort_keys=True).encode())
    return digest.hexdigest()


def _steps(checkpoints: Path) -> list[Path]:
    found = checkpoints.glob("step-" + "[0-9]" * 12)
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def _replace(draft: Path, folder: Path) -> None:
    """Move the draft to the folder; the old folder is moved aside until that is done."""
    old = aside(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    try:
        draft.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _shape(name: str, named: Mapping[str, Tensor]) -> str:
    if name not in named:
        return "missing"
    tensor = named[name]
    dtype = "" if tensor.dtype == torch.float32 else f" and {tensor.dtype}".replace("torch.", "")
    return f"of shape {tuple(tensor.shape)}{dtype}"


def _as_finite(there: Tensor, here: Tensor) -> bool:
    return bool((torch.isfinite(there) | (there == here.to(there.device))).all())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
