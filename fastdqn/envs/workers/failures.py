"""Failures of environments: what one raised, and what takes its place."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium import logger
from gymnasium.error import ClosedEnvironmentError

from fastdqn.errors import UsageError, WorkerError

__all__ = ["Answer", "ClosedEnv", "EnvFailures", "Failure", "on_action", "raise_failures"]

Answer = tuple[dict[int, dict[str, Any]], list[Any] | None]
"""What a step or reset returns beside the block: infos by environment, pickled observations."""
SHUT = "the environment raised and was shut down: reset it first"


@dataclass(frozen=True)
class Failure:
    """An exception that an environment raised, in a form that can be pickled.

    Attributes:
        env: Index of the environment in the whole vector.
        error: The exception, or None if it does not survive pickling.
        text: The formatted traceback.
        reason: The name of its class and the first line of its message.
        doing: What the environment was doing, or an empty text.
        ended: Whether the environment was closed; the next reset rebuilds it.
    """

    env: int
    error: Exception | None
    text: str
    reason: str
    doing: str
    ended: bool

    @property
    def final(self) -> bool:
        """Whether rebuilding cannot help: what the environment returned cannot be used."""
        return isinstance(self.error, UsageError)

    @classmethod
    def of(cls, env: int, error: Exception, doing: str = "", *, ended: bool = False) -> Failure:
        """Describe an exception that environment `env` raised."""
        text = "".join(traceback.format_exception(error))
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".removesuffix(": ")
        return cls(env, error, text, reason, doing, ended)

    def __str__(self) -> str:
        """Return environment, action and traceback, over several lines."""
        return f"environment {self.env} raised{self.doing}:\n{self.text.rstrip()}"


class EnvFailures(Exception):  # noqa: N818 - several errors, one for each environment
    """The failures of one call, in the order of the environments.

    Attributes:
        failures: One per environment that raised.
        message: The result for the other environments, where the call went on with them.
    """

    def __init__(self, failures: list[Failure], message: Answer | None = None) -> None:
        super().__init__(f"{len(failures)} environments raised")
        self.failures, self.message = failures, message

    def final(self) -> EnvFailures | None:
        """Return the failures that no restart can mend, or None."""
        final = [failure for failure in self.failures if failure.final]
        return EnvFailures(final) if final else None

    def raise_last(self) -> NoReturn:
        """Raise the last exception of an environment, with its traceback as the cause."""
        last = self.failures[-1]
        report = WorkerError(str(last))
        if last.error is None:
            raise report from None
        raise last.error from report

    def log(self) -> None:
        """Log what Gymnasium's class logs when environments raise in a step or a reset."""
        if not any(failure.ended and not failure.final for failure in self.failures):
            return
        for failure in self.failures:
            logger.error(
                f"Received the following error from Worker-{failure.env} - Shutting it down"
            )
            logger.error(f"{failure.text}")
        logger.error("Raising the last exception back to the main process.")


def raise_failures(answers: Sequence[Any]) -> None:
    """Raise the failures among the answers of a pool as one, in their order."""
    failures = [f for a in answers if isinstance(a, EnvFailures) for f in a.failures]
    if failures:
        raise EnvFailures(failures)


class ClosedEnv(gym.Env[Any, Any]):
    """Takes the place of an environment that raised, until the next reset.

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
    """Return the action on which an environment raised, and whether its space lacks it."""
    try:
        strange = not env.action_space.contains(action)
        shown = action.item() if isinstance(action, np.generic) else action
        return f" on action {shown!r}{f', not in {env.action_space}' if strange else ''}"
    except Exception:
        return ""
