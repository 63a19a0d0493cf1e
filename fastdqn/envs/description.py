"""From an environment id or a factory to a checked description of the environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Discrete, Space

from fastdqn.envs.advice import checked_info, refuse_unlike_env, wrapper_for
from fastdqn.envs.masks import MASK, refuse_mask_shape
from fastdqn.envs.sharing import refuse_the_same_again
from fastdqn.envs.spaces import ARRAY_SPACES, measured_step_s
from fastdqn.envs.specs.construction import GIVEN, construction_of
from fastdqn.envs.workers.settings import EnvFactory
from fastdqn.errors import UsageError, first_line
from fastdqn.foundation.trial_env import trial_env
from fastdqn.transition import STORAGE_DTYPES

__all__ = ["EnvDescription", "EnvFactory", "describe", "describe_spaces"]


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
        spec: Any = getattr(env, "spec", None)
        described = describe_spaces(
            spec.id if spec else name,
            env.observation_space,
            env.action_space,
            spec.reward_threshold if spec else None,
            env=env,
        )
        info = checked_info("reset", _tried(partial(env.reset, seed=0), name, "reset"), name)
        info_of_step = _info_of_a_step(env, name)
        mask = info_of_step.get(MASK) if info.get(MASK) is None else info[MASK]
        if masks and not expect_masks and mask is not None:
            shown = f"environment {described.env_id}"
            refuse_mask_shape(shown, np.shape(mask), described.num_actions)
        described = replace(
            described,
            max_episode_steps=spec.max_episode_steps if spec else None,
            num_masked=described.num_actions if masks and (expect_masks or mask is not None) else 0,
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
    """Return the info of one step; empty where the step fails, which the training will report."""
    space: Any = env.action_space
    try:
        result = env.step(space.start)
    except (Exception, SystemExit):
        return {}
    return checked_info("step", result, name)


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


def describe_spaces(
    env_id: str,
    obs: Space[Any],
    action: Space[Any],
    solved_at: float | None = None,
    *,
    env: Any = None,
) -> EnvDescription:
    """Check the two spaces of one environment and describe them.

    `env`, if known, is for advice about wrappers of its package.

    Raises:
        UsageError: The action space is not Discrete, or the observation has no fixed shape, no
            numbers at all, or a dtype that no tensor holds.
    """
    for got, reason, way_out in _faults(obs, action, env):
        raise UsageError(f"environment {env_id} with {got}", reason, way_out)
    discrete: Any = action
    return EnvDescription(
        env_id,
        obs,
        obs_shape=tuple(obs.shape or ()),
        obs_dtype=np.dtype(obs.dtype).name,
        num_actions=int(discrete.n),
        first_action=int(discrete.start),
        solved_at=solved_at,
        action_dtype=np.dtype(action.dtype).name,
    )


def _faults(obs: Space[Any], action: Space[Any], env: Any) -> Iterator[tuple[str, str, str]]:
    """Name what DQN cannot train on, the reason and the way out."""
    if not isinstance(action, Discrete):
        yield (
            f"action space {action}",
            "a deep Q-network chooses among finitely many actions (Discrete)",
            "Choose another --env-id, or wrap it so that it offers a few fixed actions: "
            "gymnasium.wrappers.TransformAction(env, lambda i: ACTIONS[i], "
            "gymnasium.spaces.Discrete(len(ACTIONS))).",
        )
        return
    last, kind = int(action.start) + int(action.n) - 1, np.dtype(action.dtype)
    largest = min(np.iinfo(kind).max, np.iinfo(np.int64).max)  # they are chosen as int64
    if last > largest:
        yield (
            f"action space {action} of {kind}",
            f"its last action is {last}, and {largest} is the largest that can be sent",
            "Let the space start at a smaller number or have a wider dtype.",
        )
    if not isinstance(obs, ARRAY_SPACES):
        reason = "the network takes one array of a fixed shape"
        yield f"{type(obs).__name__} observations", reason, wrapper_for(obs, env)
    if 0 in (obs.shape or ()):
        yield (
            f"observations of shape {obs.shape}",
            "they hold no numbers to learn from",
            "Let it show at least one, e.g. Box(0, 1, (1,)).",
        )
    if np.dtype(obs.dtype).name not in STORAGE_DTYPES:
        yield (
            f"{np.dtype(obs.dtype)} observations",
            "PyTorch has no such dtype to store them in",
            "Wrap it with gymnasium.wrappers.DtypeObservation(env, numpy.float32).",
        )


def _name_of(factory: EnvFactory) -> str:
    if not isinstance(factory, partial):
        return getattr(factory, "__name__", type(factory).__name__)
    first, *_ = *factory.args, None
    if isinstance(first, EnvSpec):
        return first.id
    ours = (getattr(factory.func, "__module__", None) or "").startswith("fastdqn.envs.")
    return _name_of(first if ours and callable(first) else factory.func)
