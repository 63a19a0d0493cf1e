"""Compares the returns of a training with the support that its objective can represent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastdqn.algorithms.distributional import C51Objective
from fastdqn.algorithms.objectives import Objective
from fastdqn.config import flag_of
from fastdqn.replay import ReplayBuffer
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.returns import discounted_returns, stored
from fastdqn.training.callbacks import Callback
from fastdqn.training.host.rollout import HostRollout
from fastdqn.training.tensor.rollout import TensorRollout

__all__ = ["ValueRange", "value_range_of"]

NEW_SHARE = 0.25
"""Share of the ring that is new before it is looked at again, so that looks cost little."""
ROUNDING = 1e-6
"""Fraction of the support by which rounding may move a return."""


@dataclass
class ValueRange:
    """The bounds of a support that no return was beyond yet.

    Attributes:
        low: The smallest return of the support.
        high: The largest one.
        gamma: Discount per env step.
        open: `v_min`, `v_max`, as far as no return was beyond; empty looks at nothing.
        seen: Env steps at the last look.
    """

    low: float = 0.0
    high: float = 0.0
    gamma: float = 0.0
    open: set[str] = field(default_factory=set)
    seen: int = 0

    def beyond(
        self, replay: ReplayBuffer | FunctionalRing, env_steps: int, *, last: bool = False
    ) -> list[str]:
        """Return a message for each bound that a return of the ring is the first one beyond.

        Returns are exact where the episode has terminated. One that still runs, or was truncated,
        counts with the value within the support that would bring its return back furthest: the
        target of its last transition has a value of what follows, too.

        Args:
            replay: Read; waits for the device.
            env_steps: So far; while few transitions are new nothing is done.
            last: Look all the same.
        """
        few = env_steps - self.seen < NEW_SHARE * min(env_steps, len(replay.ring.action))
        if not self.open or (few and not last) or env_steps == self.seen:
            return []
        self.seen = env_steps
        if not len(rows := stored(replay)):
            return []
        total, factor = (numbers[rows] for numbers in discounted_returns(replay.ring, self.gamma))
        slack = ROUNDING * (self.high - self.low)
        smallest = float((total + factor * self.high).min())
        largest = float((total + factor * self.low).max())
        found = {"v_min": smallest} if smallest < self.low - slack else {}
        found |= {"v_max": largest} if largest > self.high + slack else {}
        return self._messages(found)

    def report(
        self, rollout: HostRollout | TensorRollout, callback: Callback, *, last: bool = False
    ) -> None:
        """Call back with what `beyond` says of the ring of a rollout."""
        if self.open:
            for message in self.beyond(rollout.replay, rollout.env_steps, last=last):
                callback.on_returns_beyond(rollout.env_steps, message)

    def _messages(self, found: Mapping[str, float]) -> list[str]:
        sides = {"v_min": ("below", "lower", self.low), "v_max": ("above", "raise", self.high)}
        messages = []
        for name, return_ in found.items():
            if name in self.open:
                side, change, bound = sides[name]
                flag = flag_of(name)
                messages.append(
                    f"a discounted return of {return_:.6g} is {side} {flag} {bound:g}, where the "
                    f"support of C51 ends, and is learned as {bound:g}: {change} {flag}"
                )
        self.open -= found.keys()
        return messages


def value_range_of(objective: Objective, gamma: float) -> ValueRange:
    """Return the support of C51, or for other objectives a range that looks at nothing."""
    if isinstance(objective, C51Objective):
        return ValueRange(objective.v_min, objective.v_max, gamma, {"v_min", "v_max"})
    return ValueRange()
