"""Replay: the ring of transitions on the device."""

from fastdqn.replay.ring import ReplayBuffer, Ring, gather
from fastdqn.replay.sizes import ring_bytes

__all__ = ["ReplayBuffer", "Ring", "gather", "ring_bytes"]
