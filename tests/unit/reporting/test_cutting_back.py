"""Files of a run that are cut back to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastdqn.reporting.cutting_back import Counts, cut_back

HEADER = "episode,env_step,return,length,status\n"
EVALUATIONS = "env_step,wall_s,mean,std,episodes,best\n"
AT_100 = Counts(env_steps=100, episodes=3, reported=90)


def rows(*numbers: int) -> str:
    return "".join(f"{number},{number * 30},1.0,30,Terminated\n" for number in numbers)


def reports(*env_steps: int) -> str:
    return "".join(json.dumps({"env_steps": step, "loss": None}) + "\n" for step in env_steps)


def after(folder: Path, name: str, content: str, counts: Counts = AT_100) -> str:
    (folder / name).write_text(content)
    cut_back(folder, counts)
    return (folder / name).read_text()


@pytest.mark.parametrize("later", ["", rows(4, 5), rows(4) + "5,15", "4,1", "\0\0\0", "\0\n"])
def test_episodes_of_after_the_checkpoint_and_a_torn_line_go(tmp_path: Path, later: str) -> None:
    assert after(tmp_path, "episodes.csv", HEADER + rows(1, 2, 3) + later) == HEADER + rows(1, 2, 3)


def test_a_file_is_cut_at_the_first_later_row_whatever_follows(tmp_path: Path) -> None:
    """A crash may have left rows of two attempts, one after the other."""
    content = HEADER + rows(1, 2, 3, 4, 5, 3)
    assert after(tmp_path, "episodes.csv", content) == HEADER + rows(1, 2, 3)


def test_a_line_that_cannot_be_read_stays_between_others(tmp_path: Path) -> None:
    content = HEADER + rows(1, 2) + "mine\n" + rows(3)
    assert after(tmp_path, "episodes.csv", content + rows(4)) == content


def test_evaluations_stay_up_to_the_env_step_of_the_checkpoint(tmp_path: Path) -> None:
    kept = EVALUATIONS + "50,1.0,2.0,0.0,5,0\n100,2.0,2.0,0.0,100,1\n"
    assert after(tmp_path, "evaluations.csv", kept + "101,3.0,2.0,0.0,5,0\n") == kept


def test_reports_stay_up_to_the_last_one_before_the_checkpoint(tmp_path: Path) -> None:
    """That of a stop, at the env step of the checkpoint, would not have been made."""
    found = after(tmp_path, "metrics.jsonl", reports(45, 90, 100))
    assert found == reports(45, 90)
    assert after(tmp_path, "metrics.jsonl", "[1]\n" + reports(45) + '{"env_') == (
        "[1]\n" + reports(45)
    )


def test_a_checkpoint_before_everything_leaves_the_header(tmp_path: Path) -> None:
    nothing = Counts(0, 0, 0)
    assert after(tmp_path, "episodes.csv", HEADER + rows(1), nothing) == HEADER
    assert after(tmp_path, "metrics.jsonl", reports(45), nothing) == ""
    assert after(tmp_path, "episodes.csv", HEADER[:9], nothing) == ""


def test_cutting_twice_is_cutting_once_and_what_is_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "episodes.csv").write_text(HEADER + rows(1, 3, 4))
    assert cut_back(tmp_path, AT_100) == cut_back(tmp_path, AT_100)
    assert cut_back(tmp_path, AT_100) == ["episodes.csv lacks 1 of the 3 episodes so far"]
    (tmp_path / "episodes.csv").unlink()
    assert cut_back(tmp_path, AT_100) == ["episodes.csv lacks 3 of the 3 episodes so far"]
    assert cut_back(tmp_path, Counts(9, 0, 0)) == []
