"""From an environment id or a factory to a checked description of the environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space

from fastdqn.envs.advice import checked_reset, checked_step, refuse_unlike_env, wrapper_for
from fastdqn.envs.masks import MASK, refuse_mask_shape
from fastdqn.envs.sharing import refuse_the_same_again
from fastdqn.envs.spaces import measured_step_s
from fastdqn.envs.specs.construction import GIVEN, construction_of
from fastdqn.envs.specs.ids import first_line, spec_of
from fastdqn.envs.specs.registrations import importable
from fastdqn.envs.workers.settings import EnvFactory
from fastdqn.errors import UsageError
from fastdqn.foundation.trial_env import trial_env
from fastdqn.transition import STORAGE_DTYPES

__all__ = [
    "EnvDescription",
    "EnvFactory",
    "describe",
    "describe_spaces",
    "factory_of",
    "for_workers",
]


@dataclass(frozen=True)
class EnvDescription:
    """What a trainer must know of an environment.

    Attributes:
        env_id: Gymnasium id, or the factory's name.
        obs_space: Space of one observation: Box, Discrete, MultiBinary or MultiDiscrete.
        obs_shape: Shape of one observation.
        obs_dtype: Its dtype, by name.
        num_actions: Actions, A.
        first_action: The space's smallest action; the network counts from 0.
        solved_at: The mean return at which Gymnasium calls it solved, or None.
        num_masked: Actions in the environment's masks; 0 without masks.
        obeys_masks: Whether masks are obeyed; if so, an unexpected one is refused.
        action_dtype: Dtype of the action space, by name; environments get actions of it.
        step_s: Measured seconds of a step, for quick environments that come with Gymnasium, which
            the trainer's own process may step. None for all others: an environment that crashes or
            hangs takes its process along, and only a worker can be restarted.
        construction: How it was made, or why it cannot be made again; see `construction_of`.
        max_episode_steps: Env steps after which the environment's own time limit ends an episode,
            or None.
    """

    env_id: str
    obs_space: Space[Any]
    obs_shape: tuple[int, ...]
    obs_dtype: str
    num_actions: int
    first_action: int
    solved_at: float | None
    num_masked: int = 0
    obeys_masks: bool = True
    action_dtype: str = "int64"
    step_s: float | None = field(default=None, compare=False)
    construction: Mapping[str, Any] = field(default_factory=lambda: GIVEN, compare=False)
    max_episode_steps: int | None = None


def factory_of(env_id: str, **kwargs: Any) -> EnvFactory:
    """Return a picklable factory for a registered id.

    The spec travels with the factory, so that an id registered in the caller's script is known
    in the worker too. Gymnasium's per-step checks are left out: `describe` checks once, and
    this package never steps before a reset.

    Args:
        env_id: `Name-v0`, `namespace/Name-v0` or `module:Name-v0`.
        kwargs: Passed to the environment's constructor.

    Raises:
        UsageError: The id is not registered; close matches are named.
    """
    return partial(gym.make, for_workers(spec_of(env_id)), disable_env_checker=True, **kwargs)


def for_workers(spec: EnvSpec) -> EnvSpec:
    """Return a spec for other processes: entry points in the caller's script become objects.

    Workers do not run that script.
    """
    return importable(replace(spec, order_enforce=False))


def describe(
    factory: EnvFactory, *, masks: bool = True, expect_masks: bool = False
) -> EnvDescription:
    """Build one environment, look at its spaces and its first infos, close it.

    Args:
        factory: Builds one environment.
        masks: Whether to look for action masks: in the info of the reset, or else of one step.
        expect_masks: Whether there will be masks though none is seen yet.

    Raises:
        UsageError: It cannot be built or reset, DQN cannot train on its spaces, or the factory
            returns the same environment again.
    """
    name = _name_of(factory)
    with trial_env(partial(_tried, factory, name, "built")) as env:
        refuse_unlike_env(env, name)
        spec: EnvSpec | None = getattr(env, "spec", None)
        solved_at, env_id = (spec.reward_threshold, spec.id) if spec else (None, name)
        described = describe_spaces(
            env_id, env.observation_space, env.action_space, solved_at, env=env
        )
        _, info = checked_reset(_tried(partial(env.reset, seed=0), name, "reset"), name)
        info_of_step = _info_of_a_step(env, name)
        num_masked = 0
        if masks:
            info = info_of_step if info.get(MASK) is None else info
            num_masked = described.num_actions if expect_masks else _num_masked(described, info)
        described = replace(
            described,
            max_episode_steps=spec.max_episode_steps if spec else None,
            num_masked=num_masked,
            obeys_masks=masks,
            step_s=measured_step_s(env) if _is_gymnasiums(env) else None,
            construction=construction_of(env),
        )
    refuse_the_same_again(factory, env)
    return described


def _is_gymnasiums(env: Any) -> bool:
    """Return whether an environment and all its wrappers come with Gymnasium, or from here."""
    known = type(env).__module__.partition(".")[0] in {"gymnasium", "fastdqn"}
    return known and (env.unwrapped is env or _is_gymnasiums(env.env))


def _info_of_a_step(env: gym.Env[Any, Any], name: str) -> Mapping[str, Any]:
    """Return the info of one step; empty where the step fails, which the training will report.

    Raises:
        UsageError: It does not return what Gymnasium's environments return.
    """
    space: Any = env.action_space
    try:
        result = env.step(space.start)
    except (Exception, SystemExit):
        return {}
    return checked_step(result, name)


def _tried(call: Callable[[], Any], name: str, done: str) -> Any:
    try:
        return call()
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # an environment may raise anything
        old = done == "reset" and isinstance(error, TypeError) and "'seed'" in str(error)
        raise UsageError(
            f"environment {name}",
            f"it cannot be {done} ({type(error).__name__}: {first_line(error)})",
            "Gymnasium's is def reset(self, *, seed=None, options=None), and returns (obs, info)."
            if old
            else "Install what it needs or fix its factory.",
        ) from error


def _num_masked(described: EnvDescription, info: Mapping[str, Any]) -> int:
    """Return the number of actions of a mask in the info; 0 without one.

    Raises:
        UsageError: It differs from the number of actions.
    """
    if info.get(MASK) is None:
        return 0
    env, num_actions = f"environment {described.env_id}", described.num_actions
    refuse_mask_shape(env, np.shape(info[MASK]), num_actions)
    return num_actions


def describe_spaces(
    env_id: str,
    obs: Space[Any],
    action: Space[Any],
    solved_at: float | None = None,
    *,
    env: Any = None,
) -> EnvDescription:
    """Check the two spaces of one environment and describe them.

    Args:
        env_id: Its name in messages.
        obs: Of an observation.
        action: Of an action.
        solved_at: See `EnvDescription`.
        env: The environment, if known, for advice about wrappers of its package.

    Raises:
        UsageError: The action space is not Discrete, or the observation has no fixed shape, no
            numbers at all, or a dtype that no tensor holds.
    """
    if not isinstance(action, Discrete):
        raise UsageError(
            f"environment {env_id} with action space {action}",
            "a deep Q-network chooses among finitely many actions (Discrete)",
            "Choose another --env-id, or wrap it so that it offers a few fixed actions: "
            "gymnasium.wrappers.TransformAction(env, lambda i: ACTIONS[i], "
            "gymnasium.spaces.Discrete(len(ACTIONS))).",
        )
    _refuse_actions_beyond(env_id, action)
    if not isinstance(obs, Box | Discrete | MultiBinary | MultiDiscrete):
        raise UsageError(
            f"environment {env_id} with {type(obs).__name__} observations",
            "the network takes one array of a fixed shape",
            wrapper_for(obs, env),
        )
    shape, dtype = tuple(obs.shape or ()), _storable(env_id, obs)
    return EnvDescription(
        env_id,
        obs,
        shape,
        dtype,
        int(action.n),
        int(action.start),
        solved_at,
        action_dtype=np.dtype(action.dtype).name,
    )


def _storable(env_id: str, obs: Space[Any]) -> str:
    """Return the name of the dtype in which observations are stored."""
    if 0 in (obs.shape or ()):
        raise UsageError(
            f"environment {env_id} with observations of shape {obs.shape}",
            "they hold no numbers to learn from",
            "Let it show at least one, e.g. Box(0, 1, (1,)).",
        )
    dtype = np.dtype(obs.dtype)
    if dtype.name not in STORAGE_DTYPES:
        raise UsageError(
            f"environment {env_id} with {dtype} observations",
            "PyTorch has no such dtype to store them in",
            "Wrap it with gymnasium.wrappers.DtypeObservation(env, numpy.float32).",
        )
    return dtype.name


def _refuse_actions_beyond(env_id: str, action: Discrete) -> None:
    """Refuse actions that int64, in which they are chosen, or their own dtype cannot hold."""
    last, dtype = int(action.start) + int(action.n) - 1, np.dtype(action.dtype)
    largest = min(np.iinfo(dtype).max, np.iinfo(np.int64).max)
    if last > largest:
        raise UsageError(
            f"environment {env_id} with action space {action} of {dtype}",
            f"its last action is {last}, and {largest} is the largest that can be sent",
            "Let the space start at a smaller number or have a wider dtype.",
        )


def _name_of(factory: EnvFactory) -> str:
    if isinstance(factory, partial) and factory.args and _is_ours(factory):
        return _name_of(factory.args[0])
    spec = factory.args[0] if isinstance(factory, partial) and factory.args else None
    if isinstance(spec, EnvSpec):
        return spec.id
    if isinstance(factory, partial):
        return _name_of(factory.func)
    return getattr(factory, "__name__", type(factory).__name__)


def _is_ours(factory: partial[Any]) -> bool:
    """Return whether a factory is one of ours around another."""
    module = getattr(factory.func, "__module__", None) or ""
    return module.startswith("fastdqn.envs.") and callable(factory.args[0])
