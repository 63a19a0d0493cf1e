"""Which policies of a training are evaluated fully, and which of them is the best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import TypeVar

from fastdqn.envs.seeding import Stream
from fastdqn.errors import first_line
from fastdqn.foundation.trial_env import close_quietly, generators_restored
from fastdqn.training.callbacks import Callback
from fastdqn.training.evaluation import EvaluationStopped, Evaluator
from fastdqn.training.events import BestPolicy, Evaluation

__all__ = ["Selection"]

T = TypeVar("T")

BUDGET, BUDGET_BESIDE_A_TARGET = (0.5, 4.0), (0.1, 0.1)
"""Env steps of full evaluations for the best policy, at most, per env step of the training: of all
before one, and of that one."""
BUDGET_OF_SCREENINGS = 0.5
"""Env steps of all screenings before one, at most, per env step of the training."""


@dataclass(eq=False)
class Selection:
    """Evaluates the policy of a training now and then, and keeps which one was the best.

    Every evaluation is a screening of 5 episodes, or of 20 if the return to reach is within two
    standard errors. That is `target_return`, if there is one, else any mean above the best one, and
    then 20 are played only if the training can afford the full evaluation that may follow. A full
    evaluation of other episodes follows

    - if the screening reached `target_return`: it decides whether the run ends;
    - else if the mean of the screening is above the best one, and the training can afford it: the
      full evaluations of this kind so far took at most a half as many env steps as the training,
      and this one, with episodes as long as those of the screening, will take at most four times as
      many. With `target_return` both are a tenth. It ends early where the best mean is out of
      reach.

    The best policy is the one with the highest mean of a full evaluation that played all of its
    episodes; of equal means the earlier one stays, and a mean that is not finite does not count,
    nor do screenings. What is played follows from counts and returns, never from time. The global
    random generators are restored, also after environments that draw from them while they are
    built.

    Args:
        evaluator: Plays.
        best: The best policy of an earlier call, to be beaten; or None.
        required: Whether the caller asked for evaluations: then none is left out, and an exception
            in one is raised. Otherwise it is reported, and nothing is evaluated any more.
        callback: Called with the progress, and with why nothing is evaluated any more.

    Attributes:
        last: The last full evaluation that might have ended the run or was played at its end.
        extra_steps: Env steps of the full evaluations for the best policy.
        screened_steps: Env steps of the screenings.
    """

    evaluator: Evaluator
    best: BestPolicy | None = None
    _: KW_ONLY
    required: bool = True
    callback: Callback = field(default_factory=Callback)

    def __post_init__(self) -> None:
        self.last: Evaluation | None = None
        self.extra_steps = self.screened_steps = 0
        self._failed = self._reports = False
        self.evaluator.on_progress = self._report_progress

    def evaluate(
        self, env_step: int, trained_steps: int, target_return: float | None = None
    ) -> tuple[Evaluation, bool] | None:
        """Screen the policy, and evaluate it fully if it may be good enough.

        Args:
            env_step: Env steps of the run.
            trained_steps: Env steps of this training.
            target_return: Mean return of a full evaluation that ends the run; or None.

        Returns:
            The evaluation, the full one if there was one, and whether it ends the run; None if one
            that is not required has failed, or is left out: the screenings so far took more than a
            half as many env steps as the training.

        Raises:
            EvaluationStopped: The training was stopped; the best policy is as before.
        """
        if not self.required and self.screened_steps > BUDGET_OF_SCREENINGS * trained_steps:
            return None
        return self._guarded(partial(self._evaluate, env_step, trained_steps, target_return))

    def _evaluate(
        self, env_step: int, trained_steps: int, target_return: float | None
    ) -> tuple[Evaluation, bool]:
        budget = BUDGET if target_return is None else BUDGET_BESIDE_A_TARGET
        affords = partial(self._affords, trained_steps, budget)
        goal, worth = (self._goal, affords) if target_return is None else (target_return, None)
        seen = self.evaluator.screen(goal, worth)
        self.screened_steps += int(seen.lengths.sum())
        if target_return is not None and seen.mean >= target_return:
            return self._try_to_finish(env_step, target_return)
        if seen.mean >= self._goal and affords(seen):
            return self._compared(env_step, self._try_to_beat()), False
        return seen, False

    def evaluate_last(self, env_step: int) -> Evaluation | None:
        """Play all episodes with the last policy of a run; None as in `evaluate`."""
        play = partial(self.evaluator.full, stream=Stream.LAST_POLICY_ENVS)
        found = self._guarded(lambda: self._compared(env_step, play()))
        self.last = found or self.last
        return found

    def _guarded(self, play: Callable[[], T]) -> T | None:
        """Play; where that fails and is not required, report it once, and do without."""
        if self._failed:
            return None
        with generators_restored():
            try:
                return play()
            except EvaluationStopped:
                raise
            except Exception as error:  # an environment may raise any exception
                if self.required or self._reports:
                    raise
                close_quietly(self.evaluator)
                self._give_up(error)
        return None

    def _give_up(self, error: Exception) -> None:
        if self.evaluator.stopped is not None and self.evaluator.stopped():
            raise EvaluationStopped from error  # the signal may have ended workers, too
        self._failed = True
        self.callback.on_no_evaluations(f"{type(error).__name__}: {first_line(error)}")

    def _report_progress(self, done: int, episodes: int, steps: int) -> None:
        """Report the progress; what the callback raises is no failure of the evaluation."""
        self._reports = True
        self.callback.on_evaluation_progress(done, episodes, steps)
        self._reports = False

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
