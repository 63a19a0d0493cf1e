"""Environments on the device, with tensors instead of arrays.

This room loads PyTorch, so modules of worker processes must not import it.
"""

from fastdqn.envs.tensor.acrobot import Acrobot
from fastdqn.envs.tensor.cartpole import CartPole
from fastdqn.envs.tensor.mountain_car import MountainCar
from fastdqn.envs.tensor.protocol import PureTensorEnv, TensorEnv, TensorStep
from fastdqn.envs.tensor.registry import TENSOR_ENVS, make_tensor_env

__all__ = [
    "TENSOR_ENVS",
    "Acrobot",
    "CartPole",
    "MountainCar",
    "PureTensorEnv",
    "TensorEnv",
    "TensorStep",
    "make_tensor_env",
]
