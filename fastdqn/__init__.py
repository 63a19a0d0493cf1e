"""fastdqn: fast, exact deep Q-learning on any Gymnasium environment with discrete actions.

Names are imported when they are first used, so that worker processes and `--help` do not pay
for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdqn.agent.dqn import DQN
    from fastdqn.algorithms.distributional import C51Objective
    from fastdqn.algorithms.munchausen import MunchausenObjective
    from fastdqn.algorithms.objectives import DoubleDQNObjective, DQNObjective, Objective, Pass
    from fastdqn.algorithms.optimizers import Adam, AdamW, RMSprop
    from fastdqn.algorithms.quantiles import IQNObjective, QRObjective
    from fastdqn.algorithms.td_losses import (
        double_dqn_target,
        dqn_target,
        huber_loss,
        mse_loss,
        soft_update_,
        td_error,
    )
    from fastdqn.config import Config
    from fastdqn.envs.grouped import GroupedVectorEnv
    from fastdqn.envs.tensor import PureTensorEnv, TensorEnv, TensorStep, make_tensor_env
    from fastdqn.envs.workers.supervision import Supervision
    from fastdqn.errors import (
        CheckpointError,
        FastDQNError,
        NonFiniteError,
        UsageError,
        WorkerError,
    )
    from fastdqn.learner.learner import Learner
    from fastdqn.networks.iqn import IQN
    from fastdqn.networks.mlp import MLP
    from fastdqn.policies.policy import epsilon_greedy
    from fastdqn.presets import PRESETS
    from fastdqn.replay import (
        PrioritizedSampler,
        ReplayBuffer,
        Sampler,
        UniformSampler,
        gather,
        uniform_of,
    )
    from fastdqn.training.callbacks import Callback
    from fastdqn.training.evaluation import Evaluation
    from fastdqn.training.schedules import Constant, Exponential, Linear, Multiplicative
    from fastdqn.transition import Transitions

__version__ = "0.1.0"

_HOMES = {
    "fastdqn.agent.dqn": ("DQN",),
    "fastdqn.config": ("Config",),
    "fastdqn.envs.grouped": ("GroupedVectorEnv",),
    "fastdqn.envs.workers.supervision": ("Supervision",),
    "fastdqn.envs.tensor": ("PureTensorEnv", "TensorEnv", "TensorStep", "make_tensor_env"),
    "fastdqn.errors": (
        "CheckpointError",
        "FastDQNError",
        "NonFiniteError",
        "UsageError",
        "WorkerError",
    ),
    "fastdqn.training.callbacks": ("Callback",),
    "fastdqn.training.evaluation": ("Evaluation",),
    "fastdqn.learner.learner": ("Learner",),
    "fastdqn.algorithms.td_losses": (
        "double_dqn_target",
        "dqn_target",
        "huber_loss",
        "mse_loss",
        "soft_update_",
        "td_error",
    ),
    "fastdqn.networks.mlp": ("MLP",),
    "fastdqn.networks.iqn": ("IQN",),
    "fastdqn.algorithms.distributional": ("C51Objective",),
    "fastdqn.algorithms.munchausen": ("MunchausenObjective",),
    "fastdqn.algorithms.quantiles": ("IQNObjective", "QRObjective"),
    "fastdqn.algorithms.objectives": ("DQNObjective", "DoubleDQNObjective", "Objective", "Pass"),
    "fastdqn.algorithms.optimizers": ("Adam", "AdamW", "RMSprop"),
    "fastdqn.policies.policy": ("epsilon_greedy",),
    "fastdqn.presets": ("PRESETS",),
    "fastdqn.replay": (
        *("PrioritizedSampler", "ReplayBuffer", "Sampler", "UniformSampler"),
        *("gather", "uniform_of"),
    ),
    "fastdqn.training.schedules": ("Constant", "Exponential", "Linear", "Multiplicative"),
    "fastdqn.transition": ("Transitions",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "DQN",
    "IQN",
    "MLP",
    "PRESETS",
    "Adam",
    "AdamW",
    "C51Objective",
    "Callback",
    "CheckpointError",
    "Config",
    "Constant",
    "DQNObjective",
    "DoubleDQNObjective",
    "Evaluation",
    "Exponential",
    "FastDQNError",
    "GroupedVectorEnv",
    "IQNObjective",
    "Learner",
    "Linear",
    "Multiplicative",
    "MunchausenObjective",
    "NonFiniteError",
    "Objective",
    "Pass",
    "PrioritizedSampler",
    "PureTensorEnv",
    "QRObjective",
    "RMSprop",
    "ReplayBuffer",
    "Sampler",
    "Supervision",
    "TensorEnv",
    "TensorStep",
    "Transitions",
    "UniformSampler",
    "UsageError",
    "WorkerError",
    "__version__",
    "double_dqn_target",
    "dqn_target",
    "epsilon_greedy",
    "gather",
    "huber_loss",
    "make_tensor_env",
    "mse_loss",
    "soft_update_",
    "td_error",
    "uniform_of",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module at its first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
