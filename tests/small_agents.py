"""Settings of agents that are built and trained in a moment."""

from __future__ import annotations

from typing import Any

__all__ = ["OWN_PROCESS", "SMALL"]

SMALL: dict[str, Any] = {
    "num_envs": 2,
    "vectorizer": "sync",
    "learning_starts": 40,
    "batch_size": 8,
    "hidden_sizes": (8,),
    "execution": "eager",
    "buffer_size": 1000,
}
OWN_PROCESS: dict[str, Any] = {
    "num_envs": 2,
    "num_workers": 0,
    "batch_size": 8,
    "buffer_size": 100,
    "learning_starts": 20,
    "hidden_sizes": (8,),
    "execution": "eager",
}
"""With environments of any registered kind, stepped without workers."""
