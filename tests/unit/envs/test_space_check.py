"""Observations outside their space are refused by name wherever they are copied."""

from __future__ import annotations

import math
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from fastdqn import DQN, Supervision, UsageError
from fastdqn.envs.description import describe
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.masks import with_mask_in_info
from fastdqn.envs.sources.source import make_source, source_of
from fastdqn.envs.space_check import MANY, Bounds, SpaceCheck, VectorCheck
from fastdqn.envs.workers.allocation import Allocation
from fastdqn.envs.workers.observation_writer import CheckedWriter, NumberWriter, writers_over
from fastdqn.envs.workers.process import without_main_module
from tests.drive import MODES
from tests.unit.agent.test_dqn import small
from tests.unruly import FallingEnv, LeavingEnv

if TYPE_CHECKING:
    from fastdqn.envs.sources.source import EnvSource

BYTES, IMAGE = Box(0, 255, (2,), np.uint8), Box(0, 255, (2, 3, 1), np.uint8)
FLOATS, FEW = Box(0, 1, (2,), np.float32), Box(0, 10, (2,), np.int32)
UNEVEN = Box(np.array([0, -5]), np.array([3, 5]), dtype=np.int16)
FLAGS, SHIFTED = MultiBinary(3), MultiDiscrete([3, 4], start=[2, -1])

OUTSIDE: list[tuple[Space[Any], Any, str]] = [
    (Discrete(5), 5, "5 for its observation"),
    (Discrete(5), np.int64(7), "7 for its observation"),
    (Discrete(5), np.array(-1), "-1 for its observation"),
    (Discrete(5, start=3), 2, "2 for its observation"),
    (Discrete(5, start=-3), 2, "2 for its observation"),
    (Discrete(5, dtype=np.uint8), 261, "261 for its observation"),
    (Discrete(5), 2**70, "1180591620717411303424 for its observation"),
    (Discrete(5), 2.5, "2.5 for its observation"),
    (Discrete(5), math.nan, "nan for its observation"),
    (Discrete(5), [2], "an observation of shape (1,)"),
    (Discrete(5), None, "the observation None of NoneType"),
    (MultiDiscrete([3, 4]), np.array([1, 4]), "4 at [1] of its observation"),
    (MultiDiscrete([3, 4]), [-1, 0], "-1 at [0] of its observation"),
    (SHIFTED, np.array([5, 0]), "5 at [0] of its observation"),
    (SHIFTED, np.array([2, 3]), "3 at [1] of its observation"),
    (FLAGS, np.array([0, 2, 0], np.int8), "2 at [1] of its observation"),
    (FLAGS, np.array([0, 0, -1], np.int8), "-1 at [2] of its observation"),
    (BYTES, np.array([300.7, 0.0]), "300.7 at [0] of its observation"),
    (BYTES, np.array([0, 300]), "300 at [1] of its observation"),
    (BYTES, [-1, 0], "-1 at [0] of its observation"),
    (BYTES, np.array([0, math.nan], np.float32), "nan at [1] of its observation"),
    (BYTES, np.array([math.inf, 0], np.float32), "inf at [0] of its observation"),
    (IMAGE, np.full((2, 3, 1), 0.5, np.float32), "0.5 at [0, 0, 0] of its observation"),
    (FEW, np.array([0, 11], np.int32), "11 at [1] of its observation"),
    (FEW, np.array([-1, 0], np.int64), "-1 at [0] of its observation"),
    (UNEVEN, np.array([4, 0], np.int16), "4 at [0] of its observation"),
    (UNEVEN, np.array([0, -6], np.int16), "-6 at [1] of its observation"),
    (Box(0, 1, (2, 2), np.int8), np.array([[0, 1], [2, 0]], np.int8), "2 at [1, 0] of its"),
    (Box(0, 3, (), np.int32), 4, "4 for its observation"),
    (FLOATS, np.array([1j, 0]), "of ndarray"),
    (FLOATS, np.array(["1", "2"]), "of ndarray"),
    (FLOATS, np.array([None, 2]), "of ndarray"),
    (FLOATS, [[1.0], [1.0, 2.0]], "the observation [[1.0], [1.0, 2.0]] of list"),
    (FLOATS, None, "the observation None of NoneType"),
    (FLOATS, {"a": 1}, "the observation {'a': 1} of dict"),
    (FLOATS, np.zeros(3, np.float32), "an observation of shape (3,)"),
]
INSIDE: list[tuple[Space[Any], Any]] = [
    (Discrete(5), 4),
    (Discrete(5), np.uint8(0)),
    (Discrete(5), np.array(4)),
    (Discrete(5), 4.0),
    (Discrete(2), True),
    (Discrete(5, start=-3), -3),
    (Discrete(200, dtype=np.uint8), 199),
    (MultiDiscrete([3, 4]), np.array([2, 3])),
    (SHIFTED, [4, -1]),
    (FLAGS, np.array([1, 0, 1])),
    (FLAGS, [True, False, True]),
    (BYTES, np.array([3.0, 255.0])),
    (BYTES, [0, 255]),
    (IMAGE, np.full((2, 3, 1), 255, np.int64)),
    (FEW, np.array([10, 0], np.int32)),
    (FEW, np.array([10, 0], ">i4")),
    (UNEVEN, np.array([3, -5], np.int16)),
    (Box(-np.inf, np.inf, (2,), np.int64), np.array([2**63 - 1, -(2**63)])),
    (Box(0, 3, (), np.int32), 3),
    (FLOATS, np.array([-7.0, 9.0], np.float32)),
    (FLOATS, np.array([1, 0])),
    (FLOATS, (0.25, 0.5)),
    (Box(0, 1, (2, 2), np.float64), np.ones((2, 2), np.float32)),
]


