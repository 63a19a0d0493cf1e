"""Greedy evaluation over fresh episodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.envs.sources.source import EnvSource
from fastdqn.errors import UsageError
from fastdqn.policies.policy import Policy
from fastdqn.training.games import Games, seeds_after
from fastdqn.training.stopwatch import Pace
from fastdqn.training.transfer import transfer_to

__all__ = ["Evaluation", "EvaluationStopped", "Evaluator", "OnProgress", "evaluate", "step_limit"]

GLANCE_EPISODES, LOOK_EPISODES = 5, 20
"""Episodes of a screening: of a policy that is hopeless already, and of any other."""
FIRST_EPISODES = 40
"""Of a full evaluation: whether it goes on is decided after so many."""
MAX_STEPS = 10_000
"""Env steps of an episode where neither the caller nor the environment names a bound."""
PROGRESS_EVERY_S = 5.0
"""Wall seconds between two looks at how far an evaluation has come."""
NO_LIMIT = 2**62

OnProgress = Callable[[int, int, int], None]
"""Receives how far a long evaluation is: episodes done, all episodes, env steps played."""


class EvaluationStopped(Exception):  # noqa: N818 - a wish of the caller, no error
    """The caller wanted an evaluation to end; nothing came of it."""


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of greedy episodes.

    Attributes:
        returns: [E] float64.
        lengths: [E] int64, env steps.
        num_cut: Episodes that were cut since they had lasted too long; they count with what they
            had brought until then.
        max_steps: Env steps at which an episode was cut; 0 is never.
    """

    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]
    num_cut: int = 0
    max_steps: int = 0

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

    def within_reach(self, goal: float) -> bool:
        """Return whether `goal` lies at most two standard errors above the mean; needs E >= 2."""
        return self.mean + 2.0 * self.std / math.sqrt(self.episodes - 1) >= goal

    def __add__(self, other: Evaluation) -> Evaluation:
        """Return the episodes of both."""
        return Evaluation(
            np.concatenate([self.returns, other.returns]),
            np.concatenate([self.lengths, other.lengths]),
            self.num_cut + other.num_cut,
            max(self.max_steps, other.max_steps),
        )


def step_limit(asked: int | None, longest: int | None) -> int:
    """Return at how many env steps an episode is cut; 0 is never.

    Args:
        asked: The caller's bound, 0 for none; None leaves it to this function, which takes
            10,000, or the environment's own time limit where that is longer.
        longest: The environment's time limit in env steps, or None.
    """
    return max(MAX_STEPS, longest or 0) if asked is None else asked


