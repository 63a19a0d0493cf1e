"""What one vector step may not do: make float64, look at the device, allocate anew.

On the CPU nothing waits, so that a look at the device costs nothing and is seen nowhere. Two
recorders make it visible: one below autograd, where `.item()` becomes an operation, and one at
the surface, where `.cpu()`, `.numpy()` and `.tolist()` are calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastdqn.envs.description import EnvDescription, describe_spaces
from fastdqn.envs.sources.new_episode import NewEpisode
from fastdqn.envs.workers.shared_block import RowSpec, SharedBlock
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.policies.actors import GraphActor
from fastdqn.policies.policy import Policy
from fastdqn.replay import ReplayBuffer, UniformSampler
from fastdqn.training.host.rollout import HostRollout
from tests.fake_cuda import RecordingCuda, flat
from tests.learner_modes import run_by_graphs
from tests.small_learners import Looking

NUM_ENVS, OBS_SIZE, BATCH = 6, 4, 8
LOOKING_OPS = {
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.masked_select",
    "aten.equal",
    "aten._unique2",
}
"""Operations whose result has to reach the host before Python can go on."""
LOOKING_CALLS = {"cpu", "numpy", "tolist", "item", "nonzero", "equal"} | {
    f"__{name}__" for name in ("bool", "int", "float", "index", "array", "contains")
}


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation, and those that make a float64 tensor or look at the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()
        self.doubles: list[str] = []
        self.looks: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().replace("::", ".").split(".")
        operation = ".".join(name[:2])
        self.names[operation] += 1
        tensors = [t for t in flat(result) if t.dtype is torch.float64]
        inputs = [t for t in flat(args) if t.dtype is torch.float64]
        if any(all(t is not given for given in inputs) for t in tensors):
            self.doubles.append(operation)
        masks = operation.startswith("aten.index") and any(
            t.dtype is torch.bool for t in flat(args[1])
        )
        if operation in LOOKING_OPS or masks:
            self.looks.append(operation)
        return result


class Calls(TorchFunctionMode):
    """Counts the calls on tensors that bring something to the host or wait for a copy from it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        sent = name == "to" and any(isinstance(value, torch.device) for value in args)
        waited_for = sent and not (kwargs or {}).get("non_blocking")
        if name in LOOKING_CALLS or waited_for:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


class RandomSource:
    """Environments that show noise and end every few steps, with no worker.

    Those that do not reset within the step only reset in some of their steps.
    """

    num_workers = 0
    num_envs = NUM_ENVS
    num_restarts = 0
    restarts: Sequence[str] = ()
    description: EnvDescription = describe_spaces(
        "Random-v0", Box(-1, 1, (OBS_SIZE,), np.float32), Discrete(2), None
    )

    def __init__(self, resets_within_step: bool, num_groups: int, num_masked: int) -> None:
        self.resets_within_step, self.num_groups = resets_within_step, num_groups
        spec = RowSpec(NUM_ENVS, (OBS_SIZE,), "float32", num_masked=num_masked)
        self.rows = SharedBlock.allocate(spec)
        self._rng = np.random.default_rng(0)
        self.actions: list[npt.NDArray[np.int64]] = []

    def rows_of(self, group: int) -> SharedBlock:
        size = NUM_ENVS // self.num_groups
        return self.rows.columns(group * size, (group + 1) * size)

    def reset(self, seeds: Sequence[int]) -> None:
        self.rows.obs[:] = self._rng.normal(size=self.rows.obs.shape)

    def send(self, actions: npt.NDArray[np.int64], group: int = 0) -> None:
        self.actions.append(actions.copy())

    def recv(self, group: int = 0) -> None:
        rows = self.rows_of(group)
        for array in (rows.obs, rows.final_obs, rows.reward):
            array[:] = self._rng.normal(size=array.shape)
        for flags in (rows.terminated, rows.truncated, rows.action_mask, rows.final_action_mask):
            flags[:] = self._rng.random(flags.shape) < 0.2
        if not self.resets_within_step:
            rows.real[:] = self._rng.random(len(rows.real)) < 0.7

    def begin_anew(self, envs: npt.NDArray[np.int64]) -> NewEpisode:
        raise AssertionError(f"{envs} showed finite numbers")

    def close(self) -> None:
        return


class Parts:
    """A policy, a learner, a ring and a rollout that have gone through a few vector steps."""

    def __init__(
        self,
        *,
        resets_within_step: bool = True,
        num_groups: int = 1,
        num_masked: int = 0,
        device: str = "cpu",
        **settings: Any,
    ) -> None:
        self.learner = Learner(MLP((OBS_SIZE,), 2, (8,)), device=device, **settings)
        self.replay = ReplayBuffer(
            60,
            NUM_ENVS,
            (OBS_SIZE,),
            device=device,
            num_groups=num_groups,
            num_masked=num_masked,
        )
        self.sampler = UniformSampler(self.replay, BATCH)
        self.policy = Policy(self.learner.network)
        self.source = RandomSource(resets_within_step, num_groups, num_masked)
        self.rollout = HostRollout(self.source, self.policy, self.replay)
        self.rollout.reset(range(NUM_ENVS))
        for _ in range(12):
            self.vector_step()

    def vector_step(self) -> None:
        """What the trainer does, in its order."""
        self.rollout.send(0.5)
        if len(self.replay):
            self.learner.learn(self.sampler, 3)
        self.rollout.collect()
        self.rollout.write()


