"""The caller's arguments: their names for config.json, and refusals of those without effect."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fastdqn.config import Config, of_epsilon, refuse_epsilon, settled
from fastdqn.errors import UsageError
from fastdqn.foundation.idle_settings import idle_in
from fastdqn.foundation.objective_checks import ARGUMENTS
from fastdqn.networks.mlp_options import OPTIONS
from fastdqn.presets import preset_config

__all__ = [
    "apart",
    "arguments_of",
    "chosen_in",
    "decided_by",
    "fitting",
    "folder_of",
    "name_of",
    "origin_of",
    "refuse_decided",
    "refuse_unevaluated",
    "refuse_unwritten",
    "warn_without_effect",
    "without_run_directory",
]

OF_BUILT_ENVS = (
    *("num_workers", "vectorizer", "worker_deadline_s", "max_worker_restarts"),
    *("restore_episodes", "restore_limit_s"),
)
"""Settings that say how environments are built and stepped."""
OF_ENVS = ("num_envs", "env_groups")
"""Settings that environments of the caller decide."""
OF_THE_MLP = ("hidden_sizes", *OPTIONS)
OF_THE_SAMPLER = "replay priority_alpha priority_beta_start priority_beta_end priority_eps"
OF_THE_OBJECTIVE = ("objective", *ARGUMENTS)
OF_PARTS = {"objective": OF_THE_OBJECTIVE, "sampler": tuple(OF_THE_SAMPLER.split())}
"""Part of the caller's own -> settings that it decides."""
OF_CHECKPOINTS = ("checkpoint_interval", "checkpoint_every")
OF_SAVED_TRAININGS = ("keep_last", "save_replay")
OF_A_RUN_DIRECTORY = ("run_dir", "tensorboard", *OF_CHECKPOINTS, *OF_SAVED_TRAININGS, "quiet")


def origin_of(env: Any, env_id: str, **parts: Any) -> dict[str, str]:
    """Return names of the caller's environment and other parts, for config.json.

    Args:
        env: The `env` of the agent; one that a file named is called by its id.
        env_id: The environment's id.
        parts: By name; None is not of the caller's own.
    """
    from_file = isinstance(env, partial) and env.func.__module__.startswith("fastdqn.")
    named = {"environment": env_id if from_file else env, **parts}
    return {name: name_of(part) for name, part in named.items() if part is not None}


def name_of(thing: Any) -> str:
    """Return an id, or the module and name of an object."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, partial):
        return f"partial of {name_of(thing.func)}"
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def apart(objective: Any, settings: Mapping[str, Any]) -> tuple[Any | None, dict[str, Any]]:
    """Return an objective of the caller's own, or None, and the settings with one that is named."""
    if isinstance(objective, str):
        return None, {**settings, "objective": str(objective)}
    return objective, dict(settings)


def decided_by(**parts: Any) -> dict[str, str]:
    """Return the settings that parts of the caller's own decide, each with the part's name.

    Args:
        parts: `objective` and `sampler`; None is not of the caller's own.
    """
    return {name: part for part in OF_PARTS if parts[part] is not None for name in OF_PARTS[part]}


def refuse_decided(settings: Mapping[str, Any], **parts: Any) -> None:
    """Refuse settings beside the environment or another part that decides them.

    Args:
        settings: Those that the caller named.
        parts: See `decided_by`.

    Raises:
        UsageError: Names the first of them.
    """
    if "env_id" in settings:
        raise UsageError("env_id", "the first argument names the environment", "Leave it out.")
    for name, part in decided_by(**parts).items():
        if name in settings:
            got = f"{name}={settings[name]!r} beside {part}="
            raise UsageError(got, f"the {part} decides it", "Leave one of them out.")


def warn_without_effect(
    settings: Mapping[str, Any], fixed: Mapping[str, Any], *, builds: bool, own_network: bool
) -> None:
    """Warn of settings without effect, at the line that called the calling function.

    Args:
        settings: The caller's.
        fixed: Settings that the environments decide.
        builds: Whether environments are built here and not by the caller.
        own_network: Whether the network is the caller's.
    """
    others = [name for name in OF_BUILT_ENVS if name in settings and not builds]
    differing = [name for name, value in fixed.items() if settings.get(name, value) != value]
    of_the_mlp = [name for name in OF_THE_MLP if name in settings and own_network]
    reasons = {
        **dict.fromkeys(others + differing, "the environments were built by the caller"),
        **dict.fromkeys(of_the_mlp, "the network was built by the caller"),
    }
    unused = [
        f"{name}={settings[name]!r} ({reason})"
        for name, reason in reasons.items()
        if settings[name] != getattr(Config, name)
    ]
    if unused:
        message = f"settings without effect, leave them out: {', '.join(unused)}"
        warnings.warn(message, UserWarning, stacklevel=3)