def evaluate(
    policy: Policy,
    source: EnvSource,
    seeds: Sequence[int],
    episodes: int,
    *,
    max_steps: int = 0,
    on_progress: OnProgress | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Evaluation:
    """Play greedy episodes and return what they brought.

    The first E episodes that begin are those that count, all of them to their end, so that short
    episodes are not counted more often than long ones. Environments with nothing left to play rest,
    where the source can let them; so does one whose episode was cut, until all are reset together.

    Args:
        policy: Acts greedily; nothing is learned and nothing is drawn.
        source: N environments, reset here.
        seeds: N seeds.
        episodes: E >= 1.
        max_steps: Env steps after which an episode is cut; 0 is never.
        on_progress: Called every few seconds: episodes done, all episodes, env steps played.
        stopped: Is asked before every step whether to stop; None goes on.

    Raises:
        EvaluationStopped: The caller wanted it to stop.
    """
    policy = policy.to_play()
    games = Games(source, episodes, max_steps or NO_LIMIT)
    act, pace = _acting(policy, source), Pace(PROGRESS_EVERY_S, at_once=False)
    games.begin(seeds)
    while games.missing:
        if stopped is not None and stopped():
            raise EvaluationStopped
        if not games.num_playing:  # all that are left were cut
            games.begin(seeds_after(seeds, games.num_resets))
        _step(source, act())
        games.count()
        if on_progress is not None and pace.due():
            on_progress(episodes - games.missing, episodes, games.num_steps)
    source.rows.resting[:] = False
    return Evaluation(games.returns, games.lengths, games.num_cut, max_steps)


def _acting(policy: Policy, source: EnvSource) -> Callable[[], npt.NDArray[np.int64]]:
    """Return what chooses greedy actions [N] for what a source shows."""
    transfer = transfer_to(source.rows, policy.network.flat.device)
    if source.rows.obs.dtype != np.float64:
        return lambda: policy.greedy_on_host(*transfer.load().shown)

    def act() -> npt.NDArray[np.int64]:
        obs, action_mask = transfer.load().shown
        return policy.greedy(obs.float(), action_mask).cpu().numpy()

    return act


def _step(source: EnvSource, actions: npt.NDArray[np.int64]) -> None:
    """Step all groups."""
    size = len(actions) // source.num_groups
    for group in range(source.num_groups):
        source.send(actions[group * size : (group + 1) * size], group)
    for group in range(source.num_groups):
        source.recv(group)


class Evaluator:
    """Evaluates the policy again and again, each time on seeds never used before.

    The environments are built at the first call and kept until `close`.

    Args:
        policy: Acts greedily with its latest parameters.
        make_source: Builds the environments, apart from those of the training.
        seed: The run's seed.
        episodes: Fresh episodes of a full evaluation.
        max_steps: Env steps after which an episode is cut; 0 is never.

    Attributes:
        on_progress: Called every few seconds: episodes done, all episodes, env steps played.
        stopped: Is asked before every step whether to stop; None goes on.

    Raises:
        UsageError: `episodes` is below 1, or `max_steps` below 0.
    """

    on_progress: OnProgress | None = None
    stopped: Callable[[], bool] | None = None

    def __init__(
        self,
        policy: Policy,
        make_source: Callable[[], EnvSource],
        seed: int,
        episodes: int,
        *,
        max_steps: int = 0,
    ) -> None:
        if episodes < 1:
            raise UsageError(f"episodes {episodes}", "it must be at least 1", "Try 100.")
        if max_steps < 0:
            raise UsageError(f"max_steps {max_steps}", "it must not be negative", "0 is no bound.")
        self.policy, self.seed, self.episodes = policy, seed, episodes
        self.max_steps = max_steps
        self._make_source = make_source
        self._source: EnvSource | None = None
        self._round = 0

    def screen(self, goal: float) -> Evaluation:
        """Look whether a full evaluation is worth it, for the price of a few episodes.

        A glance is followed by a longer look unless the goal is out of reach; a policy that is
        sent away wrongly comes again with the next screening.

        Args:
            goal: Mean return that is hoped for.

        Raises:
            EvaluationStopped: `stopped` said so; in the other calls, too.
        """
        return self._while_in_reach(goal, GLANCE_EPISODES, min(LOOK_EPISODES, self.episodes))

    def full(self, goal: float | None = None) -> Evaluation:
        """Play all episodes, none of them shared with a screening.

        Args:
            goal: Mean return that is hoped for: once it is out of reach, fewer are played.
        """
        if goal is None:
            return self._play(self.episodes)
        return self._while_in_reach(goal, FIRST_EPISODES, self.episodes)

    def _while_in_reach(self, goal: float, first: int, episodes: int) -> Evaluation:
        """Play the first episodes, and the others where the goal is still within their reach."""
        seen = self._play(min(first, episodes))
        more = episodes - seen.episodes
        return seen + self._play(more) if more and seen.within_reach(goal) else seen

    def _play(self, episodes: int) -> Evaluation:
        self._source = self._source or self._make_source()
        self._round += 1
        seeds = seeds_of(self.seed, Stream.EVALUATION_ENVS, self._source.num_envs, self._round)
        return evaluate(
            self.policy,
            self._source,
            seeds,
            episodes,
            max_steps=self.max_steps,
            on_progress=self.on_progress,
            stopped=self.stopped,
        )

    def close(self) -> None:
        """Close the environments."""
        if self._source is not None:
            self._source.close()
            self._source = None
