"""A rollout among numbers that are not finite goes on as if it had never been saved."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fastdqn.envs.sources.source import source_of
from fastdqn.errors import CheckpointError, NonFiniteError
from fastdqn.foundation.state import PartState
from fastdqn.training.host.rollout import HostRollout
from tests.continued import GlitchyNoiseEnv, NoiseEnv, keeping, resumed, saved_and_read
from tests.drive import everything_in, roll, rollout_of

each_policy = pytest.mark.parametrize("on_nonfinite", ["skip", "replace"])


def glitchy(num_envs: int = 4) -> list[Any]:
    return [partial(GlitchyNoiseEnv, env_id=env) for env in range(num_envs)]


def started(on_nonfinite: str, steps: int, groups: int = 1, factories: Any = None) -> HostRollout:
    source = source_of(keeping(factories or glitchy(), num_groups=groups))
    rollout = rollout_of(source, 2000, on_nonfinite=on_nonfinite)
    rollout.reset(range(11, 11 + source.num_envs))
    roll(rollout, steps)
    return rollout


def spoiled_in(rollout: HostRollout) -> Any:
    return np.concatenate([group.guard.spoiled for group in rollout._groups])


def assert_alike(one: HostRollout, other: HostRollout, steps: int = 25) -> None:
    """Check that both bring the same from now on, to the bit, and count the same."""
    assert roll(one, steps) == roll(other, steps)
    assert one.state().values["guards"] == other.state().values["guards"]
    assert one.env_steps == other.env_steps
    assert len(one.replay) == len(other.replay)
    for name, cells in one.replay.ring.cells().items():
        assert torch.equal(cells, other.replay.ring.cells()[name]), name


@each_policy
@pytest.mark.parametrize("groups", [1, 2])
def test_it_goes_on_wherever_it_was_saved(on_nonfinite: str, groups: int) -> None:
    """Also right after a bad number, and after a bad start, before the new episode begins."""
    due, waiting = 0, 0
    for cut in range(4, 17):
        rollout = started(on_nonfinite, cut, groups)
        twin = resumed(rollout, keeping(glitchy(), num_groups=groups))
        assert twin.lost == {}
        due += int(rollout.source.rows.restarting.sum())
        waiting += int((spoiled_in(rollout) & ~rollout.source.rows.restarting).sum())
        assert_alike(rollout, twin)
        for each in (rollout, twin):
            assert torch.isfinite(each.replay.ring.frames).all()
            assert each.nonfinite > 5
            each.source.close()
    skips = on_nonfinite == "skip"
    assert (due > 2) is skips
    assert (waiting > 2) is (skips and groups == 2)


def test_nothing_is_joined_across_a_skipped_step_and_a_resume() -> None:
    for cut in range(5, 15):
        rollout = started("skip", cut)
        twin = resumed(rollout, keeping(glitchy()))
        roll(twin, 20)
        stored = everything_in(twin.replay)
        assert (stored.obs[:, 1] == stored.next_obs[:, 1]).all()
        assert (stored.obs[:, 2] + 1 == stored.next_obs[:, 2]).all()
        rollout.source.close()
        twin.source.close()


class BadStart(NoiseEnv):
    """Begins with a NaN, but in the first episode; its generator is not Gymnasium's."""

    def reset(self, **given: Any) -> Any:
        obs, info = super().reset(**given)
        self.begun = getattr(self, "begun", 0) + 1
        if self.begun > 1:
            obs[0] = np.nan
        self.walk += self.walk * np.random.default_rng().random()  # never played again alike
        return (obs, info) if self.begun > 1 else (self._obs(), info)


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip", "replace"])
def test_a_bad_start_in_the_place_of_a_lost_episode_is_looked_at(on_nonfinite: str) -> None:
    rollout = started(on_nonfinite, 0, factories=[BadStart, NoiseEnv])
    fresh = keeping([BadStart, NoiseEnv])
    before = rollout.nonfinite
    if on_nonfinite == "raise":
        with pytest.raises(NonFiniteError, match="environment 0 returned the observation"):
            resumed(rollout, fresh)
        fresh.close()
    else:
        twin = resumed(rollout, fresh)
        assert list(twin.lost) == [0]
        assert twin.nonfinite == before + 1
        assert spoiled_in(twin).tolist() == [on_nonfinite == "skip", False]
        assert twin.source.rows.restarting.tolist() == [on_nonfinite == "skip", False]
        assert torch.isfinite(twin.replay.shown(0)).all()
        twin.source.close()
    rollout.source.close()


FLAGS = torch.ones(4, dtype=torch.bool)
LIES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "new episodes": ("raise", {}, {"rows/restarting": FLAGS}, "rows/restarting is true where"),
    "nothing skipped": ("replace", {}, {"guards/spoiled": FLAGS}, "spoiled is true somewhere"),
    "returns": (
        "replace",
        {},
        {"guards/returns": torch.full((4,), torch.nan, dtype=torch.float64)},
        "returns is not finite",
    ),
    "shown": (
        "skip",
        {},
        {"rows/obs": torch.full((4, 5), torch.inf, dtype=torch.float64)},
        "rows/obs is not finite",
    ),
    "count": ("skip", {"count": -1}, {}, "count is -1"),
    "words": ("skip", {"first": "a\x1b[2J"}, {}, "first is no text of one line"),
    "in a row": ("skip", {"in_a_row": True}, {}, "in_a_row is True"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_forged_state_is_refused_by_name(name: str) -> None:
    on_nonfinite, values, tensors, message = LIES[name]
    rollout, envs = started(on_nonfinite, 0, factories=[NoiseEnv] * 4), keeping([NoiseEnv] * 4)
    state = saved_and_read(rollout.state())
    guards = {**state.values["guards"], **values}
    forged = PartState({**state.values, "guards": guards}, {**state.tensors, **tensors})
    with pytest.raises(CheckpointError, match=f"its {message}"):
        resumed(rollout, envs, forged)
    envs.close()
    rollout.source.close()
