"""Refusals of environments that DQN cannot use, with what to write instead."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

import gymnasium as gym
from gymnasium.spaces import Dict, Space, Text, Tuple
from gymnasium.spaces.utils import flatten, flatten_space
from gymnasium.vector import VectorEnv

from fastdqn.envs.spaces import ARRAY_SPACES
from fastdqn.errors import UsageError
from fastdqn.foundation.trial_env import with_parts

__all__ = ["checked_info", "refuse_no_factory", "refuse_unlike_env", "wrapper_for"]

OLD_PACKAGE = (
    "Use the environment's version for Gymnasium; or derive its class from gymnasium.Env, with "
    "gymnasium.spaces, reset(seed, options) -> (obs, info) and step(action) -> (obs, reward, "
    "terminated, truncated, info); or pip install shimmy and pass lambda: "
    "shimmy.GymV26CompatibilityV0(env=gym.make(..., disable_env_checker=True)), or "
    "GymV21CompatibilityV0(env=...) for one that is older than gym 0.26"
)

ENDS = {"reset": "return obs, {}", "step": "return obs, reward, terminated, truncated, {}"}
OTHER_RESET = (
    "its reset returned only an observation, as the old gym API has it, where Gymnasium's is "
    "(obs, info)",
    f"End its reset with `{ENDS['reset']}`, and let it take seed and options: "
    "def reset(self, *, seed=None, options=None).",
)
OLD_STEP = (
    "its step returned four values, as the old gym API has it, where Gymnasium's are five",
    "End its step with `return obs, reward, terminated, truncated, info`: terminated says that "
    "the task has ended, truncated that a time limit cut it.",
)
OTHER_STEP = (
    "its step must return five values: obs, reward, terminated, truncated, info",
    f"End its step with `{ENDS['step']}`.",
)


def refuse_no_factory(env: Any) -> NoReturn:
    """Refuse what is neither an id nor a factory.

    Raises:
        UsageError: Always.
    """
    spec = getattr(env, "spec", None)
    made = f'gymnasium.make("{spec.id}", ...)' if spec else f"{type(env).__name__}(...)"
    if hasattr(env, "step") and hasattr(env, "reset"):
        raise UsageError(
            f"env {type(env).__name__}",
            "this is one environment, and many are built, in other processes, too",
            f"Pass an id, or a factory: DQN(lambda: {made}).",
        )
    raise UsageError(
        f"env {env!r}",
        "it is neither an id, nor a factory, a VectorEnv or tensor environments",
        'Pass an id, DQN("CartPole-v1"), or a factory, DQN(lambda: gymnasium.make(...)).',
    )


def refuse_unlike_env(env: Any, name: str) -> None:
    """Refuse an object from a factory that is not a single Gymnasium environment.

    Raises:
        UsageError: It is a vector, None, or of the old `gym` package.
    """
    if isinstance(env, VectorEnv):
        raise UsageError(
            f"environment {name}",
            f"its factory built a vector of environments, {type(env).__name__}",
            "Pass the vector itself, DQN(vector), or a factory of one environment.",
        )
    spaces = (getattr(env, kind, None) for kind in ("action_space", "observation_space"))
    if any(map(_is_old, (env, *spaces))):
        raise UsageError(
            f"environment {name}",
            "it is made for the old package gym, which Gymnasium has replaced",
            OLD_PACKAGE,
        )
    needed = ("reset", "step", "action_space", "observation_space")
    missing = [what for what in needed if getattr(env, what, None) is None]
    if missing:
        raise UsageError(
            f"environment {name}",
            f"its factory returned {env!r}, which has no {', '.join(missing)}",
            "Let the factory return an environment, a gymnasium.Env.",
        )


def _is_old(thing: Any) -> bool:
    """Return whether an object is of `gym`, the package before Gymnasium."""
    return not isinstance(thing, gym.Env | Space) and any(
        kind.__module__.partition(".")[0] == "gym" for kind in type(thing).__mro__
    )


def checked_info(call: Literal["reset", "step"], returned: Any, name: str) -> Mapping[str, Any]:
    """Return the info that a reset or a step of an environment returned.

    Raises:
        UsageError: It returned other values than Gymnasium's, or the last is not an info.
    """
    count = len(returned) if isinstance(returned, tuple) else 1
    if call == "reset" and not (count == 2 and isinstance(returned[1], Mapping | None)):
        raise UsageError(f"environment {name}", *OTHER_RESET)
    if call == "step" and count != 5:
        raise UsageError(f"environment {name}", *(OLD_STEP if count == 4 else OTHER_STEP))
    info = returned[-1]
    if not isinstance(info, Mapping):
        raise UsageError(
            f"environment {name}",
            f"its {call} returned {info!r} for an info, which must be a dict",
            f"End its {call} with `{ENDS[call]}`.",
        )
    return info


# Wrappers


def wrapper_for(obs: Space[Any], env: Any = None) -> str:
    """Return the advice that makes one array of the observations of a space.

    If the environment is known, wrappers of its own package are named, too.
    """
    own = ""
    if type(getattr(env, "unwrapped", None)).__module__.partition(".")[0] == "minigrid":
        own = "; or minigrid.wrappers.ImgObsWrapper(env), which shows the picture alone"
    if _flattens(obs):
        some = "; FilterObservation(env, [...]) picks some of its parts first"
        return f"Wrap it: {_example('FlattenObservation(gymnasium.make(...))')}{some}{own}"
    spaces: Any = obs.spaces if isinstance(obs, Dict | Tuple) else {}
    parts = dict(spaces if isinstance(spaces, Mapping) else enumerate(spaces))
    keys = [key for key, part in parts.items() if _flattens(part)]
    if not keys:
        return (
            "Wrap it so that it returns a numeric array: gymnasium.wrappers.TransformObservation"
            f"(env, lambda obs: ..., gymnasium.spaces.Box(...)){own}"
        )
    others = ", ".join(repr(key) for key in parts if key not in keys)
    wrapped = f"FlattenObservation(FilterObservation(gymnasium.make(...), {keys!r}))"
    return f"Leave out {others}, which makes no array: {_example(wrapped)}{own}"


def _example(wrapped: str) -> str:
    wrappers = [w for w in ("FilterObservation", "FlattenObservation") if w in wrapped]
    return f"from gymnasium.wrappers import {', '.join(wrappers)}; DQN(lambda: {wrapped})"


def _flattens(space: Space[Any]) -> bool:
    """Return whether Gymnasium makes one array of every element of a space, and of numbers.

    It would spell out a Text, letter by letter.
    """
    if any(isinstance(part, Text) for part in with_parts(space)):
        return False
    space = copy.deepcopy(space)  # a sample moves its generator
    try:
        flat = flatten_space(space)
        return isinstance(flat, ARRAY_SPACES) and flat.contains(flatten(space, space.sample()))
    except Exception:  # a space of the caller may raise any exception
        return False
