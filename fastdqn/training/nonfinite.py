"""Numbers that are not finite: what is done about them, and how they are counted and reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Space

from fastdqn.errors import NonFiniteError
from fastdqn.foundation.state import LARGEST as MOST
from fastdqn.foundation.state import PartState
from fastdqn.learner.state import LearnerState, why_skipped
from fastdqn.training.callbacks import Callback

__all__ = ["MOST_IN_A_ROW", "Counted", "NonFiniteReports", "Tally", "TensorTally", "limits_of"]

LARGEST = 1e6
"""Magnitude that takes the place of an infinity: so large that it is seen, so small that the square
of a gradient stays finite in float32, and the update with it is made."""
MOST_IN_A_ROW = 1_000
"""Steps, or updates, that are skipped in a row before the run ends."""
COUNTS = ("made", "skipped_at", "new_updates", "steps_before", "updates_before", "pending")
"""Of `NonFiniteReports`; those from which it counts may lie below 0."""
WAY_OUT = (
    "Fix the environment, wrap it so that it returns finite numbers, or pass --on-nonfinite skip."
)


def limits_of(space: Space[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return what takes the place of -inf and of inf in an observation, [*O] or [] float64 each.

    It is the bound of the space, or a million where that is less, or what its dtype holds.
    """
    low, high = (space.low, space.high) if isinstance(space, Box) else (-LARGEST, LARGEST)
    dtype = np.dtype(space.dtype)
    largest = min(LARGEST, float(np.finfo(dtype).max)) if dtype.kind == "f" else LARGEST
    bounds = (np.clip(np.asarray(bound, np.float64), -largest, largest) for bound in (low, high))
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
        self.first = self.first or " ".join(words.split())
        self._in_a_row = self._in_a_row + 1 if progress == self._progress else 1
        self._progress = progress
        if self.on_nonfinite == "skip" and self._in_a_row >= MOST_IN_A_ROW:
            raise NonFiniteError(
                f"{words}: of {self._in_a_row:,} vector steps in a row nothing could be used. "
                "Fix the environment, wrap it so that it returns finite numbers, or pass "
                "--on-nonfinite replace."
            )

    def take_words(self) -> str:
        """Return what the first one returned since the last call, or nothing."""
        words, self.first = self.first, ""
        return words

    def state(self) -> PartState:
        """Return the counts, and what is not reported yet."""
        counts = {"in_a_row": self._in_a_row, "progress": self._progress}
        return PartState({"count": self.count, "first": self.first, **counts})

    def restore(self, state: PartState) -> None:
        """Go on from the counts of another one."""
        first, count = state.text("first"), state.whole("count")
        if not first.isprintable():
            raise state.refusal("first", "no text of one line")
        in_a_row, progress = state.whole("in_a_row"), state.whole("progress", -1)
        self.count, self.first = count, first
        self._in_a_row, self._progress = in_a_row, progress


class TensorTally(Tally):
    """Notes which steps of tensor environments were skipped, by the log that the host reads."""

    def __init__(self, on_nonfinite: str = "raise") -> None:
        super().__init__(on_nonfinite)
        self._usable = 0  # vector steps with a transition

    def state(self) -> PartState:
        """Return the counts, and what is not reported yet."""
        state = super().state()
        return PartState({**state.values, "usable": self._usable})

    def restore(self, state: PartState) -> None:
        """Go on from the counts of another one."""
        usable = state.whole("usable")
        super().restore(state)
        self._usable = usable

    def note_skipped(self, skipped: npt.NDArray[np.bool_], env_steps: int) -> None:
        """Note the skipped steps [S, N] of S vector steps, which began after `env_steps`.

        Raises:
            NonFiniteError: See `note`.
        """
        if not skipped.any():
            self._usable += len(skipped)
            return
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
        self._steps_before = self._updates_before = self._pending = 0
        self._goes_on = False

    def begin(self, state: LearnerState, rollout: Counted) -> None:
        """Count from here on; with `raise` an update that was skipped before counts, too.

        A rollout that begins anew in the middle of a training counts on.
        """
        if self.on_nonfinite == "raise":
            return
        self._steps_before = rollout.nonfinite - self.transitions - self._pending
        if not self._goes_on:
            self._updates_before = self._skipped_at = int(state.skipped)
            self._made = int(state.updates) - self._skipped_at

    def state(self, rollout: Counted) -> PartState:
        """Return the counts; may wait for the device."""
        counts = {name: getattr(self, f"_{name}") for name in COUNTS}
        counts |= self.counts()
        if self.on_nonfinite != "raise":
            counts["pending"] = rollout.nonfinite - self._steps_before - self.transitions
        return PartState(counts)

    def restore(self, state: PartState) -> None:
        """Go on from the counts of another one; `begin` follows where the rollout begins anew.

        Raises:
            CheckpointError: Names a value that is no count.
        """
        counts = {name: state.whole(name, -MOST) for name in COUNTS}
        transitions, updates = state.whole("transitions"), state.whole("updates")
        self.transitions, self.updates, self._goes_on = transitions, updates, True
        for name, count in counts.items():
            setattr(self, f"_{name}", count)

    def counts(self) -> dict[str, int]:
        """Return the steps and updates so far, as result.json has them."""
        return {"transitions": self.transitions, "updates": self.updates}

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
        new = skipped - self._updates_before - self.updates
        self._new_updates += new
        self.updates += new

    def _refuse(self, skipped: int, state: LearnerState, env_steps: int) -> None:
        why = why_skipped(state.metrics)
        raise NonFiniteError(f"{skipped} updates before env step {env_steps} had {why}")

    def report(self, rollout: Counted, callback: Callback) -> None:
        """Call back with a message if there is something new since the last one."""
        if self.on_nonfinite == "raise":
            return
        count, updates = rollout.nonfinite - self._steps_before, self._new_updates
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