def fitting(
    saved: Mapping[str, Any],
    named: Collection[str],
    *,
    builds: bool,
    own_network: bool,
    others: Collection[str] = (),
) -> dict[str, Any]:
    """Return settings without the saved ones that the caller's environments or settings override.

    Args:
        saved: Settings of a file, overridden by those of the caller.
        named: Names of the caller's settings.
        builds: Whether environments are built here and not by the caller.
        own_network: Whether the network is the caller's.
        others: Settings that other parts of the caller's own decide.
    """
    of_envs = () if builds else (*OF_BUILT_ENVS, *OF_ENVS, "eval_interval")
    decided = {*of_envs, *(OF_THE_MLP if own_network else ()), *others}
    if saved.get("noisy") and not own_network:
        decided |= set(filter(of_epsilon, saved))
    decided |= idle_in(Config, saved)
    return {name: value for name, value in saved.items() if name in named or name not in decided}


def refuse_unevaluated(named: Collection[str], config: Config, *, builds: bool) -> None:
    """Refuse evaluations that the caller asked for where no fresh environments can be built.

    Args:
        named: Names of the caller's settings.
        config: All settings.
        builds: Whether environments are built here and not by the caller.

    Raises:
        UsageError: Names the interval.
    """
    if "eval_interval" in named and config.eval_interval and not builds:
        raise UsageError(
            f"eval_interval={config.eval_interval} with environments that the caller built",
            "evaluations need fresh environments and cannot build them",
            "Pass an environment id or a factory, or leave it out.",
        )


def refuse_unwritten(named: Collection[str], config: Config, *, has_callback: bool = False) -> None:
    """Refuse settings that need a run directory where there is none.

    Args:
        named: Names of the caller's settings.
        config: All settings.
        has_callback: Whether a callback handles checkpoints and reports.

    Raises:
        UsageError: One is set; names the first.
    """
    asks = {
        "tensorboard": config.tensorboard,
        **dict.fromkeys(OF_CHECKPOINTS, not has_callback),
        **dict.fromkeys(OF_SAVED_TRAININGS, True),
        "quiet": not config.quiet and not has_callback,
    }
    for name, asked in asks.items():
        if asked and name in named:
            raise UsageError(
                f"{name}={getattr(config, name)!r} without a run directory",
                "there is no folder to write to, and without one nothing is shown",
                'Pass run_dir="runs/NAME" to DQN or to learn, or leave it out.',
            )


def without_run_directory(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the caller's settings without those of a run directory."""
    return {name: value for name, value in settings.items() if name not in OF_A_RUN_DIRECTORY}


def arguments_of(config: Config) -> dict[str, Any]:
    """Return the settings of a Config as arguments of `DQN`, without the environment's id.

    Epsilon is left out beside a noisy network, which may have that of a preset, or 0.

    Raises:
        UsageError: It is another one.
    """
    settings = {name: value for name, value in vars(config).items() if name != "env_id"}
    if not config.noisy:
        return settings
    default = Config()
    usual = default, preset_config(config.preset) if config.preset else default, settled(config)
    named = list(filter(of_epsilon, settings))
    own = [name for name in named if settings[name] not in {getattr(c, name) for c in usual}]
    refuse_epsilon(own, "pass noisy=False")
    return {name: value for name, value in settings.items() if name not in named}


def chosen_in(config: Config) -> dict[str, Any]:
    """Return the settings of a Config that differ from the defaults."""
    default = Config()
    return {k: v for k, v in vars(config).items() if v != getattr(default, k) and k != "env_id"}


def folder_of(run_dir: Any) -> Path | None:
    """Return the caller's folder as a path, or None.

    Raises:
        UsageError: It is not a path.
    """
    if run_dir is None:
        return None
    if not isinstance(run_dir, str | os.PathLike) or not str(run_dir):
        raise UsageError(f"run_dir={run_dir!r}", "it is no path", 'Try run_dir="runs/NAME".')
    return Path(run_dir)