SETTINGS: list[dict[str, Any]] = [
    {},
    {"double": False, "loss": "mse", "target": "hard", "target_period": 2, "clip_value": 1.0},
    {"target": "none", "clip_norm": None, "resets_within_step": False},
    {"num_masked": 2},
    {"num_groups": 3, "num_masked": 2, "resets_within_step": False},
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_vector_step_makes_no_float64_tensor(settings: dict[str, Any]) -> None:
    parts = Parts(**settings)
    with Operations() as operations:
        for _ in range(5):
            parts.vector_step()
    assert operations.doubles == []
    assert operations.names["aten.copy_"] > 0  # float64 rewards go into float32 here
    assert operations.names["aten.gather"] > 0
    assert operations.names["aten.argmax"] > 0


@pytest.mark.parametrize("settings", SETTINGS)
def test_acting_learning_and_writing_never_look_at_the_device(settings: dict[str, Any]) -> None:
    """Sending is left out: it brings the actions to the host."""
    parts, operations, calls = Parts(**settings), Operations(), Calls()
    for _ in range(5):
        parts.rollout.send(0.5)
        with operations, calls:
            parts.policy.act(parts.replay.shown(), 0.5, parts.replay.shown_mask())
            parts.learner.learn(parts.sampler, 3)
            parts.rollout.collect()
            parts.rollout.write()
    assert operations.looks == []
    assert not calls.names
    assert operations.names.total() > 100


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_hosts_side_of_graphs_never_looks_at_the_device(settings: dict[str, Any]) -> None:
    """Filling the scalars and bits, feeding observations, copying actions out; and the replays."""
    parts, cuda = Parts(**settings), RecordingCuda()
    run_by_graphs(parts.learner, cuda)
    parts.learner.execute_as("cudagraph")
    parts.policy.actor = GraphActor(parts.policy, cuda=cuda)
    for _ in range(2 * len(parts.rollout._groups)):
        parts.vector_step()
        parts.policy.act(parts.replay.shown(), 0.5, parts.replay.shown_mask())
    captures, operations, calls = cuda.captures(), Operations(), Calls()
    for step in range(8):
        parts.rollout.send(0.5)
        with operations, calls:
            parts.policy.act(parts.replay.shown(), 0.1 * step, parts.replay.shown_mask())
            parts.learner.learn(parts.sampler, 3)
            parts.rollout.collect()
            parts.rollout.write()
    assert operations.looks == []
    assert not calls.names
    assert operations.doubles == []
    assert cuda.captures() == captures


@pytest.mark.parametrize("settings", SETTINGS[2:])
def test_a_vector_step_brings_its_actions_to_the_host_and_nothing_else(
    settings: dict[str, Any],
) -> None:
    parts = Parts(**settings)
    seen = len(parts.source.actions)
    with Operations() as operations, Calls() as calls:
        for _ in range(5):
            parts.vector_step()
    assert calls.names == {"cpu": 5, "numpy": 5}  # one way of the actions to the host
    assert operations.looks == []
    assert len(parts.source.actions) == seen + 5


def _item(x: Tensor) -> object:
    return x.sum().item()


def _float(x: Tensor) -> object:
    return float(x.sum())


def _truth(x: Tensor) -> object:
    return bool(x.any())


def _list(x: Tensor) -> object:
    return x.tolist()


def _host(x: Tensor) -> object:
    return x.cpu().numpy()


def _mask(x: Tensor) -> object:
    return x[x > 0]


def _sent(x: Tensor) -> object:
    return x.to(x.device)


PLANTED = [_item, _float, _truth, _list, _host, _mask, _sent]


@pytest.mark.parametrize("look", PLANTED)
def test_a_look_planted_into_the_loss_is_noticed(
    look: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts()
    monkeypatch.setattr(parts.learner, "objective", Looking(look=look))
    with Operations() as operations, Calls() as calls:
        parts.learner.learn(parts.sampler, 2)
    assert len(operations.looks) + calls.names.total() >= 2


def test_a_float64_planted_into_the_reward_is_noticed() -> None:
    parts = Parts()
    with Operations() as operations:
        parts.replay.ring.reward.double()
    assert operations.doubles == ["aten._to_copy"]


def test_a_vector_step_writes_into_the_memory_that_it_was_born_with() -> None:
    parts = Parts()

    def places() -> list[int]:
        ring, state = parts.replay.ring, parts.learner.state
        tensors = [ring.frames, ring.next_index, ring.action, ring.reward, ring.terminated]
        tensors += [ring.truncated, state.online, state.target, *state.slots, state.metrics]
        return [tensor.data_ptr() for tensor in tensors]

    before = places()
    for _ in range(12):
        parts.vector_step()
    assert places() == before


def test_a_vector_step_does_as_many_operations_for_many_environments_as_for_few() -> None:
    """No loop over environments hides in acting and writing."""
    counts = []
    for num_envs in (2, 64):
        replay = ReplayBuffer(64 * 8, num_envs, (OBS_SIZE,))
        policy = Policy(Learner(MLP((OBS_SIZE,), 2, (8,))).network)
        flags = torch.zeros(num_envs, dtype=torch.bool)
        with Operations() as operations:
            action = policy.act(replay.shown(), 0.5)
            replay.write(
                action,
                torch.zeros(num_envs),
                flags,
                flags,
                torch.zeros(num_envs, OBS_SIZE),
                final_obs=torch.zeros(num_envs, OBS_SIZE),
                ended=np.arange(num_envs),
            )
        counts.append(operations.names)
    assert counts[0] == counts[1]


@pytest.mark.cuda
def test_on_a_card_only_the_actions_are_waited_for() -> None:
    parts = Parts(device="cuda")
    try:
        for _ in range(5):
            parts.rollout.send(0.5)
            torch.cuda.set_sync_debug_mode("error")
            parts.policy.act(parts.replay.shown(), 0.5)
            parts.learner.learn(parts.sampler, 3)
            parts.rollout.collect()
            parts.rollout.write()
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match="synchronizing"):
            parts.rollout.send(0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
