"""What is timed together: the loop end to end, its parts, stepping; by small real measurements."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import end_to_end, network_options, replay_options
from benchmarks.end_to_end import EndToEndGroup, Limits, LoopTimer, Setting
from benchmarks.env_ratios import SteppingGroup, TensorEnvGroup
from benchmarks.guards import EVERYTHING, Selection
from benchmarks.loop_parts import PartsGroup
from benchmarks.measure import Effort
from benchmarks.network_options import NetworkOptionsGroup
from benchmarks.replay_options import ReplayOptionsGroup
from benchmarks.update_modes import possible_modes
from fastdqn.device import available_cores
from fastdqn.training.host.trainer import HostTrainer
from fastdqn.training.stopwatch import ACTIVITIES, Stopwatch

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Effort(2, 0.02)


# End to end


def test_the_limit_on_the_cpu_shares_the_cores_and_on_a_device_it_does_not() -> None:
    """100 env steps/s and 50 updates/s: at 1/4 a core takes 10 ms and 5 ms per env step."""
    shared, apart = Limits(100.0, 50.0, 2, on_cpu=True), Limits(100.0, 50.0, 2, on_cpu=False)
    assert shared.sps_max(0.25) == pytest.approx(2 / 0.015)  # the learner alone could do 200
    assert shared.sps_max(2.0) == pytest.approx(25.0)  # one learner: 50 / 2
    assert apart.sps_max(0.1) == pytest.approx(200.0)  # 2 x 100
    assert apart.sps_max(0.5) == pytest.approx(100.0)  # 50 / 0.5


class _SleepyTrainer:
    """Sleeps 2 ms at each of two activities of a step of 3 env steps."""

    def __init__(self) -> None:
        self.watch = Stopwatch()
        self.rollout = SimpleNamespace(env_steps=0)
        self.learner = SimpleNamespace(device=torch.device("cpu"))

    def vector_step(self) -> None:
        self.watch.lap("other")
        for activity in ("act", "learn"):
            time.sleep(0.002)
            self.watch.lap(activity)
        self.rollout.env_steps += 3


def test_a_loop_timer_counts_env_steps_and_leaves_out_what_lies_between_timings() -> None:
    trainer = _SleepyTrainer()
    timer = LoopTimer(cast(HostTrainer, trainer))
    for _ in range(2):
        time.sleep(0.2)  # another thing is timed
        before, start = trainer.rollout.env_steps, time.perf_counter()
        rate = timer(0.05)
        took = time.perf_counter() - start
        assert rate == pytest.approx((trainer.rollout.env_steps - before) / took, rel=0.2)
    shares = timer.shares()
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["act"] + shares["learn"] > 0.8  # 0.2 s of "other" would be three quarters
    assert shares["env_wait"] == shares["write"] == 0.0


@pytest.mark.parametrize("execution", ["auto", "eager"])
def test_a_run_is_timed_end_to_end(
    execution: str, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    monkeypatch.setattr(end_to_end, "WARM_UP_STEPS", 1_200)
    monkeypatch.setattr(end_to_end, "TOTAL_TIMESTEPS", 2_000)  # too few to compile
    setting = Setting("CartPole-v1", 8, 4, 2, (0.5, 0.25), "cpu", execution)
    group = EndToEndGroup(setting)
    mode = "" if execution == "auto" else " eager"
    names = [f"cartpole@1/2{mode} x naive", f"cartpole@1/2{mode} SPS/SPS_max"]
    assert group.ratios()[:2] == names
    measured = group.measure(TINY, Selection(only=("1/2",)))
    assert [guard.name for guard in measured.guards] == names
    assert all(len(guard.values) == TINY.rounds for guard in measured.guards)
    x_naive, of_limit = (guard.median for guard in measured.guards)
    assert x_naive > 0.0
    assert 0.0 < of_limit < 2.0
    (run,) = measured.data["runs"]
    assert run["execution"] == "eager" if execution == "eager" else run["execution"] != "auto"
    assert run["num_workers"] >= 0
    assert set(run["time_share"]) == set(ACTIVITIES)
    assert sum(run["time_share"].values()) == pytest.approx(1.0)
    assert run["time_share"]["learn"] > 0.0
    assert f"({run['reason']})" in measured.text
    assert "| 1/2 |" in measured.text


# Parts


def test_parts_are_timed_beside_plain_tensors() -> None:
    group = PartsGroup("cpu")
    measured = group.measure(TINY, Selection(only=("write", "act(16)")))
    assert [guard.name for guard in measured.guards] == [
        "write(16) / plain copy of the same bytes",
        "act(16) / plain act",
    ]
    assert set(measured.data["rates"]) == {"write", "plain copy", "act", "plain act"}
    assert all(0.02 < guard.median < 50.0 for guard in measured.guards)


def test_options_of_the_replay_are_timed_beside_uniform_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay_options, "ROWS", 2_000)
    measured = ReplayOptionsGroup().measure(TINY, Selection(only=("priorities",)))
    (guard,) = measured.guards
    assert guard.name == "update by priorities / uniform, native 64-64 b64"
    assert (guard.better, guard.goal) == ("lower", 1.35)
    assert 0.2 < guard.median < 20.0
    assert set(measured.data["rates"]) == {"uniform", "by priorities"}


def test_options_of_the_network_are_timed_beside_the_plain_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network_options, "ROWS", 2_000)
    measured = NetworkOptionsGroup().measure(TINY, Selection(only=("dueling",)))
    (guard,) = measured.guards
    assert guard.name == "update dueling / plain, native 64-64 b64"
    assert (guard.better, guard.goal) == ("lower", 1.25)
    assert 0.2 < guard.median < 20.0
    assert set(measured.data["rates"]) == {"plain", "dueling"}


# Environments


def test_stepping_is_guarded_against_gymnasium(nothing_left: None) -> None:
    group = SteppingGroup("CartPole-v1", 2)
    measured = group.measure(TINY, Selection(only=("sync",)))
    assert [guard.name for guard in measured.guards] == ["stepping grouped x sync, cartpole 2 envs"]
    assert set(measured.data["rates"]) == {"sync", "grouped"}
    assert len(group.ratios()) == 1 + (available_cores() > 1)


# All of it


def test_every_ratio_has_a_name_of_its_own() -> None:
    groups = bench.groups_for(bench.Arguments(device="cpu"))
    names = [name for group in groups for name in group.ratios()]
    assert len(set(names)) == len(names)
    fused = TensorEnvGroup("cpu").ratios()
    assert fused == [f"fused {mode} x eager, cartpole 64 envs" for mode in _fast_modes()]
    assert all(EVERYTHING.takes(name) for name in names)


def test_quick_is_lander_and_one_update() -> None:
    arguments = bench.Arguments(device="cpu", quick=True, skip=("SPS_max",))
    groups = bench.groups_for(arguments)
    names = [name for g in groups for name in g.ratios() if arguments.selection.takes(name)]
    assert [name for name in names if name.startswith("lander")] == [
        "lander@1 x naive",
        "lander@1/4 x naive",
        "lander@1/16 x naive",
    ]
    assert all(name.endswith("64-64 b64 K4") for name in names[3:])
    assert len(names) > 3


def _fast_modes() -> list[str]:
    possible, _ = possible_modes(torch.device("cpu"))
    return [mode for mode in possible if mode != "eager"]
