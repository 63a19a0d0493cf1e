"""Random generators go on from their states, and refuse what is none."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from fastdqn.errors import CheckpointError
from fastdqn.foundation.saved_generators import (
    generator_state,
    global_generators,
    restore_generator,
    restore_global_generators,
)
from fastdqn.foundation.state import PartState


def drawn(generator: torch.Generator) -> list[float]:
    values: list[float] = torch.rand(3, generator=generator).tolist()
    return values


def test_a_generator_draws_what_the_other_one_would() -> None:
    one = torch.Generator().manual_seed(5)
    drawn(one)
    state = generator_state(one)
    other = torch.Generator()
    restore_generator(other, state)
    assert drawn(other) == drawn(one)
    assert state.values == {"device": "cpu", "seed": 5}


def test_that_of_another_device_makes_seeds_that_follow_from_seed_and_state() -> None:
    def first(seed: int, number: int) -> list[float]:
        there = {"generator": torch.tensor([number] * 16, dtype=torch.uint8)}
        generator = torch.Generator()
        restore_generator(generator, PartState({"device": "cuda", "seed": seed}, there))
        return drawn(generator)

    assert first(1, 2) == first(1, 2)
    assert len({tuple(first(*of)) for of in ((1, 2), (1, 3), (2, 2), (2, 3))}) == 4
    large = {"generator": torch.zeros(10_001, dtype=torch.uint8)}
    for tensors in ({}, large):
        state = PartState({"device": "cuda", "seed": 1}, tensors)
        with pytest.raises(CheckpointError, match="its generator is no tensor of at most 10,000"):
            restore_generator(torch.Generator(), state)


@pytest.mark.parametrize("seeded", [False, True])
def test_the_global_generators_go_on_and_the_second_gauss_of_a_pair_too(seeded: bool) -> None:
    if seeded:
        random.gauss(0.0, 1.0)
        np.random.standard_normal()

    def draws() -> list[float]:
        numpy, own = np.random.standard_normal(), random.gauss(0.0, 1.0)
        return [float(numpy), own, random.random(), *torch.rand(2).tolist()]

    state = global_generators()
    first = draws()
    restore_global_generators(state)
    assert draws() == first


def test_one_that_the_process_lacks_or_the_state_lacks_is_left_alone() -> None:
    state = global_generators()
    values = {**state.values, "cuda0": {}}
    del values["numpy"]
    kept = np.random.get_state(legacy=False)
    np.random.standard_normal()
    now = np.random.get_state(legacy=False)["state"]["pos"]
    restore_global_generators(PartState(values, state.tensors))
    assert np.random.get_state(legacy=False)["state"]["pos"] == now
    np.random.set_state(kept)
