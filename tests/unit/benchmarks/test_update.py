"""The update's ratios by their real path: a planted slowdown is seen, and modes are discovered."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks.guards import EVERYTHING, Selection
from benchmarks.measure import Effort
from benchmarks.update_modes import UpdateGroup, learner_of, possible_modes, reference_updates
from fastdqn.errors import UsageError
from fastdqn.execution.modes import EXECUTIONS
from fastdqn.learner.learner import Learner

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
RATIO = "update eager x reference, 64-64 b64 K1"
SHORT = ["--device", "cpu", "--rounds", "3", "--seconds", "1", "--only", f"*{RATIO}"]


def slow_down(monkeypatch: pytest.MonkeyPatch, mode: str, by: float) -> None:
    """Let every call of a learner in this mode wait for a fraction of what it took."""
    learn = Learner.learn

    def slowed(self: Learner, *args: Any) -> None:
        start = time.perf_counter()
        learn(self, *args)
        if self.execution == mode:
            end = time.perf_counter() + by * (time.perf_counter() - start)
            while time.perf_counter() < end:
                pass

    monkeypatch.setattr(Learner, "learn", slowed)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "base.json"
    assert bench.main([*SHORT, "--save", str(path)]) == 0
    return path


@pytest.mark.slow
def test_nothing_planted_is_no_regression(base: Path) -> None:
    assert bench.main([*SHORT, "--base", str(base)]) == 0


@pytest.mark.slow
def test_a_wait_of_a_fifth_in_the_update_fails_the_comparison(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow_down(monkeypatch, "eager", 0.2)
    assert bench.main([*SHORT, "--base", str(base)]) == 1
    message = capsys.readouterr().out
    assert f"1 of 1 guarded ratios failed: {RATIO} is" in message
    assert "WORSE, measured again" in message


@pytest.mark.slow
def test_a_wait_in_another_mode_is_none_of_this_ratios_business(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(monkeypatch, "compile", 0.5)
    assert bench.main([*SHORT, "--base", str(base)]) == 0


# Modes


def test_every_mode_is_possible_or_refused_with_its_reason() -> None:
    possible, refused = possible_modes(CPU)
    assert "eager" in possible
    message = [name.removeprefix("update ") for name in refused]
    assert sorted([*possible, *message, "auto"]) == sorted(EXECUTIONS)
    assert refused["update cudagraph"].startswith("--execution cudagraph")


def test_a_mode_that_the_learner_refuses_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    execute_as = Learner.execute_as

    def refuse(self: Learner, execution: str) -> None:
        if execution == "compile":
            raise UsageError("--execution compile", "not today", "Wait.")
        execute_as(self, execution)

    monkeypatch.setattr(Learner, "execute_as", refuse)
    possible, refused = possible_modes(CPU)
    assert "compile" not in possible
    assert "not today" in refused["update compile"]
    group = UpdateGroup(8, 4, "cpu", updates_per_call=(1,))
    measured = group.measure(Effort(1, 0.02), Selection(only=("update eager",)))
    assert "not today" in measured.not_run["update compile"]


def test_only_what_a_selected_ratio_needs_is_timed() -> None:
    group = UpdateGroup(8, 4, "cpu", ("eager",), updates_per_call=(1, 2, 4))
    selection = Selection(only=("K2",))
    measured = group.measure(Effort(1, 0.02), selection)
    assert [guard.name for guard in measured.guards] == ["update eager x reference, 8-8 b4 K2"]
    assert list(measured.data["rates"]) == ["K2"]
    assert set(group.ratios()) == {f"update eager x reference, 8-8 b4 K{k}" for k in (1, 2, 4)}


@pytest.mark.slow
def test_a_call_of_k_counts_k_updates() -> None:
    """An eager update takes about as long alone as among 8."""
    group = UpdateGroup(64, 64, "cpu", ("eager",), updates_per_call=(1, 8))
    rates = group.measure(Effort(1, 0.1), EVERYTHING).data["rates"]
    for name in ("eager", "reference"):
        assert 0.4 < rates["K8"][name] / rates["K1"][name] < 2.5


def test_the_reference_and_the_learner_both_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    adam_step = torch.optim.Adam.step

    def counted(self: torch.optim.Adam, *args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        return adam_step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    reference_updates(8, 4, 3, CPU)()
    assert len(steps) == 3
    assert learner_of("eager", 8, CPU).network.flat.equal(learner_of("eager", 8, CPU).network.flat)
