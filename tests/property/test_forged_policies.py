"""Whatever a stranger wrote into a policy, loading it works or says no, and does nothing else."""

from __future__ import annotations

import os
import re
import resource
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdqn import DQN
from fastdqn.errors import CheckpointError, FastDQNError, UsageError
from tests.forged import HOSTILE, fields_of, forge, replaced, told_by
from tests.small_agents import SMALL

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MEGABYTES = 64


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A policy of an id, and one of a factory with wrappers."""
    root = tmp_path_factory.mktemp("policies")
    limit = {"max_episode_steps": 9}
    DQN("CartPole-v1", env_kwargs={"sutton_barto_reward": True}, **SMALL).save(root / "id")
    DQN(lambda: gym.wrappers.TimeLimit(gym.make("CartPole-v1"), **limit), **SMALL).save(
        root / "factory"
    )
    DQN("CartPole-v1", **{**SMALL, "vectorizer": "tensor"}).save(root / "tensors")
    for name in ("id", "factory", "tensors"):  # whatever is loaded once is loaded
        DQN.load(root / name)
    return [root / "id", root / "factory", root / "tensors"]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder beside a module that must not be imported."""
    (tmp_path / "modules").mkdir()
    bomb = "raise SystemExit('a file had a module imported')"
    (tmp_path / "modules" / "forged_module.py").write_text(bomb)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path
    assert "forged_module" not in sys.modules
    assert list((tmp_path / "here").iterdir()) == []


TABLE_ROW = re.compile(r"  [\w (),:.]+ +[\d,.]+ ([KMGTPEZY]i)?B")


def load_or_refuse(path: Path, **settings: Any) -> str:
    """Load, and return what was said where it was refused; check what it cost."""
    before, modules, peak = set(sys.modules), len(gym.registry), resource.getrusage
    used = peak(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        agent = DQN.load(path, **settings)
        assert agent.config.run_dir is None
        said = ""
    except FastDQNError as error:
        said = str(error)
        assert len(said) < 3000
        first, *table = said.splitlines()  # of what a training takes of the memory
        assert first.isprintable()
        assert [row for row in table if not TABLE_ROW.fullmatch(row)] == []
    finally:
        allocated = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert allocated < MEGABYTES * 2**20
    assert peak(resource.RUSAGE_SELF).ru_maxrss - used < 2 * MEGABYTES * 1024
    brought = {name for name in set(sys.modules) - before if not name.startswith("gymnasium")}
    assert not [name for name in brought if name.startswith("forged")]
    assert len(gym.registry) == modules
    return said


ENV = {"env_id", "env_kwargs", "wrapper", "vectorizer", "num_envs", "buffer_size"}
EVERY = 8
"""Of the values, one in so many is tried in a setting that is not in ENV, others in the next."""


@pytest.mark.slow
@pytest.mark.parametrize("which", range(3))
def test_every_place_is_loaded_or_refused_whatever_is_in_it(
    which: int, policies: list[Path], nowhere: Path
) -> None:
    message = told_by(policies[which])
    places = [*fields_of(message), ("env",), ("unheard_of",), ("config", "unheard_of")]
    refused = tried = 0
    for number, place in enumerate(places):
        alone = place[-1] in ENV if which == 0 else place == ("env",)
        for value in HOSTILE if alone else HOSTILE[number % EVERY :: EVERY]:
            path = forge(policies[which], nowhere / "forged", replaced(message, place, value))
            refused += bool(load_or_refuse(path))
            tried += 1
    assert tried / 2 < refused < tried


@MANY
@given(data=st.data())
def test_several_values_at_once_are_loaded_or_refused(
    data: st.DataObject, policies: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = data.draw(st.sampled_from(policies))
    message = told_by(source)
    places = fields_of(message)
    junk = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
        ),
        max_leaves=10,
    )
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.sampled_from(places))
        if len(place) == 1 or isinstance(message["config"], dict):
            message = replaced(message, place, data.draw(st.sampled_from(HOSTILE) | junk))
    load_or_refuse(forge(source, tmp_path_factory.getbasetemp() / "several", message))


@pytest.mark.parametrize("place", [("env_id",), ("obs_shape",), ("num_actions",), ("network",)])
def test_a_value_that_is_missing_is_refused_or_not_needed(
    place: tuple[str], policies: list[Path], nowhere: Path
) -> None:
    message = told_by(policies[0])
    del message[place[0]]
    said = load_or_refuse(forge(policies[0], nowhere / "forged", message))
    assert (place[0] == "env_id") == (not said)


