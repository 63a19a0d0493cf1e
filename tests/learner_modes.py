"""Lets a learner run in a mode as a test wants it: by stand-ins of graphs, or by its own steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastdqn.execution.modes import mode_of
from fastdqn.execution.step import PureStep, Step
from fastdqn.learner.learner import Learner
from fastdqn.learner.steps import LearnerSteps

__all__ = ["assert_from_a_library", "learning_step", "run_by", "run_by_graphs"]

CUDA = torch.device("cuda")


def run_by_graphs(
    learner: Learner, cuda: Any, mode: str = "cudagraph", *, background: bool = False
) -> None:
    """Let a mode be run by graphs of the stand-in `cuda`, from the next `execute_as` on."""
    steps = learner._steps_in(mode_of(mode, CUDA), cuda, background=background)
    learner._modes[mode] = steps


def run_by(learner: Learner, mode: str, wrap: Callable[[PureStep], Step]) -> None:
    """Let a mode be run by what `wrap` makes of pure steps, from the next `execute_as` on.

    Of indices that the caller gives, up to four rows come in a call.
    """

    def runs(step: PureStep, **_: Any) -> Step:
        return wrap(step)

    given = learner._updating, learner._learning_from, runs
    learner._modes[mode] = LearnerSteps(mode_of("compile", learner.device), *given)


def learning_step(learner: Learner) -> Any:
    """Return what learns from the one source that the learner has learned from in its mode."""
    (step,) = learner._steps.learning
    return step


def assert_from_a_library(learner: Learner) -> None:
    """Check that a library was found or made for what the learner has learned by.

    Calls that wait would otherwise be compiled in this process, and compute the same.
    """
    compiler = learning_step(learner).compiler
    assert compiler.fallback is None
    assert compiler.loaded + compiler.made > 0
