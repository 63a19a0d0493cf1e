"""Finds the environment and the settings of a saved policy.

Nothing that a file names is imported: environments are registered already or named by the caller,
wrappers are Gymnasium's own.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from fastdqn.agent.arguments import decided_by, fitting
from fastdqn.agent.saved_description import (
    SavedDescription,
    read_description,
    refuse_other_layers,
    refuse_other_shapes,
)
from fastdqn.agent.saved_parts import (
    refuse_missing_objective,
    refuse_other_activation,
    refuse_other_objective,
)
from fastdqn.envs.description import EnvDescription
from fastdqn.envs.provider import AnyEnv
from fastdqn.envs.specs.construction import FORWARDING, Construction, bare_env, chain_of, rebuilt
from fastdqn.envs.specs.ids import factory_of, for_workers
from fastdqn.envs.specs.plain_values import CONFIGURING, NotPlainError, names_of, spelled_arguments
from fastdqn.envs.specs.wrapping import Wrapper, read_wrapper
from fastdqn.envs.tensor import TensorEnv
from fastdqn.errors import CheckpointError, UsageError, first_line
from fastdqn.foundation.trial_env import trial_env
from fastdqn.training.checkpoint import SavedPolicy

__all__ = ["Restored", "restore"]


@dataclass(frozen=True)
class Restored:
    """Arguments of a loaded agent, and the counts of its training.

    Attributes:
        env: Its environment.
        settings: Of Config; the caller's override the saved ones.
        saved: The file's description, checked.
        folder: Of the saved policy, for messages.
        from_file: Whether the environment comes from the file and not from the caller.
    """

    env: AnyEnv
    settings: dict[str, Any]
    saved: SavedDescription
    folder: str
    from_file: bool

    def refuse_other_spaces(self, env: EnvDescription) -> None:
        """Refuse an environment with other observations or actions than the saved one.

        Raises:
            UsageError: Observations or actions differ.
        """
        saved = self.saved
        was = (saved.obs_shape, saved.obs_dtype, saved.num_actions)
        now = (env.obs_shape, env.obs_dtype, env.num_actions)
        if (was if self.from_file else was[::2]) != (now if self.from_file else now[::2]):
            raise UsageError(
                self.folder,
                f"it was trained with observations {was[0]} {was[1]} and {was[2]} actions, and "
                f"{env.env_id} has {now[0]} {now[1]} and {now[2]}",
                _command(Construction(env.env_id), self.folder),
            )


def restore(
    saved: SavedPolicy,
    env: AnyEnv | None,
    given: Mapping[str, Any],
    parts: Mapping[str, Any],
    *,
    own_network: bool,
) -> Restored:
    """Check a saved policy and find the environment and the settings of its agent.

    The saved id, named by the caller or not, keeps the saved arguments and wrappers. A wrapper that
    cannot be applied again is refused with the command to type. Where the file does not hold them,
    the id that the caller names is made as it is registered, with a UserWarning. Without the
    caller's own network the saved one must be an MLP.

    Args:
        saved: Of the file.
        env: The caller's, or None.
        given: The caller's settings.
        parts: The caller's `objective` and `sampler`; None is not of the caller's own.
        own_network: Whether the network is the caller's.

    Raises:
        CheckpointError: A value of the file is invalid, or it was trained with an objective of the
            caller's own, which is missing.
        UsageError: The environment cannot be built from the file, the network is missing, or the
            caller names what its parameters would not mean.
    """
    folder = str(saved.folder)
    try:
        read = read_description(saved.description)
        if not own_network:
            refuse_other_shapes(read, saved.parameters)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
    if not own_network:
        refuse_other_activation(read, given, folder)
        refuse_other_layers(read, given, folder)
    refuse_other_objective(read, given, parts["objective"], folder)
    found, kept, from_file = _found(read, env, given, folder)
    refuse_missing_objective(parts["objective"], read.objective, folder)
    builds = not isinstance(found, VectorEnv | TensorEnv)
    settings = {**kept, **given}
    settings = fitting(
        settings, given, builds=builds, own_network=own_network, others=decided_by(**parts)
    )
    return Restored(found, settings, read, folder, from_file)


def _found(
    read: SavedDescription, env: AnyEnv | None, given: Mapping[str, Any], folder: str
) -> tuple[AnyEnv, dict[str, Any], bool]:
    """Return the environment, the settings that stay, and whether it comes from the file."""
    kept = dict(read.settings)
    saved_id, made = kept.pop("env_id"), read.construction
    bare_id = saved_id.rpartition(":")[2]
    configured = any(name in given for name in CONFIGURING)
    named = env if isinstance(env, str) and env.rpartition(":")[2] == bare_id else None
    found: AnyEnv
    if env is not None and named is None:
        kept = {name: value for name, value in kept.items() if name not in CONFIGURING}
        found = env
    elif made is None:
        found = named or saved_id
        _refuse_unknown(saved_id, kept, given, folder, named=named is not None)
    elif configured:
        found = named or made.env_id or bare_id
        kept |= _configured(_as_named(made, saved_id), folder, own_wrappers="wrapper" in given)
    else:
        found, more = _rebuilding(made, saved_id, folder, named)
        kept |= more
    return found, kept, env is None and not configured


def _refuse_unknown(
    env_id: str, kept: Mapping[str, Any], given: Mapping[str, Any], folder: str, *, named: bool
) -> None:
    """Refuse a saved id, arguments and wrappers that only the caller may name."""
    used = {**kept, **given}
    wrappers = tuple(map(read_wrapper, names_of(used.get("wrapper"))))
    saved = Construction(env_id, used.get("env_kwargs") or {}, wrappers)
    module, _, name = env_id.rpartition(":")
    reason = ""
    if module and module not in sys.modules and not named:
        reason = f"its environment {env_id} is of a module that no file may have imported"
    elif name in FORWARDING and saved.kwargs and "env_kwargs" not in given:
        reason = f"{name} imports what its arguments name"
    elif "wrapper" not in given:
        reason = _why_not_wrapped(wrappers)
    if not reason and not named and used.get("vectorizer") not in {"envpool", "tensor"}:
        reason = _unknown(env_id)
    if reason:
        raise UsageError(folder, reason, _command(saved, folder))


def _unknown(env_id: str) -> str:
    """Return why an id cannot be used here; empty if it is registered."""
    try:
        factory_of(env_id)
    except UsageError as error:
        return f"its environment {env_id} is not found here: {error.reason}"
    return ""


def _why_not_wrapped(wrappers: Iterable[Wrapper]) -> str:
    why_not = next(filter(None, (wrapper.why_no_file() for wrapper in wrappers)), "")
    return why_not and f"its wrapper cannot be put on again: {why_not}"


def _rebuilding(
    made: Construction, saved_id: str, folder: str, named: str | None
) -> tuple[AnyEnv, dict[str, Any]]:
    """Return a factory of the saved environment, or the id that the caller named, with settings."""
    why_not = made.why_not
    if not why_not:
        unknown = _unknown(named or made.env_id)
        if unknown:
            raise UsageError(folder, unknown, _command(_as_named(made, saved_id), folder))
        spec = for_workers(gym.registry[made.env_id])
        factory = partial(rebuilt, spec, made.kwargs, made.wrappers)
        why_not = _tried(factory)[1] if _why_not_wrapped(made.wrappers) else ""
        if not why_not:
            return factory, {}
    reason = f"its environment {saved_id} cannot be built again: {why_not}"
    around = _as_named(made, saved_id)
    if not named or _why_not_wrapped(around.wrappers):
        raise UsageError(folder, reason, _command(around, folder))
    warnings.warn(
        f"{named} is made as it is registered here, and not as it was saved in {folder}: {reason}."
        " Pass env_kwargs and wrapper to say how it is made.",
        stacklevel=4,
    )
    return named, _settings_of(around)


def _tried(factory: Callable[[], gym.Env[Any, Any]]) -> tuple[list[str], str]:
    """Build an environment; return the names of its wrappers, or none and why it fails."""
    try:
        with trial_env(factory) as env:
            return [type(wrapper).__name__ for wrapper in chain_of(env)], ""
    except NotPlainError as error:
        return [], str(error)
    except Exception as error:  # an entry point may raise any exception
        return [], f"it cannot be built ({type(error).__name__}: {first_line(error)})"


def _configured(saved: Construction, folder: str, *, own_wrappers: bool) -> dict[str, Any]:
    """Return the settings of an id whose arguments or wrappers the caller replaces."""
    for wrapper in () if own_wrappers else saved.wrappers:
        text, whole = wrapper.typed()
        why_not = wrapper.why_no_file() or (
            "" if whole else f"the arguments of {text} are no literals"
        )
        if why_not:
            reason = f"its wrapper cannot be put on again: {why_not}"
            raise UsageError(folder, reason, _command(saved, folder))
    return _settings_of(saved)


def _settings_of(saved: Construction) -> dict[str, Any]:
    around = tuple(wrapper.typed()[0] for wrapper in saved.wrappers)
    return {"env_kwargs": dict(saved.kwargs), "wrapper": around}


def _as_named(made: Construction, saved_id: str) -> Construction:
    """Return an environment with arguments of `gymnasium.make` and the wrappers around its result.

    Wrappers of the registration and of the entry point are not among them.
    """
    kwargs, rest, spec = dict(made.kwargs), made.wrappers, gym.registry.get(made.env_id)
    made = replace(made, env_id=made.env_id or (saved_id if saved_id in gym.registry else ""))
    if spec is None:
        return made
    names = [wrapper.name for wrapper in rest]
    inside, _ = _tried(partial(bare_env, spec, kwargs))
    if names[: len(inside)] == inside:
        rest, names = rest[len(inside) :], names[len(inside) :]
    added = [extra.entry_point.rpartition(":")[2] for extra in spec.additional_wrappers]
    limit = rest[0].kwargs if names[:1] == ["TimeLimit"] and not rest[0].module else None
    extra_limit = bool(added) and names[1 : 1 + len(added)] == added
    if limit and (spec.max_episode_steps is not None or extra_limit):
        rest, names = rest[1:], names[1:]
        if limit.get("max_episode_steps") != spec.max_episode_steps:
            kwargs.update(limit)
    elif spec.max_episode_steps is not None:
        kwargs["max_episode_steps"] = -1
    rest = rest[len(added) :] if names[: len(added)] == added else rest
    return replace(made, kwargs=kwargs, wrappers=rest)


def _command(saved: Construction, folder: str) -> str:
    """Return the advice to name the environment, which no file may, with all of its wrappers."""
    if not saved.env_id:
        return (
            "Pass it yourself: DQN.load(folder, env=...) from Python, or fastdqn evaluate with "
            "--env-id, and --env-kwargs and --wrapper where it has some."
        )
    typed = [wrapper.typed() for wrapper in saved.wrappers]
    words = ["fastdqn", "evaluate", folder, "--env-id", saved.env_id]
    if saved.kwargs:
        words += ["--env-kwargs", *spelled_arguments(saved.kwargs)]
    if typed:
        words += ["--wrapper", *(text for text, _ in typed)]
    command = f"Name it yourself: {shlex.join(words)}, or DQN.load(folder, env=...) from Python."
    lost = [text for text, whole in typed if not whole]
    if lost:
        command += f" The arguments of {', '.join(lost)} are not saved: add them, if it took some."
    if saved.why_not:
        command += " Its arguments and wrappers are not saved: add --env-kwargs and --wrapper."
    return command