def _block(space: Space[Any]) -> Any:
    return np.zeros((2, *(space.shape or ())), space.dtype)


def _line(space: Space[Any], block: Any) -> Any:
    check = SpaceCheck(space, block.shape[1:], block.dtype)
    return writers_over(block, [check, check], 6)[1]


@pytest.mark.parametrize(("space", "obs", "named"), OUTSIDE, ids=str)
def test_a_line_refuses_what_its_space_does_not_hold_by_environment_value_and_space(
    space: Space[Any], obs: Any, named: str
) -> None:
    block = _block(space)
    line, check = _line(space, block), SpaceCheck(space, block.shape[1:], block.dtype)
    if isinstance(line, memoryview):  # it refuses what is not of its dtype and shape
        with pytest.raises((TypeError, ValueError)):
            line[:] = obs
        line = CheckedWriter(block, 1, check, 7)
    with pytest.raises(UsageError) as refused:
        line[:] = obs
    assert refused.value.got.startswith("environment 7 with ")
    assert named in refused.value.got
    said = str(space) if "shape" not in named else f"the observation space says {space.shape}"
    assert said in refused.value.reason


@pytest.mark.parametrize(("space", "obs"), INSIDE, ids=str)
def test_a_line_takes_what_its_space_holds_in_whatever_form(space: Space[Any], obs: Any) -> None:
    block = _block(space)
    line = CheckedWriter(block, 1, SpaceCheck(space, block.shape[1:], block.dtype), 7)
    line[:] = obs
    assert block[1].tolist() == np.asarray(obs).tolist()
    quick = _line(space, block := _block(space))
    if not isinstance(quick, memoryview):
        quick[:] = obs
        assert block[1].tolist() == np.asarray(obs).tolist()
    assert not block[0].any()


def test_what_is_quickest_takes_the_observations_of_each_space() -> None:
    kinds = [
        (Discrete(5), NumberWriter),
        (MultiDiscrete([3, 4]), CheckedWriter),
        (FEW, CheckedWriter),
        (BYTES, memoryview),
        (FLOATS, memoryview),
        (IMAGE, CheckedWriter),
    ]
    for space, kind in kinds:
        assert type(_line(space, _block(space))) is kind, space


