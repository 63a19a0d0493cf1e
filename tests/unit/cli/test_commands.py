"""The command line: what it refuses, what it prints, what it makes of flags."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from fastdqn import __version__
from fastdqn.agent import run_words
from fastdqn.cli import commands
from fastdqn.cli import train as run
from fastdqn.cli.commands import main
from fastdqn.config import Config, flag_of
from fastdqn.native import c_library
from fastdqn.presets import PRESETS, preset_config
from fastdqn.reporting.console import Console
from fastdqn.toolchain.cc import MLP

pytestmark = pytest.mark.usefixtures("no_plots")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TINY = (
    "--env-id CartPole-v1 --total-timesteps 400 --learning-starts 100 --num-envs 2 --batch-size 8 "
    "--hidden-sizes 8 --vectorizer sync --execution eager --eval-episodes 2 --log-interval 100"
)
DICT_ENV = "DictObservations-v0"


class _DictEnv(gym.Env[Any, Any]):
    observation_space = Dict({"position": Box(0.0, 1.0, (2,), np.float32)})
    action_space = Discrete(2)


class _Leaving(gym.Env[Any, Any]):
    """Ends the program in its first step, or as if Ctrl-C were pressed after some."""

    observation_space = Box(0.0, 1.0, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, code: Any = 0, after: int = 0) -> None:
        self.code, self.left = code, after

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt if self.code == "Ctrl-C" else SystemExit(self.code)
        return np.zeros(2, np.float32), 0.0, False, self.left % 7 == 0, {}


@pytest.mark.parametrize("code", [None, 0, "no licence", 3])
@pytest.mark.parametrize("after", [0, 150])
def test_an_environment_that_exits_is_no_success(
    code: Any, after: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gym.register("Leaving-v0", lambda **_: _Leaving(code, after))
    words = TINY.replace("CartPole-v1", "Leaving-v0").split()
    assert main(["train", *words, "--run-dir", "run"]) == 1
    out, err = capsys.readouterr()
    assert "exit" in err.lower() or "SystemExit" in out
    gym.registry.pop("Leaving-v0")


def test_an_environment_that_interrupts_stops_the_run_as_ctrl_c_does(folder: Path) -> None:
    gym.register("Leaving-v0", lambda **_: _Leaving("Ctrl-C", 150))
    words = TINY.replace("CartPole-v1", "Leaving-v0").split()
    assert main(["train", *words, "--run-dir", "run"]) == 130
    assert json.loads((folder / "run" / "result.json").read_text())["status"] == "stopped"
    gym.registry.pop("Leaving-v0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, with an environment of Dict observations registered."""
    monkeypatch.chdir(tmp_path)
    gym.register(DICT_ENV, lambda **_: _DictEnv())
    yield tmp_path
    gym.registry.pop(DICT_ENV)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *TINY.split(), "--run-dir", str(path)]) == 0
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """What `fastdqn train` would train, without training it."""
    configs: list[Config] = []

    def train(config: Config, started: float) -> int:
        configs.append(config)
        return 0

    monkeypatch.setattr("fastdqn.cli.train.train", train)
    return configs


