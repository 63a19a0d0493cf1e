"""Returns over long runs: evaluations that change nothing, runs that are kept, a table by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.studies import sway
from benchmarks.studies.sway import COLUMNS, Arguments, Curve, at_ends, main, means, picture, table
from fastdqn import DQN
from fastdqn.training.events import Report

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {
    "hidden_sizes": (8,),
    "batch_size": 8,
    "learning_starts": 32,
    "buffer_size": 500,
    "num_envs": 2,
}


def agent_of(**settings: Any) -> DQN:
    """Return a small agent that reports every 200 env steps."""
    kind: dict[str, Any] = {"num_workers": 0, "device": "cpu", "execution": "eager", "quiet": True}
    return DQN("CartPole-v1", log_interval=200, **kind, **SMALL, **settings)


def run_of(name: str, seed: int, means: list[float], final: float) -> dict[str, Any]:
    """Return a run whose Q means are its greedy means divided by ten."""
    curve = [
        {"env_steps": 20 * (k + 1), "mean": mean, "q_mean": mean / 10, "error_at_ends": 2.0}
        for k, mean in enumerate(means)
    ]
    return {"settings": name, "seed": seed, "curve": curve, "final_mean": final}


def test_evaluations_change_nothing() -> None:
    watched, alone = agent_of(), agent_of()
    curve = Curve(watched, 2)
    watched.learn(600, callback=curve)
    alone.learn(600)
    assert torch.equal(watched.learner.state.online, alone.learner.state.online)
    assert [record["env_steps"] for record in curve.records] == [200, 400, 600]
    assert watched.learner.state.updates.item() > 100
    assert curve.records[-1]["share_of_ends"] > 0


def test_the_learning_rate_falls_linearly_over_the_env_steps() -> None:
    agent = agent_of(learning_rate=0.8)
    rates = []

    class Falling(Curve):
        def on_report(self, report: Report) -> None:
            super().on_report(report)
            rates.append(agent.learner.state.learning_rate.item())

    agent.learn(800, callback=Falling(agent, 1, 0.4))
    assert rates == pytest.approx([0.7, 0.6, 0.5, 0.4])


def test_the_error_at_ends_is_that_of_q_against_the_reward() -> None:
    agent = agent_of()
    agent.learn(300)
    agent.learner.state.online.zero_()
    agent.learner.state.online[-2:] = 4.0  # the biases of the last layer: Q is 4 everywhere
    ends = at_ends(agent)
    assert ends["error_at_ends"] == pytest.approx(3.0)  # the reward is 1
    terminated = agent.replay.ring.terminated.sum().item()
    assert terminated > 0
    assert ends["share_of_ends"] == pytest.approx(terminated / len(agent.replay))


def test_the_table_counts_evaluations_over_the_whole_run_and_its_second_half() -> None:
    run = run_of("after", 3, [100.0, 500.0, 480.0, 200.0], 321.0)
    cells = table([run], 475.0).splitlines()[-1].strip("| ").split(" | ")
    assert dict(zip(COLUMNS, cells, strict=True)) == {
        "settings": "after",
        "seed": "3",
        "evaluations that reach it": "50%",
        "second half": "50%",
        "mean": "340.0",
        "lowest": "200.0",
        "final greedy mean": "321.0",
        "largest Q mean": "50.0",
        "error at ends": "2.0",
    }


def test_the_means_are_over_all_runs_of_the_settings() -> None:
    runs = [
        run_of("before", 0, [500.0, 500.0, 80.0, 500.0], 87.0),
        run_of("before", 1, [0.0, 0.0, 500.0, 500.0], 500.0),
        run_of("after", 0, [0.0, 0.0, 500.0, 490.0], 500.0),
    ]
    before, after = means(runs, 475.0).split("\n\n")
    assert before.startswith("before: 75% of the evaluations of the second half reach 475")
    assert "lowest 80.0; final greedy means 87.0, 500.0." in before
    assert after.startswith("after: 100%")
    assert "lowest 490.0" in after


def test_the_picture_has_a_panel_for_each_settings_and_a_line_for_each_seed() -> None:
    runs = [run_of(name, seed, [seed, 500.0], 0.0) for name in ("a", "b") for seed in (1, 2)]
    panels = picture(runs, "CartPole-v1").axes
    assert [panel.get_title(loc="left") for panel in panels] == ["a", "b"]
    lines = panels[1].get_lines()
    assert [line.get_label() for line in lines] == ["seed 1", "seed 2"]
    assert np.array_equal(lines[1].get_ydata(), [2.0, 500.0])


def test_a_run_that_is_kept_is_not_repeated_unless_its_settings_differ(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []

    def train(settings: dict[str, Any], seed: int, arguments: Arguments) -> dict[str, Any]:
        trained.append((settings["tau"], seed, arguments.timesteps))
        return {"curve": run_of("", seed, [1.0, 2.0], 0.0)["curve"], "final_mean": 3.0}

    monkeypatch.setattr(sway, "_trained", train)
    monkeypatch.setattr(sway, "SETTINGS", {"before": {"tau": 0.1}, "after": {"tau": 0.2}})
    words = ["--seeds", "4", "5", "--folder", str(tmp_path), "--timesteps"]
    assert main([*words, "100"]) == main([*words, "100"]) == 0
    assert trained == [(0.1, 4, 100), (0.2, 4, 100), (0.1, 5, 100), (0.2, 5, 100)]
    assert main([*words, "200"]) == 0
    assert trained[4:] == [(0.1, 4, 200), (0.2, 4, 200), (0.1, 5, 200), (0.2, 5, 200)]
    assert "| before | 4 |" in capsys.readouterr().out


def test_a_run_is_trained_and_evaluated_at_its_end(tmp_path: Path) -> None:
    settings = {**SMALL, "execution": "eager"}
    arguments = Arguments(timesteps=400, every=200, episodes=2, folder=tmp_path)
    run = sway._trained(settings, 0, arguments)
    assert len(run["curve"]) == 2
    assert run["final_mean"] > 0


def test_settings_that_do_not_exist_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--settings", "other"])
    assert "there are no such settings" in capsys.readouterr().err
