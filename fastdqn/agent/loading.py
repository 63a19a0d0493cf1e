"""Finds the environment and the settings of a saved policy.

Nothing that a file names is imported: environments are registered already or named by the caller,
wrappers are Gymnasium's own.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym

from fastdqn.agent.saved_description import SavedDescription, read_description, refuse_other_shapes
from fastdqn.envs.description import EnvDescription, factory_of, for_workers
from fastdqn.envs.provider import AnyEnv
from fastdqn.envs.specs.construction import (
    FORWARDING,
    Construction,
    UsedWrapper,
    bare_env,
    chain_of,
    rebuilt,
    why_not_from_a_file,
    why_too_large,
)
from fastdqn.envs.specs.ids import first_line
from fastdqn.envs.specs.plain_values import NotPlainError
from fastdqn.envs.specs.wrapping import (
    CONFIGURING,
    read_wrapper,
    spelled_arguments,
    typed_wrapper,
)
from fastdqn.errors import CheckpointError, UsageError
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
                _name_it(self.folder, env.env_id),
            )


def restore(
    saved: SavedPolicy, env: AnyEnv | None, given: Mapping[str, Any], *, own_network: bool
) -> Restored:
    """Check a saved policy and find the environment and the settings of its agent.

    The saved id, named by the caller or not, keeps the saved arguments and wrappers. A wrapper that
    cannot be applied again is refused with the command to type. Where the file does not hold them,
    the id that the caller names is made as it is registered, with a UserWarning.

    Args:
        saved: As it was read.
        env: The caller's environment; None takes the saved one.
        given: The caller's settings.
        own_network: Whether the caller passed the network.

    Raises:
        CheckpointError: A value of the file is invalid.
        UsageError: The environment cannot be built from the file, or the network is missing.
    """
    folder = str(saved.folder)
    try:
        read = read_description(saved.description)
        if not own_network:
            _refuse_own_network(read)
            refuse_other_shapes(read, saved.parameters)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
    kept = dict(read.settings)
    saved_id, made = kept.pop("env_id"), read.construction
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
        kept.update(_configured(made, saved_id, folder, own_wrappers="wrapper" in given))
    else:
        found, more = _rebuilding(made, saved_id, folder, named)
        kept.update(more)
    return Restored(found, {**kept, **given}, read, folder, env is None and not configured)


def _refuse_own_network(saved: SavedDescription) -> None:
    if saved.network != "MLP":
        raise CheckpointError(
            f"it holds the parameters of another network than an MLP, {saved.network}: pass it, "
            "DQN.load(folder, network=...)"
        )


def _refuse_unknown(
    env_id: str, used: Mapping[str, Any], given: Mapping[str, Any], folder: str, *, named: bool
) -> None:
    """Refuse a saved id, arguments and wrappers that only the caller may name."""
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
    unknown = "" if named or used.get("vectorizer") in {"envpool", "tensor"} else _unknown(env_id)
    if unknown:
        raise UsageError(folder, unknown, command)


def _unknown(env_id: str) -> str:
    """Return why an id cannot be used here; empty if it is registered."""
    try:
        factory_of(env_id)
    except UsageError as error:
        return f"its environment {env_id} is not found here: {error.reason}"
    return ""


def _refuse_from_file(text: str, folder: str, command: str) -> None:
    wrapper = read_wrapper(text)
    why_not = f"{text} is of the caller's own" if wrapper.module else ""
    arguments = {**wrapper.kwargs, "*": list(wrapper.args)}
    why_not = why_not or why_too_large(arguments, wrapper.name)
    why_not = why_not or why_not_from_a_file(wrapper.name)
    if why_not:
        raise UsageError(folder, f"its wrapper cannot be put on again: {why_not}", command)


def _rebuilding(
    made: Construction, saved_id: str, folder: str, named: str | None
) -> tuple[AnyEnv, dict[str, Any]]:
    """Return a factory of the saved environment, or else the id that the caller named.

    The settings of that id are returned with it.
    """
    if not made.why_not:
        unknown = _unknown(named or made.env_id)
        if unknown:
            raise UsageError(folder, unknown, _command(made, saved_id, folder))
        spec = for_workers(gym.registry[made.env_id])
        factory = partial(rebuilt, spec, made.kwargs or {}, made.wrappers)
        why_not = _why_not_built(factory) if any(w.why_not for w in made.wrappers) else ""
        if not why_not:
            return factory, {}
    reason = f"its environment {saved_id} cannot be built again: {made.why_not or why_not}"
    kwargs, around = _as_named(made)
    if not named or any(wrapper.why_not for wrapper in around):
        raise UsageError(folder, reason, _command(made, saved_id, folder))
    warnings.warn(
        f"{named} is made as it is registered here, and not as it was saved in {folder}: {reason}."
        " Pass env_kwargs and wrapper to say how it is made.",
        stacklevel=4,
    )
    return named, {"env_kwargs": kwargs, "wrapper": tuple(typed_wrapper(w)[0] for w in around)}


def _why_not_built(factory: Callable[[], gym.Env[Any, Any]]) -> str:
    """Build an environment whose entry point may add wrappers; return why it fails, or empty."""
    try:
        with trial_env(factory):
            return ""
    except NotPlainError as error:
        return str(error)
    except Exception as error:  # an entry point may raise any exception
        return f"it cannot be built ({type(error).__name__}: {first_line(error)})"


def _configured(
    made: Construction, saved_id: str, folder: str, *, own_wrappers: bool
) -> dict[str, Any]:
    """Return the settings of an id whose arguments or wrappers the caller replaces."""
    kwargs, around = _as_named(made)
    if own_wrappers:
        return {"env_kwargs": kwargs}
    typed = [typed_wrapper(wrapper) for wrapper in around]
    for wrapper, (text, whole) in zip(around, typed, strict=True):
        why_not = wrapper.why_not or ("" if whole else f"the arguments of {text} are no literals")
        if why_not:
            reason = f"its wrapper cannot be put on again: {why_not}"
            raise UsageError(folder, reason, _command(made, saved_id, folder))
    return {"env_kwargs": kwargs, "wrapper": tuple(text for text, _ in typed)}


def _as_named(made: Construction) -> tuple[dict[str, Any], tuple[UsedWrapper, ...]]:
    """Return arguments of `gymnasium.make`, and the wrappers around its result.

    Wrappers of the registration and of the entry point are not among them.
    """
    kwargs, spec = dict(made.kwargs or {}), gym.registry.get(made.env_id)
    if spec is None:
        return kwargs, made.wrappers
    rest = made.wrappers[_num_inside(partial(bare_env, spec, kwargs), made.wrappers) :]
    added = [extra.entry_point.rpartition(":")[2] for extra in spec.additional_wrappers]
    names = [wrapper.name for wrapper in rest]
    limit = rest[0].kwargs if names[:1] == ["TimeLimit"] and rest[0].module is None else None
    extra_limit = bool(added) and names[1 : 1 + len(added)] == added
    if limit and (spec.max_episode_steps is not None or extra_limit):
        rest = rest[1:]
        if limit.get("max_episode_steps") != spec.max_episode_steps:
            kwargs.update(limit)
    elif spec.max_episode_steps is not None:
        kwargs["max_episode_steps"] = -1
    are_leading = [wrapper.name for wrapper in rest[: len(added)]] == added
    return kwargs, rest[len(added) :] if are_leading else rest


def _num_inside(factory: Callable[[], gym.Env[Any, Any]], wrappers: tuple[UsedWrapper, ...]) -> int:
    """Return how many of the wrappers an entry point adds."""
    try:
        with trial_env(factory) as env:
            inside = [type(wrapper).__name__ for wrapper in chain_of(env)]
    except Exception:  # an entry point may raise any exception; it is raised again later
        return 0
    return len(inside) if inside == [w.name for w in wrappers[: len(inside)]] else 0


def _bare(env_id: str) -> str:
    return env_id.rpartition(":")[2]


def _command(made: Construction, saved_id: str, folder: str) -> str:
    """Return the command for an environment of a factory, with all of its wrappers."""
    kwargs, around = _as_named(made)
    typed = [typed_wrapper(wrapper) for wrapper in around]
    lost = [text for text, whole in typed if not whole]
    env_id = made.env_id or (saved_id if saved_id in gym.registry else "")
    command = _name_it(folder, env_id, kwargs, [text for text, _ in typed])
    if lost:
        command += f" The arguments of {', '.join(lost)} are not saved: add them, if it took some."
    if made.why_not and env_id:
        command += " Its arguments and wrappers are not saved: add --env-kwargs and --wrapper."
    return command


def _name_it(
    folder: str,
    env_id: str,
    kwargs: Mapping[str, Any] | None = None,
    wrappers: Any = (),
) -> str:
    """Return the advice to name the environment, which no file may."""
    if not env_id:
        return (
            "Pass it yourself: DQN.load(folder, env=...) from Python, or fastdqn evaluate with "
            "--env-id, and --env-kwargs and --wrapper where it has some."
        )
    words = ["fastdqn", "evaluate", folder, "--env-id", env_id]
    if kwargs:
        words += ["--env-kwargs", *spelled_arguments(kwargs)]
    if wrappers:
        words += ["--wrapper", *wrappers]
    return f"Name it yourself: {shlex.join(words)}, or DQN.load(folder, env=...) from Python."