REFUSED = {
    # What is asked of the environment
    "--env-id CartPol-v1": ("--env-id CartPol-v1: ", "Did you mean CartPole-v1"),
    "--env-id Nonsense": ("--env-id Nonsense: ", "LunarLander-v3"),
    "--env-id Pendulum-v1": ("Pendulum-v1", "Box(-2.0, 2.0", "(Discrete)", "--env-id"),
    f"--env-id {DICT_ENV}": (DICT_ENV, "Dict observations", "FlattenObservation"),
    "--env-kwargs is_slippery": ("--env-kwargs is_slippery: it takes KEY=VALUE, one or several.",),
    "--env-kwargs 1=2": ("--env-kwargs 1=2: it takes KEY=VALUE, one or several.",),
    "--env-kwargs id=CartPole-v1": ("--env-kwargs id=CartPole-v1: ", "no argument of an env"),
    "--env-kwargs x={1,2}": ("--env-kwargs 'x={1, 2}': one is of type set.", "factory"),
    "--env-kwargs gravitas=1 wind_power=2": (
        *("--env-kwargs gravitas=1 wind_power=2: ", "unexpected keyword argument 'gravitas'"),
        "Pass what its constructor takes.",
    ),
    "--env-id FrozenLake-v1 --env-kwargs map_name=9x9": ("--env-kwargs map_name=9x9: ", "KeyError"),
    "--wrapper Flatten": ("--wrapper Flatten: Gymnasium has no wrapper Flatten.", "module:Name"),
    "--wrapper vector": ("--wrapper vector: Gymnasium has no wrapper vector.",),
    "--wrapper TimeLimit": ("--wrapper TimeLimit: it cannot be put around ", "max_episode_steps"),
    "--wrapper TimeLimit(open(1))": ("--wrapper TimeLimit(open(1)): it is no name with plain arg",),
    "--wrapper TimeLimit(1)(2)": ("it is no name with plain arguments.", "my_module:MyWrapper"),
    "--wrapper nowhere_at_all:X": ("--wrapper nowhere_at_all:X: it cannot be imported (Module",),
    "--wrapper json:dumps": ("--wrapper json:dumps: it cannot be put around", "not JSON"),
    "--wrapper json:decoder": ("--wrapper json:decoder: decoder of json is nothing that wraps.",),
    "--wrapper builtins:id": ("--wrapper builtins:id: it returns a int and no environment.",),
    "--wrapper FlattenObservation --vectorizer envpool": ("--wrapper FlattenObservation: ", "EnvP"),
    "--env-kwargs a=1 --vectorizer tensor --env-id CartPole-v1": ("--env-kwargs a=1: ", "tensors"),
    # Sizes
    "--num-envs 0": ("--num-envs 0: it must be at least 1. The default is 16.",),
    "--num-envs -4": ("--num-envs -4: it must be at least 1.",),
    "--num-workers -1": ("--num-workers -1: it must not be negative.",),
    "--buffer-size -1": ("--buffer-size -1: it must be at least 1 or auto.",),
    "--batch-size 0": ("--batch-size 0: it must be at least 1.",),
    "--total-timesteps 0": ("--total-timesteps 0: it must be at least 1.",),
    "--hidden-sizes 64 0": ("--hidden-sizes 64 0: ", "1 or more"),
    "--learning-rate -1e-3": ("--learning-rate -0.001: it must not be negative.",),
    "--gamma 1.5": ("--gamma 1.5: it must lie in [0, 1].",),
    "--tau nan": ("--tau nan: it must be a finite number.",),
    "--seed -1": ("--seed -1: it must not be negative.",),
    "--checkpoint-every 10": ("--checkpoint-every '10': it must be a time above 0, as 90s, 10m",),
    "--keep-last 0": ("--keep-last 0: it must be at least 1.",),
    "--resume auto": ("--resume auto: nothing says where the run lies. Add --run-dir FOLDER.",),
    # Values that exclude each other
    "--env-id CartPole-v1 --hidden-sizes 9999999 9999999": (
        "--hidden-sizes 9999999 9999999: ",
        "GiB",
    ),
    "--batch-size 512 --buffer-size 256": ("--batch-size 512: ", "--buffer-size 256", "larger."),
    "--num-envs 64 --buffer-size 32 --batch-size 8": ("--num-envs 64: ", "--buffer-size 32"),
    "--learning-starts 500 --total-timesteps 500": ("--learning-starts 500: ", "nothing is learn"),
    "--target hard": ("--target hard: ", "--target-period"),
    # What the machine does not have
    "--device cuda:99": ("--device cuda:99: ", "CUDA devices", "fastdqn doctor"),
    "--device tpu": ("--device tpu: ", "Choose auto, cpu, cuda, cuda:N or mps."),
    "--execution cudagraph --device cpu": ("--execution cudagraph", "--execution compile"),
    "--execution compile+cudagraph --device cpu": ("--execution compile+cudagraph on cpu: ",),
    "--precision tf32 --device cpu": ("--precision tf32 on cpu: only CUDA", "--precision float32"),
    "--precision half": ("--precision half: it takes float32 or tf32 or bf16.",),
    # What is not spelled right
    "--numenvs 4": ("--numenvs: there is no such flag. Did you mean --num-envs",),
    "--quiet=yes": ("no flag takes the word yes", "fastdqn train --help"),
    "--zzz": ("--zzz: there is no such flag. See fastdqn train --help.",),
    "CartPole-v1": ("no flag takes the word CartPole-v1",),
    "--loss hubr": ("--loss hubr: it takes huber or mse. The default is huber.",),
    "--num-envs abc": ("--num-envs abc: it takes a whole number. The default is 16.",),
    "--buffer-size Auto": ("--buffer-size Auto: it takes a whole number or auto. The default is",),
    "--buffer-size 1.5": ("--buffer-size 1.5: it takes a whole number or auto.",),
    "--buffer-size 0": ("--buffer-size 0: it must be at least 1 or auto.",),
    "--num-envs=1.5": ("--num-envs 1.5: it takes a whole number.",),
    "--num-envs nan": ("--num-envs nan: it takes a whole number.",),
    "--num-envs 1e999": ("--num-envs 1e999: it takes a whole number.",),
    "--num_envs x": ("--num-envs x: it takes a whole number.",),
    "--num-envs": ("--num-envs: it takes a whole number.",),
    "--gamma --seed 1": ("--gamma: it takes a number.",),
    "--clip-norm ten": ("--clip-norm ten: it takes a number or None. The default is 10.0.",),
    "--hidden-sizes a b": ("--hidden-sizes a b: it takes whole numbers. The default is 128 128.",),
    "--run-dir=": ("--run-dir", "it is no path"),
    "--run-dir": ("--run-dir: it takes a path or None. See fastdqn train --help.",),
    "--preset": ("--preset: it takes a word.",),
    "--preset cartpol": ("--preset cartpol: there is no such preset. Did you mean cartpole?",),
    "--preset zzz": ("--preset zzz: there is no such preset. Choose lunarlander, cartpole, ",),
    "--preset cartpole --batch-size 0": ("--batch-size 0: it must be at least 1.",),
}


