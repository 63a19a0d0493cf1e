"""Settings of agents that are built and trained in a moment."""

from __future__ import annotations

from typing import Any

__all__ = ["SMALL"]

SMALL: dict[str, Any] = {
    "num_envs": 2,
    "vectorizer": "sync",
    "learning_starts": 40,
    "batch_size": 8,
    "hidden_sizes": (8,),
    "execution": "eager",
    "buffer_size": 1000,
}
