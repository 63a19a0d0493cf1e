"""Replay: the ring of transitions on the device."""

from fastdqn.replay.buffer import ReplayBuffer
from fastdqn.replay.sampler import Sampler
from fastdqn.replay.sizes import ring_bytes
from fastdqn.replay.storage import Ring, gather

__all__ = ["ReplayBuffer", "Ring", "Sampler", "gather", "ring_bytes"]