def test_the_refusals_cover_every_kind_of_flag() -> None:
    refused = " ".join(REFUSED)
    kinds = {str(field.type) for field in fields(Config)}
    met = {str(field.type) for field in fields(Config) if flag_of(field.name) in refused}
    choices = {kind for kind in kinds if kind.startswith("Literal")}
    assert kinds - met - choices == set()
    assert met & choices


@pytest.mark.parametrize("words", REFUSED)
def test_a_run_that_cannot_be_is_refused_in_a_line_before_anything_starts(
    words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words.split()]) == 2
    _assert_one_line(capsys, *REFUSED[words])
    assert list(folder.iterdir()) == []
    assert multiprocessing.active_children() == []


def test_a_ring_that_does_not_fit_is_refused_with_a_table(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--buffer-size", "100000000000000"]) == 2
    first, *table = capsys.readouterr().err.splitlines()
    assert re.match(
        "error: --buffer-size 100,000,000,000,000: .*At most --buffer-size .* fits", first
    )
    assert len(table) > 5
    assert all(re.fullmatch(r"  \S.*\d B|.*iB", line) for line in table)
    assert list(folder.iterdir()) == []


def _assert_one_line(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Check that standard error is one line that holds the parts, and all that was printed."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not set("╭│╰─") & set(err)
    for part in parts:
        assert part in err


def test_compiling_is_refused_where_there_is_no_compiler(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["train", "--execution", "compile", "--device", "cpu"]) == 2
    _assert_one_line(capsys, "--execution compile: ", "g++", "--execution eager")
    assert list(folder.iterdir()) == []


def test_tensorboard_that_is_not_installed_is_refused_before_a_folder_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    assert main(["train", *TINY.split(), "--tensorboard"]) == 2
    _assert_one_line(capsys, "--tensorboard: ", "not installed", 'pip install "fastdqn[tensorboard')
    assert list(folder.iterdir()) == []


def test_a_run_directory_that_cannot_be_written_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").write_text("in the way")
    assert main(["train", *TINY.split(), "--run-dir", "file/run"]) == 2
    _assert_one_line(capsys, "--run-dir file/run: it cannot be written (", "Choose a folder")
    assert (folder / "file").read_text() == "in the way"
    assert multiprocessing.active_children() == []


def test_a_run_directory_that_holds_a_run_is_refused_and_left_as_it_is(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    assert main(["train", *TINY.split(), "--run-dir", str(finished_run)]) == 2
    _assert_one_line(capsys, str(finished_run), "already holds a run", "another folder")
    assert {p: p.read_bytes() for p in finished_run.rglob("*") if p.is_file()} == before


COMMANDS_REFUSED = {
    "trian": ("fastdqn trian: there is no such command. Choose train, resume, evaluate, ",),
    "--num-envs 3": ("fastdqn --num-envs: there is no such command.",),
    "presets --all": ("--all: there is no such flag. See fastdqn presets --help.",),
    "doctor please": ("no flag takes the word please",),
    "evaluate": ("fastdqn evaluate: PATH is missing. See fastdqn evaluate --help.",),
    "evaluate nowhere": ("nowhere: it is no folder. Give a run directory",),
    "evaluate . --episodes 0": ("--episodes 0: it must be at least 1.",),
    "evaluate . --episodes few": ("--episodes few: it takes a whole number. The default is 100.",),
    "evaluate . --seed -3": ("--seed -3: it must be at least 0.",),
    "plot": ("fastdqn plot: PATH is missing.",),
    "plot nowhere": ("nowhere",),
}


@pytest.mark.plots
@pytest.mark.parametrize("words", COMMANDS_REFUSED)
def test_a_command_that_cannot_be_is_refused_in_a_line(
    words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    _assert_one_line(capsys, *COMMANDS_REFUSED[words])


def test_a_folder_without_a_policy_fails_to_be_evaluated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "."]) == 1
    _assert_one_line(capsys, "holds no readable policy")


# Flags


def test_without_flags_the_defaults_are_trained(asked: list[Config]) -> None:
    assert main(["train"]) == 0
    assert asked == [Config()]


def test_flags_after_a_preset_win_whatever_the_order(asked: list[Config]) -> None:
    main(["train", "--preset", "cartpole", "--num-envs", "3", "--no-double"])
    main(["train", "--num-envs=3", "--no-double", "--preset=cartpole"])
    expected = replace(preset_config("cartpole"), num_envs=3, double=False)
    assert expected != preset_config("cartpole")
    assert asked == [expected, expected]


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--num-envs=3", "num_envs", 3),
        ("--num-envs 3", "num_envs", 3),
        ("--num_envs 3", "num_envs", 3),
        ("--num-envs 5 --num-envs 3", "num_envs", 3),
        ("--total-timesteps 1e6", "total_timesteps", 1_000_000),
        ("--buffer-size=2.5e5", "buffer_size", 250_000),
        ("--buffer-size auto", "buffer_size", "auto"),
        ("--num_envs 3.0", "num_envs", 3),
        ("--hidden-sizes 1e2 64", "hidden_sizes", (100, 64)),
        ("--num-workers None", "num_workers", None),
        ("--env-id 1e5", "env_id", "1e5"),
        ("--clip-norm None", "clip_norm", None),
        ("--clip-value 0.5", "clip_value", 0.5),
        ("--hidden-sizes 7 9", "hidden_sizes", (7, 9)),
        ("--hidden-sizes", "hidden_sizes", ()),
        ("--no-double", "double", False),
        ("--quiet", "quiet", True),
        ("--loss mse", "loss", "mse"),
        ("--learning-rate 1e-4", "learning_rate", 1e-4),
    ],
)
def test_a_flag_sets_its_field_and_nothing_else(
    words: str, name: str, value: object, asked: list[Config]
) -> None:
    assert main(["train", *words.split()]) == 0
    changes: dict[str, Any] = {name: value}
    assert asked == [replace(Config(), **changes)]


