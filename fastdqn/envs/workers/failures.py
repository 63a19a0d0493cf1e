"""What is told when environments raise, and what stands where one did."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ClosedEnvironmentError

from fastdqn.errors import UsageError

__all__ = ["EnvFailures", "Failure", "Shut", "StepTold", "on_action"]

StepTold = tuple[dict[int, dict[str, Any]], list[Any] | None] | None
"""What a step tells beside the block: infos by environment, and observations that travel."""
SHUT = "the environment raised and was shut down: reset it first"


@dataclass(frozen=True)
class Failure:
    """An exception that an environment raised, fit to cross the process border.

    Attributes:
        env: Index of the environment in the whole vector.
        error: The exception, or None if it does not survive pickling.
        text: The formatted traceback.
        reason: Its name and the first line of what it says.
        doing: What it was given to do, or nothing.
        ended: Whether the environment was shut down; the next reset builds it anew.
    """

    env: int
    error: Exception | None
    text: str
    reason: str
    doing: str
    ended: bool

    @property
    def final(self) -> bool:
        """Whether building it anew would be in vain: what it returned cannot be used."""
        return isinstance(self.error, UsageError)

    @classmethod
    def of(cls, env: int, error: Exception, doing: str = "", *, ended: bool = False) -> Failure:
        """Describe an exception that environment `env` raised."""
        text = "".join(traceback.format_exception(error))
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".removesuffix(": ")
        return cls(env, error, text, reason, doing, ended)

    def __str__(self) -> str:
        """Return all that is known, over several lines."""
        return f"environment {self.env} raised{self.doing}:\n{self.text.rstrip()}"


class EnvFailures(Exception):  # noqa: N818 - several errors, one for each environment
    """What the environments of one call raised, in the order of the environments.

    Attributes:
        failures: One per environment that raised.
        message: What the call would have returned for the others, where it went on with them.
    """

    def __init__(self, failures: list[Failure], message: StepTold = None) -> None:
        super().__init__(f"{len(failures)} environments raised")
        self.failures, self.message = failures, message

    def final(self) -> EnvFailures | None:
        """Return those of the failures that no restart mends; None where there are none."""
        final = [failure for failure in self.failures if failure.final]
        return EnvFailures(final) if final else None


class Shut(gym.Env[Any, Any]):
    """Stands where an environment raised, until the next reset.

    Args:
        was: The environment, closed.
    """

    def __init__(self, was: gym.Env[Any, Any]) -> None:
        self.was = was

    def step(self, action: Any) -> Any:  # noqa: ARG002
        """Refuse."""
        raise ClosedEnvironmentError(SHUT)

    def get_wrapper_attr(self, name: str) -> Any:  # noqa: ARG002
        """Refuse."""
        raise ClosedEnvironmentError(SHUT)


def on_action(env: gym.Env[Any, Any], action: Any) -> str:
    """Return the action that an environment raised on, and whether it was none of its own."""
    try:
        strange = not env.action_space.contains(action)
        shown = action.item() if isinstance(action, np.generic) else action
        return f" on action {shown!r}{f', not in {env.action_space}' if strange else ''}"
    except Exception:
        return ""
