"""The status words, the episode log and its reader."""

from __future__ import annotations

import math
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fastdqn.errors import UsageError
from fastdqn.reporting.tables import EPISODES, EpisodeLog, episode_status, solved_threshold
from fastdqn.training.events import Episode

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "episode,env_step,return,length,status\n"


def _episode(serial: int, return_: float = -1.5, *, truncated: bool = False) -> Episode:
    return Episode(serial, serial * 1000, return_, 10 + serial, truncated)


def _log(path: Path, env_id: str = "CartPole-v1", solved_at: float | None = None) -> EpisodeLog:
    return EpisodeLog(path, env_id=env_id, solved_at=solved_at)


@pytest.mark.parametrize(
    ("return_", "truncated", "status"),
    [
        (250.0, False, "Solved"),
        (200.0, True, "Solved"),
        (199.9, True, "Timeout"),
        (199.9, False, "Landed"),
        (100.0, False, "Landed"),
        (99.9, False, "Improving"),
        (0.0, False, "Improving"),
        (-0.1, False, "Stabilizing"),
        (-100.0, False, "Stabilizing"),
        (-100.1, False, "Crashed"),
        (-500.0, True, "Timeout"),
        (math.nan, False, "Crashed"),
    ],
)
@pytest.mark.parametrize("env_id", ["LunarLander-v3", "some.module:LunarLander-v2"])
def test_lunar_lander_has_its_own_words(
    env_id: str, return_: float, truncated: bool, status: str
) -> None:
    assert episode_status(return_, truncated, env_id=env_id, solved_at=None) == status


def test_lunar_lander_threshold_can_be_chosen() -> None:
    assert episode_status(200.0, False, env_id="LunarLander-v3", solved_at=250.0) == "Landed"
    assert episode_status(50.0, False, env_id="LunarLander-v3", solved_at=50.0) == "Solved"


@pytest.mark.parametrize(
    ("return_", "truncated", "solved_at", "status"),
    [
        (500.0, True, 475.0, "Solved"),
        (475.0, False, 475.0, "Solved"),
        (474.0, True, 475.0, "Timeout"),
        (474.0, False, 475.0, "Terminated"),
        (1000.0, True, None, "Timeout"),
        (1000.0, False, None, "Terminated"),
    ],
)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander:CartPole-v1"])
def test_other_environments_have_three_words(
    env_id: str, return_: float, truncated: bool, solved_at: float | None, status: str
) -> None:
    assert episode_status(return_, truncated, env_id=env_id, solved_at=solved_at) == status


def test_threshold_is_the_users_then_the_environments() -> None:
    assert solved_threshold("LunarLander-v3", None) == 200.0
    assert solved_threshold("LunarLander-v3", 0.0) == 0.0
    assert solved_threshold("CartPole-v1", None) is None


def test_log_writes_header_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "run" / "episodes.csv"
    with closing(_log(path, "LunarLander-v3")) as log:
        log.append([_episode(1, 260.25), _episode(2, -300.0)])
        log.append([])
        log.append([_episode(3, 1.0, truncated=True)])
    assert path.read_text() == HEADER + (
        "1,1000,260.25,11,Solved\n2,2000,-300.0,12,Crashed\n3,3000,1.0,13,Timeout\n"
    )


def test_returns_survive_the_file_bit_for_bit(tmp_path: Path) -> None:
    returns = [0.1 + 0.2, -1e-300, 1e300, math.pi, float(np.float32(0.1)), -0.0]
    with closing(_log(tmp_path / "e.csv")) as log:
        log.append([_episode(i, r) for i, r in enumerate(returns)])
        log.append([_episode(9, np.float64(1 / 3))])
    table = EPISODES.read(tmp_path / "e.csv")
    assert table.return_.tobytes() == np.array([*returns, 1 / 3]).tobytes()


def test_table_has_typed_columns_in_file_order(tmp_path: Path) -> None:
    with closing(_log(tmp_path / "e.csv", solved_at=3.0)) as log:
        log.append([_episode(2, 3.0), _episode(1, 2.0), _episode(7, truncated=True)])
    table = EPISODES.read(tmp_path / "e.csv")
    assert len(table) == 3
    assert table.episode.tolist() == [2, 1, 7]
    assert table.env_step.tolist() == [2000, 1000, 7000]
    assert table.length.tolist() == [12, 11, 17]
    assert table.status == ["Solved", "Terminated", "Timeout"]
    assert [c.dtype for c in (table.episode, table.env_step, table.length)] == [np.int64] * 3
    assert table.return_.dtype == np.float64


def test_flush_makes_lines_readable_while_the_log_is_open(tmp_path: Path) -> None:
    with closing(_log(tmp_path / "e.csv")) as log:
        assert len(EPISODES.read(tmp_path / "e.csv")) == 0
        log.append([_episode(1)])
        log.flush()
        assert EPISODES.read(tmp_path / "e.csv").episode.tolist() == [1]


def test_close_twice_is_harmless_and_writing_afterwards_is_not(tmp_path: Path) -> None:
    log = _log(tmp_path / "e.csv")
    log.close()
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.append([_episode(1)])


def test_a_log_torn_at_any_byte_reads_as_its_whole_lines_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    with closing(_log(path)) as log:
        log.append([_episode(1), _episode(2)])
    content = path.read_bytes()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        whole = max(0, content[:cut].count(b"\n") - 1)
        assert EPISODES.read(path).episode.tolist() == [1, 2][:whole]
        with closing(_log(path)) as log:
            log.append([_episode(3)])
        assert EPISODES.read(path).episode.tolist() == [*[1, 2][:whole], 3]
        assert path.read_text().startswith(HEADER)


@pytest.mark.parametrize("content", ["step,reward\n1,2\n", "no line end", "\n", HEADER[1:]])
def test_another_header_is_refused_by_name_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"other\.csv.*not an episode log.*episodes\.csv"):
        EPISODES.read(path)
    with pytest.raises(UsageError, match=r"other\.csv"):
        _log(path)
    assert path.read_text() == content


@pytest.mark.parametrize("line", ["1,2,3", "1,2,x,4,Timeout", "1,2,3.0,4,Timeout,5", ""])
def test_a_broken_line_is_named_by_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "e.csv"
    path.write_text(f"{HEADER}1,2,3.0,4,Timeout\n{line}\n")
    with pytest.raises(UsageError, match=r"e\.csv, line 3"):
        EPISODES.read(path)


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_bytes((HEADER + "1,2,3.0,4,Timeout\n").replace("\n", "\r\n").encode())
    assert EPISODES.read(path).status == ["Timeout"]
