"""Replay: the ring of transitions on the device."""

from fastdqn.replay.buffer import ReplayBuffer
from fastdqn.replay.prioritized import PrioritizedSampler
from fastdqn.replay.sampler import NewestSampler, Sampler, UniformSampler, uniform_of
from fastdqn.replay.sizes import ring_bytes
from fastdqn.replay.storage import Ring, gather

__all__ = [
    "NewestSampler",
    "PrioritizedSampler",
    "ReplayBuffer",
    "Ring",
    "Sampler",
    "UniformSampler",
    "gather",
    "ring_bytes",
    "uniform_of",
]
