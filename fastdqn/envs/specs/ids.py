"""From an environment's id to its registered spec or a factory, with imports and advice.

A module that an id names is looked for in the current folder first, as `python -m` does.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from fastdqn.envs.specs.registrations import importable
from fastdqn.envs.workers.settings import EnvFactory
from fastdqn.errors import UsageError, first_line

__all__ = ["factory_of", "for_workers", "import_from_here", "spec_of"]

FAMILIES = (
    (re.compile(r"ALE/|\w+(NoFrameskip|Deterministic|-ram)", re.I), "ale_py", "fastdqn[atari]"),
    (re.compile(r"(MiniGrid|BabyAI)-", re.I), "minigrid", "minigrid"),
)
"""Ids of packages that register them when they are imported: the module, what pip calls it."""


def spec_of(env_id: str) -> EnvSpec:
    """Return the spec that is registered under an id.

    Args:
        env_id: `Name-v0`, `namespace/Name-v0` or `module:Name-v0`, whose module is imported.

    Raises:
        UsageError: The id is not registered (names close ones), or its module cannot be imported.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        _import(module, env_id)
    elif name not in gym.registry:
        _import_family(env_id)
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        reason = first_line(error).partition(". Have you")[0]  # without its own guesses
        raise UsageError(f"--env-id {env_id}", reason, _close_matches(name)) from None


def factory_of(env_id: str, **kwargs: Any) -> EnvFactory:
    """Return a picklable factory for a registered id and arguments of its constructor.

    The spec travels with the factory, so that an id registered in the caller's script is known
    in the worker too. Gymnasium's per-step checks are left out: `describe` checks once, and
    this package never steps before a reset.

    Raises:
        UsageError: See `spec_of`.
    """
    return partial(gym.make, for_workers(spec_of(env_id)), disable_env_checker=True, **kwargs)


def for_workers(spec: EnvSpec) -> EnvSpec:
    """Return a spec for workers, which do not run the caller's script; see `importable`."""
    return importable(replace(spec, order_enforce=False))


def import_from_here(module: str) -> ModuleType:
    """Import a module from the current folder or from where Python looks for modules.

    Workers look for modules where this process does. Importing it may raise any exception.
    """
    if module not in sys.modules and not sys.flags.safe_path:
        with contextlib.suppress(OSError):  # the folder does not exist any longer
            here = str(Path.cwd())
            if not {"", here} & set(sys.path):
                sys.path.insert(0, here)
        importlib.invalidate_caches()  # the file may be new
    return importlib.import_module(module)


def _import(module: str, env_id: str) -> None:
    try:
        import_from_here(module)
    except Exception as error:  # a module may raise any exception
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        first = first_line(error)
        if missing and f"{module}.".startswith(f"{missing}."):
            file = f"{module.split('.', maxsplit=1)[0]}.py"
            raise UsageError(
                f"--env-id {env_id}",
                first,
                f"Run it in the folder of {file}, put that folder on PYTHONPATH, or install "
                f"{module}.",
            ) from None
        raise UsageError(
            f"--env-id {env_id}",
            f"the module {module} cannot be imported ({type(error).__name__}: {first})",
            "Write an id as module:Name-v0, e.g. myenvs:Grid-v0 for myenvs.py, and fix the module.",
        ) from error


def _import_family(env_id: str) -> None:
    """Import the package that is known to register such an id."""
    for ids, module, package in FAMILIES:
        try:
            if ids.match(env_id):
                importlib.import_module(module)
        except ImportError as error:
            raise UsageError(
                f"--env-id {env_id}",
                f"it comes with the package {module}, which cannot be imported "
                f"({first_line(error)})",
                f'Run: pip install "{package}"',
            ) from None


def _close_matches(name: str) -> str:
    """Name what is registered in the same namespace, and like it."""
    spaces = {known: known.rpartition("/")[0].lower() for known in (name, *gym.registry)}
    within = [known for known in gym.registry if spaces[known] == spaces[name]]
    by_lower = {known.lower(): known for known in within}
    close = [by_lower[m] for m in difflib.get_close_matches(name.lower(), by_lower, 4, 0.55)]
    if close:
        return f"Did you mean {', '.join(close)}?"
    bare = sum(not spaces[known] for known in gym.registry)
    return (
        f"Gymnasium knows {bare} ids, such as LunarLander-v3 and CartPole-v1. If another package "
        f"registers it when it is imported, name that, too: --env-id package:{name}"
    )
