"""What a training takes of memory is compared with what is left before anything is built."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastdqn import DQN, MLP, UsageError
from fastdqn.agent import learning, memory_parts, preflight, recorded_run
from fastdqn.agent.memory_plan import (
    LEAST_RESERVE,
    MemoryItem,
    MemoryPlan,
    Room,
    reserve_of,
    rooms_of,
)
from fastdqn.cli.commands import main
from fastdqn.config import Config
from fastdqn.foundation import host_memory
from fastdqn.foundation.host_memory import MemoryLimit
from fastdqn.replay import PrioritizedSampler, ReplayBuffer
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.sizes import FunctionalSizes, RingSizes
from fastdqn.replay.skipping_ring import SkippingRing
from fastdqn.training.checkpoint import load_policy

pytestmark = pytest.mark.usefixtures("one_thread")

MIB = 2**20
EVERYWHERE = frozenset({"device", "host", "processes"})
SETTINGS: dict[str, Any] = {
    "num_envs": 2,
    "num_workers": 0,
    "batch_size": 8,
    "buffer_size": 100,
    "total_timesteps": 1_000,
    "learning_starts": 20,
    "hidden_sizes": (8,),
    "execution": "eager",
}
Leaves = Callable[..., None]


@pytest.fixture
def leaves(monkeypatch: pytest.MonkeyPatch) -> Leaves:
    """Pretends that so many bytes are left of the host, or of each room that is passed."""

    def pretend(free: int | Sequence[Room]) -> None:
        rooms = [Room("the host", free, EVERYWHERE)] if isinstance(free, int) else list(free)  # type: ignore[arg-type]
        monkeypatch.setattr(preflight, "rooms_of", lambda _: rooms)

    return pretend


def agent_of(env: Any = "CartPole-v1", **given_settings: Any) -> DQN:
    return DQN(env, **{**SETTINGS, **given_settings})


def taken_by(**given_settings: Any) -> int:
    """The bytes of a training, by the smallest room in which it is not refused."""
    message = str(refusal(**given_settings))
    return int(re.search(r"takes (\d+) B", message)[1])  # type: ignore[index]


def refusal(env: Any = "CartPole-v1", **given_settings: Any) -> UsageError:
    with pytest.raises(UsageError) as refused:
        agent_of(env, **given_settings)
    return refused.value


# Everything is counted


def test_a_training_that_does_not_fit_is_refused_with_the_table_and_what_fits(
    leaves: Leaves,
) -> None:
    leaves(30 * MIB)
    refused = refusal(buffer_size=1_000_000, replay="prioritized")
    assert refused.got == "--buffer-size 1,000,000"
    assert refused.reason.startswith("the training takes 8")
    assert refused.reason.endswith(" MiB of the host, which has 30.0 MiB left")
    first, *table = refused.way_out.splitlines()
    fits = re.fullmatch(r"At most --buffer-size (\d+) fits\. Or free memory\.", first)
    assert fits
    names = [line.rsplit("  ", 1)[0].strip() for line in table]
    assert names == [
        "replay: observations",
        "replay: final observations",
        "replay: actions, rewards, indices",
        "replay: lists on the host",
        "replay: priorities",
        "replay: a copy of them while modes are tried",
        "network, target, moments, gradient",
        "new parameters and moments",
        "batch and activations (estimate)",
        "taken of the host",
        "left there",
    ]
    assert table[0].endswith(" 15.3 MiB")
    agent_of(buffer_size=int(fits[1]), replay="prioritized")


def test_nothing_is_built_before_the_refusal(
    leaves: Leaves, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves(MIB)
    for name in ("build_flat", "build_learner", "build_sampler", "build_tensor_rollout"):
        monkeypatch.setattr(learning, name, None)
    assert "--buffer-size" in refusal(buffer_size=10**6).got
    assert "--buffer-size" in refusal(buffer_size=10**6, vectorizer="tensor").got


def test_the_command_line_refuses_before_a_folder_is_made(
    leaves: Leaves, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaves(100 * MIB)
    words = ["--env-id", "CartPole-v1", "--buffer-size", "1e7", "--run-dir", str(tmp_path / "run")]
    assert main(["train", *words]) == 2
    message = capsys.readouterr().err
    assert "error: --buffer-size 10,000,000: the training takes" in message
    assert "\n  replay: final observations " in message
    assert not (tmp_path / "run").exists()


def test_the_tensors_of_the_network_are_counted(leaves: Leaves) -> None:
    for optimizer, amsgrad, slots in (("adam", False, 2), ("adam", True, 3), ("rmsprop", False, 1)):
        kinds: dict[str, Any] = {"optimizer": optimizer, "amsgrad": amsgrad}
        for options in ({}, {"dueling": True}, {"noisy": True}, {"objective": "iqn"}):
            agent = agent_of(**kinds, **options)
            state = agent.learner.state
            assert len(state.slots) == slots
            held = sum(tensor.nbytes for tensor in (state.online, state.target, *state.slots))
            items = plan_of(agent).items()
            counted = {item.name: item.nbytes for item in items}
            own = counted["network, target, moments, gradient"]
            assert own == held + state.online.nbytes  # and the gradient
            leaves(10**12)


def plan_of(agent: DQN, **kinds: bool) -> MemoryPlan:
    training = preflight.Training(
        agent.config,
        agent.description,
        None,
        agent.learner.objective,
        agent.learner.device,
        **kinds,
    )
    return training.plan(most=False)


def test_a_network_of_the_callers_own_is_counted_by_its_tensors(leaves: Leaves) -> None:
    leaves(5 * MIB)
    agent_of(network=MLP((4,), 2, (100,)))
    refused = refusal(network=MLP((4,), 2, (1000, 1000)))
    assert refused.got == "--hidden-sizes 8"
    with pytest.raises((UsageError, ValueError)):
        agent_of(network=nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(2)))
    with pytest.raises((UsageError, TypeError)):
        agent_of(network=lambda obs: obs)


@pytest.mark.parametrize(
    ("asked", "flag"),
    [
        ({"num_workers": 100, "num_envs": 100}, "--num-workers 100"),
        ({"hidden_sizes": (3000, 3000)}, "--hidden-sizes 3000 3000"),
        ({"batch_size": 200_000, "buffer_size": 200_000, "hidden_sizes": (900,)}, "--batch-size"),
        ({"objective": "qr", "num_quantiles": 1_500}, "--num-quantiles 1500"),
        ({"objective": "c51", "num_atoms": 2_500}, "--num-atoms 2500"),
    ],
)
def test_the_flag_that_takes_the_most_is_named(
    asked: dict[str, Any], flag: str, leaves: Leaves
) -> None:
    leaves(100 * MIB)
    assert refusal(**asked).got.startswith(flag)


def test_where_no_ring_fits_none_is_named(leaves: Leaves) -> None:
    leaves(40 * MIB)
    refused = refusal(hidden_sizes=(2000, 2000))
    assert refused.way_out.startswith("Lower --hidden-sizes, or free memory.\n")
    leaves(3_000)
    assert "fits" not in refusal().way_out


def test_a_ring_too_small_for_the_batch_or_the_steps_is_not_named(leaves: Leaves) -> None:
    """48 transitions would fit, and 50 are needed."""
    leaves(10**9)
    fine = agent_of(buffer_size=1_000)
    free = sum(item.nbytes for item in plan_of(fine).items())
    leaves(free - 1)
    refused = refusal(buffer_size=1_000)
    assert re.search(r"At most --buffer-size [1-9]\d* fits", refused.way_out)
    assert "fits" not in refusal(buffer_size=1_000, n_step=499).way_out


def test_workers_and_their_rows_are_counted_for_training_and_evaluation() -> None:
    def workers(**given_settings: Any) -> tuple[int, int]:
        config = Config(**{**SETTINGS, "num_envs": 6, **given_settings})
        env = agent_of().description
        parts = config, env, None, agent_of().learner.objective, torch.device("cpu")
        training = preflight.Training(*parts, config.vectorizer == "tensor")
        return training.num_workers(most=True)

    assert workers(num_workers=4) == (4, 4)
    assert workers(num_workers=4, eval_episodes=3) == (4, 3)
    assert workers(num_workers=50) == (6, 20)
    assert workers(num_workers=0) == (0, 0)
    assert workers(vectorizer="sync", num_workers=3) == (0, 0)
    assert workers(vectorizer="async", num_workers=None) == (6, 20)
    assert workers(vectorizer="tensor", num_workers=3) == (0, 3)


@pytest.mark.parametrize(("most", "quick", "expected"), [(1, 1, 4), (0, 1, 0), (0, 0, 4)])
def test_workers_that_a_measurement_chooses_are_between_none_and_one_per_core_but_one(
    most: int, quick: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_parts, "available_cores", lambda: 5)
    config, kinds = Config(num_envs=16), {"most": bool(most), "quick": bool(quick)}
    assert memory_parts.processes_for(config, 16, **kinds) == expected
    assert memory_parts.processes_for(config, 3, **kinds) == min(expected, 3)


def test_environments_of_the_caller_need_no_workers_of_ours(leaves: Leaves) -> None:
    leaves(10 * MIB)
    envs = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    given_settings = {k: v for k, v in SETTINGS.items() if k not in {"num_envs", "num_workers"}}
    assert DQN(envs, **given_settings).config.buffer_size == 100
    envs.close()


# The rings


@pytest.mark.parametrize("replay", ["uniform", "prioritized"])
@pytest.mark.parametrize(
    "given_settings",
    [
        {},
        {"env_groups": 2, "num_envs": 4},
        {"vectorizer": "tensor"},
        {"vectorizer": "tensor", "on_nonfinite": "skip"},
        {"n_step": 3},
        {"expect_action_masks": True},
    ],
)
def test_the_items_of_the_ring_are_the_bytes_of_its_tensors(
    replay: str, given_settings: dict[str, Any]
) -> None:
    agent = agent_of(replay=replay, **given_settings)
    sampler = agent._own_sampler
    kinds = {"tensor_envs": agent._tensor_rollout is not None}
    items = plan_of(agent, **kinds).items()
    counted = sum(item.nbytes for item in items if item.name.startswith("replay: "))
    held = list(sampler.ring.cells().values())
    if isinstance(sampler.replay, ReplayBuffer):
        valid = sampler.replay.valid
        held += [valid._list, valid._columns]
        finals, rows = len(sampler.ring.frames) - len(sampler.ring.action), valid.num_rows
        counted -= 8 * finals + 16 * rows  # lists on the host
        assert sampler.replay._rows is not None
    else:
        assert isinstance(sampler.replay, FunctionalRing)
        held += [sampler.replay.row, sampler.replay._columns]
        if isinstance(sampler.replay, SkippingRing):
            held += [*sampler.replay.listed.values()]
    if isinstance(sampler, PrioritizedSampler):
        held += 2 * list(sampler.tree.written())
    assert counted == sum(tensor.untyped_storage().nbytes() for tensor in held)


sizes_of_rings = st.builds(
    lambda kind, groups, each, shape, dtype, masked, n: (
        FunctionalSizes(10**6, groups * each, shape, dtype, n_step=n)
        if kind
        else RingSizes(10**6, groups * each, shape, dtype, None, masked, groups, n)
    ),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 40),
    st.sampled_from([(), (4,), (4, 84, 84)]),
    st.sampled_from([torch.float32, torch.uint8]),
    st.sampled_from([0, 3]),
    st.integers(1, 5),
)


@settings(max_examples=60, deadline=None)
@given(
    sizes_of_rings,
    st.booleans(),
    st.integers(0, 2**42),
    st.integers(0, 2**42),
    st.integers(1, 10**14),
    st.sampled_from([reserve_of, lambda free: free // 10, lambda _: 0]),
)
def test_the_largest_that_fits_fits_and_one_more_row_does_not(  # noqa: PLR0917
    sizes: RingSizes,
    prioritized: bool,
    free: int,
    of_host: int,
    most: int,
    reserve: Callable[[int], int],
) -> None:
    others = MemoryItem("network", 10_000, "--hidden-sizes"), MemoryItem("w", 99, "-w", "processes")
    rooms = (
        Room("cuda:0", free, frozenset({"device"})),
        Room("the host", of_host, frozenset({"host", "processes"})),
    )
    plan = MemoryPlan(sizes, prioritized, others, rooms)
    found = plan.largest(reserve, most)

    def fits(capacity: int) -> bool:
        items = plan.holding(capacity).items()
        return all(room.takes(items) + reserve(room.free) <= room.free for room in rooms)

    assert 0 <= found <= most
    assert found == most or found % sizes.row_size == 0
    assert found == 0 or fits(found)
    assert found == most or not fits(min(found + sizes.row_size, most))


# --buffer-size auto


def test_auto_takes_no_more_than_the_run_has_env_steps(leaves: Leaves) -> None:
    leaves(10**12)
    agent = agent_of(buffer_size="auto")
    assert agent.config.buffer_size == 1_000
    assert agent.replay.capacity == 1_000
    assert agent_of(buffer_size="auto", total_timesteps=1_001).config.buffer_size == 1_002
    assert agent_of(buffer_size="auto", num_envs=3).config.buffer_size == 1_002


def test_auto_takes_what_fits_beside_the_reserve(leaves: Leaves) -> None:
    free = LEAST_RESERVE + 20 * MIB
    leaves(free)
    for given_settings in (
        {},
        {"replay": "prioritized", "n_step": 3},
        {"env_groups": 2, "num_envs": 4},
        {"vectorizer": "tensor"},
    ):
        kinds = {"tensor_envs": "vectorizer" in given_settings}
        agent = agent_of(buffer_size="auto", total_timesteps=10**9, **given_settings)
        taken = sum(item.nbytes for item in plan_of(agent, **kinds).items())
        assert 0.99 < taken / (20 * MIB) <= 1.0
        row = agent.config.num_envs // agent.config.env_groups
        assert agent.config.buffer_size % row == 0
        plan = plan_of(agent, **kinds).holding(agent.config.buffer_size + row)  # type: ignore[operator]
        assert sum(item.nbytes for item in plan.items()) > 20 * MIB


def test_the_reserve_is_a_tenth_and_at_least_half_a_gib() -> None:
    assert reserve_of(2**40) == 2**40 // 10
    assert reserve_of(10**9) == 512 * MIB
    assert reserve_of(0) == 512 * MIB


def test_auto_leaves_room_for_the_batch_and_the_steps(leaves: Leaves) -> None:
    leaves(10**12)
    asked = {"buffer_size": "auto", "total_timesteps": 30}
    assert agent_of(**asked, batch_size=64).config.buffer_size == 64
    assert agent_of(**asked, n_step=50).config.buffer_size == 101


def test_auto_is_refused_where_not_even_the_smallest_ring_fits(leaves: Leaves) -> None:
    leaves(LEAST_RESERVE)
    refused = refusal(buffer_size="auto")
    assert refused.got == "--buffer-size auto"
    assert "with a ring of 8 transitions, and 512.0 MiB are left, of which 512.0 MiB" in (
        refused.reason
    )
    assert refused.way_out.startswith("Name a --buffer-size")
    assert "\n  replay: observations" in refused.way_out


def test_the_room_that_lacks_the_reserve_is_named(leaves: Leaves) -> None:
    card = Room("cuda:0", 10**12, frozenset({"device"}))
    leaves([card, Room("the host", MIB, frozenset({"host", "processes"}))])
    refused = refusal(buffer_size="auto")
    assert " of the host with a ring of" in refused.reason


@pytest.mark.slow
def test_auto_is_saved_as_the_number_and_loaded_again(leaves: Leaves, tmp_path: Path) -> None:
    leaves(10**12)
    agent = agent_of(buffer_size="auto", total_timesteps=500)
    agent.learn(60, run_dir=tmp_path / "run")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["resolved"]["buffer_size"] == 500
    assert load_policy(tmp_path / "run").description["config"]["buffer_size"] == 500
    log = (tmp_path / "run" / "log.txt").read_text()
    assert len(re.findall(r"--buffer-size auto: 500 transitions, 3\d\.\d KiB of 931\.3", log)) == 1
    assert DQN.load(tmp_path / "run").config.buffer_size == 500
    assert DQN.load(tmp_path / "run", buffer_size="auto").config.buffer_size == 500
    assert copy.deepcopy(agent).config.buffer_size == 500


def test_large_rings_are_said_once_and_small_ones_are_not(
    leaves: Leaves, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    leaves(10**9)
    assert not agent_of().memory_line
    monkeypatch.setattr(preflight, "LARGE", 6_000)
    monkeypatch.setattr(recorded_run, "_draw", lambda *_: None)
    agent = agent_of(quiet=True, eval_episodes=1).learn(40, run_dir=tmp_path / "run")
    words = r"Replay ring: 100 transitions, 7\.\d KiB of 953.7 MiB free on the host; 953.\d MiB"
    assert re.match(words, agent.memory_line)
    assert (tmp_path / "run" / "log.txt").read_text().count("Replay ring: ") == 1


@pytest.mark.slow
def test_the_command_line_takes_auto(
    leaves: Leaves, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaves(10**10)
    words = "--env-id CartPole-v1 --num-envs 2 --num-workers 0 --total-timesteps 70 --quiet"
    words += " --learning-starts 20 --batch-size 8 --eval-interval 0 --eval-episodes 1"
    words += " --execution eager --hidden-sizes 8 --buffer-size auto"
    assert main(["train", *words.split(), "--run-dir", str(tmp_path / "run")]) == 0
    assert "--buffer-size auto: 70 transitions, " in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["buffer_size"] == 70


# What there is


def test_the_host_has_a_room_for_each_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [MemoryLimit("memory of the machine", 7), MemoryLimit("ulimit", 5, of_process=True)]
    monkeypatch.setattr("fastdqn.agent.memory_plan.memory_limits", lambda: limits)
    machine, process = rooms_of(torch.device("cpu"))
    assert (machine.name, machine.free) == ("the host (memory of the machine)", 7)
    assert machine.places == EVERYWHERE
    assert process.places == {"device", "host"}
    monkeypatch.setattr("fastdqn.agent.memory_plan.available_bytes", lambda _: 3)
    card, machine, process = rooms_of(torch.device("cuda:1"))
    assert (card.name, card.free) == ("cuda:1", 3)
    assert card.places == {"device"}
    assert machine.places == {"host", "processes"}
    assert process.places == {"host"}


def test_a_card_also_holds_a_pool_of_graphs() -> None:
    agent, card = agent_of(), torch.device("cuda")
    for execution, pools in (("auto", 1), ("cudagraph", 1), ("compile", 0), ("eager", 0)):
        config = Config(**{**SETTINGS, "execution": execution})
        parts = config, agent.description, None, agent.learner.objective, card
        items = memory_parts.items_beside_ring(*parts, num_workers=(0, 0))
        assert sum("graphs" in item.name for item in items) == pools


def test_the_limit_of_a_container_refuses_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 99999999 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (folder / "memory.max").write_text(f"{100 * MIB}\n")
    (folder / "memory.current").write_text(f"{60 * MIB}\n")
    monkeypatch.setattr(
        "fastdqn.agent.memory_plan.memory_limits", lambda: host_memory.memory_limits(tmp_path)
    )
    assert agent_of(buffer_size=10_000).config.buffer_size == 10_000
    refused = refusal(buffer_size=1_000_000)
    assert f"control group, {folder / 'memory.max'}), which has 40.0 MiB left" in refused.reason
    ring: Tensor = agent_of().replay.ring.action
    assert len(ring) == 102
