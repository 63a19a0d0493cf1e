"""The policy in a checkpoint: the parameters of the online network, and their description.

A folder of these two files alone is a saved policy, without the state of a training.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fastdqn.checkpoint.layout import DESCRIPTION, MODEL
from fastdqn.checkpoint.tensor_file import TensorFile
from fastdqn.device import available_bytes
from fastdqn.errors import CheckpointError
from fastdqn.foundation.saved_files import parse_json, read_regular

__all__ = ["ONLINE", "SavedPolicy", "most_bytes", "policy_digest", "policy_files", "read_policy"]

SCHEMA = 1
ONLINE = "online"
"""Part of a saved training: the parameters before the last updates of a run."""
MAX_DESCRIPTION_BYTES = 1_000_000
COPIES = 3
"""Of the tensors, at once in memory while they are loaded: the file, its tensors, the network's."""


@dataclass(frozen=True)
class SavedPolicy:
    """A saved policy; see `read_policy`.

    Attributes:
        parameters: Parameters of the online network by name.
        description: Its description; plain JSON values.
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


def policy_files(
    parameters: Mapping[str, Tensor], description: Mapping[str, object]
) -> dict[str, bytes]:
    """Return the contents of the files of a policy, by name.

    Args:
        parameters: By name; copied to the host.
        description: Plain JSON values.
    """
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in parameters.items()}
    content = save(host)  # `save_file` hides the reason of an OSError
    digest = policy_digest(content, description)
    text = json.dumps({**description, "schema": SCHEMA, "sha256": digest}, indent=2)
    return {MODEL: content, DESCRIPTION: f"{text}\n".encode()}


def policy_digest(content: bytes, description: Mapping[str, object]) -> str:
    """Return the sha256 of the file of the parameters, and of what belongs to it."""
    digest = hashlib.sha256(content)
    digest.update(json.dumps(description, sort_keys=True).encode())
    return digest.hexdigest()


def read_policy(folder: Path) -> SavedPolicy:
    """Read the policy of a folder and check it against its description.

    Raises:
        CheckpointError: A file is missing, damaged or of another schema.
    """
    try:
        description = parse_json(read_regular(folder / DESCRIPTION, MAX_DESCRIPTION_BYTES))
        content = read_regular(folder / MODEL, most_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no readable policy: {error}") from error
    schema = description.pop("schema", None) if isinstance(description, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        raise CheckpointError(f"{folder / DESCRIPTION} is not of schema {SCHEMA}")
    if description.pop("sha256", None) != policy_digest(content, description):
        raise CheckpointError(f"{folder} is damaged: its sha256 is not the saved one")
    stream = io.BytesIO(content)
    file = TensorFile(
        lambda part: stream.readinto(part) == len(part), len(content), f"{folder / MODEL}"
    )
    return SavedPolicy(file.read(), description, folder)


def most_bytes() -> int:
    """Return how large a file of tensors may be that is read whole."""
    return available_bytes(torch.device("cpu")) // COPIES


def _shape(name: str, named: Mapping[str, Tensor]) -> str:
    if name not in named:
        return "missing"
    tensor = named[name]
    dtype = "" if tensor.dtype == torch.float32 else f" and {tensor.dtype}".replace("torch.", "")
    return f"of shape {tuple(tensor.shape)}{dtype}"


def _as_finite(there: Tensor, here: Tensor) -> bool:
    return bool((torch.isfinite(there) | (there == here.to(there.device))).all())
