"""After loading, everything that is counted goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdqn import DQN
from fastdqn.build import build_schedule
from fastdqn.cli.commands import main
from fastdqn.training.callbacks import Callback
from fastdqn.training.events import Episode, Report
from tests.small_agents import SMALL

pytestmark = pytest.mark.usefixtures("no_plots")

COUNTS = ("env_steps", "updates", "episodes", "rounds")
SLOWLY: dict[str, Any] = {
    **SMALL,
    "epsilon_schedule": "multiplicative",
    "epsilon_decay_factor": 0.95,
}


def small(env: Any = "CartPole-v1", **settings: Any) -> DQN:
    return DQN(env, **{**SLOWLY, **settings})


def counts(agent: DQN) -> dict[str, int]:
    message = agent.describe()
    return {name: message[name] for name in COUNTS}


def counts_in(folder: Path) -> dict[str, int]:
    message = json.loads((folder / "policy.json").read_text())
    return {name: message[name] for name in COUNTS}


def epsilon(agent: DQN) -> float:
    message = counts(agent)
    return build_schedule(agent.config)(message["env_steps"], message["episodes"])


class Seen(Callback):
    """Keeps the reports and the episodes, and saves the agent at the first report."""

    def __init__(self, agent: DQN | None = None, folder: Path | None = None) -> None:
        self.agent, self.folder = agent, folder
        self.reports: list[Report] = []
        self.episodes: list[Episode] = []

    def on_report(self, report: Report) -> None:
        self.reports.append(report)
        if self.agent is not None and self.folder is not None and len(self.reports) == 1:
            self.agent.save(self.folder)

    def on_episodes(self, episodes: Sequence[Episode]) -> None:
        self.episodes += episodes


def reloaded(agent: DQN, folder: Path, **settings: Any) -> DQN:
    agent.save(folder)
    return DQN.load(folder, **settings)


@pytest.mark.parametrize("vectorizer", ["sync", "tensor"])
def test_what_is_counted_goes_on_after_loading(vectorizer: str, tmp_path: Path) -> None:
    agent = small(vectorizer=vectorizer).learn(400)
    assert epsilon(agent) < 0.7
    loaded = reloaded(agent, tmp_path / "first")
    assert counts(loaded) == counts(agent) == counts_in(tmp_path / "first")
    assert epsilon(loaded) == epsilon(agent)
    before, seen = counts(loaded), Seen()
    loaded.learn(200, callback=seen)
    loaded.save(tmp_path / "second")
    after = counts_in(tmp_path / "second")
    assert after["env_steps"] == 600
    assert after["updates"] == before["updates"] + (200 - 40) // 4
    assert after["episodes"] == before["episodes"] + len(seen.episodes) > before["episodes"]
    assert after["rounds"] == 2
    first = seen.episodes[0]
    assert (first.episode, first.env_step > 400) == (before["episodes"] + 1, True)
    assert seen.reports[-1].updates == after["updates"]
    assert seen.reports[-1].epsilon == epsilon(loaded)
    assert counts(DQN.load(tmp_path / "second")) == after


@pytest.mark.slow
def test_nothing_bursts_after_loading(tmp_path: Path) -> None:
    loaded = reloaded(small(replay_ratio=1.0).learn(400), tmp_path / "policy")
    assert loaded._ratio.due(440) == 0
    assert loaded._ratio.due(441) == 1
    assert loaded.config.learning_starts == 40


@pytest.mark.parametrize("execution", ["eager", "native"])
def test_the_hard_target_is_copied_when_it_would_have_been(execution: str, tmp_path: Path) -> None:
    settings = {"target": "hard", "target_period": 7, "learning_rate": 0.01}
    agent = small(execution=execution, **settings).learn(140)
    assert counts(agent)["updates"] == 25
    loaded = reloaded(agent, tmp_path / "policy")
    seen: list[bool] = []
    for made in range(26, 42):  # one update at a time, once the ring is filled
        loaded.learn(44 if made == 26 else 4)
        assert counts(loaded)["updates"] == made
        state = loaded.learner.state
        seen.append(torch.equal(state.target, state.online))
        assert seen[-1] == (made % 7 == 0)
    assert 1 < sum(seen) < len(seen)


def test_copies_by_episodes_go_on_from_the_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"target": "hard", "target_period_episodes": 5}
    agent = small(**settings).learn(400)
    loaded = reloaded(agent, tmp_path / "policy")
    before, seen, synced = counts(agent)["episodes"], Seen(), []
    monkeypatch.setattr(
        loaded.learner,
        "sync_target",
        lambda: synced.append(loaded._rollout.episodes),  # type: ignore[union-attr]
    )
    loaded.learn(300, callback=seen)
    after = before + len(seen.episodes)
    assert len(synced) == after // 5 - before // 5 > 1
    assert synced[0] > before


def test_environments_and_exploration_go_on_with_new_numbers(tmp_path: Path) -> None:
    agent = small()
    first = agent.env_seeds()
    second = reloaded(agent, tmp_path / "policy")
    drawn = [one.policy._drawn(3).tolist() for one in (small(), second)]
    assert second.env_seeds() == agent.env_seeds()
    assert not set(first) & set(second.env_seeds())
    assert drawn[0] != drawn[1]
    batches = [one._sampler.buffer.generator.initial_seed() for one in (small(), second)]  # type: ignore[union-attr]
    assert batches[0] != batches[1]


def test_an_agent_that_never_learned_is_after_loading_as_it_was(tmp_path: Path) -> None:
    agent = small()
    loaded = reloaded(agent, tmp_path / "policy")
    assert counts(loaded) == dict.fromkeys(COUNTS, 0)
    for one in (agent, loaded):
        one.learn(200)
    assert counts(agent) == counts(loaded)
    for name, tensor in agent.parameters().items():
        assert torch.equal(tensor, loaded.parameters()[name])


def test_a_policy_saved_while_it_learns_knows_the_counts_of_that_moment(tmp_path: Path) -> None:
    agent = small(log_interval=200)
    seen = Seen(agent, tmp_path / "policy")
    agent.learn(400, callback=seen)
    report, message = seen.reports[0], counts_in(tmp_path / "policy")
    assert (message["env_steps"], message["updates"], message["episodes"]) == (
        *(200, report.updates, report.episodes),
    )
    assert counts(agent)["env_steps"] == 400


def test_the_checkpoints_of_a_run_hold_all_counts(tmp_path: Path) -> None:
    words = "--env-id CartPole-v1 --total-timesteps 400 --learning-starts 100 --num-envs 2 "
    words += "--batch-size 8 --vectorizer sync --execution eager --eval-episodes 2 --quiet "
    words += "--checkpoint-interval 150"
    assert main(["train", *words.split(), "--run-dir", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    folder = tmp_path / "checkpoints" / "step-000000000400"
    assert counts_in(folder) == {**{n: result[n] for n in COUNTS[:3]}, "rounds": 1}
    earlier = counts_in(folder.with_name("step-000000000150"))
    assert 0 < earlier["episodes"] < result["episodes"]
    assert earlier["updates"] == 12
    assert counts(DQN.load(tmp_path)) == counts_in(folder)
