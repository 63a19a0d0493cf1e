"""Greedy evaluation over fresh episodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.envs.source import EnvSource
from fastdqn.envs.transfer import transfer_to
from fastdqn.errors import UsageError
from fastdqn.policy import Policy

__all__ = ["Evaluation", "Evaluator", "evaluate"]

GLANCE_EPISODES, LOOK_EPISODES = 5, 20
"""Episodes of a screening: of a policy that is hopeless already, and of any other."""
FIRST_EPISODES = 40
"""Of a full evaluation: whether it goes on is decided after so many."""


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of greedy episodes.

    Attributes:
        returns: [E] float64.
        lengths: [E] int64, env steps.
    """

    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]

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
        returns = np.concatenate([self.returns, other.returns])
        return Evaluation(returns, np.concatenate([self.lengths, other.lengths]))


def evaluate(policy: Policy, source: EnvSource, seeds: Sequence[int], episodes: int) -> Evaluation:
    """Play greedy episodes and return what they brought.

    The first E episodes that begin are those that count, all of them to their end, so that short
    episodes are not counted more often than long ones. Environments with nothing left to play rest,
    where the source can let them.

    Args:
        policy: Acts greedily; nothing is learned and nothing is drawn.
        source: N environments, reset here.
        seeds: N seeds.
        episodes: E >= 1.
    """
    policy = policy.to_play()
    playing = _spread(episodes, source.num_envs)  # number of the episode that each one plays
    begun = min(episodes, source.num_envs)
    returns, lengths = np.full(episodes, np.nan), np.zeros(episodes, np.int64)
    source.reset(seeds)
    rows, act = source.rows, _acting(policy, source)
    rows.resting[:] = playing >= episodes
    missing = episodes
    while missing:
        _step(source, act())
        ended = (rows.terminated | rows.truncated) & rows.real
        for env in np.flatnonzero(ended).tolist():
            episode = playing[env]
            if episode >= episodes:
                continue
            returns[episode] = rows.episode_return[env]
            lengths[episode] = rows.episode_length[env]
            missing -= 1
            playing[env], begun = begun, begun + 1
            rows.resting[env] = playing[env] >= episodes
    rows.resting[:] = False
    return Evaluation(returns, lengths)


def _spread(episodes: int, num_envs: int) -> npt.NDArray[np.int64]:
    """Deal the first episodes out to environments [N], few of them evenly: neighbours share a core.

    Returns:
        The number of the episode that each environment plays first; E where it plays none.
    """
    first = min(episodes, num_envs)
    playing = np.full(num_envs, episodes)
    playing[np.arange(first) * num_envs // first] = np.arange(first)
    return playing


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

    Raises:
        UsageError: `episodes` is below 1.
    """

    def __init__(
        self, policy: Policy, make_source: Callable[[], EnvSource], seed: int, episodes: int
    ) -> None:
        if episodes < 1:
            raise UsageError(f"episodes {episodes}", "it must be at least 1", "Try 100.")
        self.policy, self.seed, self.episodes = policy, seed, episodes
        self._make_source = make_source
        self._source: EnvSource | None = None
        self._round = 0

    def screen(self, goal: float) -> Evaluation:
        """Look whether a full evaluation is worth it, for the price of a few episodes.

        A glance is followed by a longer look unless the goal is out of reach; a policy that is
        sent away wrongly comes again with the next screening.

        Args:
            goal: Mean return that is hoped for.
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
        return evaluate(self.policy, self._source, seeds, episodes)

    def close(self) -> None:
        """Close the environments."""
        if self._source is not None:
            self._source.close()
            self._source = None
