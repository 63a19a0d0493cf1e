"""The other libraries, loaded only where a test asks for them."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Mapping
from types import SimpleNamespace

import pytest

REQUIRE_ORACLES = "FASTDQN_REQUIRE_ORACLES"
"""Set where the libraries are promised: a missing one is a failure then, not a skip."""

TORCHRL = {
    "torchrl.objectives": ("DQNLoss", "DistributionalDQNLoss", "SoftUpdate"),
    "torchrl.modules": ("QValueActor", "DistributionalQValueActor"),
    "torchrl.data": (
        "Categorical",
        "LazyTensorStorage",
        "PrioritizedSampler",
        "TensorDictReplayBuffer",
    ),
}
SB3 = {
    "stable_baselines3.common.buffers": ("ReplayBuffer", "NStepReplayBuffer"),
    "stable_baselines3.common.vec_env": ("DummyVecEnv",),
}
SB3_CONTRIB = {"sb3_contrib.common.utils": ("quantile_huber_loss",)}


def loaded(names: Mapping[str, tuple[str, ...]]) -> SimpleNamespace:
    """Return what modules name; skip the test where one is not installed, or fail it.

    A library that is installed and cannot be loaded fails it in any case.
    """
    found = SimpleNamespace()
    for module, wanted in names.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # theirs, while they are loaded
                library = importlib.import_module(module)
        except ModuleNotFoundError as error:
            message = f"{error}; install '.[oracles]'"
            if os.environ.get(REQUIRE_ORACLES):
                pytest.fail(f"{message}: {REQUIRE_ORACLES} is set", pytrace=False)
            pytest.skip(message)
        for name in wanted:
            setattr(found, name, getattr(library, name))
    return found


@pytest.fixture(scope="session")
def torchrl() -> SimpleNamespace:
    """Losses, networks and buffers of TorchRL."""
    return loaded(TORCHRL)


@pytest.fixture(scope="session")
def sb3() -> SimpleNamespace:
    """Replay buffers of Stable-Baselines3."""
    return loaded(SB3)


@pytest.fixture(scope="session")
def sb3_contrib() -> SimpleNamespace:
    """The quantile loss of sb3-contrib."""
    return loaded(SB3_CONTRIB)
