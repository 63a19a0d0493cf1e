"""The study of checkpoints measures what it says, with a ring of a few chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.studies.checkpoints import Arguments, checkpoints, saving, steps_per_s
from fastdqn.checkpoint.writer import Saved

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Arguments(ring_gb=0.05, num_envs=2, frame=40, steps=2_000)


@pytest.mark.slow
def test_a_ring_is_saved_and_loaded_within_a_few_chunks(tmp_path: Path) -> None:
    figures = saving(SMALL, tmp_path)
    assert 0.03 < figures["ring_gb"] < 0.07
    assert figures["pause_s_per_gb"] > 0
    assert figures["memory_while_loading_of_ring"] < 1


@pytest.mark.slow
def test_trainings_are_saved_while_they_are_timed(tmp_path: Path) -> None:
    with checkpoints(0.05, tmp_path) as ended:
        assert steps_per_s(SMALL) > 0
    assert any(isinstance(each, Saved) for each in ended)
