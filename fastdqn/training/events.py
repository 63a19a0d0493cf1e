"""Events of a training: finished episodes, evaluations and periodic reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["BestPolicy", "Episode", "Evaluation", "Report"]


@dataclass(frozen=True, slots=True)
class Episode:
    """One finished training episode.

    Attributes:
        episode: Serial number over all environments, from 1, in the order of finishing.
        env_step: Env steps taken by the whole run when the episode ended.
        return_: Undiscounted sum of rewards.
        length: Env steps of the episode.
        truncated: Ended by a time limit and not by the environment's own rules.
    """

    episode: int
    env_step: int
    return_: float
    length: int
    truncated: bool


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of greedy episodes.

    Attributes:
        returns: [E] float64.
        lengths: [E] int64, env steps.
        num_cut: Episodes that were cut since they were too long; they count with their return
            until then.
        max_steps: Env steps at which an episode was cut; 0 is never.
        num_nonfinite: Steps of environments with a number that was not finite, and was skipped or
            replaced.
        best: Whether it is a full evaluation of a training, and its mean is above those of all
            full evaluations before.
    """

    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]
    num_cut: int = 0
    max_steps: int = 0
    best: bool = False
    num_nonfinite: int = 0

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns over the episodes."""
        return float(self.returns.std())

    @property
    def episodes(self) -> int:
        """Number of episodes, E."""
        return len(self.returns)

    def within_reach(self, target_return: float) -> bool:
        """Return whether `target_return` is at most two standard errors above the mean; E >= 2."""
        return self.mean + 2.0 * self.std / math.sqrt(self.episodes - 1) >= target_return

    def __add__(self, other: Evaluation) -> Evaluation:
        """Return an evaluation of the episodes of both."""
        return Evaluation(
            np.concatenate([self.returns, other.returns]),
            np.concatenate([self.lengths, other.lengths]),
            self.num_cut + other.num_cut,
            max(self.max_steps, other.max_steps),
            num_nonfinite=self.num_nonfinite + other.num_nonfinite,
        )


@dataclass(frozen=True, slots=True)
class BestPolicy:
    """The full evaluation of the best policy so far.

    Attributes:
        env_step: Env steps of the run when it was evaluated.
        mean: Mean return.
        std: Standard deviation of the returns over the episodes.
        episodes: Episodes of the evaluation.
    """

    env_step: int
    mean: float
    std: float
    episodes: int


@dataclass(frozen=True, slots=True)
class Report:
    """A periodic report on the running training; its numbers are on the host.

    Attributes:
        env_steps: Real transitions so far.
        total_env_steps: Transitions at which the run ends by itself.
        updates: Optimizer steps so far.
        episodes: Finished episodes so far.
        sps: Env steps per training second since the previous report.
        return_mean_100: Mean return of the last 100 finished episodes; NaN before the first.
        epsilon: Exploration probability of the schedule, also that of the first environment of an
            epsilon ladder; the others explore less.
        loss: Loss of the last update; NaN before the first.
        q_mean: Mean Q(s, a) of the last batch; NaN before the first.
        grad_norm: Norm of the last gradient before clipping; NaN before the first.
        wall_s: Seconds since the command started.
        time_left_s: Seconds until total_env_steps at the present speed; NaN when unknown.
        time_share: Fractions of the training time by activity; they sum to 1.
        learning_rate: Step size of the last update; before the first, that the learner has.
    """

    env_steps: int
    total_env_steps: int
    updates: int
    episodes: int
    sps: float
    return_mean_100: float
    epsilon: float
    loss: float
    q_mean: float
    grad_norm: float
    wall_s: float
    time_left_s: float
    time_share: dict[str, float] = field(default_factory=dict)
    learning_rate: float = math.nan