def test_bounds_of_another_space_than_the_blocks_are_not_compared() -> None:
    assert not SpaceCheck(Box(0, 1, (3,), np.int8), (2,), np.dtype(np.int8)).bounded
    assert not SpaceCheck(Box(0, 1, (2,), np.int8), (2,), np.dtype(np.int16)).bounded
    assert not SpaceCheck(Box(-128, 127, (2,), np.int8), (2,), np.dtype(np.int8)).bounded


@pytest.mark.parametrize("size", [1, 7, MANY - 1, MANY, 3 * MANY])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint64, np.int64])
@pytest.mark.parametrize("ends", [(0, 9), (3, 100), (None, 5), (5, None), (0, 0)], ids=str)
def test_bounds_are_left_exactly_where_one_number_is_outside(
    size: int, dtype: Any, ends: tuple[Any, Any]
) -> None:
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    low, high = (end if e is None else e for e, end in zip(ends, (least, most), strict=True))
    row = np.full(size, low, dtype)
    bounds = Bounds(row, SpaceCheck(Box(low, high, (size,), dtype), (size,), row.dtype))
    for value in {least, most, low, high, max(low - 1, least), min(high + 1, most)}:
        row[-1] = value
        assert bounds.are_left() is not (low <= value <= high), value
        row[-1] = low
        assert not bounds.are_left()


@pytest.mark.parametrize("size", [4, 2 * MANY])
def test_bounds_of_each_number_are_its_own_in_rows_of_any_strides(size: int) -> None:
    low, high = np.arange(size, dtype=np.int32) - 5, np.arange(size, dtype=np.int32) + 5
    row = np.zeros((size, 2), np.int32)[:, 0]
    bounds = Bounds(row, SpaceCheck(Box(low, high, dtype=np.int32), (size,), row.dtype))
    for step, left in ((-6, True), (-5, False), (5, False), (6, True)):
        row[:] = np.arange(size)
        row[2] += step
        assert bounds.are_left() is left


# Every vectorizer


NUMBER = partial(LeavingEnv, Discrete(5), 2, 5)
WAYS: dict[str, Any] = {
    "no workers": {"num_workers": 0},
    "two groups": {"num_workers": 0, "num_groups": 2},
    "a worker": {"num_workers": 1},
    "a worker and the caller": {"allocation": Allocation(1, 1)},
}


