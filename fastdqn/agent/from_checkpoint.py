"""From a checkpoint to an agent that goes on from there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastdqn.agent.arguments import chosen_in
from fastdqn.agent.dqn import DQN
from fastdqn.agent.resumed_run import Resumed
from fastdqn.agent.saved_description import read_description, read_setting
from fastdqn.checkpoint.layout import STATE, steps
from fastdqn.checkpoint.reader import SavedTraining, newest_training
from fastdqn.config import Config
from fastdqn.errors import CheckpointError
from fastdqn.foundation.changed_settings import MAY_CHANGE, Change
from fastdqn.foundation.policy_folders import CHECKPOINTS
from fastdqn.foundation.saved_files import parse_json, read_regular
from fastdqn.reporting.cutting_back import Counts, cut_back
from fastdqn.training.checkpoint import SavedPolicy, newest_checkpoint

__all__ = ["Found", "clear_for_a_new_beginning", "find", "is_finished"]

MOST_BYTES = 10_000_000
MOST_RESUMED = 1_000
"""Of the times that config.json says a run went on, the last ones."""
FROM_POLICY = (
    "learning goes on from the parameters alone: with an empty replay ring, new episodes, and an "
    "optimizer that begins anew"
)
Changed = Callable[[Config], tuple[Config, list[Change]]]


@dataclass(frozen=True)
class Found:
    """What a run can go on from.

    Attributes:
        run_dir: Its folder.
        policy: The newest one.
        training: Of the same checkpoint; None where there is no more than a policy.
        config: The settings of the run.
        resumed: When it went on before.
        begun_at: Env steps at which its training began.
        ends_at: Env steps at which the training of the checkpoint ends by itself, with
            `total_timesteps`; a call of `learn` may have asked for another number than the setting.
        total_timesteps: The setting when the checkpoint was made.
        env_steps: Env steps so far.
    """

    run_dir: Path
    policy: SavedPolicy
    training: SavedTraining | None
    config: Config
    resumed: list[dict[str, Any]]
    begun_at: int
    ends_at: int
    total_timesteps: int
    env_steps: int

    def until(self, config: Config) -> int:
        """Return the env steps at which the run ends by itself, with these settings."""
        if config.total_timesteps == self.total_timesteps:
            return self.ends_at
        if self.ends_at == self.total_timesteps:  # which is that of the run, also from a policy on
            return config.total_timesteps
        return self.begun_at + config.total_timesteps

    def agent(
        self, config: Config, changes: list[Change], env: str | None, named: Mapping[str, Any]
    ) -> tuple[DQN, Resumed]:
        """Return the agent, restored, and how the run goes on.

        Args:
            config: The settings from now on.
            changes: What they change.
            env: Id of its environment, if the caller names it.
            named: Its arguments and wrappers, likewise.

        Raises:
            CheckpointError: The checkpoint holds what cannot be.
            UsageError: The environment cannot be built, or a setting not be used here.
        """
        given = {name: getattr(config, name) for name in MAY_CHANGE}
        agent = DQN.load(replace(self.policy, skipped=()), env, **given, **named)
        agent.config = replace(agent.config, run_dir=self.run_dir)
        agent._caller_settings = chosen_in(agent.config)
        resumed = Resumed(
            self.policy.folder,
            self._counts(),
            changed=list(map(str, changes)),
            skipped=self.policy.skipped if self.training is None else self.training.skipped,
            earlier=self.resumed,
        )
        if self.training is None:
            resumed.inexact = [FROM_POLICY]
        else:
            _restore(agent, self.training, resumed)
        return agent, resumed

    def _counts(self) -> Counts:
        read = read_description(self.policy.description)
        if self.training is None:
            return Counts(read.env_steps, read.episodes, read.env_steps)
        state = self.training.state
        reported = state.part("trainer").part("reported").whole("env_steps")
        return Counts(self.env_steps, state.part("agent").whole("episodes"), reported)


def _restore(agent: DQN, saved: SavedTraining, resumed: Resumed) -> None:
    chunks, resumed.filled = agent.restore_from(saved)
    resumed.chunks = chunks if saved.has_replay else None
    resumed.inexact = list(agent.inexact)


def find(run_dir: Path, *, from_policy: bool = False) -> Found:
    """Find the newest whole checkpoint of a run.

    Args:
        run_dir: Its folder.
        from_policy: Whether a policy alone is enough where there is no more.

    Raises:
        CheckpointError: There is none, or it holds what cannot be.
    """
    training: SavedTraining | None = None
    try:
        training = newest_training(run_dir)
        policy = training.policy
    except CheckpointError as error:
        policy = _policy_alone(run_dir, error, from_policy=from_policy)
    try:
        read = read_description(policy.description)
    except CheckpointError as error:
        raise CheckpointError(f"{policy.folder} cannot be resumed: {error}") from error
    before = Config(**read.settings)
    begun_at, ends_at, env_steps = 0, before.total_timesteps, read.env_steps
    if training is not None:
        loop = training.state.part("trainer")
        begun_at, ends_at = loop.whole("begun_at"), loop.whole("until")
        env_steps = training.state.part("agent").whole("env_steps")
    config, resumed = _as_told(run_dir, before)
    counts = begun_at, ends_at, before.total_timesteps, env_steps
    return Found(run_dir, policy, training, config, resumed, *counts)


def _policy_alone(run_dir: Path, error: CheckpointError, *, from_policy: bool) -> SavedPolicy:
    """Return the newest policy of a run, or raise why it has no more."""
    try:
        policy = newest_checkpoint(run_dir)
    except CheckpointError:
        raise error from None
    if from_policy:
        return policy
    raise CheckpointError(
        f"{error}. To go on from its parameters alone: fastdqn resume {run_dir} --from-policy"
    ) from error


def _as_told(run_dir: Path, config: Config) -> tuple[Config, list[dict[str, Any]]]:
    """Return the settings of a run, the newest of those that may change, and when it went on.

    Those of config.json are newer than the checkpoint's where the run went on with others, and was
    stopped before its next checkpoint.
    """
    content = _read(run_dir / "config.json")
    try:
        newer = content["config"]
        changed = {name: read_setting(name, newer[name]) for name in MAY_CHANGE & newer.keys()}
        resumed = [each for each in content.get("resumed", []) if isinstance(each, dict)]
        return replace(config, **changed), resumed[-MOST_RESUMED:]
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError):
        return config, []


def clear_for_a_new_beginning(run_dir: Path) -> bool:
    """Return whether a run has nothing to go on from, and may begin anew in its folder.

    Where it was given up before its first checkpoint, its policy is removed. One of an older
    version, or of a run that failed, stays, and nothing begins.
    """
    folders = steps(run_dir / CHECKPOINTS)
    if any((folder / STATE).exists() for folder in folders):
        return False
    status = _read(run_dir / "result.json").get("status")
    found = _read(run_dir / "config.json").get("config")
    settings = found if isinstance(found, dict) else {}
    of_a_run, of_now = "env_id" in settings, "save_replay" in settings
    if folders and not (of_now and status in {"stopped", "running"}):
        return False
    for folder in folders:
        shutil.rmtree(folder)
    if of_a_run:  # else tables that lie there are the caller's own
        cut_back(run_dir, Counts(0, 0, 0))
    return True


def _read(path: Path) -> dict[str, Any]:
    """Return what a JSON file of a run holds; empty where it cannot be read."""
    try:
        content = parse_json(read_regular(path, MOST_BYTES))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_finished(found: Found, config: Config) -> str | None:
    """Return how a run ended that has nothing left to do, in words; None if it has.

    Args:
        found: The run.
        config: Its settings from now on.
    """
    result = _read(found.run_dir / "result.json")
    status = result.get("status")
    if result.get("env_steps") != found.env_steps:
        return None
    at = f"after {found.env_steps:,} env steps"
    if status == "completed" and found.env_steps >= found.until(config):
        return f"Completed {at} already; a larger --total-timesteps goes on"
    if status == "solved" and config.stop_at_return == found.config.stop_at_return:
        return f"Solved {at} already; another --stop-at-return goes on"
    return None