CLAIMS: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "a layer of a thousand million": (
        ("config", "hidden_sizes"),
        [1000000000, 1000000000],
        "it says that it has 3 layers, and holds others",
    ),
    "a wide layer": (
        ("config", "hidden_sizes"),
        [1000000000],
        r"its layers.0.weight is of shape \(8, 4\) .* and \(1000000000, 4\)",
    ),
    "no layer": (("config", "hidden_sizes"), [], "it says that it has 1 layers"),
    "more actions": (("num_actions",), 5, r"its layers.1.weight is of shape \(2, 8\)"),
    "a negative shape": (("obs_shape",), [-4], r"its obs_shape is \[-4\], and must be a shape"),
    "another shape": (("obs_shape",), [2, 3], r"its layers.0.weight is of shape \(8, 4\)"),
    "steps in words": (("env_steps",), "x", "its env_steps is 'x', and must be a count"),
    "half a step": (("env_steps",), 0.5, "its env_steps is 0.5"),
    "a true step": (("updates",), True, "its updates is True"),
    "negative episodes": (("episodes",), -1, "its episodes is -1"),
    "a number beyond all": (("rounds",), 10**400, "its rounds is 1000"),
    "an unknown dtype": (("obs_dtype",), "object", "its obs_dtype is 'object'"),
    "a strange network": (("network",), "MLP; rm", "than an MLP, MLP; rm: pass it"),
    "an unknown setting": (("config", "evil"), 1, "it holds a setting 'evil', which there is not"),
    "a setting of another type": (("config", "double"), "yes", "setting double is 'yes'"),
    "a setting out of range": (("config", "gamma"), 2, "--gamma 2: it must lie in"),
    "a choice that is none": (("config", "loss"), "x", "--loss x: there is no such choice"),
    "all threads": (("config", "cpu_threads"), 10**9, "setting cpu_threads is 1000000000"),
    "NaN": (("config", "gamma"), float("nan"), "NaN is no number of JSON"),
    "infinity": (("config", "tau"), float("inf"), "Infinity is no number of JSON"),
    "a module in a construction": (
        ("env",),
        {"id": "os:X-v0", "kwargs": {}, "wrappers": []},
        "the id os:X-v0, which names a module",
    ),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_what_a_file_claims_is_compared_before_anything_is_built(
    name: str, policies: list[Path], nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("something was built")

    monkeypatch.setattr(gym, "make", build)
    monkeypatch.setattr(torch.nn, "Linear", build)
    place, value, words = CLAIMS[name]
    message = replaced(told_by(policies[0]), place, value)
    with pytest.raises(FastDQNError) as refused:
        DQN.load(forge(policies[0], nowhere / "forged", message))
    assert isinstance(refused.value, CheckpointError)
    assert re.search(words, str(refused.value))


NAMED: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "an id of a module": (
        ("config", "env_id"),
        "forged_module:X-v0",
        "fastdqn evaluate {} --env-id forged_module:X-v0 --env-kwargs sutton_barto_reward=True",
    ),
    "an id with words for a shell": (
        ("config", "env_id"),
        "forged_module:X; rm -rf ~",
        "--env-id 'forged_module:X; rm -rf ~'",
    ),
    "a wrapper of a module": (
        ("config", "wrapper"),
        ["forged_module:X(1)"],
        "--wrapper 'forged_module:X(1)'",
    ),
    "a wrapper that writes": (
        ("config", "wrapper"),
        ["RecordVideo('forged_videos')"],
        "no file may ask for RecordVideo: it writes files",
    ),
    "a stack that fills the memory": (
        ("env",),
        {
            "id": "CartPole-v1",
            "kwargs": {},
            "wrappers": [{"name": "FrameStackObservation", "kwargs": {"stack_size": 10**9}}],
        },
        "the argument stack_size of FrameStackObservation is 1000000000",
    ),
    "a named stack that fills the memory": (
        ("config", "wrapper"),
        ["FrameStackObservation(1000000000)"],
        "the argument * of FrameStackObservation is 1000000000",
    ),
    "an id that is not there": (("config", "env_id"), "Nowhere-v0", "--env-id Nowhere-v0"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_only_the_caller_may_name_is_printed_as_a_command(
    name: str, policies: list[Path], nowhere: Path
) -> None:
    place, value, words = NAMED[name]
    path = forge(policies[0], nowhere / "forged", replaced(told_by(policies[0]), place, value))
    with pytest.raises(UsageError) as refused:
        DQN.load(path)
    assert words.format(path) in str(refused.value)


def test_a_ring_that_does_not_fit_is_refused_and_a_smaller_one_can_be_asked_for(
    policies: list[Path], nowhere: Path
) -> None:
    message = replaced(told_by(policies[0]), ("config", "buffer_size"), 10**12)
    path = forge(policies[0], nowhere / "forged", message)
    with pytest.raises(UsageError, match="buffer-size"):
        DQN.load(path)
    assert DQN.load(path, buffer_size=100).config.buffer_size == 100


TENSORS: dict[str, tuple[Any, str]] = {
    "NaN": (lambda t: t * float("nan"), "a number that is not finite"),
    "infinity": (lambda t: t + float("inf"), "a number that is not finite"),
    "float64": (torch.Tensor.double, "torch.float64"),
    "int8": (lambda t: t.to(torch.int8), "torch.int8"),
    "empty": (lambda t: t[:0], "is of shape"),
    "transposed": (lambda t: t.T.contiguous(), "is of shape"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_not_those_of_the_network_are_refused(
    name: str, policies: list[Path], nowhere: Path
) -> None:
    change, words = TENSORS[name]
    agent = DQN.load(policies[0])
    for each in ("layers.0.weight", "layers.1.weight"):
        tensors = {**agent.parameters()}
        tensors[each] = change(tensors[each])
        path = forge(policies[0], nowhere / "forged", told_by(policies[0]), tensors)
        with pytest.raises(CheckpointError, match=words):
            DQN.load(path)


# Files


def test_a_name_that_stands_twice_is_refused(policies: list[Path], nowhere: Path) -> None:
    path = forge(policies[0], nowhere / "forged", told_by(policies[0]))
    text = (path / "policy.json").read_text()
    (path / "policy.json").write_text(text.replace('{"env_id"', '{"env_id": "x", "env_id"', 1))
    assert "a name stands in it twice" in load_or_refuse(path)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "", "\xff"])
def test_json_that_no_parser_should_be_given_is_refused(
    content: str, policies: list[Path], nowhere: Path
) -> None:
    path = forge(policies[0], nowhere / "forged", {**told_by(policies[0])})
    (path / "policy.json").write_text(content)
    assert "holds no readable policy" in load_or_refuse(path)


def test_a_description_of_gigabytes_is_not_read(policies: list[Path], nowhere: Path) -> None:
    path = forge(policies[0], nowhere / "forged", told_by(policies[0]))
    with (path / "policy.json").open("r+b") as file:
        file.truncate(2**33)
    assert "more than 1,000,000" in load_or_refuse(path)


def test_tensors_that_do_not_fit_into_memory_are_not_read(
    policies: list[Path], nowhere: Path
) -> None:
    path = forge(policies[0], nowhere / "forged", told_by(policies[0]))
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate(2**42)
    assert "model.safetensors takes 4,398,046,511,104 bytes" in load_or_refuse(path)


@pytest.mark.parametrize("name", ["policy.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["link", "pipe", "socket", "folder", "device"])
def test_what_is_no_file_is_not_read(
    kind: str, name: str, policies: list[Path], nowhere: Path
) -> None:
    path = forge(policies[0], nowhere / "forged", told_by(policies[0]))
    (path / name).rename(nowhere / "elsewhere")
    if kind == "link":
        (path / name).symlink_to(nowhere / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path / name)
    elif kind == "socket":
        bound = socket.socket(socket.AF_UNIX)
        os.chdir(path)
        bound.bind(name)
        os.chdir(nowhere / "here")
        bound.close()
    elif kind == "folder":
        (path / name).mkdir()
    else:
        (path / name).symlink_to("/dev/zero")
    assert "holds no readable policy" in load_or_refuse(path)


def test_a_checkpoint_that_is_a_link_is_left_alone(policies: list[Path], nowhere: Path) -> None:
    run = nowhere / "run" / "checkpoints"
    run.mkdir(parents=True)
    (run / "step-000000000900").symlink_to(policies[0], target_is_directory=True)
    assert "holds no saved policy" in load_or_refuse(run.parent)
    forge(policies[0], run / "step-000000000100", told_by(policies[0]))
    assert load_or_refuse(run.parent) == ""


@pytest.mark.slow
def test_a_forged_run_is_refused_by_the_command_in_a_line(
    policies: list[Path], nowhere: Path
) -> None:
    message = replaced(told_by(policies[0]), ("config", "env_id"), "forged_module:X-v0")
    path = forge(policies[0], nowhere / "forged", message)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path])}
    command = [sys.executable, "-m", "fastdqn", "evaluate", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "--env-id forged_module:X-v0" in done.stderr
