"""The loop against fakes that write down what happens: order, counts, intervals, ends."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from fastdqn.envs.seeding import Stream
from fastdqn.errors import NonFiniteError
from fastdqn.training.callbacks import Callback
from fastdqn.training.evaluation import Evaluation, EvaluationStopped, Evaluator
from fastdqn.training.events import BestPolicy, Episode, Report
from fastdqn.training.host.rollout import HostRollout
from fastdqn.training.host.trainer import HostTrainer
from fastdqn.training.schedules import Constant, Intervals, Linear, ReplayRatio, Schedule
from fastdqn.training.trainer import Trainer

SEEDS = [7, 8]
NEVER = 10**9


class Clock:
    """Seconds that pass only when a fake says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeRollout:
    """Takes N env steps a vector step; ends as many episodes as `ends` says for it."""

    def __init__(self, stage: Stage, num_envs: int, ends: dict[int, int]) -> None:
        self.stage, self.num_envs, self.ends = stage, num_envs, ends
        self.replay, self.env_steps, self.episodes, self.vector_steps = "ring", 0, 0, 0
        self.num_restarts, self.restarts = 0, list[str]()

    def reset(self, seeds: Sequence[int]) -> None:
        self.stage.say(f"reset {list(seeds)}", 5.0)

    def send(self, epsilon: float) -> None:
        self.stage.say(f"send {epsilon:g}", 1.0)

    def collect(self) -> None:
        self.stage.say("collect", 2.0)

    def write(self) -> list[Episode]:
        self.stage.say("write", 0.5)
        self.vector_steps += 1
        self.env_steps += self.num_envs
        return [self._episode() for _ in range(self.ends.get(self.vector_steps, 0))]

    def _episode(self) -> Episode:
        self.episodes += 1
        return Episode(self.episodes, self.env_steps, 10.0 * self.episodes, 3, False)


