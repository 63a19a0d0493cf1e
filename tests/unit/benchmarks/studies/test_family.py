"""The study of the family: variants take turns, and the table says what each took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import provenance
from benchmarks.studies import family
from benchmarks.studies.family import VARIANTS, flags_of, main, row, table
from benchmarks.studies.solve import UNCOUNTED_SEED

STEPS = {"double": 100_000, "dueling": 50_000}


def a_run(seed: int, env_steps: int, *, status: str = "solved", mean: float = 490.0) -> Any:
    return {
        "seed": seed,
        "status": status,
        "env_steps": env_steps,
        "seconds": {"train": 2.0 + seed, "command": 5.0 + seed},
        "fresh_mean": mean - seed,
    }


class Training:
    """Stands in for the command; remembers what was trained, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, status: str = "solved") -> None:
        self.calls: list[tuple[str, int, list[str]]] = []
        self.caches: set[Path] = set()
        self.status = status
        monkeypatch.setattr(family, "train", self)

    def __call__(self, preset: str, seed: int, caches: Path, words: list[str]) -> Any:
        self.calls.append((preset, seed, words))
        self.caches.add(caches)
        steps = STEPS["dueling" if "--dueling" in words else "double"]
        return a_run(seed, steps + seed, status=self.status)


def test_variants_take_turns_after_runs_that_are_not_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(monkeypatch)
    words = ["--variants", "double", "dueling", "--seeds", "2", "--preset", "lunarlander"]
    words += ["--first-seed", "7"]
    assert main([*words, "--train-args=--gamma 0.9"]) == 0
    seen = [(seed, "--dueling" in flags) for _, seed, flags in training.calls]
    counted = [(7, False), (7, True), (8, False), (8, True)]
    assert seen == [(UNCOUNTED_SEED, False), (UNCOUNTED_SEED, True), *counted]
    assert all(flags[:2] == ["--gamma", "0.9"] for *_, flags in training.calls)
    assert ["compile" in flags for *_, flags in training.calls] == [True] * 2 + [False] * 4
    assert {preset for preset, *_ in training.calls} == {"lunarlander"}
    assert len(training.caches) == 1
    out = capsys.readouterr().out
    assert "| dueling | 2 of 2 | 50,008 (50,007 to 50,008) | 0.50 | 9.5 | 12.5 | 482.0 |" in out
    assert "`dueling`: `--dueling`" in out


def test_compiled_artefacts_stay_in_a_folder_that_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    training = Training(monkeypatch)
    assert main(["--variants", "double", "--seeds", "1", "--caches", str(tmp_path)]) == 0
    assert training.caches == {tmp_path}


def test_a_target_that_was_not_reached_fails_and_has_no_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Training(monkeypatch, status="completed")
    assert main(["--variants", "double", "--seeds", "1"]) == 1
    assert "| double | 0 of 1 | - | - |" in capsys.readouterr().out


def test_the_median_is_of_the_runs_that_reached_it_and_the_mean_is_the_worst() -> None:
    runs = [a_run(0, 10), a_run(1, 30), a_run(2, 99, status="completed", mean=100.0)]
    assert row("c51", runs, 40.0) == "| c51 | 2 of 3 | 20 (10 to 30) | 0.50 | 3.0 | 6.0 | 98.0 |"
    assert "| - |" in table({"c51": runs})  # without Double DQN there is no share


def test_a_variant_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--variants", "duelling"]) == 2
    error = capsys.readouterr().err
    assert "--variants duelling: there is no such variant" in error
    assert all(name in error for name in VARIANTS)


def test_c51_has_the_support_of_the_preset() -> None:
    assert flags_of("c51", "cartpole") == ["--objective", "c51", "--v-min", "0", "--v-max", "50"]
    assert flags_of("c51", "lunarlander") == ["--objective", "c51"]
    assert "--v-min" not in flags_of("qr", "cartpole")
    assert "--v-max" in flags_of("rainbow", "cartpole")


def test_results_are_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Training(monkeypatch)
    monkeypatch.setattr(provenance, "RESULTS", tmp_path)
    assert main(["--variants", "double", "--seeds", "1", "--save", "family"]) == 0
    saved = json.loads((tmp_path / "family.json").read_text())
    assert saved["runs"]["double"][0]["env_steps"] == STEPS["double"]
    assert (tmp_path / "family.md").read_text().startswith("20")
