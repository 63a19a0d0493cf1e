"""Greedy evaluation over fresh episodes, dealt out to the environments of a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdqn.envs.seeding import Stream, seeds_of
from fastdqn.envs.sources.source import EnvSource
from fastdqn.errors import UsageError
from fastdqn.foundation.trial_env import generators_restored
from fastdqn.policies.policy import Policy
from fastdqn.training.events import Evaluation
from fastdqn.training.games import Games
from fastdqn.training.host.guard import Guard, guard_of
from fastdqn.training.nonfinite import Tally
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
    on_nonfinite: str = "raise",
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
        on_nonfinite: What is done about a NaN or an infinity of an environment: `raise`; `skip`,
            which plays the episode once more from a new start; or `replace`, by a finite number.

    Raises:
        EvaluationStopped: `stopped` returned True.
        NonFiniteError: A number is not finite, and neither skipped nor replaced; or a thousand
            times in a row, with no episode finished between.
    """
    policy = policy.to_play()
    games = Games(source, episodes, max_steps or NO_LIMIT)
    act, pace = _acting(policy, source), Pace(PROGRESS_EVERY_S, at_once=False)
    tally, guards = _guards(source, on_nonfinite, lambda: episodes - games.missing)
    _begin(games, guards, seeds)
    while games.missing:
        if stopped is not None and stopped():
            raise EvaluationStopped
        if not games.num_playing:  # all running episodes were cut
            _begin(games, guards, _seeds_after(seeds, games.num_resets))
        _step(source, act())
        games.count(_lost(source, guards))
        if on_progress is not None and pace.due():
            on_progress(episodes - games.missing, episodes, games.num_steps)
    source.rows.resting[:] = False
    own = games.returns, games.lengths, games.num_cut
    return Evaluation(*own, max_steps, num_nonfinite=tally.count)


def _guards(
    source: EnvSource, on_nonfinite: str, progress: Callable[[], int]
) -> tuple[Tally, list[Guard]]:
    """Return the guards of all groups, and what they count together."""
    tally = Tally(on_nonfinite, of=" of an evaluation")
    return tally, [guard_of(source, group, tally, progress) for group in range(source.num_groups)]


def _begin(games: Games, guards: Sequence[Guard], seeds: Sequence[int]) -> None:
    games.begin(seeds)
    for guard in guards:
        guard.begin()
    games.settle()


def _lost(source: EnvSource, guards: Sequence[Guard]) -> npt.NDArray[np.bool_] | None:
    """Look at the last step; return [N] which rows count no more, or None for nowhere."""
    rows, within_step = source.rows, source.resets_within_step
    each = (rows.terminated | rows.truncated).reshape(len(guards), -1)
    found = [_lost_of(g, ended, within_step) for g, ended in zip(guards, each, strict=True)]
    if all(lost is None for lost in found):
        return None
    nowhere = np.zeros(each.shape[1], np.bool_)
    return np.concatenate([nowhere if lost is None else lost for lost in found])


def _lost_of(
    guard: Guard, ended: npt.NDArray[np.bool_], within_step: bool
) -> npt.NDArray[np.bool_] | None:
    """Return [M] of a group, those among them whose cut episode goes on; or None for nowhere."""
    going_on = guard.going_on
    guard.ended(ended)
    lost = guard.look(np.flatnonzero(ended & within_step))
    if not within_step:  # what was found belongs to the episode that has ended
        guard.ended(ended)
    if going_on is None:
        return lost
    return going_on if lost is None else going_on | lost


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
        call: Serial number of the call of `learn`, from 0; each has other seeds.
        on_nonfinite: See `evaluate`.
        on_progress: See `evaluate`; a `Selection` sets it.
        stopped: See `evaluate`; a trainer sets it.

    Raises:
        UsageError: `episodes` is below 1, or `max_steps` below 0.
    """

    policy: Policy
    make_source: Callable[[], EnvSource]
    seed: int
    episodes: int
    max_steps: int = 0
    call: int = 0
    on_nonfinite: str = "raise"
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
        self._rounds: Counter[Stream] = Counter()

    def screen(
        self, target_return: float, worth: Callable[[Evaluation], bool] | None = None
    ) -> Evaluation:
        """Play a few episodes, to decide whether a full evaluation is worth it.

        A few more follow if the target return is within reach; a policy that fails by chance is
        screened again later.

        Args:
            target_return: Mean return to reach.
            worth: Returns whether more are worth it after the first few; None is always.

        Raises:
            EvaluationStopped: `stopped` returned True; in the other calls, too.
        """
        most = min(LOOK_EPISODES, self.episodes)
        return self._while_in_reach(target_return, GLANCE_EPISODES, most, worth=worth)

    def full(
        self, target_return: float | None = None, stream: Stream = Stream.EVALUATION_ENVS
    ) -> Evaluation:
        """Play all episodes, none of them shared with a screening.

        Args:
            target_return: Mean return to reach: if it is out of reach after a while, fewer are
                played. None plays all.
            stream: What the seeds are drawn for.
        """
        if target_return is None:
            return self._play(self.episodes, stream)
        return self._while_in_reach(target_return, FIRST_EPISODES, self.episodes, stream=stream)

    def _while_in_reach(
        self,
        target_return: float,
        first: int,
        episodes: int,
        *,
        stream: Stream = Stream.EVALUATION_ENVS,
        worth: Callable[[Evaluation], bool] | None = None,
    ) -> Evaluation:
        """Play the first episodes, and the others if the target return is within their reach."""
        seen = self._play(min(first, episodes), stream)
        more = episodes - seen.episodes
        if not more or not seen.within_reach(target_return) or (worth and not worth(seen)):
            return seen
        return seen + self._play(more, stream)

    def _play(self, episodes: int, stream: Stream) -> Evaluation:
        self._source = source = self._source or self.make_source()
        self._rounds[stream] += 1
        max_steps = self.max_steps
        seeds = seeds_of(self.seed, stream, source.num_envs, self._rounds[stream], self.call)
        names = "on_progress", "stopped", "on_nonfinite"
        asks: Any = {name: getattr(self, name) for name in names}
        return evaluate(self.policy, source, seeds, episodes, max_steps=max_steps, **asks)

    def close(self) -> None:
        """Close the environments; the global random generators are restored."""
        source, self._source = self._source, None
        if source is not None:
            with generators_restored():
                source.close()


def _seeds_after(seeds: Sequence[int], num_resets: int) -> list[int]:
    """Return seeds for another reset, below 2^31, from the first ones and its number."""
    entropy = [*(int(seed) for seed in seeds), num_resets]
    state = np.random.SeedSequence(entropy).generate_state(len(seeds))
    return [int(word) >> 1 for word in state]