def test_of_two_presets_the_last_one_is_taken_whole(asked: list[Config]) -> None:
    main(["train", "--preset", "lunarlander", "--preset", "cartpole"])
    assert asked == [preset_config("cartpole")]


# Help and the commands that only print


def test_help_is_printed_where_nothing_or_help_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = []
    for words in ([], ["-h"], ["--help"]):
        assert main(words) == 0
        shown.append(capsys.readouterr().out)
    assert len(set(shown)) == 1
    for command in ("train", "evaluate", "plot", "presets", "doctor"):
        assert f"fastdqn {command} " in shown[0]


def test_the_help_of_train_explains_every_flag(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "--help"]) == 0
    words = capsys.readouterr().out.replace("│", " ").split()
    for field in fields(Config):
        flag = flag_of(field.name)
        start = next(i for i, word in enumerate(words) if word.strip(",") == flag)
        assert words.index("(default:", start) - start >= 5, f"{flag} is not explained"


def test_the_help_of_train_shows_what_a_preset_fills_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "--preset", "cartpole", "--help"]) == 0
    assert "(default: CartPole-v1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evaluate", ("PATH", "--episodes", "--seed", "Fresh episodes")),
        ("plot", ("PATH", "Draw the plots")),
        ("presets", ("List the presets",)),
        ("doctor", ("what this machine has",)),
    ],
)
def test_every_command_has_a_help(
    command: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"usage: fastdqn {command}" in out
    for word in words:
        assert word in out


def test_the_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastdqn {__version__}\n"


def test_presets_lists_every_preset_with_its_summary(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["presets"]) == 0
    out = capsys.readouterr().out
    for name, preset in PRESETS.items():
        assert name in out
        assert preset.summary in out


def test_doctor_prints_versions_devices_and_limits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    message = {line[:14].strip(): line[14:].strip() for line in lines}
    assert message["fastdqn"] == __version__
    for what in ("python", "torch", "machine", "cores", "memory", "CUDA", "MPS", "open files"):
        assert message[what]


def test_doctor_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    c_library.load_library.cache_clear()  # what was loaded before needs no compiler
    assert main(["doctor"]) == 0
    c_library.load_library.cache_clear()
    out = " ".join(capsys.readouterr().out.split())
    assert "C library it is compiled by a C compiler, and none is on the PATH" in out
    assert "C++ compiler none: --execution compile cannot run on the CPU" in out
    assert "--execution auto eager" in out


# A whole run


def test_a_run_leaves_a_complete_folder(finished_run: Path) -> None:
    left = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*")}
    assert left == {
        "checkpoints",
        "checkpoints/best",
        "checkpoints/best/model.safetensors",
        "checkpoints/best/policy.json",
        "checkpoints/step-000000000400",
        "checkpoints/step-000000000400/model.safetensors",
        "checkpoints/step-000000000400/optimizer.safetensors",
        "checkpoints/step-000000000400/policy.json",
        "checkpoints/step-000000000400/replay",
        "checkpoints/step-000000000400/replay/chunk-00000.safetensors",
        "checkpoints/step-000000000400/replay/chunk-00001.safetensors",
        "checkpoints/step-000000000400/state.json",
        "checkpoints/step-000000000400/state.safetensors",
        "config.json",
        "episodes.csv",
        "evaluations.csv",
        "log.txt",
        "metrics.jsonl",
        "plots",
        "plots/returns.png",
        "plots/wall_time.png",
        "result.json",
    }
    assert json.loads((finished_run / "result.json").read_text())["status"] == "completed"


def test_a_run_without_a_folder_of_its_own_lies_under_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *TINY.split(), "--no-double", "--seed", "7", "--quiet"]) == 0
    (run,) = (folder / "runs").iterdir()
    assert run.name.startswith("CartPole-v1__dqn__7__")
    assert f"Results  runs/{run.name}/result.json" in capsys.readouterr().out


