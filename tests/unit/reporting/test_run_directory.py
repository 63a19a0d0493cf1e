"""The folder of a run: its name, its refusals, and what config.json says."""

from __future__ import annotations

import json
import re
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from fastdqn.config import Config, plain
from fastdqn.errors import UsageError
from fastdqn.reporting.run_directory import (
    commit,
    describe_machine,
    make_run_dir,
    versions,
    write_config,
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (Config(env_id="CartPole-v1", seed=3), "CartPole-v1__double-dqn__3__"),
        (Config(env_id="CartPole-v1", double=False), "CartPole-v1__dqn__0__"),
        (Config(env_id="CartPole-v1", preset="cartpole"), "CartPole-v1__cartpole__0__"),
        (Config(env_id="my.module:ALE/Pong v5"), "my.module-ALE-Pong-v5__double-dqn__0__"),
    ],
)
def test_the_name_has_environment_algorithm_seed_and_time(config: Config, name: str) -> None:
    path = make_run_dir(config)
    assert path.is_dir()
    assert re.fullmatch(rf"runs/{re.escape(name)}\d{{8}}-\d{{6}}", str(path))


def test_runs_of_the_same_second_get_folders_of_their_own() -> None:
    paths = [make_run_dir(Config()) for _ in range(4)]
    assert len(set(paths)) == 4


def test_a_folder_of_ones_own_is_made_with_all_above_it(here: Path) -> None:
    assert make_run_dir(Config(run_dir=here / "a" / "b")) == here / "a" / "b"
    assert list((here / "a" / "b").iterdir()) == []


def test_a_folder_that_is_there_is_taken_as_it_is(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("kept")
    make_run_dir(Config(run_dir=here / "mine"))
    assert (here / "mine" / "notes.txt").read_text() == "kept"


def test_a_folder_that_holds_a_run_is_refused(here: Path) -> None:
    config = Config(run_dir=here / "run")
    write_config(make_run_dir(config), config, {})
    with pytest.raises(UsageError, match=r"--run-dir .*run: it already holds a run\."):
        make_run_dir(config)


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_place_where_no_folder_can_be_is_refused(here: Path, place: str) -> None:
    (here / "file").write_text("in the way")
    with pytest.raises(UsageError, match=rf"--run-dir {place}: it cannot be written \("):
        make_run_dir(Config(run_dir=Path(place)))


def test_a_folder_that_takes_no_file_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(UsageError, match=r"\(Read-only file system\).*--run-dir"):
        make_run_dir(Config(run_dir=here / "run"))


def test_the_config_has_all_that_the_numbers_depend_on(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/fastdqn", "train", "--run-dir", "my run"])
    config = Config(run_dir=Path("my run"), hidden_sizes=(7, 9), clip_norm=None)
    write_config(here, config, {"device": "cpu"})
    message = json.loads((here / "config.json").read_text())
    settings = message.pop("config")
    assert settings == json.loads(json.dumps(plain(config)))
    assert shlex.split(message.pop("command")) == ["fastdqn", "train", "--run-dir", "my run"]
    assert message == {
        "schema": 1,
        "resolved": {"device": "cpu"},
        "versions": versions(),
        "machine": describe_machine(),
        "commit": commit(),
    }


def test_versions_are_those_of_the_packages_and_none_for_a_missing_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastdqn.reporting.run_directory.PACKAGES", ("torch", "no-such-package"))
    found = versions()
    assert found["torch"] == version("torch")
    assert found["no-such-package"] is None
    assert found["python"] == sys.version.split()[0]


def test_the_commit_is_a_hash_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}|None", str(commit()))
    monkeypatch.setenv("PATH", "")
    assert commit() is None


def test_the_machine_is_one_line_with_its_system() -> None:
    assert "\n" not in describe_machine()
    assert re.search(r", (Linux|Darwin) \d", describe_machine())