def _steps(source: EnvSource, steps: int) -> None:
    with closing(source):
        source.reset(range(source.num_envs))
        for _ in range(steps):
            for group in range(source.num_groups):
                source.send(np.zeros(source.num_envs // source.num_groups, np.int64), group)
            for group in range(source.num_groups):
                source.recv(group)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.parametrize("at", [0, 3, 5])
def test_an_observation_outside_its_space_ends_a_run_at_once(
    at: int, supervised: bool, way: str, nothing_left: None
) -> None:
    """At 0 it is that of a reset, at 5 the last one of an episode."""
    factory = partial(NUMBER, at=at)
    supervision = Supervision() if supervised else None
    source = make_source(
        "grouped", factory, describe(factory), 2, supervision=supervision, **WAYS[way]
    )
    with pytest.raises(UsageError, match=r"^environment [01] with 5 .* space Discrete\(5\) holds"):
        _steps(source, 6)
    assert source.num_restarts == 0


def test_a_supervised_vector_goes_on_after_a_refusal_that_was_caught() -> None:
    factories = [partial(NUMBER, at=10_000), partial(NUMBER, at=2)]
    envs = GroupedVectorEnv(factories, num_workers=2, supervision=Supervision())
    with closing(envs):
        for _ in range(2):
            assert envs.reset(seed=0)[0].tolist() == [2, 2]
            assert envs.step(np.array([0, 0]))[0].tolist() == [2, 2]
            with pytest.raises(UsageError, match="environment 1 with 5"):
                envs.step(np.array([0, 0]))
        assert envs.num_restarts == 0


def test_a_restarted_worker_whose_environments_show_what_cannot_be_used_ends_the_run(
    tmp_path: Any,
) -> None:
    flag = str(tmp_path / "flag")
    envs = GroupedVectorEnv(
        [partial(FallingEnv, flag)] * 2, num_workers=1, supervision=Supervision(delay_s=0.01)
    )
    with closing(envs), pytest.raises(UsageError, match=r"^environment [01] with 5 "):
        _step_often(envs)
    assert envs.num_restarts == 1


def _step_often(envs: GroupedVectorEnv) -> None:
    envs.reset(seed=0)
    for _ in range(200):
        envs.step(np.array([0, 0]))


@pytest.mark.parametrize("vectorizer", ["sync", "async"])
@pytest.mark.filterwarnings("ignore:.*ERROR")
@pytest.mark.parametrize("space_obs", [(Discrete(5), 2, 5), (BYTES, [1, 2], np.array([300.7, 1]))])
def test_gymnasiums_vectors_refuse_it_as_ours_do(vectorizer: str, space_obs: Any) -> None:
    factory = partial(LeavingEnv, *space_obs)
    source = make_source(vectorizer, factory, describe(factory), 2)
    with pytest.raises(UsageError, match=r"^environment [01] with (5|300\.7) .* holds no such"):
        _steps(source, 6)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("at", [2, 5])
def test_a_lent_vector_is_refused_with_the_environment_that_leaves_its_space(
    at: int, mode: AutoresetMode
) -> None:
    envs = SyncVectorEnv([partial(NUMBER, at=100), partial(NUMBER, at=at)], autoreset_mode=mode)
    with pytest.raises(UsageError, match=r"^environment 1 with 5 .* space Discrete\(5\) holds"):
        _steps(source_of(envs), 6)


def test_a_lent_vector_of_processes_is_refused_likewise() -> None:
    with without_main_module():
        envs = AsyncVectorEnv([partial(NUMBER, at=100), NUMBER], context="spawn")
    with pytest.raises(UsageError, match=r"^environment 1 with 5 "):
        _steps(source_of(envs), 6)


def test_bounds_that_differ_between_the_environments_of_a_lent_vector_are_each_ones_own() -> None:
    low, high = Box(0, 3, (2,), np.int32), Box(0, 9, (2,), np.int32)
    shown = np.array([9, 9], np.int32)
    for mode in MODES:
        factories: list[Any] = [partial(LeavingEnv, low, shown // 3, shown // 3), lambda: None]
        for last, fine in ((9, True), (10, False)):
            factories[1] = partial(LeavingEnv, high, shown, np.array([0, last], np.int32), at=5)
            envs = SyncVectorEnv(factories, observation_mode="different", autoreset_mode=mode)
            if fine:
                _steps(source_of(envs), 8)
                continue
            with pytest.raises(UsageError, match=r"^environment 1 with 10 at \[1\]"):
                _steps(source_of(envs), 8)


class OneProgram(VectorEnv[Any, Any, Any]):
    """A vector that is one program and shows what it is given."""

    def __init__(self, obs: Any) -> None:
        self.num_envs, self.obs = 2, obs
        self.single_observation_space, self.single_action_space = BYTES, Discrete(2)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def reset(self, **_: Any) -> Any:
        return self.obs, {}


@pytest.mark.parametrize(
    ("obs", "named"),
    [
        (np.array([[1, 2], [3, 300]]), r"environment 1 with 300 at \[1\]"),
        (np.array([[0.5, 2], [3, 4]]), r"environment 0 with 0\.5 at \[0\]"),
        (np.array([[1], [2]]), r"observations of shape \(2, 1\) and dtype int64"),
        (np.array([["1", "2"]] * 2), r"observations of shape \(2, 2\) and dtype <U1"),
    ],
)
def test_a_vector_of_the_callers_own_is_compared_with_its_space(obs: Any, named: str) -> None:
    source = source_of(OneProgram(obs))
    with pytest.raises(UsageError, match=f"^{named}"):
        source.reset((0, 1))


@pytest.mark.parametrize(
    "space", [BYTES, FLOATS, IMAGE, FEW, Box(0, 9, (4, MANY), np.uint8)], ids=str
)
def test_what_a_space_holds_is_taken_without_comparing_value_by_value(
    space: Space[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    into = np.zeros((2, *(space.shape or ())), space.dtype)
    check = VectorCheck(OneProgram(None), space, None, into)
    monkeypatch.setattr(SpaceCheck, "wrong", _never)
    for number in (1, 2):
        check.take(np.full_like(into, number))
        assert (into == number).all()
    check.take(np.zeros_like(into), np.array([False, True]))
    assert (into[0] == 2).all()
    assert not into[1].any()


def _never(*_: Any) -> Any:
    raise AssertionError("values were compared one by one")


def test_only_environments_that_are_taken_and_show_something_are_refused() -> None:
    space, into = Box(1, 9, (2,), np.int32), np.zeros((3, 2), np.int32)
    check, shown = (
        VectorCheck(OneProgram(None), space, None, into),
        np.array([[1, 9], [0, 0], [2, 3]]),
    )
    for obs in (shown, shown.astype(np.int32), shown.astype(np.int8), shown * 1.0):
        check.take(obs, None, np.array([False, True, False]))
        assert into.tolist() == shown.tolist()
        check.take(obs, np.array([True, False, True]))
        for envs in (None, np.array([False, True, True])):
            with pytest.raises(UsageError, match=r"^environment 1 with 0(\.0)? at \[0\]"):
                check.take(obs, envs, np.array([False, False, True]))


@pytest.mark.parametrize("vectorizer", ["sync", "given"])
def test_observations_are_compared_once_by_environments_of_ours_or_else_by_their_vector(
    vectorizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    right = Bounds.are_left

    def are_left(self: Bounds) -> bool:
        compared.append(1)
        return right(self)

    monkeypatch.setattr(Bounds, "are_left", are_left)
    factory = partial(LeavingEnv, FEW, [1, 2], [1, 2])
    if vectorizer == "given":
        source: EnvSource = source_of(SyncVectorEnv([factory] * 3))
    else:
        source = make_source(vectorizer, factory, describe(factory), 3)
    with closing(source):
        source.reset(range(3))
        del compared[:]
        for _ in range(2):
            source.send(np.zeros(3, np.int64))
            source.recv()
    assert len(compared) == (2 if vectorizer == "given" else 2 * 3)


class BesideMask(LeavingEnv):
    """Shows a Dict of what leaves its space and of a mask."""

    def __init__(self) -> None:
        super().__init__(FEW, np.array([1, 2], np.int32), np.array([11, 2], np.int32))
        mask = Box(0, 1, (2,), np.int8)
        self.observation_space: Any = Dict({"action_mask": mask, "seen": FEW})

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return {"action_mask": np.ones(2, np.int8), "seen": obs}, info

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return ({"action_mask": np.ones(2, np.int8), "seen": obs}, *rest)


def test_what_lies_beside_a_mask_is_compared_by_a_made_vector() -> None:
    described = describe(partial(with_mask_in_info, BesideMask))
    source = make_source("sync", BesideMask, described, 2)
    with pytest.raises(UsageError, match=r"^environment [01] with 11 at \[0\]"):
        _steps(source, 6)


def test_whole_floats_of_a_vector_are_taken() -> None:
    source = source_of(OneProgram(np.array([[1.0, 2.0], [3.0, 255.0]])))
    source.reset((0, 1))
    assert source.rows.obs.tolist() == [[1, 2], [3, 255]]


def test_float_bounds_are_hints_and_whole_floats_are_integers() -> None:
    assert isinstance(small(partial(LeavingEnv, FLOATS, [0.0, 1.0], [7.0, -9.0])).learn(60), DQN)
    assert isinstance(
        small(partial(LeavingEnv, BYTES, [0, 1], np.array([7.0, 255.0]))).learn(60), DQN
    )


def test_an_agent_names_which_value_left_which_space() -> None:
    agent = small(partial(NUMBER, at=30), vectorizer="grouped", num_workers=0, num_envs=2)
    with pytest.raises(UsageError, match=r"^environment [01] with 5 for its observation: its"):
        agent.learn(400)