def test_the_log_holds_all_that_the_console_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *TINY.split(), "--run-dir", "run"]) == 0
    said = capsys.readouterr().out.splitlines()
    logged = (folder / "run" / "log.txt").read_text().splitlines()
    stamp = len("2026-01-01 00:00:00  ")
    assert [line[stamp:] for line in logged] == said
    assert said[0].startswith("Double DQN on CartPole-v1, seed 0: 2 environments")


def test_evaluate_says_what_the_policy_of_a_run_brings(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished_run), "--episodes", "3", "--seed", "5"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("CartPole-v1: mean return ")
    assert "over 3 fresh greedy episodes" in first
    main(["evaluate", str(finished_run), "--episodes", "3", "--seed", "5"])
    assert capsys.readouterr().out == first


def test_evaluate_takes_an_older_policy_where_the_newest_is_damaged_and_says_so(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (good,) = (run / "checkpoints").glob("step-*")
    newer = shutil.copytree(good, good.with_name("step-000000000500"))
    (newer / "model.safetensors").write_bytes(b"torn")
    assert main(["evaluate", str(run), "--episodes", "1"]) == 0
    out, err = capsys.readouterr()
    assert "mean return" in out
    assert err.startswith(f"skipped: {newer} is damaged")


@pytest.mark.plots
def test_plot_draws_the_pictures_again(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "plots")
    assert main(["plot", str(run)]) == 0
    drawn = capsys.readouterr().out.splitlines()
    assert drawn == [str(run / "plots" / name) for name in ("returns.png", "wall_time.png")]
    assert sorted(map(str, (run / "plots").iterdir())) == drawn


@pytest.mark.parametrize(("workers", "message"), [(2, False), (3, True)])
def test_more_workers_than_cores_are_reported(
    workers: int, message: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_words, "available_cores", lambda: 2)
    console = Console(tmp_path / "log.txt")
    run_words._warn_crowded(console, workers)
    console.close()
    said = (tmp_path / "log.txt").read_text()
    assert ("3 workers share 2 cores and take turns; --num-workers 1 leaves" in said) is message


@pytest.mark.parametrize(
    ("execution", "begun"), [("auto", [MLP]), ("native", [MLP]), ("eager", []), ("compile", [])]
)
def test_the_c_is_being_compiled_before_the_training_is_built(
    execution: str, begun: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []
    seen: list[list[Path]] = []
    monkeypatch.setattr(commands, "begin_to_compile", started.append)

    def train(*_: object) -> int:
        seen.append(list(started))
        return 0

    monkeypatch.setattr(run, "train", train)
    assert main(["train", "--preset", "cartpole", "--execution", execution]) == 0
    assert seen == [begun]
