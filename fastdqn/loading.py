"""From a saved policy to the environment and the settings that its agent is built with.

Nothing that a file names is imported: environments come from what is registered already or what
the caller names, wrappers from Gymnasium's own.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym

from fastdqn.checkpoint import SavedPolicy
from fastdqn.envs.construction import (
    FORWARDING,
    Construction,
    rebuilt,
    why_not_from_a_file,
    why_too_large,
)
from fastdqn.envs.make import EnvDescription, factory_of, for_workers
from fastdqn.envs.plain_values import NotPlainError
from fastdqn.envs.wrapping import CONFIGURING, read_wrapper
from fastdqn.errors import CheckpointError, UsageError
from fastdqn.saved_description import SavedDescription, read_description, refuse_other_shapes
from fastdqn.worlds import AnyEnv

__all__ = ["Restored", "restore"]


@dataclass(frozen=True)
class Restored:
    """What an agent is built with, and where its training stood.

    Attributes:
        env: Its environment.
        settings: Of Config, those of the caller before those that were saved.
        told: What the file says, checked.
        folder: Of the saved policy, for messages.
        from_file: Whether the environment is what the file says and not what the caller gave.
    """

    env: AnyEnv
    settings: dict[str, Any]
    told: SavedDescription
    folder: str
    from_file: bool

    def refuse_other_spaces(self, env: EnvDescription) -> None:
        """Refuse an environment that the file describes and that is not what it was.

        Raises:
            UsageError: Observations or actions differ.
        """
        told = self.told
        was = (told.obs_shape, told.obs_dtype, told.num_actions)
        now = (env.obs_shape, env.obs_dtype, env.num_actions)
        if self.from_file and was != now:
            raise UsageError(
                self.folder,
                f"it was trained with observations {was[0]} {was[1]} and {was[2]} actions, and "
                f"{env.env_id} has {now[0]} {now[1]} and {now[2]}",
                _name_it(self.folder, env.env_id),
            )


def restore(
    saved: SavedPolicy, env: AnyEnv | None, given: Mapping[str, Any], *, own_network: bool
) -> Restored:
    """Check a saved policy and find the environment and the settings of its agent.

    Args:
        saved: As it was read.
        env: What the caller gave; None is what was saved.
        given: Settings of the caller.
        own_network: Whether the caller brings the network.

    Raises:
        CheckpointError: A value of the file cannot be.
        UsageError: The environment cannot be built from what the file says, or the network is
            missing.
    """
    folder = str(saved.folder)
    try:
        told = read_description(saved.description)
        if not own_network:
            _refuse_own_network(told)
            refuse_other_shapes(told, saved.parameters)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
    kept = dict(told.settings)
    saved_id, made = kept.pop("env_id"), told.construction
    configured = any(name in given for name in CONFIGURING)
    named = env if isinstance(env, str) and _bare(env) == _bare(saved_id) else None
    found: AnyEnv
    if env is not None and named is None:
        kept = {name: value for name, value in kept.items() if name not in CONFIGURING}
        found = env
    elif made is None:
        found = named or saved_id
        _refuse_unknown(saved_id, {**kept, **given}, given, folder, named=named is not None)
    elif configured:
        found = named or made.env_id or _bare(saved_id)
        kept["env_kwargs"] = dict(made.kwargs or {})
    else:
        found = _rebuilding(made, saved_id, folder, named)
        if found is named:
            kept["env_kwargs"] = dict(made.kwargs or {})
    return Restored(found, {**kept, **given}, told, folder, env is None and not configured)


def _refuse_own_network(told: SavedDescription) -> None:
    if told.network != "MLP":
        raise CheckpointError(
            f"it holds the parameters of another network than an MLP, {told.network}: pass it, "
            "DQN.load(folder, network=...)"
        )


def _refuse_unknown(
    env_id: str, used: Mapping[str, Any], given: Mapping[str, Any], folder: str, *, named: bool
) -> None:
    """Refuse a saved id, arguments and wrappers that the caller has to name."""
    kwargs, wrappers = used.get("env_kwargs") or {}, used.get("wrapper") or ()
    command = _name_it(folder, env_id, kwargs, wrappers)
    module, _, name = env_id.rpartition(":")
    if module and module not in sys.modules and not named:
        reason = f"its environment {env_id} is of a module that no file may have imported"
        raise UsageError(folder, reason, command)
    if name in FORWARDING and kwargs and "env_kwargs" not in given:
        raise UsageError(folder, f"{name} imports what its arguments name", command)
    for text in () if "wrapper" in given else wrappers:
        _refuse_from_file(text, folder, command)
    if used.get("vectorizer") not in {"envpool", "tensor"} and not named:
        _look_up(env_id, folder, command)


def _look_up(env_id: str, folder: str, command: str) -> None:
    try:
        factory_of(env_id)
    except UsageError as error:
        reason = f"its environment {env_id} is not found here: {error.reason}"
        raise UsageError(folder, reason, command) from None


def _refuse_from_file(text: str, folder: str, command: str) -> None:
    wrapper = read_wrapper(text)
    why_not = f"{text} is of the caller's own" if wrapper.module else ""
    arguments = {**wrapper.kwargs, "*": list(wrapper.args)}
    why_not = why_not or why_too_large(arguments, wrapper.name)
    why_not = why_not or why_not_from_a_file(wrapper.name)
    if why_not:
        raise UsageError(folder, f"its wrapper cannot be put on again: {why_not}", command)


def _rebuilding(made: Construction, saved_id: str, folder: str, named: str | None) -> AnyEnv:
    """Return a factory that makes the environment again as it was, or else the id that is named."""
    theirs = [f"{w.module}:{w.name}" if w.module else w.name for w in made.wrappers if w.why_not]
    known_id = saved_id if saved_id in gym.registry else ""
    command = _name_it(folder, made.env_id or known_id, made.kwargs, theirs)
    why_not = made.why_not
    if not why_not:
        _look_up(named or made.env_id, folder, command)
        spec = for_workers(gym.registry[made.env_id])
        factory = partial(rebuilt, spec, made.kwargs or {}, made.wrappers)
        why_not = _tried(factory) if theirs else ""
        if not why_not:
            return factory
    if named:
        return named
    reason = f"its environment {saved_id} cannot be built again: {why_not}"
    raise UsageError(folder, reason, command)


def _tried(factory: Callable[[], gym.Env[Any, Any]]) -> str:
    """Build an environment around which wrappers were that its entry point may bring."""
    try:
        factory().close()
    except NotPlainError as error:
        return str(error)
    return ""


def _bare(env_id: str) -> str:
    return env_id.rpartition(":")[2]


def _name_it(
    folder: str,
    env_id: str,
    kwargs: Mapping[str, Any] | None = None,
    wrappers: Any = (),
) -> str:
    """Return what to type, so that the caller names what no file may."""
    if not env_id:
        return (
            "Pass it yourself: DQN.load(folder, env=...) from Python, or fastdqn evaluate with "
            "--env-id, and --env-kwargs and --wrapper where it has some."
        )
    words = ["fastdqn", "evaluate", folder, "--env-id", env_id]
    if kwargs:
        words += ["--env-kwargs", *(f"{key}={_spelled(value)}" for key, value in kwargs.items())]
    if wrappers:
        words += ["--wrapper", *wrappers]
    return f"Name it yourself: {shlex.join(words)}, or DQN.load(folder, env=...) from Python."


def _spelled(value: Any) -> str:
    """Return a value as it is typed; text that cannot be taken for another value is not quoted."""
    other = {"true", "false", "none", "null", "nan", "infinity"}
    plain = isinstance(value, str) and re.fullmatch(r"\w*[A-Za-z]\w*", value)
    return value if plain and value.lower() not in other else repr(value)
