"""Sampling side by side with TorchRL, whose replay buffer is fastdqn's nearest relative.

TorchRL is no dependency of the project: install it in an environment of its own, and run
`python -m benchmarks --only torchrl` there with this checkout on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict

from benchmarks.random_replay import CAPACITY, NUM_ACTIONS, OBS_SIZE

__all__ = ["has_torchrl", "torchrl_sample"]


def has_torchrl() -> bool:
    """Return whether TorchRL is installed."""
    return importlib.util.find_spec("torchrl") is not None


def torchrl_sample(batch_size: int, device: torch.device) -> Callable[[], Any]:
    """Return the `sample` of a full TorchRL buffer that holds the same fields as fastdqn's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about features that are not used here
        data: Any = importlib.import_module("torchrl.data")
    storage = data.LazyTensorStorage(CAPACITY, device=device)
    buffer = data.TensorDictReplayBuffer(storage=storage, batch_size=batch_size)
    buffer.extend(_transitions(CAPACITY).to(device))
    sample: Callable[[], Any] = buffer.sample
    return sample


def _transitions(count: int) -> TensorDict:
    flags = torch.zeros(2, count, dtype=torch.bool)
    fields = {
        "obs": torch.randn(count, OBS_SIZE),
        "action": torch.randint(NUM_ACTIONS, (count,)),
        "reward": torch.randn(count),
        "next_obs": torch.randn(count, OBS_SIZE),
        "terminated": flags[0],
        "truncated": flags[1],
    }
    return TensorDict(fields, batch_size=[count])
