"""Numbers that are not finite: what is done about them, and how they are counted and reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Space

from fastdqn.errors import NonFiniteError
from fastdqn.learner.state import LearnerState, why_skipped
from fastdqn.training.callbacks import Callback

__all__ = ["MOST_IN_A_ROW", "Counted", "NonFiniteReports", "Tally", "TensorTally", "limits_of"]

LARGEST = 1e6
"""Magnitude that takes the place of an infinity: so large that it is seen, so small that the square
of a gradient stays finite in float32, and the update with it is made."""
MOST_IN_A_ROW = 1_000
"""Steps, or updates, that are skipped in a row before the run ends."""
WAY_OUT = (
    "Fix the environment, wrap it so that it returns finite numbers, or pass --on-nonfinite skip."
)


def limits_of(space: Space[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return what takes the place of -inf and of inf in an observation, [*O] or [] float64 each.

    It is the bound of the space, or a million where that is less.
    """
    low, high = (space.low, space.high) if isinstance(space, Box) else (-LARGEST, LARGEST)
    bounds = (np.clip(np.asarray(bound, np.float64), -LARGEST, LARGEST) for bound in (low, high))
    least, most = bounds
    return least, most


@dataclass
class Tally:
    """Counts the steps in which environments returned a number that is not finite.

    Args:
        on_nonfinite: `raise`, `skip` or `replace`.
        of: Words behind the name of an environment in messages.

    Attributes:
        count: Steps of an environment so far, resets among them.
        first: What the first one returned since `take_words`; empty is none.
    """

    on_nonfinite: str = "raise"
    of: str = ""
    count: int = 0
    first: str = ""
    _in_a_row: int = 0
    _progress: int = -1

    def note(self, number: int, words: str, progress: int) -> None:
        """Count `number` environments of a vector step.

        Args:
            number: How many.
            words: What the first one returned.
            progress: What grows with every step that counts, such as env steps.

        Raises:
            NonFiniteError: They are not wanted; or a thousand vector steps had one since the last
                step that counts, while they are skipped.
        """
        if self.on_nonfinite == "raise":
            raise NonFiniteError(f"{words}: DQN cannot learn from it. {WAY_OUT}")
        self.count += number
        self.first = self.first or words
        self._in_a_row = self._in_a_row + 1 if progress == self._progress else 1
        self._progress = progress
        if self.on_nonfinite == "skip" and self._in_a_row >= MOST_IN_A_ROW:
            raise NonFiniteError(
                f"{words}: of {self._in_a_row:,} vector steps in a row nothing could be used. "
                "Fix the environment, or wrap it so that it returns finite numbers."
            )

    def take_words(self) -> str:
        """Return what the first one returned since the last call, or nothing."""
        words, self.first = self.first, ""
        return words


class TensorTally(Tally):
    """Notes which steps of tensor environments were skipped, by the log that the host reads."""

    _usable = 0  # vector steps with a transition

    def note_skipped(self, skipped: npt.NDArray[np.bool_], env_steps: int) -> None:
        """Note the skipped steps [S, N] of S vector steps, which began after `env_steps`.

        Raises:
            NonFiniteError: See `note`.
        """
        for row, envs in enumerate(skipped, 1):
            self._usable += not envs.all()
            if envs.any():
                what = f"environment {int(envs.argmax())} returned a number that is not finite"
                steps = env_steps + row * len(envs)
                self.note(int(envs.sum()), f"{what} by env step {steps}", self._usable)


class Counted(Protocol):
    """A rollout that counts what was not finite."""

    @property
    def env_steps(self) -> int:
        """Real transitions so far."""

    @property
    def nonfinite(self) -> int:
        """Steps so far; may wait for the device."""

    def nonfinite_words(self) -> str:
        """Return what the first one was since the last call, or nothing."""


class NonFiniteReports:
    """Reports what was not finite, once with each report, or ends the run.

    Args:
        on_nonfinite: `raise`, `skip` or `replace`.

    Attributes:
        transitions: Steps of environments with a number that is not finite, so far.
        updates: Updates that were skipped so far.
    """

    def __init__(self, on_nonfinite: str = "raise") -> None:
        self.on_nonfinite = on_nonfinite
        self.transitions = self.updates = 0
        self._made = self._skipped_at = self._new_updates = 0
        self._before = 0, 0

    def begin(self, state: LearnerState, rollout: Counted) -> None:
        """Count from here on; with `raise` an update that was skipped before counts, too."""
        if self.on_nonfinite != "raise":
            self._before = rollout.nonfinite, int(state.skipped)
            self._skipped_at = self._before[1]
            self._made = int(state.updates) - self._skipped_at

    def look_at(self, state: LearnerState, env_steps: int) -> None:
        """Look at the updates that were skipped since the last call; waits for the device.

        Raises:
            NonFiniteError: One was, with `raise`; else a thousand in a row, with none made between.
        """
        skipped = int(state.skipped)
        if skipped and self.on_nonfinite == "raise":
            self._refuse(skipped, state, env_steps)
        if self.on_nonfinite == "raise":
            return
        made = int(state.updates) - skipped
        if made != self._made:
            self._made, self._skipped_at = made, skipped
        elif skipped - self._skipped_at >= MOST_IN_A_ROW:
            self._refuse(skipped - self._skipped_at, state, env_steps)
        new = skipped - self._before[1] - self.updates
        self._new_updates += new
        self.updates += new

    def _refuse(self, skipped: int, state: LearnerState, env_steps: int) -> None:
        why = why_skipped(state.metrics)
        raise NonFiniteError(f"{skipped} updates before env step {env_steps} had {why}")

    def report(self, rollout: Counted, callback: Callback) -> None:
        """Call back with a message if there is something new since the last one."""
        if self.on_nonfinite == "raise":
            return
        count, updates = rollout.nonfinite - self._before[0], self._new_updates
        new, self.transitions, self._new_updates = count - self.transitions, count, 0
        done = "skipped" if self.on_nonfinite == "skip" else "replaced"
        parts = []
        if new:
            words = rollout.nonfinite_words()
            first = f" (first, {words})" if words else ""
            parts.append(f"{_counted(new, 'step')} of environments{first} {done}")
        if updates:
            parts.append(f"{_counted(updates, 'update')} skipped")
        if parts:
            message = f"not finite since the last report: {' and '.join(parts)}"
            callback.on_nonfinite(rollout.env_steps, message)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
