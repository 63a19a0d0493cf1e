"""Evaluations on disk."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from fastdqn.errors import UsageError
from fastdqn.reporting.tables import EVALUATIONS, EvaluationLog
from fastdqn.training.evaluation import Evaluation


def write(path: Path, *means: float, best: float | None = None) -> None:
    log = EvaluationLog(path)
    for i, mean in enumerate(means):
        evaluation = SimpleNamespace(mean=mean, std=0.1, episodes=5, best=mean == best)
        log.append(100 * (i + 1), 1.5, cast("Evaluation", evaluation))
    log.close()
    log.close()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.csv"
    write(path, 1 / 3, -2.0, 0.4, best=1 / 3)
    assert path.read_text().splitlines()[:2] == [
        "env_step,wall_s,mean,std,episodes,best",
        "100,1.500,0.3333333333333333,0.1,5,1",
    ]
    table = EVALUATIONS.read(path)
    assert len(table) == 3
    assert table.mean.tolist() == [1 / 3, -2.0, 0.4]
    assert table.best.tolist() == [True, False, False]
    assert (table.env_step.tolist(), table.episodes.tolist()) == ([100, 200, 300], [5, 5, 5])
    assert len(EVALUATIONS.table_of()) == 0


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    write(path, 5.0, math.nan, best=5.0)
    write(path, 4.0, 6.0, best=6.0)
    assert EVALUATIONS.read(path).best.tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    "content",
    [
        "episode,env_step\n",
        "env_step,wall_s,mean,std,episodes,best\n1,2\n",
        f"env_step,wall_s,mean,std,episodes,best\n{10**30},1.0,2.0,0.1,5,1\n",
    ],
)
def test_another_file_is_refused_and_left(tmp_path: Path, content: str) -> None:
    path = tmp_path / "e.csv"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"e\.csv"):
        EvaluationLog(path)
    assert path.read_text() == content


def test_a_torn_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    write(path, 1.0, 2.0)
    path.write_text(path.read_text()[:-3])
    assert EVALUATIONS.read(path).mean.tolist() == [1.0]