class FakeLearner:
    """Counts updates and says which; pretends to compile at the first call."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.updates, self.compile_s, self.will_compile_s = stage, 0, 0.0, 0.0
        metrics = torch.tensor([0.5, 0.25, 7.0, 3.0])
        rate = torch.tensor(0.25)
        self.state = SimpleNamespace(metrics=metrics, skipped=torch.tensor(0), learning_rate=rate)
        self.rates: list[float] = []
        self.compiling: list[Any] = []

    def learn(self, sampler: object, updates: int) -> None:
        self.updates += updates
        self.rates.append(self.state.learning_rate.item())
        self.stage.say(f"learn {updates} from {sampler}", 4.0 + self.will_compile_s)
        self.compile_s += self.will_compile_s
        self.will_compile_s = 0.0

    def sync_target(self) -> None:
        self.stage.say("sync target")


class FakeEvaluator:
    """Brings planned mean returns: (of a screening, of a full evaluation)."""

    def __init__(self, stage: Stage, means: Sequence[tuple[float, float]]) -> None:
        self.stage, self.means = stage, iter(means)
        self.full_mean, self.episodes = math.nan, 3
        self.out_of_reach = -math.inf
        """A mean that ends a full evaluation early."""
        self.length = NEVER
        """Env steps of an episode of a screening: too many for a full one to find the best."""
        self.call, self._rounds = 0, Counter[Stream]()

    def close(self) -> None:
        self.stage.say("close")

    def screen(self, goal: float, worth: object = None) -> Evaluation:
        self.stage.say("screen", 20.0)
        mean, self.full_mean = next(self.means)
        return Evaluation(np.array([mean]), np.array([self.length]))

    def full(
        self, goal: float | None = None, stream: Stream = Stream.EVALUATION_ENVS
    ) -> Evaluation:
        self.stage.say("full" + " for the best" * (stream == Stream.BEST_POLICY_ENVS), 50.0)
        early = goal is not None and self.full_mean <= self.out_of_reach
        count = 1 if early else self.episodes
        return Evaluation(np.array([self.full_mean] * count), np.array([1] * count))


class Stage(Callback):
    """The fakes, the tape that they write, and the callback of the loop."""

    def __init__(self, clock: Clock, num_envs: int, ends: dict[int, int]) -> None:
        self.tape: list[str] = []
        self.clock = clock
        self.rollout = FakeRollout(self, num_envs, ends)
        self.learner = FakeLearner(self)
        self.reports: list[Report] = []
        self.then: dict[str, Callable[[], None]] = {}

    def say(self, event: str, seconds: float = 0.0) -> None:
        self.clock.now += seconds
        self.tape.append(event)
        self.then.get(event, lambda: None)()

    def on_episodes(self, episodes: Sequence[Episode]) -> None:
        self.say(f"saw episodes {[episode.episode for episode in episodes]}")

    def on_report(self, report: Report) -> None:
        self.reports.append(report)
        self.say(f"saw report at {report.env_steps}")

    def on_evaluation(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        self.say(f"saw evaluation at {env_steps}: {evaluation.mean:g} {reached}")

    def on_evaluation_progress(self, done: int, episodes: int, steps: int) -> None:
        self.say(f"saw evaluating {done} of {episodes}: {steps}")

    def on_no_evaluations(self, reason: str) -> None:
        self.say(f"saw no evaluations: {reason}")

    def on_checkpoint(self, trainer: Trainer) -> None:
        self.say(f"saw checkpoint at {trainer.rollout.env_steps} {trainer.status}")

    def on_restart(self, env_steps: int, message: str) -> None:
        self.say(f"saw restart at {env_steps}: {message}")

    def on_compiled(self, env_steps: int, message: str) -> None:
        self.say(f"saw compiled at {env_steps}: {message}")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def staged(
    clock: Clock,
    *,
    until: int,
    num_envs: int = 2,
    stage: Stage | None = None,
    ratio: float = 0.5,
    starts: int = 2,
    ends: dict[int, int] | None = None,
    means: Sequence[tuple[float, float]] = (),
    goal: float | None = None,
    epsilon: Schedule | None = None,
    learning_rate: Schedule | None = None,
    must_evaluate: bool = True,
    **intervals: float,
) -> tuple[HostTrainer, Stage]:
    stage = stage or Stage(clock, num_envs, ends or {})
    trainer = HostTrainer(
        cast("HostRollout", stage.rollout),
        cast("Any", stage.learner),
        sampler=cast("Any", "samples"),
        ratio=ReplayRatio(ratio, starts),
        epsilon=epsilon or Constant(0.5),
        learning_rate=learning_rate,
        until=until,
        intervals=Intervals(**cast("Any", {"report": NEVER, "checkpoint": NEVER, **intervals})),
        callback=stage,
        evaluator=cast("Evaluator", FakeEvaluator(stage, means)),
        must_evaluate=must_evaluate,
        stop_at_return=goal,
        started=90.0,
    )
    return trainer, stage


def count(stage: Stage, start: str) -> int:
    return sum(event.startswith(start) for event in stage.tape)


# The order


def test_five_vector_steps_happen_in_this_order(clock: Clock) -> None:
    trainer, stage = staged(
        clock,
        until=10,
        ends={3: 2},
        means=[(50.0, 0.0)],
        goal=100.0,
        report=4,
        checkpoint=6,
        evaluate=8,
        target_episodes=2,
    )
    assert trainer.run(SEEDS) == "completed"
    assert stage.tape == [
        "reset [7, 8]",
        "send 0.5",
        "collect",
        "write",
        "send 0.5",
        "collect",
        "write",
        "saw report at 4",
        "send 0.5",
        "learn 1 from samples",
        "collect",
        "write",
        "sync target",
        "saw episodes [1, 2]",
        "saw checkpoint at 6 running",
        "send 0.5",
        "learn 1 from samples",
        "collect",
        "write",
        "saw report at 8",
        "screen",
        "saw evaluation at 8: 50 False",
        "send 0.5",
        "learn 1 from samples",
        "collect",
        "write",
        "learn 1 from samples",
        "saw report at 10",
    ]


def test_each_restart_of_a_worker_is_reported_once_and_after_its_step(clock: Clock) -> None:
    trainer, stage = staged(clock, until=8, starts=6)
    source = stage.rollout
    moments = iter([[], ["worker 0", "worker 1"], [], ["worker 0 again"]])

    def befall() -> None:
        source.restarts += next(moments)
        source.num_restarts = len(source.restarts)

    stage.then["collect"] = befall
    trainer.run(SEEDS)
    assert [event for event in stage.tape if event.startswith("saw restart")] == [
        "saw restart at 4: worker 0",
        "saw restart at 4: worker 1",
        "saw restart at 8: worker 0 again",
    ]
    assert trainer.worker_restarts == 3


def test_what_a_compiler_beside_the_training_came_to_is_reported_once(clock: Clock) -> None:
    trainer, stage = staged(clock, until=10, report=2)
    ready = SimpleNamespace(ready_after_s=None, failure=None)
    fails = SimpleNamespace(ready_after_s=None, failure=None)
    long_ago = SimpleNamespace(ready_after_s=3.0, failure=None)
    stage.learner.compiling = [ready, fails, long_ago]
    reports = iter(range(10))

    def finish() -> None:
        if next(reports) == 2:
            ready.ready_after_s, fails.failure = 12.3, "no such luck"

    stage.then["saw report at 4"] = stage.then["saw report at 6"] = finish
    stage.then["saw report at 2"] = finish
    trainer.run(SEEDS)
    assert [event for event in stage.tape if event.startswith("saw compiled")] == [
        "saw compiled at 6: compiled after 12 s",
        "saw compiled at 6: not compiled: no such luck",
    ]


def test_exploration_follows_env_steps_and_episodes(clock: Clock) -> None:
    seen: list[tuple[int, int]] = []

    def schedule(env_steps: int, episodes: int) -> float:
        seen.append((env_steps, episodes))
        return 1.0

    trainer, _ = staged(clock, until=8, num_envs=2, ends={1: 1, 3: 2}, epsilon=schedule)
    trainer.run(SEEDS)
    assert seen[:4] == [(0, 0), (2, 1), (4, 1), (6, 3)]


# The replay ratio


@pytest.mark.parametrize("num_envs", [1, 4, 64])
@pytest.mark.parametrize("ratio", [0.25, 1.0, 8.0])
def test_updates_per_env_step_are_exact_at_every_moment(
    clock: Clock, num_envs: int, ratio: float
) -> None:
    trainer, stage = staged(clock, until=1000, num_envs=num_envs, ratio=ratio, starts=130)
    learn, most = stage.learner.learn, 0

    def checked(sampler: object, updates: int) -> None:
        nonlocal most
        learn(sampler, updates)
        most = max(most, updates)
        assert stage.learner.updates == math.floor(ratio * (stage.rollout.env_steps - 130))

    stage.learner.learn = checked  # type: ignore[method-assign]
    trainer.run(SEEDS)
    owed = math.floor(ratio * (stage.rollout.env_steps - 130))
    assert stage.learner.updates == trainer.ratio.updates == owed > 0
    assert most <= max(1, num_envs * ratio)


@pytest.mark.parametrize("num_envs", [1, 4, 64])
def test_nothing_is_learned_before_learning_starts(clock: Clock, num_envs: int) -> None:
    trainer, stage = staged(clock, until=130, num_envs=num_envs, ratio=1.0, starts=192)
    trainer.run(SEEDS)
    assert stage.learner.updates == 0
    assert math.isnan(trainer.train_sps)


def test_a_stopped_run_owes_what_it_has_not_paid(clock: Clock) -> None:
    trainer, stage = staged(clock, until=NEVER, ratio=1.0)
    stage.then["learn 2 from samples"] = trainer.stop
    assert trainer.run(SEEDS) == "stopped"
    assert count(stage, "learn") == 1
    assert trainer.ratio.due(stage.rollout.env_steps) == 2


# By interval


@pytest.mark.parametrize("num_envs", [1, 4, 64])
def test_intervals_are_counted_in_env_steps(clock: Clock, num_envs: int) -> None:
    trainer, stage = staged(
        clock,
        until=6400,
        num_envs=num_envs,
        means=[(0.0, 0.0)] * 8,
        goal=1.0,
        report=100,
        checkpoint=320,
        evaluate=800,
    )
    trainer.run(SEEDS)
    assert count(stage, "saw report") == 64
    assert count(stage, "saw checkpoint") == 20
    assert count(stage, "screen") == 8


def test_a_run_shorter_than_an_interval_is_reported_once_at_its_end(clock: Clock) -> None:
    trainer, stage = staged(clock, until=10)
    trainer.run(SEEDS)
    assert [event for event in stage.tape if "saw" in event] == ["saw report at 10"]
    assert stage.reports[0].updates == 4


@pytest.mark.parametrize(("per_step", "syncs"), [(1, 10), (2, 20), (3, 30), (9, 50)])
def test_a_hard_target_is_copied_by_finished_episodes(
    clock: Clock, per_step: int, syncs: int
) -> None:
    ends = dict.fromkeys(range(1, 51), per_step)
    trainer, stage = staged(clock, until=100, ends=ends, target_episodes=5)
    trainer.run(SEEDS)
    assert stage.rollout.episodes == 50 * per_step
    assert count(stage, "sync") == syncs


def test_a_soft_target_is_never_copied(clock: Clock) -> None:
    trainer, stage = staged(clock, until=100, ends=dict.fromkeys(range(1, 51), 3))
    trainer.run(SEEDS)
    assert count(stage, "sync") == 0


# The goal


def test_a_full_evaluation_that_reaches_the_goal_ends_the_run(clock: Clock) -> None:
    trainer, stage = staged(
        clock,
        until=NEVER,
        means=[(99.0, 120.0), (100.0, 99.0), (150.0, 101.0)],
        goal=100.0,
        evaluate=10,
    )
    assert trainer.run(SEEDS) == "solved"
    assert [event for event in stage.tape if event[:4] in {"scre", "full", "saw "}] == [
        "screen",
        "saw evaluation at 10: 99 False",
        "screen",
        "full",
        "saw evaluation at 20: 99 False",
        "screen",
        "full",
        "saw evaluation at 30: 101 True",
        "saw report at 30",
    ]
    assert trainer.evaluation is not None
    assert trainer.evaluation.mean == 101.0
    assert stage.tape[-2:] == ["saw evaluation at 30: 101 True", "saw report at 30"]


def test_a_full_evaluation_that_ended_early_is_reported_and_not_kept(clock: Clock) -> None:
    trainer, stage = staged(
        clock, until=30, means=[(150.0, 99.0), (150.0, 40.0)], goal=100.0, evaluate=10
    )
    assert isinstance(trainer.evaluator, FakeEvaluator)
    trainer.evaluator.out_of_reach = 50.0
    stage.then["saw evaluation at 20: 40 False"] = trainer.stop
    trainer.run(SEEDS)
    assert count(stage, "saw evaluation") == 2
    assert trainer.evaluation is not None
    assert (trainer.evaluation.mean, trainer.evaluation.episodes) == (99.0, 3)


def test_the_time_to_the_goal_leaves_evaluations_out_of_the_training_time(clock: Clock) -> None:
    trainer, _ = staged(
        clock, until=NEVER, ratio=0.5, means=[(0.0, 0.0), (1.0, 1.0)], goal=1.0, evaluate=4
    )
    trainer.run(SEEDS)
    steps = 6 * 3.5 + 4 * 4.0
    assert trainer.solved_train_s == steps
    assert trainer.solved_total_s == 10.0 + 5.0 + steps + 2 * 20.0 + 50.0


def test_an_untrained_policy_is_not_evaluated(clock: Clock) -> None:
    trainer, stage = staged(clock, until=10, starts=8, means=[(9.0, 9.0)], goal=1.0, evaluate=2)
    assert trainer.run(SEEDS) == "completed"
    assert count(stage, "screen") == 0


def test_without_an_interval_nothing_is_evaluated(clock: Clock) -> None:
    trainer, stage = staged(clock, until=20)
    trainer.run(SEEDS)
    assert count(stage, "screen") == 0
    assert (trainer.solved_train_s, trainer.solved_total_s) == (None, None)


# The best policy


def test_without_a_goal_the_best_policy_is_looked_for(clock: Clock) -> None:
    means = [(5.0, 4.0), (3.0, 9.0), (6.0, 3.0), (5.0, 6.0)]
    trainer, stage = staged(clock, until=40, means=means, evaluate=10)
    assert isinstance(trainer.evaluator, FakeEvaluator)
    trainer.evaluator.length = 1
    assert trainer.run(SEEDS) == "completed"
    assert [event for event in stage.tape if event[:4] in {"scre", "full"}] == [
        *("screen", "full for the best"),
        "screen",
        *("screen", "full for the best"),
        *("screen", "full for the best"),
    ]
    assert trainer.best_policy == BestPolicy(40, 6.0, 0.0, 3)
    assert trainer.evaluation is None
    trainer.evaluate_fully()
    assert stage.tape[-2:] == ["full", "saw evaluation at 40: 6 False"]
    assert trainer.best_policy == BestPolicy(40, 6.0, 0.0, 3)
    assert trainer.evaluation is not None
    assert not trainer.evaluation.best


@pytest.mark.parametrize(("goal", "screened"), [(None, 2), (99.0, 3)])
def test_the_end_is_evaluated_once_unless_it_may_be_a_stop(
    clock: Clock, goal: float | None, screened: int
) -> None:
    trainer, stage = staged(clock, until=30, means=[(5.0, 4.0)] * 3, evaluate=10, goal=goal)
    trainer.evaluated_at_end = True
    assert trainer.run(SEEDS) == "completed"
    assert count(stage, "screen") == screened


def test_an_untrained_policy_is_never_the_best(clock: Clock) -> None:
    trainer, stage = staged(clock, until=10, starts=8, means=[(9.0, 9.0)], evaluate=2)
    assert trainer.run(SEEDS) == "completed"
    assert count(stage, "screen") == 0
    assert trainer.best_policy is None


def fail() -> None:
    raise OSError("the port is taken\nby us")


MOMENTS = ["screen", "full for the best", "full"]


def failing_at(clock: Clock, moment: str, *, required: bool) -> tuple[Trainer, Stage]:
    means = [(5.0, 4.0), (4.0, 3.0), (4.0, 3.0)]
    trainer, stage = staged(clock, until=35, means=means, evaluate=10, must_evaluate=required)
    cast("FakeEvaluator", trainer.evaluator).length = 1
    stage.then[moment] = fail
    return trainer, stage


def train_and_evaluate(trainer: Trainer) -> None:
    trainer.run(SEEDS)
    trainer.evaluate_fully()


@pytest.mark.parametrize("moment", MOMENTS)
def test_environments_that_fail_are_reported_once_closed_and_done_without(
    clock: Clock, moment: str
) -> None:
    trainer, stage = failing_at(clock, moment, required=False)
    train_and_evaluate(trainer)
    trainer.evaluate_fully()
    assert trainer.status == "completed"
    assert [stage.tape.count(event) for event in (moment, "close")] == [1, 1]
    said = [event for event in stage.tape if "no evaluations" in event]
    assert said == ["saw no evaluations: OSError: the port is taken"]
    assert trainer.best_policy == (BestPolicy(10, 4.0, 0.0, 3) if moment == "full" else None)


@pytest.mark.parametrize("moment", MOMENTS)
def test_evaluations_that_were_asked_for_and_fail_end_the_run(clock: Clock, moment: str) -> None:
    trainer, _ = failing_at(clock, moment, required=True)
    with pytest.raises(OSError, match="the port is taken"):
        train_and_evaluate(trainer)


def test_what_a_callback_raises_in_an_evaluation_ends_the_run(clock: Clock) -> None:
    trainer, stage = staged(clock, until=40, means=[(5.0, 4.0)], evaluate=10, must_evaluate=False)
    stage.then["saw evaluating 1 of 2: 3"] = fail
    evaluator = cast("FakeEvaluator", trainer.evaluator)
    stage.then["screen"] = lambda: evaluator.on_progress(1, 2, 3)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="the port is taken"):
        trainer.run(SEEDS)
    assert count(stage, "saw no evaluations") == 0


def test_environments_that_fail_after_a_stop_are_not_reported(clock: Clock) -> None:
    trainer, stage = staged(clock, until=40, means=[(5.0, 4.0)], evaluate=10, must_evaluate=False)

    def interrupt() -> None:
        trainer.stop()
        fail()

    stage.then["screen"] = interrupt
    assert trainer.run(SEEDS) == "stopped"
    assert count(stage, "saw no evaluations") == 0


# Stopping and failing


@pytest.mark.parametrize("moment", ["send 0.5", "learn 2 from samples", "collect"])
def test_a_stop_ends_the_run_after_the_step_in_progress(clock: Clock, moment: str) -> None:
    trainer, stage = staged(
        clock, until=NEVER, means=[(9.0, 9.0)] * 9, goal=1.0, evaluate=2, starts=-4, checkpoint=2
    )
    stage.then[moment] = trainer.stop
    assert trainer.run(SEEDS) == "stopped"
    assert stage.tape == [
        "reset [7, 8]",
        "send 0.5",
        "learn 2 from samples",
        "collect",
        "write",
        "saw checkpoint at 2 stopped",
        "saw report at 2",
    ]


def test_a_stop_in_the_last_step_is_still_a_stop(clock: Clock) -> None:
    trainer, stage = staged(clock, until=2)
    stage.then["collect"] = trainer.stop
    assert trainer.run(SEEDS) == "stopped"


def test_a_stop_before_the_first_step_takes_none(clock: Clock) -> None:
    trainer, stage = staged(clock, until=10)
    trainer.stop()
    assert trainer.run(SEEDS) == "stopped"
    assert stage.tape == ["reset [7, 8]"]


def test_updates_that_were_skipped_end_the_run_at_the_next_report(clock: Clock) -> None:
    trainer, stage = staged(clock, until=100, report=10)
    stage.then["learn 1 from samples"] = lambda: stage.learner.state.skipped.fill_(3)
    with pytest.raises(NonFiniteError, match=r"3 updates before env step 10 .*--learning-rate"):
        trainer.run(SEEDS)
    assert count(stage, "saw") == 0


def test_a_priority_that_is_not_finite_is_named_as_such(clock: Clock) -> None:
    trainer, stage = staged(clock, until=20)
    stage.learner.state.skipped.fill_(1)
    stage.learner.state.metrics.copy_(torch.tensor([1.0, torch.nan, 1.0, 1.0]))
    with pytest.raises(NonFiniteError, match=r"had a priority that is not finite.*finite prior"):
        trainer.run(SEEDS)


def test_updates_that_were_skipped_are_found_without_an_interval_too(clock: Clock) -> None:
    trainer, stage = staged(clock, until=20)
    stage.learner.state.skipped.fill_(1)
    with pytest.raises(NonFiniteError, match="before env step 20"):
        trainer.run(SEEDS)


# The step size


def test_the_updates_of_each_vector_step_are_made_with_the_step_size_of_its_env_steps(
    clock: Clock,
) -> None:
    falls = Linear(1.0, 0.0, 16)
    trainer, stage = staged(clock, until=16, starts=4, learning_rate=falls, report=4)
    trainer.run(SEEDS)
    assert stage.learner.rates == [1 - steps / 16 for steps in (6, 8, 10, 12, 14, 16)]
    rates = [report.learning_rate for report in stage.reports]
    assert rates == [0.25, 0.625, 0.375, 0.125]  # at first that which the learner was built with
    assert stage.learner.state.learning_rate.item() == 0.0  # of the updates after the last report


def test_the_step_size_falls_over_the_env_steps_of_this_call(clock: Clock) -> None:
    stage = Stage(clock, 2, {})
    stage.rollout.env_steps = 1000
    trainer, _ = staged(
        clock, until=1008, stage=stage, learning_rate=Linear(1.0, 0.5, 8), starts=1000
    )
    trainer.run(SEEDS)
    assert stage.learner.rates == [1 - steps / 16 for steps in (2, 4, 6, 8)]


def test_a_constant_step_size_stays_as_it_was_written_by_hand(clock: Clock) -> None:
    trainer, stage = staged(clock, until=8, starts=0, report=4)
    stage.learner.state.learning_rate.fill_(0.0123)
    trainer.run(SEEDS)
    assert {report.learning_rate for report in stage.reports} == {0.0123}
    assert set(stage.learner.rates) == {torch.tensor(0.0123).item()}


# The clock


def test_a_report_shows_where_the_time_went(clock: Clock) -> None:
    trainer, stage = staged(clock, until=16, starts=0, ends={2: 1, 3: 1}, report=8)
    stage.learner.will_compile_s = 30.0
    trainer.run(SEEDS)
    train_s = 4 * 3.5 + 3 * 4.0
    assert stage.reports[0].time_left_s == pytest.approx(train_s)
    assert replace(stage.reports[0], time_left_s=0.0) == Report(
        env_steps=8,
        total_env_steps=16,
        updates=3,
        episodes=2,
        sps=8 / train_s,
        return_mean_100=15.0,
        epsilon=0.5,
        loss=0.5,
        q_mean=7.0,
        grad_norm=3.0,
        wall_s=10.0 + 5.0 + train_s + 30.0,
        time_left_s=0.0,
        time_share={
            "act": 4.0 / train_s,
            "env_wait": 8.0 / train_s,
            "write": 2.0 / train_s,
            "learn": 12.0 / train_s,
            "other": 0.0,
        },
        learning_rate=0.25,
    )
    assert trainer.startup_s == 15.0
    assert trainer.watch.seconds["compile"] == 30.0


def test_the_speed_is_counted_from_the_first_update_on(clock: Clock) -> None:
    trainer, _ = staged(clock, until=40, starts=20, ratio=0.5)
    trainer.run(SEEDS)
    first_update_s, end_s = 11 * 3.5 + 1.0, 20 * 3.5 + 10 * 4.0
    assert trainer.train_sps == (40 - 22) / (end_s - first_update_s)


def test_the_peak_is_the_fastest_whole_interval(clock: Clock) -> None:
    trainer, stage = staged(clock, until=45, starts=22, ratio=0.5, report=10)
    trainer.run(SEEDS)
    speeds = [report.sps for report in stage.reports]
    assert len(speeds) == 5
    assert trainer.peak_sps == max(speeds[:4]) == pytest.approx(2 / 3.5)


def test_a_report_without_a_step_since_the_last_one_knows_no_time_left(clock: Clock) -> None:
    trainer, _ = staged(clock, until=10)
    trainer.begin(SEEDS)
    assert math.isnan(trainer.report().time_left_s)


def test_the_mean_return_is_of_the_last_hundred_episodes(clock: Clock) -> None:
    trainer, _ = staged(clock, until=200, ends=dict.fromkeys(range(1, 101), 2))
    assert math.isnan(trainer.return_mean_100)
    trainer.run(SEEDS)
    assert trainer.return_mean_100 == pytest.approx(10.0 * np.mean(range(101, 201)))


def test_a_stop_in_the_midst_of_an_evaluation_ends_it_and_the_run(clock: Clock) -> None:
    trainer, stage = staged(clock, until=100, means=[(200.0, 200.0)], goal=100.0, evaluate=8)

    def stop() -> None:
        trainer.stop()
        assert trainer.evaluator is not None
        assert trainer.evaluator.stopped is not None
        assert trainer.evaluator.stopped()
        raise EvaluationStopped

    stage.then["full"] = stop
    assert trainer.run(SEEDS) == "stopped"
    assert trainer.rollout.env_steps == 8
    assert count(stage, "saw evaluation") == 0
    assert trainer.evaluation is None
    assert trainer.watch.seconds["evaluate"] == 70.0


def test_a_run_says_how_many_steps_it_took_in_its_training_seconds(clock: Clock) -> None:
    """Ten vector steps of two, 3.5 s each; the first update comes late and does not matter."""
    trainer, _ = staged(clock, until=20, starts=16)
    trainer.run(SEEDS)
    assert trainer.overall_sps == pytest.approx(20 / trainer.watch.train_s)
    assert trainer.overall_sps != pytest.approx(trainer.train_sps)


def test_a_checkpoint_by_time_is_looked_for_with_each_report(clock: Clock) -> None:
    trainer, stage = staged(clock, until=12, report=4, checkpoint_s=0.0)
    trainer.run(SEEDS)
    saw = [event for event in stage.tape if event.startswith(("saw report", "saw checkpoint"))]
    assert saw[:4] == [
        "saw report at 4",
        "saw checkpoint at 4 running",
        "saw report at 8",
        "saw checkpoint at 8 running",
    ]
    trainer, stage = staged(clock, until=12, report=4, checkpoint_s=1e9)
    trainer.run(SEEDS)
    assert count(stage, "saw checkpoint") == 0
