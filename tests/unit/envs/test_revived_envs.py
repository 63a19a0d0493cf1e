"""The environments of a worker that was restarted go on in the middle of their episodes, or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from fastdqn.envs.workers.hosted_envs import HostedEnvs
from fastdqn.envs.workers.open_episodes import EpisodeLog
from fastdqn.envs.workers.origins import GENERATOR, KIND, NUM_WORDS, SEEDED, STEP, UNKNOWN
from fastdqn.envs.workers.revived_envs import Past, RevivedEnvs
from fastdqn.envs.workers.settings import EnvFactory, PoolSettings
from fastdqn.envs.workers.shared_block import RowSpec, SharedBlock
from tests.continued import MaskedNoiseEnv, NoiseEnv

SEEDS, FRESH = [11, 12, 13], [21, 22, 23]
NUM_ENVS, LIMIT_S = 3, 60.0


class Lived:
    """Three environments that stepped in one host, and what is kept of their open episodes."""

    def __init__(self, factories: Sequence[EnvFactory], *, masked: bool = False) -> None:
        space = factories[0]().observation_space
        assert space.dtype is not None
        spec = RowSpec(
            NUM_ENVS,
            space.shape or (),
            space.dtype.name,
            num_masked=3 if masked else 0,
            num_origin=NUM_WORDS,
        )
        self.settings = PoolSettings(spec, plain_actions=True, action_range=(0, 2))
        self.masked, self.rng = masked, np.random.default_rng(0)
        self.rows = SharedBlock.allocate(spec)
        self.log = EpisodeLog(self.settings, self.rows)
        self.host = HostedEnvs(self.settings, (0, NUM_ENVS), factories, self.rows)
        self.host.make()
        self.host.reset(list(SEEDS), None, [True] * NUM_ENVS)

    def step(self, *others: HostedEnvs) -> None:
        """Step this host, and others that take the same actions."""
        scores = self.rng.random((NUM_ENVS, 3))
        if self.masked:
            scores[~self.rows.action_mask] = -1.0
        self.rows.action[:] = scores.argmax(1)
        self.log.append(0)
        for host in (self.host, *others):
            host.rows.action[:] = self.rows.action
            host.rows.steps_sent[:] = self.rows.steps_sent
            host.step()

    def live(self, least: int = 3) -> None:
        """Step until every open episode is that long, and one is not the first."""
        while min(self.host.lengths) < least or not (self.rows.origin[:, STEP] > 0).any():
            self.step()

    def past(self) -> Past:
        rows, sent = self.rows, self.log.sent[0]
        actions = []
        for env in range(NUM_ENVS):
            taken = self.log.raw_actions_of(env, int(rows.origin[env, STEP]), sent)
            assert taken is not None
            actions.append(taken)
        shown = rows.origin.copy(), actions, rows.obs.copy(), rows.action_mask.copy()
        return Past(*shown, list(SEEDS), LIMIT_S)

    def revived(self, factories: Sequence[EnvFactory], past: Past | None) -> RevivedEnvs:
        """Return other environments that are to go on; what their block held is lost."""
        rows = SharedBlock.allocate(self.settings.spec)
        rows.steps_sent[:] = self.log.sent[0]
        host = RevivedEnvs(self.settings, (0, NUM_ENVS), factories, rows)
        host.revive({}, list(FRESH), past)
        return host


def assert_gone_on(lived: Lived, host: HostedEnvs, envs: Sequence[int]) -> None:
    """Check that these go on where they were, and the others begin anew."""
    for env in range(NUM_ENVS):
        if env in envs:
            assert host.rows.obs[env].tolist() == lived.rows.obs[env].tolist()
            assert host.rows.action_mask[env].tolist() == lived.rows.action_mask[env].tolist()
            assert host.rows.origin[env].tolist() == lived.rows.origin[env].tolist()
            assert host.returns[env] == lived.host.returns[env] != 0.0
            assert host.lengths[env] == lived.host.lengths[env] > 0
        else:
            assert host.rows.origin[env, :3].tolist() == [SEEDED, lived.log.sent[0], FRESH[env]]
            assert host.returns[env] == host.lengths[env] == 0


def noisy(odd: EnvFactory | None = None) -> list[EnvFactory]:
    factories: list[EnvFactory] = [partial(NoiseEnv, env_id=env) for env in range(NUM_ENVS)]
    return factories if odd is None else [factories[0], odd, factories[2]]


@pytest.mark.parametrize("kind", [NoiseEnv, MaskedNoiseEnv, partial(NoiseEnv, "layout")])
def test_they_go_on_as_if_nothing_had_happened(kind: Any) -> None:
    factories, masked = [kind] * NUM_ENVS, kind is MaskedNoiseEnv
    lived = Lived(factories, masked=masked)
    lived.live()
    host = lived.revived(factories, lived.past())
    assert_gone_on(lived, host, range(NUM_ENVS))
    assert (host.rows.origin[:, KIND] == GENERATOR).any()
    for _ in range(60):
        lived.step(host)
        for name in ("obs", "reward", "terminated", "origin", "action_mask"):
            assert getattr(host.rows, name).tolist() == getattr(lived.rows, name).tolist(), name
        assert host.returns == lived.host.returns
    assert (host.rows.episode_length > 0).all()
    assert host.rows.final_obs.tolist() == lived.rows.final_obs.tolist()
    assert host.rows.episode_return.tolist() == lived.rows.episode_return.tolist()


@pytest.mark.parametrize("name", ["obs", "action_mask"])
def test_one_that_shows_something_else_begins_anew(name: str) -> None:
    factories: list[EnvFactory] = [MaskedNoiseEnv] * NUM_ENVS
    lived = Lived(factories, masked=True)
    lived.live()
    past = lived.past()
    shown = getattr(past, name)
    shown[1, 0] = ~shown[1, 0] if name == "action_mask" else shown[1, 0] + 1
    assert_gone_on(lived, lived.revived(factories, past), [0, 2])


def test_one_whose_origin_is_not_known_begins_anew() -> None:
    lived = Lived(noisy())
    lived.live()
    past = lived.past()
    past.origin[2, KIND] = UNKNOWN
    assert_gone_on(lived, lived.revived(noisy(), past), [0, 1])


def test_without_a_past_all_begin_anew() -> None:
    lived = Lived(noisy())
    lived.live()
    assert_gone_on(lived, lived.revived(noisy(), None), [])


def test_what_takes_too_long_begins_anew() -> None:
    lived = Lived(noisy())
    lived.live()
    past = replace(lived.past(), limit_s=0.0)
    assert_gone_on(lived, lived.revived(noisy(), past), [])


class Blind(NoiseEnv):
    """Always shows the same, and ends after so many steps."""

    def __init__(self, lives: int) -> None:
        super().__init__()
        self.lives = lives

    def step(self, action: int) -> Any:
        super().step(action)
        return self._obs(), 1.0, self.t >= self.lives, False, {}

    def _obs(self) -> Any:
        return np.zeros(5)


def test_one_that_ends_on_the_way_begins_anew_although_it_shows_the_same() -> None:
    lived = Lived(noisy(partial(Blind, 100)))
    lived.live(4)
    host = lived.revived(noisy(partial(Blind, 3)), lived.past())
    assert_gone_on(lived, host, [0, 2])


class Raises(Blind):
    """Raises in its third step, and shows the same as ever."""

    def step(self, action: int) -> Any:
        if self.t == 2:
            raise ValueError("out of luck")
        return super().step(action)


def test_one_that_raises_on_the_way_begins_anew() -> None:
    lived = Lived(noisy(partial(Blind, 100)))
    lived.live(4)
    host = lived.revived(noisy(partial(Raises, 100)), lived.past())
    assert_gone_on(lived, host, [0, 2])
