"""Lets a learner run in a mode as a test wants it: by stand-ins of graphs, or by its own steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastdqn.learner.learner import UPDATES_PER_CALL, Learner
from fastdqn.learner.steps import LearnerSteps

__all__ = ["learning_step", "run_by", "run_by_graphs"]

PureStep = Callable[..., None]


def run_by_graphs(
    learner: Learner, cuda: Any, mode: str = "cudagraph", *, background: bool = False
) -> None:
    """Let a mode be run by graphs of the stand-in `cuda`, from the next `execute_as` on."""
    learner._modes[mode] = learner._steps_in(mode, cuda, background=background)


def run_by(
    learner: Learner,
    mode: str,
    wrap: Callable[[PureStep], PureStep],
    sizes: Sequence[int] = UPDATES_PER_CALL,
) -> None:
    """Let a mode be run by what `wrap` makes of pure steps, from the next `execute_as` on."""

    def runs(step: PureStep, plain: PureStep | None, **_: Any) -> PureStep:
        return wrap(step)

    given = learner._updating, learner._learning_from, runs
    learner._modes[mode] = LearnerSteps(*given, sizes=sizes)


def learning_step(learner: Learner) -> Any:
    """Return what learns from the one source that the learner has learned from in its mode."""
    (step,) = learner._steps.learning
    return step
