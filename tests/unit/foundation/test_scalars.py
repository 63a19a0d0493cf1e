"""Single values as callers write them, and parts that take them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fastdqn import MLP, Learner, ReplayBuffer
from fastdqn.algorithms.objectives import DQNObjective
from fastdqn.errors import UsageError
from fastdqn.foundation.scalars import as_bool, as_whole, python_scalar, whole, whole_numbers


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (np.int64(3), 3),
        (np.float32(2.0), 2),
        (1e5, 100_000),
        (torch.tensor(7), 7),
        (np.array(4), 4),
    ],
)
def test_whole_numbers_of_any_make_become_ints(value: Any, number: int) -> None:
    assert (as_whole(value), type(as_whole(value))) == (number, int)


@pytest.mark.parametrize("value", [2.5, math.nan, math.inf, "3", None, [1], np.array([1])])
def test_what_is_no_whole_number_stays_as_it_is(value: Any) -> None:
    assert as_whole(value) is value or python_scalar(value) is value


def test_a_bool_of_numpy_and_one_and_zero_are_bools() -> None:
    assert [as_bool(value) for value in (np.True_, 1, 0, True)] == [True, True, False, True]
    assert as_bool("no") == "no"
    assert as_bool(2) == 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [("300", "whole number"), (True, "whole number"), (2.5, "whole number"), (0, "at least 1")],
)
def test_an_argument_that_is_no_count_is_refused_by_name(value: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"^episodes .*{reason}.* Try 100\.$"):
        whole("episodes", value, least=1, way_out="Try 100.")


@pytest.mark.parametrize("values", [4, "44", (4, "a"), (-1,), (2.5,), None])
def test_a_shape_that_is_none_is_refused(values: Any) -> None:
    with pytest.raises(UsageError, match="obs_shape"):
        whole_numbers("obs_shape", values, way_out="Try (4,).")


@pytest.mark.parametrize(
    "build",
    [
        lambda: ReplayBuffer("100", num_envs=8, obs_shape=(4,)),  # type: ignore[arg-type]
        lambda: ReplayBuffer(100, num_envs=2.5, obs_shape=(4,)),  # type: ignore[arg-type]
        lambda: ReplayBuffer(100, num_envs=8, obs_shape=4),  # type: ignore[arg-type]
        lambda: MLP(4, 2),  # type: ignore[arg-type]
        lambda: MLP((4,), 0),
        lambda: MLP((4,), 2, hidden_sizes=64),  # type: ignore[arg-type]
        lambda: Learner(MLP((4,), 2), gamma="0.9"),  # type: ignore[arg-type]
        lambda: Learner(MLP((4,), 2), learning_rate=math.nan),
        lambda: Learner(MLP((4,), 2), clip_norm="10"),  # type: ignore[arg-type]
        lambda: Learner(MLP((4,), 2), double="no"),  # type: ignore[arg-type]
        lambda: Learner(MLP((4,), 2), target_period=2.5),  # type: ignore[arg-type]
    ],
)
def test_parts_refuse_what_they_cannot_use_with_a_message(build: Any) -> None:
    with pytest.raises(UsageError):
        build()


def test_parts_take_numpys_scalars() -> None:
    network = MLP((np.int64(4),), np.int64(2), hidden_sizes=np.array([8, 8]))  # type: ignore[arg-type]
    learner = Learner(network, gamma=np.float32(0.5), double=np.False_)  # type: ignore[arg-type]
    replay = ReplayBuffer(1e2, num_envs=np.int32(4), obs_shape=(4.0,))  # type: ignore[arg-type]
    assert (learner.gamma, replay.num_envs) == (0.5, 4)
    assert learner.objective == DQNObjective()
    assert network(torch.zeros(3, 4)).shape == (3, 2)
