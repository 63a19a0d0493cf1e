"""Runs that go on: what is typed, what is refused, and what becomes of the files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fastdqn import DQN
from fastdqn.agent.from_checkpoint import clear_for_a_new_beginning, find
from fastdqn.cli.commands import main
from fastdqn.cli.resuming import asked_by_auto
from fastdqn.config import Config
from fastdqn.reporting.run_lock import LOCK, locked
from tests.resumed import assert_same_run, killed_at, metrics_of, newest, run, state_of
from tests.small_agents import SMALL

pytestmark = pytest.mark.usefixtures("no_plots")

TENSOR = (
    "--env-id CartPole-v1 --vectorizer tensor --num-envs 4 --learning-starts 64 --batch-size 8 "
    "--hidden-sizes 8 --execution eager --eval-episodes 2 --log-interval 64 --buffer-size 512 "
    "--replay-ratio 0.125 --quiet --checkpoint-interval 256 --eval-interval 128"
)


HOST = TENSOR.replace("--vectorizer tensor", "--num-workers 0").replace("0.125", "0.25")


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run("train", TENSOR, "--total-timesteps 1024", f"--run-dir {folder}") == 0
    return folder


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A run of 1,024 env steps that was killed after 640, with its last checkpoint at 512."""
    folder = tmp_path / "killed"
    with killed_at(640):
        run("train", TENSOR, "--total-timesteps 1024", f"--run-dir {folder}")
    return folder


