"""Which policies of a training are evaluated fully, and which of them is the best."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

from fastdqn.envs.seeding import Stream
from fastdqn.foundation.trial_env import generators_restored
from fastdqn.training.evaluation import Evaluator
from fastdqn.training.events import BestPolicy, Evaluation

__all__ = ["Selection"]

BUDGET, BUDGET_BESIDE_A_TARGET = (0.5, 4.0), (0.1, 0.1)
"""Env steps of full evaluations for the best policy, at most, per env step of the training: of all
before one, and of that one."""


@dataclass(eq=False)
class Selection:
    """Evaluates the policy of a training now and then, and keeps which one was the best.

    Every evaluation is a screening of 5 episodes, or of 20 if the return to reach is within two
    standard errors. That is `target_return`, if there is one, else any mean above the best one. A
    full evaluation of other episodes follows

    - if the screening reached `target_return`: it decides whether the run ends;
    - else if the mean of the screening is above the best one, and the training can afford it: the
      full evaluations of this kind so far took at most a half as many env steps as the training,
      and this one, with episodes as long as those of the screening, will take at most four times as
      many. With `target_return` both are a tenth. It ends early where the best mean is out of
      reach.

    The best policy is the one with the highest mean of a full evaluation that played all of its
    episodes; of equal means the earlier one stays, and a mean that is not finite does not count,
    nor do screenings. What is played follows from counts and returns, never from time. The global
    random generators are restored.

    Args:
        evaluator: Plays.
        best: The best policy of an earlier call, to be beaten; or None.

    Attributes:
        last: The last full evaluation that might have ended the run or was played at its end.
        extra_steps: Env steps of the full evaluations for the best policy.
    """

    evaluator: Evaluator
    best: BestPolicy | None = None

    def __post_init__(self) -> None:
        self.last: Evaluation | None = None
        self.extra_steps = 0

    def evaluate(
        self, env_step: int, trained_steps: int, target_return: float | None = None
    ) -> tuple[Evaluation, bool]:
        """Screen the policy, and evaluate it fully if it may be good enough.

        Args:
            env_step: Env steps of the run.
            trained_steps: Env steps of this training.
            target_return: Mean return of a full evaluation that ends the run; or None.

        Returns:
            The evaluation, the full one if there was one, and whether it ends the run.

        Raises:
            EvaluationStopped: The training was stopped; the best policy is as before.
        """
        budget = BUDGET if target_return is None else BUDGET_BESIDE_A_TARGET
        affords = partial(self._affords, trained_steps, budget)
        with generators_restored():
            if target_return is None:
                seen = self.evaluator.screen(self._goal, affords)
            else:
                seen = self.evaluator.screen(target_return)
                if seen.mean >= target_return:
                    return self._try_to_finish(env_step, target_return)
            if seen.mean >= self._goal and affords(seen):
                return self._compared(env_step, self._try_to_beat()), False
        return seen, False

    def evaluate_last(self, env_step: int) -> Evaluation:
        """Play all episodes with the last policy of a run."""
        with generators_restored():
            self.last = self._compared(env_step, self.evaluator.full())
        return self.last

    @property
    def _goal(self) -> float:
        """The smallest mean above the best one."""
        return math.nextafter(-math.inf if self.best is None else self.best.mean, math.inf)

    def _try_to_finish(self, env_step: int, target_return: float) -> tuple[Evaluation, bool]:
        found = self._compared(env_step, self.evaluator.full(target_return))
        if found.episodes == self.evaluator.episodes:
            self.last = found
        return found, found.mean >= target_return

    def _affords(self, trained_steps: int, budget: tuple[float, float], seen: Evaluation) -> bool:
        """Return whether a full evaluation keeps to so many env steps, as far as can be seen."""
        expected = self.evaluator.episodes * float(seen.lengths.mean())
        share_before, share = budget
        affordable_before = self.extra_steps <= share_before * trained_steps
        return affordable_before and expected <= share * trained_steps

    def _try_to_beat(self) -> Evaluation:
        goal = None if self.best is None else self._goal
        found = self.evaluator.full(goal, Stream.BEST_POLICY_ENVS)
        self.extra_steps += int(found.lengths.sum())
        return found

    def _compared(self, env_step: int, found: Evaluation) -> Evaluation:
        """Return a full evaluation, marked if it makes this policy the best one."""
        whole = found.episodes == self.evaluator.episodes and math.isfinite(found.mean)
        if not whole or found.mean < self._goal:
            return found
        self.best = BestPolicy(env_step, found.mean, found.std, found.episodes)
        return replace(found, best=True)
