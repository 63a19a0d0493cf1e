"""Runs among numbers that are not finite: what they say and what result.json counts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest

from tests.frail import GlitchyEnv
from tests.resumed import run

pytestmark = pytest.mark.usefixtures("no_plots")

ENV_ID = "Glitchy-v0"
WORDS = (
    f"train --env-id {ENV_ID} --num-envs 2 --num-workers 0 --learning-starts 32 --batch-size 8 "
    "--hidden-sizes 8 --execution eager --eval-episodes 2 --log-interval 64 --total-timesteps 256 "
    "--quiet"
)


def glitchy_env() -> GlitchyEnv:
    """Return an environment that pays a NaN after the 10th step of every 100."""
    return GlitchyEnv(rewards=(10,), length=4)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gym.register(ENV_ID, f"{__name__}:glitchy_env")
    yield
    del gym.registry[ENV_ID]


@pytest.mark.parametrize("done", ["skip", "replace"])
def test_the_log_and_the_result_count_what_was_not_finite(done: str, tmp_path: Path) -> None:
    assert run(WORDS, f"--on-nonfinite {done} --run-dir {tmp_path / 'run'}") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    log = (tmp_path / "run" / "log.txt").read_text()
    said = re.findall(
        rf"At env step [\d,]+: not finite since the last report: (\d+) steps? of environments "
        rf"\(first, .*\) {'skipped' if done == 'skip' else 'replaced'}",
        log,
    )
    assert result["nonfinite"] == {"transitions": sum(map(int, said)), "updates": 0}
    assert result["nonfinite"]["transitions"] >= 2
    assert result["env_steps"] == 256
    assert result["status"] == "completed"


def test_a_run_ends_with_the_number_where_that_is_not_asked_for(tmp_path: Path) -> None:
    assert run(WORDS, f"--run-dir {tmp_path / 'run'}") == 1
    log = (tmp_path / "run" / "log.txt").read_text()
    assert re.search(r"environment \d .*nan.*--on-nonfinite skip", log)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["nonfinite"] == {"transitions": 0, "updates": 0}


def test_what_was_skipped_is_counted_where_nothing_else_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdqn.training.nonfinite.MOST_IN_A_ROW", 50)
    monkeypatch.setattr(f"{__name__}.glitchy_env", lambda: GlitchyEnv(starts=range(10_000)))
    assert run(WORDS, f"--on-nonfinite skip --run-dir {tmp_path / 'run'}") == 1
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "vector steps in a row nothing could be used" in log
    (said,) = re.findall(r"not finite since the last report: (\d+) steps of environments", log)
    assert result["nonfinite"]["transitions"] == int(said) >= 50
