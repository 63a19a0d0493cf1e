"""A saved policy: tensors in safetensors, the rest in JSON; whole or absent, never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from fastdqn.errors import CheckpointError

__all__ = ["SavedPolicy", "load_policy", "newest_checkpoint", "save_checkpoint", "save_policy"]

SCHEMA = 1
TENSORS, DESCRIPTION = "model.safetensors", "policy.json"
KEEP_LAST = 3


@dataclass(frozen=True)
class SavedPolicy:
    """What `load_policy` returns.

    Attributes:
        parameters: Parameters of the online network by name.
        description: What `save_policy` was told about them.
        folder: Where they lay.
    """

    parameters: dict[str, Tensor]
    description: dict[str, Any]
    folder: Path


def save_policy(
    folder: Path, parameters: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Write a policy so that a crash at any moment leaves the old folder or the new one.

    Args:
        folder: Its place; a policy that lies there is replaced.
        parameters: By name; copied to the host.
        description: Plain JSON values.

    Raises:
        OSError: The disk is full or the place cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        host = {name: tensor.detach().cpu().contiguous() for name, tensor in parameters.items()}
        save_file(host, draft / TENSORS)
        digest = hashlib.sha256((draft / TENSORS).read_bytes()).hexdigest()
        text = json.dumps({"schema": SCHEMA, "sha256": digest, **description}, indent=2)
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
    description: Mapping[str, Any],
) -> Path:
    """Save a policy as `step-<12 digits>` and delete all but the newest few.

    Returns:
        The folder of the saved policy.
    """
    folder = checkpoints / f"step-{env_steps:012d}"
    save_policy(folder, parameters, description)
    for old in _steps(checkpoints)[:-KEEP_LAST]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_policy(folder: Path) -> SavedPolicy:
    """Read a saved policy and check it against its description.

    Raises:
        CheckpointError: A file is missing, damaged or of another schema.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        content = (folder / TENSORS).read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no readable policy: {error}") from error
    if not isinstance(description, dict) or description.get("schema") != SCHEMA:
        raise CheckpointError(f"{folder / DESCRIPTION} is not of schema {SCHEMA}")
    if hashlib.sha256(content).hexdigest() != description.get("sha256"):
        raise CheckpointError(f"{folder / TENSORS} is damaged: its sha256 is not the saved one")
    try:
        return SavedPolicy(load(content), description, folder)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / TENSORS} cannot be read: {error}") from error


def newest_checkpoint(run_dir: Path) -> SavedPolicy:
    """Load the newest policy of a run that can be read.

    Raises:
        CheckpointError: There is none; says what is wrong with each.
    """
    reasons = []
    for folder in reversed(_steps(run_dir / "checkpoints")):
        try:
            return load_policy(folder)
        except CheckpointError as error:
            reasons.append(str(error))
    detail = "; ".join(reasons) or "there is no checkpoints/step-*"
    raise CheckpointError(f"{run_dir} holds no saved policy: {detail}")


def _steps(checkpoints: Path) -> list[Path]:
    return sorted(path for path in checkpoints.glob("step-" + "[0-9]" * 12) if path.is_dir())


def _replace(draft: Path, folder: Path) -> None:
    """Put the draft in the folder's place; a full folder cannot be replaced in one step."""
    if folder.exists():
        old = folder.with_name(f".old-{folder.name}-{os.getpid()}")
        folder.rename(old)
        draft.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        draft.rename(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
