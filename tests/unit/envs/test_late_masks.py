"""Masks that come late: refused where nothing expects them, obeyed where a setting says so."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastdqn import DQN, UsageError
from fastdqn.cli import commands
from fastdqn.envs.description import describe
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.sources.source import source_of
from fastdqn.envs.tensor import make_tensor_env
from fastdqn.training.callbacks import Callback
from tests.drive import MODES, everything_in
from tests.masked import NUM_ACTIONS, MuchLaterMaskedCounterEnv, allowed
from tests.unit.agent.test_dqn import small

MESSAGE = (
    r"^environment [0-2] with an action mask in its info: its first infos held none.*"
    r"--expect-action-masks.*--no-action-masks"
)
WAYS: list[dict[str, Any]] = [
    {"vectorizer": "grouped", "num_workers": 0},
    {"vectorizer": "grouped", "num_workers": 0, "env_groups": 2, "num_envs": 2},
    {"vectorizer": "grouped", "num_workers": 1},
    {"vectorizer": "grouped", "num_workers": 2},
    {"vectorizer": "sync"},
]
SAME_STEP = AutoresetMode.SAME_STEP


def late(**kwargs: Any) -> Any:
    return partial(MuchLaterMaskedCounterEnv, -1, 5, "alternating", **kwargs)


class NoRestart(Callback):
    def on_restart(self, env_steps: int, message: str) -> None:
        raise AssertionError(message)


def assert_obeyed(agent: DQN, from_t: int) -> None:
    """Check every stored action and next mask by the counters that the observations show."""
    stored = everything_in(agent.replay)
    assert stored.next_action_mask is not None
    message = 0
    for obs, action, after, mask in zip(
        stored.obs.astype(int).tolist(),
        stored.action.tolist(),
        stored.next_obs.astype(int).tolist(),
        stored.next_action_mask.tolist(),
        strict=True,
    ):
        assert obs[2] < from_t or allowed(*obs)[action]
        expected = allowed(*after) if after[2] >= from_t else [True] * NUM_ACTIONS
        assert mask == expected
        message += after[2] >= from_t
    assert message > 50


@pytest.mark.parametrize("when", [{"from_t": 2}, {"from_t": 5}, {"from_t": 0, "from_episode": 3}])
@pytest.mark.parametrize("settings", WAYS, ids=str)
def test_a_mask_that_comes_late_ends_the_run_at_once_and_says_how_to_obey_it(
    settings: dict[str, Any], when: dict[str, int], nothing_left: None
) -> None:
    agent = small(late(**when, strict=False), **settings)
    with pytest.raises(UsageError, match=MESSAGE):
        agent.learn(400, callback=NoRestart())


@pytest.mark.parametrize("settings", WAYS, ids=str)
def test_masks_that_are_expected_are_obeyed_from_the_first_on(settings: dict[str, Any]) -> None:
    agent = small(late(), expect_action_masks=True, **settings)
    agent.learn(300, callback=NoRestart())
    assert_obeyed(agent, 2)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("kind", ["sync", "grouped", "grouped, no infos"])
def test_a_lent_vector_whose_masks_come_late_is_refused(kind: str, mode: AutoresetMode) -> None:
    factories = [late(strict=False)] * 3
    envs: Any
    if kind == "sync":
        envs = SyncVectorEnv(factories, autoreset_mode=mode)
    else:
        infos = "no infos" not in kind
        envs = GroupedVectorEnv(factories, autoreset_mode=mode, num_workers=0, send_infos=infos)
    with closing(envs), pytest.raises(UsageError, match=MESSAGE):
        small(envs).learn(200)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_lent_vector_whose_masks_are_expected_is_obeyed(mode: AutoresetMode) -> None:
    with closing(SyncVectorEnv([late()] * 3, autoreset_mode=mode)) as envs:
        assert_obeyed(small(envs, expect_action_masks=True).learn(300), 2)
    factories = [late()] * 3
    with closing(GroupedVectorEnv(factories, autoreset_mode=mode, num_workers=0)) as ours:
        assert_obeyed(small(ours, expect_action_masks=True).learn(300), 2)


def test_masks_that_are_expected_from_infos_that_do_not_travel_are_refused() -> None:
    envs = GroupedVectorEnv([late()] * 2, num_workers=0, send_infos=False)
    with closing(envs), pytest.raises(UsageError, match=r"send_infos=False.*num_masked"):
        source_of(envs, masks_in_infos=True)


def test_masks_that_are_ignored_or_sent_along_are_never_refused() -> None:
    factory = late(strict=False)
    assert small(factory, action_masks=False).learn(200).replay.ring.masks is None
    for keeps in (True, False):
        vector = partial(GroupedVectorEnv, num_workers=0, send_infos=keeps, drop_masks=not keeps)
        with closing(vector([factory] * 2)) as envs:
            envs.reset(seed=0)
            for _ in range(4):
                infos = envs.step(np.zeros(2, np.int64))[4]
            assert ("action_mask" in infos) == keeps
    with closing(SyncVectorEnv([factory] * 2, autoreset_mode=SAME_STEP)) as envs:
        assert small(envs, action_masks=False).learn(200).replay.ring.masks is None


def test_a_mask_of_none_is_no_mask() -> None:
    class SaysNone(MuchLaterMaskedCounterEnv):
        def message(self) -> Any:
            return {"action_mask": None}

    for settings in (WAYS[0], WAYS[-1]):
        agent = small(partial(SaysNone, 0, from_t=99), **settings).learn(100)
        assert agent.replay.ring.masks is None
        agent = small(partial(SaysNone, 0, from_t=99), expect_action_masks=True, **settings)
        assert everything_in(agent.learn(100).replay).next_action_mask.all()  # type: ignore[union-attr]


def test_what_is_expected_is_described_and_a_wrong_first_mask_is_refused_all_the_same() -> None:
    assert describe(late(), expect_masks=True).num_masked == NUM_ACTIONS
    assert describe(late()).num_masked == 0
    assert describe(late(), masks=False, expect_masks=True).num_masked == 0


@pytest.mark.parametrize(
    ("env", "settings"),
    [("CartPole-v1", {"vectorizer": "tensor"}), (make_tensor_env("CartPole-v1", 2, "cpu"), {})],
)
def test_where_no_masks_can_come_none_can_be_expected(env: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--expect-action-masks: EnvPool and tensor"):
        small(env, expect_action_masks=True, **settings)


def test_masks_cannot_be_expected_and_ignored() -> None:
    with pytest.raises(UsageError, match="--expect-action-masks with --no-action-masks"):
        small(late(), expect_action_masks=True, action_masks=False)


def test_the_command_line_says_how_to_go_on_and_saves_the_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gym.register("Late-v0", entry_point=partial(MuchLaterMaskedCounterEnv, -1, 5, "alternating"))
    try:
        flags = (
            "train --env-id Late-v0 --total-timesteps 300 --learning-starts 100 --num-envs 4 "
            "--num-workers 0 --execution eager --eval-episodes 2 --device cpu --quiet --run-dir"
        )
        assert commands.main([*flags.split(), str(tmp_path / "refused")]) == 1
        message = " ".join(capsys.readouterr().out.split())
        assert "with an action mask in its info" in message
        assert "--expect-action-masks" in message
        assert (tmp_path / "refused" / "result.json").exists()
        obeyed = [*flags.split(), str(tmp_path / "obeyed"), "--expect-action-masks"]
        assert commands.main(obeyed) == 0
        assert commands.main(["evaluate", str(tmp_path / "obeyed"), "--episodes", "2"]) == 0
    finally:
        del gym.registry["Late-v0"]
