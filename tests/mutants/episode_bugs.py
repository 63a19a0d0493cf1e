"""Bugs of episodes that come back: begun elsewhere, played otherwise, or not compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fastdqn.envs.sources.continued import Continuation
from fastdqn.envs.sources.source import GroupedSource
from fastdqn.envs.workers import hosted_envs, open_episodes, origins
from fastdqn.envs.workers.failures import EnvFailures
from fastdqn.envs.workers.hosted_envs import HostedEnvs
from fastdqn.envs.workers.kept_rows import KeptRows
from fastdqn.envs.workers.open_episodes import EpisodeLog
from fastdqn.envs.workers.origins import OriginColumn
from fastdqn.envs.workers.revived_envs import Again, RevivedEnvs
from fastdqn.replay import ReplayBuffer
from fastdqn.training.host import recorded_steps, rollout, saved_rollout
from fastdqn.training.host.recorded_steps import RecordedInRing
from fastdqn.training.host.rollout import HostRollout
from tests.mutants.planted import Planted, exchange

__all__ = ["PLANTED"]

LOG = "tests/unit/envs/test_open_episodes.py::test_"
ORIGINS = "tests/unit/envs/test_origins.py::test_"
KEPT = "tests/unit/envs/test_kept_rows.py::test_"
REVIVED = "tests/unit/envs/test_revived_envs.py::test_"
SAVED = "tests/unit/training/test_saved_rollout.py::test_"
NEXT = SAVED + "the_next_transitions_and_the_generators_are_those_of_a_rollout_that_never_stopped"
AGAIN = SAVED + "a_rollout_that_was_resumed_can_be_saved_again"
GROUPS = SAVED + "groups_that_step_while_they_are_saved_go_on_alike"
ODD = SAVED + "an_environment_that_something_else_decides_begins_anew_and_is_named"
LAST = SAVED + "without_the_ring_the_last_step_is_compared"
ON_THE_WAY = SAVED + "what_was_shown_on_the_way_is_compared_and_not_the_last_observation_alone"
MASKS = SAVED + "a_mask_alone_that_differs_is_noticed_with_the_ring_and_without"
WRAPPED = SAVED + "they_go_on_alike_over_a_ring_that_holds_the_end_of_their_episodes_alone"
SEEDS = SAVED + "new_episodes_take_other_seeds_than_the_last_ones_and_the_same_in_every_resume"
AT_ONCE = SAVED + "what_is_saved_at_once_after_a_resume_is_what_was_saved_before_it"
ONE_ODD = ODD + "[clock-1-0]"
TOO_LONG = SAVED + "an_episode_of_more_steps_than_are_kept_begins_anew"
RESTORED = "tests/faults/test_restored_episodes.py::test_"
HOTPATH = "tests/hotpath/test_episode_log.py::test_"
RESUME = "tests/unit/cli/test_resume.py::test_"

PLANTED = Planted()
turns_red = PLANTED.turns_red


def forgets(owner: Any, name: str) -> None:
    """Let a function do nothing."""
    exchange(owner, name, lambda *_, **__: None)


# What an episode began from


@turns_red(NEXT + "[noise]")
def a_generator_noted_after_the_reset_that_moves_it() -> None:
    right = HostedEnvs._reset_one

    def reset_one(
        self: HostedEnvs, i: int, seed: int | None, options: Any, origin: Any = None
    ) -> Any:
        column, self._origins = self._origins, None
        info = right(self, i, seed, options, origin)
        self._origins = column
        if column is not None:
            column.note(i, self.envs[i], seed, options, origin)
        return info

    exchange(HostedEnvs, "_reset_one", reset_one)


@turns_red(NEXT + "[noise]")
def half_a_number_of_a_generator_lost() -> None:
    right = origins._origin_of

    def origin_of(*given: Any) -> Any:
        return (*right(*given)[:5], 0, 0)

    exchange(origins, "_origin_of", origin_of)


@turns_red(NEXT + "[layout]")
def the_last_reset_with_a_seed_not_repeated() -> None:
    right = origins.begin_from
    new: Callable[..., Any] = lambda env, origin, _: right(env, origin, None)  # noqa: E731
    exchange(hosted_envs, "begin_from", new)


@turns_red(ORIGINS + "resets_that_nobody_can_repeat_are_not_known")
def options_of_a_reset_forgotten() -> None:
    right = origins._origin_of
    new: Callable[..., Any] = lambda env, seed, _: right(env, seed, None)  # noqa: E731
    exchange(origins, "_origin_of", new)


@turns_red(ORIGINS + "other_generators_are_not_known")
def a_generator_of_another_kind_taken_for_a_pcg64() -> None:
    right = origins._origin_of

    class Named(dict[str, Any]):
        """A state that says that it is one."""

        def __getitem__(self, name: str) -> Any:
            return "PCG64" if name == "bit_generator" else super().__getitem__(name)

    class Core:
        """Holds such a generator."""

        def __init__(self, env: Any) -> None:
            state = Named(env.unwrapped._np_random.bit_generator.state)
            kind = type("Bits", (), {"state": state})
            self.unwrapped, self._np_random = self, type("Bits", (), {"bit_generator": kind})

    def origin_of(env: Any, seed: int | None, options: Any) -> Any:
        core: Any = env if env.unwrapped._np_random is None else Core(env)
        return right(core, seed, options)

    exchange(origins, "_origin_of", origin_of)


@turns_red(AGAIN, ORIGINS + "a_fresh_environment_begins_from_the_state_that_was_noted")
def an_origin_noted_anew_when_it_is_played_again() -> None:
    right = OriginColumn.note

    def note(self: OriginColumn, i: int, env: Any, seed: Any, options: Any, _: Any) -> None:
        right(self, i, env, seed, options, None)

    exchange(OriginColumn, "note", note)


@turns_red(NEXT + "[noise]")
def an_episode_that_begins_a_step_late() -> None:
    right = OriginColumn.note

    def note(self: OriginColumn, i: int, *rest: Any) -> None:
        right(self, i, *rest)
        self._words[i, 1] += 1

    exchange(OriginColumn, "note", note)


@turns_red(SAVED + "a_value_that_cannot_be_is_refused_by_name[origins]")
def forged_origins_taken_as_they_are() -> None:
    exchange(saved_rollout, "is_origin", lambda _: True)


# The actions since


@turns_red(LOG + "it_holds_the_actions_since_each_reset", NEXT + "[noise]")
def actions_of_a_step_too_early() -> None:
    right = EpisodeLog.actions_of
    new: Callable[..., Any] = lambda log, env, since, until: right(  # noqa: E731
        log, env, since - 1, until - 1
    )
    exchange(EpisodeLog, "actions_of", new)


@turns_red(LOG + "it_holds_the_actions_since_each_reset")
def actions_not_counted_from_the_first() -> None:
    right = EpisodeLog.actions_of

    def actions_of(self: EpisodeLog, *given: int) -> Any:
        found, first = right(self, *given), self._first_action
        return found if found is None else np.where(found < 0, found, found + first)

    exchange(EpisodeLog, "actions_of", actions_of)


@turns_red(LOG + "it_holds_the_actions_since_each_reset")
def environments_at_rest_that_seem_to_act() -> None:
    exchange(open_episodes, "SET", b"\2")


@turns_red(LOG + "it_holds_the_actions_since_each_reset")
def a_mark_that_is_an_action() -> None:
    right = open_episodes._smallest
    exchange(open_episodes, "_smallest", lambda low, high: right(low + 1, high))


@turns_red(LOG + "an_episode_of_more_steps_than_are_kept_is_too_long", TOO_LONG)
def an_episode_longer_than_the_log_pieced_together() -> None:
    right = EpisodeLog._between

    def between(self: EpisodeLog, env: int, since: int, until: int) -> Any:
        parts = range(since, until, self.longest)
        if not parts:
            return right(self, env, since, until)
        ends = [min(part + self.longest, until) for part in parts]
        found = [right(self, env, *span) for span in zip(parts, ends, strict=True)]
        return np.concatenate(found)  # type: ignore[arg-type]

    exchange(EpisodeLog, "_between", between)


@turns_red(LOG + "as_many_steps_are_kept_as_the_memory_allows")
def a_log_of_any_size() -> None:
    exchange(open_episodes, "FEWEST_STEPS", open_episodes.MOST_STEPS)


@turns_red(
    LOG + "histories_that_are_placed_go_on",
    AGAIN,
)
def histories_that_are_not_placed() -> None:
    forgets(EpisodeLog, "place")


@turns_red(
    LOG + "a_step_that_left_environments_out_is_none_of_theirs",
    KEPT + "a_step_that_left_the_environment_out_is_not_played_again",
    RESTORED + "a_rollout_is_saved_over_the_gap_of_a_restart",
)
def the_gap_of_a_restart_taken_for_a_step() -> None:
    forgets(EpisodeLog, "leave_out")


@turns_red(LOG + "rows_that_are_no_transitions_are_some_again_from_the_next_step_of_their_group_on")
def rows_that_are_no_transitions_for_ever() -> None:
    right = EpisodeLog.mark_unreal

    def mark_unreal(self: EpisodeLog, envs: Any) -> None:
        before = list(self._unreal)
        right(self, envs)
        self._unreal = before

    exchange(EpisodeLog, "mark_unreal", mark_unreal)


@turns_red(
    LOG + "every_process_says_the_same_of_an_episode_whenever_it_was_started",
    AT_ONCE,
    RESUME + "the_last_updates_and_report_of_a_run_that_goes_on_are_made_where_they_belong",
)
def vector_steps_of_this_process_saved() -> None:
    right = EpisodeLog.histories

    def histories(self: EpisodeLog) -> Any:
        kept = right(self)
        kept.origin[:, origins.STEP] = self._rows.origin[:, origins.STEP]
        return kept

    exchange(EpisodeLog, "histories", histories)


@turns_red(AT_ONCE)
def last_actions_forgotten_by_a_resume() -> None:
    right = HostRollout._show

    def show(self: HostRollout, saved: Any, *rest: Any, **given: Any) -> None:
        nothing = replace(saved, action=np.zeros_like(saved.action))
        right(self, nothing, *rest, **given)

    exchange(HostRollout, "_show", show)


# Played again


@turns_red(ONE_ODD)
def an_episode_played_again_and_not_compared() -> None:
    forgets(Continuation, "_compare")


@turns_red(SAVED + "an_episode_that_takes_too_long_to_play_again_begins_anew")
def an_episode_that_was_not_played_to_its_end() -> None:
    right = Continuation._lose

    def lose(self: Continuation, envs: Any, why: Any) -> None:
        if why != self._too_slow:
            right(self, envs, why)

    exchange(Continuation, "_lose", lose)


@turns_red(RESTORED + "a_worker_that_dies_while_episodes_are_played_again_costs_its_own")
def environments_begun_anew_by_a_restart_that_pass_for_the_old_ones() -> None:
    def none(self: Continuation) -> Any:
        return np.zeros_like(self._lost)

    exchange(Continuation, "_begun_anew", none)


@turns_red(
    RESTORED + "a_worker_that_dies_as_new_episodes_begin_costs_those_of_its_neighbours",
)
def a_restart_while_new_episodes_begin_overlooked() -> None:
    right, asked = Continuation._begun_anew, set[int]()

    def begun_anew(self: Continuation) -> Any:
        first = id(self) not in asked
        asked.add(id(self))
        return right(self) if first else np.zeros_like(self._lost)

    exchange(Continuation, "_begun_anew", begun_anew)


@turns_red(SEEDS)
def a_lost_episode_that_goes_on_where_it_is() -> None:
    right = Continuation._renew

    def renew(self: Continuation, fresh: Any) -> None:
        envs: Any = self._source.envs
        envs.reset_async = envs.reset_wait = lambda *_, **__: None
        right(self, fresh)
        del envs.reset_async, envs.reset_wait

    exchange(Continuation, "_renew", renew)


@turns_red(SAVED + "an_episode_of_unknown_origin_is_followed_by_one_of_another_seed")
def the_same_episode_again_where_its_origin_is_not_known() -> None:
    right = Continuation.run

    def run(self: Continuation, seeds: Any, _: Any) -> None:
        right(self, seeds, seeds)

    exchange(Continuation, "run", run)


@turns_red(SEEDS)
def new_episodes_of_the_last_seeds() -> None:
    exchange(rollout, "fresh_seeds", lambda seeds, _: seeds)


@turns_red(SEEDS)
def the_seeds_of_new_episodes_forgotten() -> None:
    right = HostRollout.restore

    def restore(self: HostRollout, state: Any) -> None:
        right(self, state)
        self._seeds = state.wholes("seeds", self.num_envs)

    exchange(HostRollout, "restore", restore)


@turns_red(SAVED + "a_forged_history_loses_its_episode_and_nothing_else")
def actions_of_a_lost_episode_kept() -> None:
    right = Continuation._renew

    def renew(self: Continuation, fresh: Any) -> None:
        log: Any = self._source.envs.episode_log
        log.place = lambda _: EpisodeLog.place(log, self._histories)
        right(self, fresh)
        del log.place

    exchange(Continuation, "_renew", renew)


@turns_red(LAST + "[reward]")
def nothing_compared_that_the_ring_does_not_hold() -> None:
    def same(_self: Any, _rows: Any, envs: Any, **_: Any) -> Any:
        return np.zeros(len(envs), np.bool_)

    exchange(RecordedInRing, "_differs_from_last", same)


@turns_red(ON_THE_WAY)
def the_last_step_alone_compared() -> None:
    right = RecordedInRing.differs

    def differs(self: RecordedInRing, rows: Any, envs: Any, back: Any, *, stepped: bool) -> Any:
        last, different = back == 0, np.zeros(len(envs), np.bool_)
        different[last] = right(self, rows, envs[last], back[last], stepped=stepped)
        return different

    exchange(RecordedInRing, "differs", differs)


@turns_red(ON_THE_WAY)
def rewards_and_ends_on_the_way_not_compared() -> None:
    def same(_self: Any, _rows: Any, envs: Any, _written: Any) -> Any:
        return np.zeros(len(envs), np.bool_)

    exchange(RecordedInRing, "_differs_from_steps", same)


@turns_red(ON_THE_WAY)
def observations_on_the_way_not_compared() -> None:
    def same(_self: Any, _rows: Any, envs: Any, _shown: Any) -> Any:
        return np.zeros(len(envs), np.bool_)

    exchange(RecordedInRing, "_differs_from_frames", same)


@turns_red(MASKS)
def masks_not_compared() -> None:
    right = recorded_steps.unlike

    def unlike(count: int, pairs: Any) -> Any:
        others = [pair for pair in pairs if pair[0].dtype != np.bool_ or pair[0].ndim == 1]
        return right(count, others)

    exchange(recorded_steps, "unlike", unlike)


@turns_red(WRAPPED + "[4-1]")
def rows_that_were_overwritten_compared() -> None:
    right = RecordedInRing.__init__

    def init(self: RecordedInRing, *given: Any) -> None:
        right(self, *given)
        self._oldest = 0

    exchange(RecordedInRing, "__init__", init)


@turns_red(NEXT + "[noise]")
def another_row_of_the_ring_compared() -> None:
    right = RecordedInRing._place
    new: Callable[..., Any] = lambda self, envs, row: right(self, envs, row + 1)  # noqa: E731
    exchange(RecordedInRing, "_place", new)


@turns_red(GROUPS + "[2-41]")
def an_unread_step_compared_with_the_one_before() -> None:
    right = RecordedInRing.__init__

    def init(self: RecordedInRing, replay: Any, last: Any, unread: Any, *rest: Any) -> None:
        right(self, replay, last, np.zeros_like(unread), *rest)

    exchange(RecordedInRing, "__init__", init)


# Saved and restored


@turns_red(GROUPS + "[2-41]")
def steps_that_were_not_written_yet_forgotten() -> None:
    right = saved_rollout.SavedRollout.state

    def state(self: saved_rollout.SavedRollout) -> Any:
        return right(replace(self, num_unread=0))

    exchange(saved_rollout.SavedRollout, "state", state)


@turns_red(ONE_ODD)
def an_episode_that_was_lost_joined_to_the_next() -> None:
    right = HostRollout.restore

    def restore(self: HostRollout, state: Any) -> None:
        cut, ReplayBuffer.cut = ReplayBuffer.cut, lambda *_: None  # type: ignore[method-assign]
        try:
            right(self, state)
        finally:
            ReplayBuffer.cut = cut  # type: ignore[method-assign]

    exchange(HostRollout, "restore", restore)


@turns_red(ONE_ODD)
def a_new_start_that_is_not_shown() -> None:
    right = HostRollout._show

    def show(self: HostRollout, saved: Any, lost: Any, **given: Any) -> None:
        right(self, saved, np.zeros_like(lost), **given)

    exchange(HostRollout, "_show", show)


@turns_red(ODD)
def the_step_of_a_lost_episode_taken_for_a_transition() -> None:
    forgets(GroupedSource, "leave_out")


@turns_red(GROUPS + "[2-41]")
def an_unread_step_that_was_cleared_by_playing_again() -> None:
    right = HostRollout._show

    def show(self: HostRollout, saved: Any, *rest: Any, **given: Any) -> None:
        cleared = {name: getattr(self.source.rows, name) for name in ("reward", "terminated")}
        right(self, replace(saved, rows={**saved.rows, **cleared}), *rest, **given)

    exchange(HostRollout, "_show", show)


# Episodes that outlive a worker


@turns_red(KEPT + "a_worker_that_ends_within_a_step_goes_on_from_before_it")
def rows_before_a_step_not_kept() -> None:
    forgets(KeptRows, "keep")


@turns_red(KEPT + "a_worker_that_ends_within_a_step_goes_on_from_before_it")
def a_step_that_never_seems_to_be_over() -> None:
    forgets(KeptRows, "release")


@turns_red(KEPT + "another_call_than_a_step_ends_what_is_kept_of_its_group")
def an_episode_that_outlives_a_reset() -> None:
    forgets(KeptRows, "forget")


@turns_red(KEPT + "what_is_kept_is_a_copy")
def a_past_that_goes_on_changing() -> None:
    right = KeptRows._past_of

    def past_of(self: KeptRows, start: int, stop: int, group: int, *rest: Any) -> Any:
        past = right(self, start, stop, group, *rest)
        rows = (self._kept if self._stepping[group] else self._rows).columns(start, stop)
        return None if past is None else replace(past, obs=rows.obs)

    exchange(KeptRows, "_past_of", past_of)


@turns_red(KEPT + "a_worker_that_ended_twice_without_a_step_has_no_past")
def an_episode_that_ends_its_worker_played_again_and_again() -> None:
    right = KeptRows.pasts_of

    def pasts_of(self: KeptRows, member: Any, *rest: Any) -> Any:
        in_a_row, member.in_a_row = member.in_a_row, 1
        found = right(self, member, *rest)
        member.in_a_row = in_a_row
        return found

    exchange(KeptRows, "pasts_of", pasts_of)


@turns_red(KEPT + "environments_that_raised_or_were_cut_have_no_past")
def an_environment_that_raised_goes_on() -> None:
    right = KeptRows._past_of

    def past_of(self: KeptRows, start: int, stop: int, group: int, _: Any, seeds: Any) -> Any:
        return right(self, start, stop, group, set(), seeds)

    exchange(KeptRows, "_past_of", past_of)


@turns_red(KEPT + "an_episode_that_began_within_the_step_is_none_yet")
def an_origin_from_within_the_step() -> None:
    right = KeptRows.keep

    def keep(self: KeptRows, group: int) -> None:
        right(self, group)
        object.__setattr__(self._kept, "origin", self._rows.origin)

    exchange(KeptRows, "keep", keep)


@turns_red(REVIVED + "they_go_on_as_if_nothing_had_happened")
def the_return_of_a_revived_episode_counts_from_zero() -> None:
    right = RevivedEnvs._take_over

    def take_over(self: RevivedEnvs, i: int, host: Any, past: Any) -> None:
        before = self.returns[i], self.lengths[i]
        right(self, i, host, past)
        self.returns[i], self.lengths[i] = before

    exchange(RevivedEnvs, "_take_over", take_over)


@turns_red(REVIVED + "they_go_on_as_if_nothing_had_happened")
def a_revived_episode_that_is_not_shown() -> None:
    right = RevivedEnvs._take_over

    def take_over(self: RevivedEnvs, i: int, host: Any, past: Any) -> None:
        before = self.rows.obs[i].copy()
        right(self, i, host, past)
        self.rows.obs[i] = before

    exchange(RevivedEnvs, "_take_over", take_over)


@turns_red(REVIVED + "they_go_on_as_if_nothing_had_happened")
def a_revived_episode_whose_origin_is_lost() -> None:
    right = RevivedEnvs._take_over

    def take_over(self: RevivedEnvs, i: int, host: Any, past: Any) -> None:
        before = self.rows.origin[i].copy()
        right(self, i, host, past)
        self.rows.origin[i] = before

    exchange(RevivedEnvs, "_take_over", take_over)


@turns_red(
    REVIVED + "one_that_shows_something_else_begins_anew",
)
def a_revived_episode_that_is_not_compared() -> None:
    right = Again.play

    def play(self: Again, until: float) -> None:
        rows, past = self.host.rows, self.past
        self.past = replace(past, obs=rows.obs, action_mask=rows.action_mask)
        right(self, until)
        self.past = past

    exchange(Again, "play", play)


@turns_red(REVIVED + "one_that_ends_on_the_way_begins_anew_although_it_shows_the_same")
def a_revived_episode_that_had_ended_on_the_way() -> None:
    right = Again._try

    def attempt(self: Again, call: Any) -> None:
        right(self, call)
        self.host.rows.terminated[:] = self.host.rows.truncated[:] = False

    exchange(Again, "_try", attempt)


@turns_red(REVIVED + "what_takes_too_long_begins_anew")
def a_revived_episode_that_was_not_played_to_its_end() -> None:
    right = Again.play

    def play(self: Again, _: float) -> None:
        right(self, float("inf"))

    exchange(Again, "play", play)


@turns_red(REVIVED + "one_that_raises_on_the_way_begins_anew")
def a_revived_environment_that_raised_goes_on() -> None:
    def attempt(_self: Again, call: Any) -> None:
        try:
            call()
        except EnvFailures:
            return

    exchange(Again, "_try", attempt)


# What the hot path pays


@turns_red(
    HOTPATH + "a_step_is_kept_by_as_many_calls_for_many_environments_as_for_few",
    HOTPATH + "a_vector_step_that_is_kept_makes_no_other_calls_than_the_log",
)
def actions_kept_one_environment_after_the_other() -> None:
    right = EpisodeLog.append

    def append(self: EpisodeLog, group: int) -> None:
        right(self, group)
        for env in range(self._size):
            self._log[(self.sent[group] - 1) % self.longest].item(env)

    exchange(EpisodeLog, "append", append)


@turns_red(HOTPATH + "nothing_grows_with_an_episode")
def actions_kept_in_a_list_that_grows() -> None:
    right, kept = EpisodeLog.append, list[Any]()

    def append(self: EpisodeLog, group: int) -> None:
        right(self, group)
        kept.append(self._log[(self.sent[group] - 1) % self.longest].copy())

    exchange(EpisodeLog, "append", append)


@turns_red(HOTPATH + "rows_are_kept_by_as_many_calls_for_many_environments_as_for_few")
def rows_kept_by_new_arrays() -> None:
    right = KeptRows.keep

    def keep(self: KeptRows, group: int) -> None:
        right(self, group)
        self._last = [row.copy() for row in self._rows.obs]  # type: ignore[attr-defined]

    exchange(KeptRows, "keep", keep)