def only_policies(run_dir: Path) -> None:
    for folder in (run_dir / "checkpoints").glob("step-*"):
        for path in folder.iterdir():
            if path.name not in {"model.safetensors", "policy.json"}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def refused(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(words) == 2
    return capsys.readouterr().err


@pytest.mark.plots
@pytest.mark.parametrize(
    "how",
    [
        "resume {}",
        f"train {TENSOR} --total-timesteps 1024 --resume auto --run-dir {{}}",
        "train --resume {}",
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_never_been_stopped(
    never_stopped: Path, killed: Path, how: str
) -> None:
    assert max(each["env_steps"] for each in metrics_of(killed)) >= 640
    assert run(how.format(killed), generators=1) == 0
    assert_same_run(killed, never_stopped)
    result = json.loads((killed / "result.json").read_text())
    assert (result["status"], result["env_steps"]) == ("completed", 1024)
    assert not (killed / LOCK).exists()
    assert (killed / "plots" / "returns.png").exists()


def test_a_run_that_has_come_to_its_end_goes_on_with_a_larger_total(
    never_stopped: Path, tmp_path: Path
) -> None:
    """The updates that were due at its end come after the next actions, as ever."""
    folder = tmp_path / "run"
    run("train", TENSOR, "--total-timesteps 512", f"--run-dir {folder}")
    before = json.loads((folder / "result.json").read_text())["wall_s"]
    assert run(f"resume {folder} --total-timesteps 1024", generators=1) == 0
    assert (folder / "episodes.csv").read_bytes() == (never_stopped / "episodes.csv").read_bytes()
    here, there = state_of(folder), state_of(never_stopped)
    assert [name for name in there if not here[name].equal(there[name])] == []
    wall = json.loads((folder / "result.json").read_text())["wall_s"]
    assert wall["total"] > before["total"]
    assert wall["train"] > before["train"]
    said = (folder / "log.txt").read_text()
    assert "Resumed at env step 512 from step-000000000512: " in said
    assert "Changed: --total-timesteps 512 -> 1024" in said
    (at,) = json.loads((folder / "config.json").read_text())["resumed"]
    assert (at["env_step"], at["changed"]) == (512, ["--total-timesteps 512 -> 1024"])


def test_the_last_updates_and_report_of_a_run_that_goes_on_are_made_where_they_belong(
    tmp_path: Path,
) -> None:
    """A run ends by updates, a report and an evaluation; one that goes on makes them later."""
    run("train", HOST, f"--total-timesteps 1024 --run-dir {tmp_path / 'whole'}")
    folder = tmp_path / "run"
    run("train", HOST, f"--total-timesteps 500 --run-dir {folder}")
    ended = json.loads((folder / "result.json").read_text())
    assert run(f"resume {folder} --total-timesteps 1024", generators=1) == 0
    totals = {"total_env_steps": 1024}
    here, there = metrics_of(folder), metrics_of(tmp_path / "whole")
    assert [each | totals for each in here] == there
    episodes = [(each / "episodes.csv").read_bytes() for each in (folder, tmp_path / "whole")]
    assert episodes[0] == episodes[1]
    now, then = state_of(folder), state_of(tmp_path / "whole")
    assert [name for name in then if not now[name].equal(then[name])] == []
    evaluations = (folder / "evaluations.csv").read_text()
    assert "\n500," in evaluations
    if ended["return"]["best_env_step"] == 500:
        best = json.loads((folder / "result.json").read_text())["return"]["best_mean"]
        assert best >= ended["return"]["best_mean"]


def test_checkpoints_are_made_by_time_and_kept_as_many_as_asked_for(tmp_path: Path) -> None:
    words = HOST.replace("--checkpoint-interval 256", "--checkpoint-every 0.001s --keep-last 2")
    assert run("train", words, f"--total-timesteps 512 --run-dir {tmp_path / 'run'}") == 0
    steps = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert len(steps) == 2
    assert steps[-1] == "step-000000000512"
    never = HOST.replace("--checkpoint-interval 256", "--checkpoint-every 1h")
    assert run("train", never, f"--total-timesteps 256 --run-dir {tmp_path / 'other'}") == 0
    assert [path.name for path in (tmp_path / "other" / "checkpoints").glob("step-*")] == [
        "step-000000000256"
    ]


def test_what_changed_holds_though_the_run_was_killed_before_its_next_checkpoint(
    killed: Path,
) -> None:
    with killed_at(640):
        run(f"resume {killed} --total-timesteps 768")
    assert newest(killed).name == "step-000000000512"
    assert run(f"resume {killed}") == 0
    assert newest(killed).name == "step-000000000768"


def test_a_finished_run_has_nothing_left_to_do(
    never_stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in never_stopped.rglob("*")}
    again = f"train {TENSOR} --total-timesteps 1024 --resume auto --run-dir {never_stopped}"
    for words in (f"resume {never_stopped}", again):
        assert run(words) == 0
        assert "Completed after 1,024 env steps already" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in never_stopped.rglob("*")}
    assert {k: t for k, t in after.items() if k != never_stopped} == before


def test_a_run_from_python_ends_where_its_call_of_learn_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = DQN("CartPole-v1", num_workers=0, **{**SMALL, "vectorizer": "grouped", "quiet": True})
    agent.learn(200, run_dir=tmp_path / "run")
    assert run(f"resume {tmp_path / 'run'}") == 0
    assert "Completed after 200 env steps already" in capsys.readouterr().out
    assert run(f"resume {tmp_path / 'run'} --total-timesteps 400") == 0
    assert newest(tmp_path / "run").name == "step-000000000400"


def test_auto_begins_what_is_not_there_and_what_has_no_checkpoint_yet(
    never_stopped: Path, tmp_path: Path
) -> None:
    words = f"train {TENSOR} --total-timesteps 1024 --resume auto --run-dir {tmp_path / 'run'}"
    with killed_at(128):
        run(words)
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size > 0
    assert run(words) == 0
    assert_same_run(tmp_path / "run", never_stopped)


@pytest.mark.parametrize(
    "other",
    [
        {"device": "\x1b[2J"},
        {"total_timesteps": 10**300},
        {"cpu_threads": 10**9},
        {"log_interval": [1]},
        {"num_workers": -1},
    ],
)
def test_settings_that_config_json_cannot_have_are_those_of_the_checkpoint(
    killed: Path, other: dict[str, object]
) -> None:
    before, content = find(killed).config, json.loads((killed / "config.json").read_text())
    content["config"] |= other
    (killed / "config.json").write_text(json.dumps(content))
    (name,) = other
    assert getattr(find(killed).config, name) == getattr(before, name)


def test_auto_cuts_no_table_of_a_folder_that_holds_no_run(tmp_path: Path) -> None:
    tables = {"episodes.csv": "subject,age\n7,41\n", "metrics.jsonl": '{"env_steps": 5}\n'}
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
    assert clear_for_a_new_beginning(tmp_path)
    assert {name: (tmp_path / name).read_text() for name in tables} == tables


@pytest.mark.parametrize(("status", "code"), [("stopped", 0), ("failed", 1)])
def test_auto_begins_anew_what_was_given_up_before_its_first_checkpoint(
    killed: Path, status: str, code: int
) -> None:
    """What failed is left for its user to look at."""
    only_policies(killed)
    (killed / "result.json").write_text(json.dumps({"status": status}))
    words = f"train {TENSOR} --total-timesteps 1024 --resume auto --run-dir {killed}"
    assert run(words) == code
    assert newest(killed).name == ("step-000000001024" if code == 0 else "step-000000000512")


def test_a_damaged_checkpoint_is_named_and_an_older_one_taken(
    never_stopped: Path, killed: Path
) -> None:
    (newest(killed) / "model.safetensors").write_bytes(b"nonsense")
    assert run(f"resume {killed}", generators=1) == 0
    assert_same_run(killed, never_stopped)
    said = (killed / "log.txt").read_text()
    assert "Skipped  " in said
    assert "step-000000000512 cannot be read: model.safetensors takes 8 bytes" in said
    assert "Resumed at env step 256 from step-000000000256" in said


def test_what_may_not_change_is_refused_and_nothing_is_touched(
    killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
    assert "--gamma 0.5 for " in refused(f"resume {killed} --gamma 0.5", capsys)
    assert "began with --num-envs 4" in refused(f"resume {killed} --num-envs 8", capsys)
    other = TENSOR.replace("--batch-size 8", "--batch-size 16")
    assert "--batch-size 16 for " in refused(
        f"train {other} --resume auto --run-dir {killed}", capsys
    )
    assert "--keep-last 0: it must be" in refused(f"resume {killed} --keep-last 0", capsys)
    assert "there is no such flag" in refused(f"resume {killed} --nope", capsys)
    assert {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("resume", "fastdqn resume: PATH is missing"),
        ("resume {}/nowhere", "there is no such folder"),
        ("resume {}", "it holds no checkpoint to go on from"),
        ("train --resume auto", "--resume auto: nothing says where the run lies"),
        ("train --resume {}", "it holds no checkpoint to go on from"),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    tmp_path: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(words.format(tmp_path), capsys)


def test_a_folder_to_which_another_process_writes_is_refused(
    killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = killed / "checkpoints" / "step-000000000512"
    assert f"Give its run: {killed}" in refused(f"resume {checkpoint}", capsys)
    with locked(killed):
        assert "writes there" in refused(f"resume {killed}", capsys)
        auto = f"train {TENSOR} --total-timesteps 1024 --resume auto --run-dir {killed}"
        assert "writes there" in refused(auto, capsys)


def test_a_policy_alone_is_refused_and_goes_on_where_that_is_asked_for(
    killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As older versions saved it."""
    only_policies(killed)
    assert run(f"resume {killed}") == 1
    err = capsys.readouterr().err
    assert "holds a policy and no state of a training" in err
    assert f"fastdqn resume {killed} --from-policy" in err
    assert run(f"resume {killed} --from-policy") == 0
    said = (killed / "log.txt").read_text()
    assert "Not bit for bit: learning goes on from the parameters alone" in said
    assert metrics_of(killed)[-1]["env_steps"] == 1024
    assert run(f"resume {killed} --total-timesteps 1280") == 0
    assert metrics_of(killed)[-1]["env_steps"] == 1280


def test_a_ring_that_is_not_saved_is_filled_anew_without_a_burst(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with killed_at(640):
        run("train", TENSOR, f"--total-timesteps 1024 --no-save-replay --run-dir {folder}")
    assert not (newest(folder) / "replay").exists()
    assert run(f"resume {folder}") == 0
    updates = {each["env_steps"]: each["updates"] for each in metrics_of(folder)}
    assert updates[576] == updates[512]
    assert updates[1024] - updates[512] == (1024 - 512 - 64) // 8
    assert "the replay ring was not saved" in (folder / "log.txt").read_text()


def test_the_help_of_resume_lists_what_may_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--total-timesteps" in said
    assert "--gamma" not in said


def test_a_ring_whose_size_was_chosen_keeps_it_when_the_command_comes_again() -> None:
    before = Config(buffer_size=300, total_timesteps=5_000, run_dir=Path("run"))
    again = asked_by_auto(replace(before, buffer_size="auto"), ["buffer_size"])
    config, changes = again.changed(before)
    assert config == before
    assert changes == []
