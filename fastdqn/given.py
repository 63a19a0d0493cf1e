"""What the caller gave: named for config.json, and told or refused where it has no effect."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fastdqn.config import Config
from fastdqn.errors import UsageError

__all__ = ["folder_of", "name_of", "refuse_second_id", "refuse_unwritten", "without_effect"]

OF_BUILT_ENVS = ("num_workers", "vectorizer", "worker_deadline_s", "max_worker_restarts")
"""Settings of how environments are built and hosted."""
OF_THE_MLP = ("hidden_sizes", "kaiming")


def name_of(thing: Any) -> str:
    """Return what config.json calls an object of the caller: its id, or where its code lies."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, partial):
        return f"partial of {name_of(thing.func)}"
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def refuse_second_id(given: Collection[str]) -> None:
    """Refuse an id beside the environment itself.

    Raises:
        UsageError: It is among the settings that the caller named.
    """
    if "env_id" in given:
        raise UsageError("env_id", "the first argument names the environment", "Leave it out.")


def without_effect(
    given: Mapping[str, Any], fixed: Mapping[str, Any], *, builds: bool, own_network: bool
) -> list[str]:
    """Name the settings that what was given beside them leaves without effect, and why.

    Args:
        given: The settings that the caller named.
        fixed: Settings that the environments decide.
        builds: Whether environments are built here and not by the caller.
        own_network: Whether the network is the caller's.
    """
    others = [name for name in OF_BUILT_ENVS if name in given and not builds]
    differing = [name for name, value in fixed.items() if given.get(name, value) != value]
    of_the_mlp = [name for name in OF_THE_MLP if name in given and own_network]
    reasons = {
        **dict.fromkeys(others + differing, "the environments are the caller's"),
        **dict.fromkeys(of_the_mlp, "the network is the caller's"),
    }
    return [f"{name}={given[name]!r} ({reason})" for name, reason in reasons.items()]


def refuse_unwritten(given: Collection[str], config: Config) -> None:
    """Refuse settings of a run directory where there is none.

    Args:
        given: Names of the settings that the caller named.
        config: All settings.

    Raises:
        UsageError: Names the first of them.
    """
    whole = "run_dir" in given  # a whole Config: what it holds was not chosen one by one
    chosen = {
        "tensorboard": config.tensorboard,
        "checkpoint_interval": config.checkpoint_interval != Config.checkpoint_interval
        or not whole,
        "quiet": not config.quiet and not whole,
    }
    for name, asks in chosen.items():
        if asks and name in given:
            raise UsageError(
                f"{name}={getattr(config, name)!r} without a run directory",
                "there is no folder to write to, and without one nothing is shown",
                'Pass run_dir="runs/NAME" to DQN or to learn, or leave it out.',
            )


def folder_of(run_dir: Any) -> Path | None:
    """Return the folder that the caller names; None where there is none.

    Raises:
        UsageError: It is no path.
    """
    if run_dir is None:
        return None
    if not isinstance(run_dir, str | os.PathLike) or not str(run_dir):
        raise UsageError(f"run_dir={run_dir!r}", "it is no path", 'Try run_dir="runs/NAME".')
    return Path(run_dir)
