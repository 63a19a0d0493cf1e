"""Greedy evaluation over fresh episodes, dealt out to the environments of a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.envs.sources.source import EnvSource
from fastdqn.errors import UsageError
from fastdqn.policies.policy import Policy
from fastdqn.training.events import Evaluation
from fastdqn.training.stopwatch import Pace
from fastdqn.training.transfer import transfer_to

__all__ = ["Evaluation", "EvaluationStopped", "Evaluator", "OnProgress", "evaluate", "step_limit"]

GLANCE_EPISODES, LOOK_EPISODES = 5, 20
"""Episodes of a screening: the first few, and all if the target return is within their reach."""
FIRST_EPISODES = 40
"""Of a full evaluation: after so many it goes on if the target return is within reach."""
MAX_STEPS = 10_000
"""Env steps of an episode if neither the caller nor the environment has a limit."""
PROGRESS_EVERY_S = 5.0
"""Wall seconds between two reports of an evaluation's progress."""
NO_LIMIT = 2**62

OnProgress = Callable[[int, int, int], None]
"""Called with the progress of an evaluation: episodes done, all episodes, env steps."""


class EvaluationStopped(Exception):  # noqa: N818 - not an error
    """The caller stopped an evaluation; it has no result."""


def step_limit(asked: int | None, longest: int | None) -> int:
    """Return at how many env steps an episode is cut; 0 is never.

    Args:
        asked: The caller's limit, 0 for none; None takes 10,000, or the environment's own time
            limit if that is longer.
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
    """Play greedy episodes and return their returns and lengths.

    The first E episodes that begin are counted, all of them to their end, so that short episodes
    are not counted more often than long ones. Environments with nothing left to play rest, if the
    source can let them; so does one whose episode was cut, until all are reset together.

    Args:
        policy: Acts greedily; nothing is learned and nothing is drawn.
        source: N environments, reset here.
        seeds: N seeds.
        episodes: E >= 1.
        max_steps: Env steps after which an episode is cut; 0 is never.
        on_progress: Called every few seconds.
        stopped: Returns whether to stop; called before every step. None never stops.

    Raises:
        EvaluationStopped: `stopped` returned True.
    """
    policy = policy.to_play()
    games = _Games(source, episodes, max_steps or NO_LIMIT)
    act, pace = _acting(policy, source), Pace(PROGRESS_EVERY_S, at_once=False)
    games.begin(seeds)
    while games.missing:
        if stopped is not None and stopped():
            raise EvaluationStopped
        if not games.num_playing:  # all running episodes were cut
            games.begin(_seeds_after(seeds, games.num_resets))
        _step(source, act())
        games.count()
        if on_progress is not None and pace.due():
            on_progress(episodes - games.missing, episodes, games.num_steps)
    source.rows.resting[:] = False
    return Evaluation(games.returns, games.lengths, games.num_cut, max_steps)


def _acting(policy: Policy, source: EnvSource) -> Callable[[], npt.NDArray[np.int64]]:
    load = transfer_to(source.rows, policy.network.flat.device)
    if source.rows.obs.dtype != np.float64:
        return lambda: policy.greedy_on_host(*load().shown)

    def act() -> npt.NDArray[np.int64]:
        obs, action_mask = load().shown
        return policy.greedy(obs.float(), action_mask).cpu().numpy()

    return act


def _step(source: EnvSource, actions: npt.NDArray[np.int64]) -> None:
    size = len(actions) // source.num_groups
    for group in range(source.num_groups):
        source.send(actions[group * size : (group + 1) * size], group)
    for group in range(source.num_groups):
        source.recv(group)


@dataclass(eq=False)
class Evaluator:
    """Evaluates the policy repeatedly, each time with new seeds.

    The environments are built at the first call and closed by `close`.

    Args:
        policy: Acts greedily with its latest parameters.
        make_source: Builds the environments, apart from those of the training.
        seed: The run's seed.
        episodes: Fresh episodes of a full evaluation.
        max_steps: Env steps after which an episode is cut; 0 is never.
        on_progress: See `evaluate`; a trainer sets it.
        stopped: See `evaluate`; a trainer sets it.

    Raises:
        UsageError: `episodes` is below 1, or `max_steps` below 0.
    """

    policy: Policy
    make_source: Callable[[], EnvSource]
    seed: int
    episodes: int
    max_steps: int = 0
    on_progress: OnProgress | None = None
    stopped: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise UsageError(f"episodes {self.episodes}", "it must be at least 1", "Try 100.")
        if self.max_steps < 0:
            raise UsageError(
                f"max_steps {self.max_steps}", "it must not be negative", "0 is no bound."
            )
        self._source: EnvSource | None = None
        self._round = 0

    def screen(self, target_return: float) -> Evaluation:
        """Play a few episodes, to decide whether a full evaluation is worth it.

        A few more follow if the target return is within reach; a policy that fails by chance is
        screened again later.

        Raises:
            EvaluationStopped: `stopped` returned True; in the other calls, too.
        """
        most = min(LOOK_EPISODES, self.episodes)
        return self._while_in_reach(target_return, GLANCE_EPISODES, most)

    def full(self, target_return: float | None = None) -> Evaluation:
        """Play all episodes, none of them shared with a screening.

        Args:
            target_return: Mean return to reach: if it is out of reach after a while, fewer are
                played. None plays all.
        """
        if target_return is None:
            return self._play(self.episodes)
        return self._while_in_reach(target_return, FIRST_EPISODES, self.episodes)

    def _while_in_reach(self, target_return: float, first: int, episodes: int) -> Evaluation:
        """Play the first episodes, and the others if the target return is within their reach."""
        seen = self._play(min(first, episodes))
        more = episodes - seen.episodes
        return seen + self._play(more) if more and seen.within_reach(target_return) else seen

    def _play(self, episodes: int) -> Evaluation:
        self._source = self._source or self.make_source()
        self._round += 1
        source, max_steps = self._source, self.max_steps
        seeds = seeds_of(self.seed, Stream.EVALUATION_ENVS, source.num_envs, self._round)
        asks: Any = {"on_progress": self.on_progress, "stopped": self.stopped}
        return evaluate(self.policy, source, seeds, episodes, max_steps=max_steps, **asks)

    def close(self) -> None:
        """Close the environments."""
        if self._source is not None:
            self._source.close()
            self._source = None


class _Games:
    """Deals E episodes of at most `max_steps` env steps out to N environments, and counts them.

    Attributes:
        returns: [E] float64, NaN for unfinished episodes.
        lengths: [E] int64.
        missing: Unfinished episodes.
        num_playing: Environments that play a counted episode.
        num_cut: Episodes that were cut.
        num_resets: How often all environments were reset.
    """

    def __init__(self, source: EnvSource, episodes: int, max_steps: int) -> None:
        self.source, self.rows, self.max_steps = source, source.rows, max_steps
        self.returns = np.full(episodes, np.nan)
        self.lengths = np.zeros(episodes, np.int64)
        self.missing = episodes
        self.num_playing = self.num_cut = self.num_resets = self._begun = 0
        self._playing = np.full(source.num_envs, -1)  # number of the episode; -1 is none
        self._so_far = np.zeros(source.num_envs)
        self._steps = np.zeros(source.num_envs, np.int64)
        self._since_reset = 0  # vector steps; no episode is longer

    @property
    def num_steps(self) -> int:
        """Env steps of the episodes that count, so far."""
        return int(self.lengths.sum() + self._steps.sum())

    def begin(self, seeds: Sequence[int]) -> None:
        """Reset all environments and begin an episode in each, as long as some are left."""
        num_envs, left = self.source.num_envs, self.missing  # all that had begun have finished
        self.source.reset(seeds)
        self.num_resets += 1
        first = _spread(left, num_envs)
        self._playing[:] = np.where(first < left, first + self._begun, -1)
        self.num_playing = min(left, num_envs)
        self._begun += self.num_playing
        self._so_far[:], self._steps[:], self._since_reset = 0.0, 0, 0
        self.rows.resting[:] = self._playing < 0

    def count(self) -> None:
        """Count the last step; end the episodes that ended or are too long."""
        rows = self.rows
        self._since_reset += 1
        counted = rows.real & (self._playing >= 0)
        np.add(self._so_far, rows.reward, out=self._so_far, where=counted)
        self._steps += counted
        if not rows.real.all():  # a reset, or an episode lost with its worker
            self._so_far[~rows.real], self._steps[~rows.real] = 0.0, 0
        ended = (rows.terminated | rows.truncated) & rows.real
        for env in np.flatnonzero(ended).tolist():
            self._end(env, rows.episode_return[env], rows.episode_length[env])
            self._begin_next(env)
        if self._since_reset >= self.max_steps:
            self._cut()

    def _cut(self) -> None:
        """End the episodes that are too long; their environments rest."""
        for env in np.flatnonzero(self._steps >= self.max_steps).tolist():
            self.num_cut += 1
            self._end(env, self._so_far[env], self._steps[env])
            self.rows.resting[env] = True

    def _end(self, env: int, return_: float, length: int) -> None:
        episode = self._playing[env]
        if episode >= 0:
            self.returns[episode], self.lengths[episode] = return_, length
            self.missing -= 1
            self.num_playing -= 1
        self._playing[env] = -1
        self._so_far[env], self._steps[env] = 0.0, 0

    def _begin_next(self, env: int) -> None:
        """Begin an episode in an environment that has just been reset, or let it rest."""
        begins = self._begun < len(self.returns)
        self.rows.resting[env] = not begins
        if begins:
            self._playing[env] = self._begun
            self._begun += 1
            self.num_playing += 1


def _seeds_after(seeds: Sequence[int], num_resets: int) -> list[int]:
    """Return seeds for another reset, below 2^31, from the first ones and its number."""
    entropy = [*(int(seed) for seed in seeds), num_resets]
    state = np.random.SeedSequence(entropy).generate_state(len(seeds))
    return [int(word) >> 1 for word in state]


def _spread(episodes: int, num_envs: int) -> npt.NDArray[np.int64]:
    """Return the episode that each environment plays first [N], E where it plays none.

    Few are dealt out evenly: neighbours share a core.
    """
    first = min(episodes, num_envs)
    playing = np.full(num_envs, episodes)
    playing[np.arange(first) * num_envs // first] = np.arange(first)
    return playing
