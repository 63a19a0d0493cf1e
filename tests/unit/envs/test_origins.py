"""What an episode begins from is noted before the reset that moves it, or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastdqn.envs.workers.origins import (
    GENERATOR,
    KIND,
    NUM_WORDS,
    SEEDED,
    STEP,
    UNKNOWN,
    OriginColumn,
    Origins,
    begin_from,
    is_origin,
    known_in,
)
from tests.continued import NoiseEnv


def noted(env: Any, seed: int | None = None, options: Any = None, origin: Any = None) -> Origins:
    """Return [8] what is noted before a reset of an environment that is the second of two."""
    words = np.full((2, NUM_WORDS), 77, np.uint64)
    sent = np.array([[3], [9]])
    OriginColumn(words, sent).note(1, env, seed, options, origin)
    assert (words[0] == 77).all()
    assert words[1, STEP] == 9
    own: Origins = words[1]
    return own


def began(seed: int = 3, steps: int = 5) -> NoiseEnv:
    env = NoiseEnv()
    env.reset(seed=seed)
    for _ in range(steps):
        env.step(1)
    return env


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_fresh_environment_begins_from_the_state_that_was_noted(steps: int) -> None:
    env, twin = began(steps=steps), NoiseEnv()
    words = noted(env)
    assert words[KIND] == GENERATOR
    shown, _ = env.reset()
    again, _ = begin_from(twin, words, 3)
    assert again.tolist() == shown.tolist()
    assert twin.np_random.bit_generator.state == env.np_random.bit_generator.state
    assert noted(twin, 3, origin=words)[[KIND, 2, 3]].tolist() == words[[KIND, 2, 3]].tolist()


def test_a_seed_is_noted_as_it_is() -> None:
    words = noted(began(), seed=2**63)
    assert words.tolist() == [SEEDED, 9, 2**63, 0, 0, 0, 0, 0]
    assert begin_from(NoiseEnv(), words, 5)[0].tolist() == NoiseEnv().reset(seed=2**63)[0].tolist()


class Odd(NoiseEnv):
    """Has a generator of another kind."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self._np_random = np.random.Generator(kind(0))


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.PCG64DXSM, np.random.Philox])
def test_other_generators_are_not_known(kind: Any) -> None:
    assert noted(Odd(kind))[KIND] == UNKNOWN


@pytest.mark.parametrize(
    "given", [{"seed": 2**64}, {"options": {"level": 2}}, {"seed": 3, "options": {"level": 2}}]
)
def test_resets_that_nobody_can_repeat_are_not_known(given: Any) -> None:
    assert noted(began(), **given).tolist() == [UNKNOWN, 9, 0, 0, 0, 0, 0, 0]


def test_an_environment_that_has_no_generator_yet_is_not_given_one() -> None:
    env = NoiseEnv()
    assert noted(env)[KIND] == UNKNOWN
    assert env._np_random is None


def test_an_origin_is_known_or_not() -> None:
    words = np.stack([noted(began()), noted(began(), seed=2), noted(NoiseEnv()), noted(began())])
    words[3, KIND] = 3
    assert [known_in(words, env) is not None for env in range(4)] == [True, True, False, False]
    assert known_in(None, 0) is None
    assert all(map(is_origin, words))
    for place, value in ((KIND, 4), (5, 2), (6, 2), (7, 2**32)):
        forged = noted(began())
        forged[place] = value
        assert not is_origin(forged), place
