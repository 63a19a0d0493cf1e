"""Which settings may change when a run goes on, and why the others may not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastdqn.errors import UsageError
from fastdqn.foundation.setting_checks import flag_of, spelled

__all__ = ["MAY_CHANGE", "Change", "changes_of"]

MAY_CHANGE = frozenset(
    [
        "total_timesteps",
        "log_interval",
        "checkpoint_interval",
        "checkpoint_every",
        "keep_last",
        "save_replay",
        "eval_interval",
        "eval_episodes",
        "eval_max_steps",
        "stop_at_return",
        "num_workers",
        "worker_deadline_s",
        "max_worker_restarts",
        "restore_episodes",
        "restore_limit_s",
        "device",
        "execution",
        "cpu_threads",
        "tensorboard",
        "quiet",
    ]
)
"""Settings that change neither what the saved numbers mean nor the shape of any of them."""

REFUSALS = {
    "it holds transitions and open episodes of the environments that it began with": (
        "env_id env_kwargs wrapper num_envs env_groups vectorizer action_masks expect_action_masks"
    ),
    "its generators go on from where they are": "seed",
    "its parameters are those of a network that it decides": (
        "hidden_sizes dueling noisy layer_norm activation objective num_atoms num_quantiles kaiming"
    ),
    "its network values states by it": (
        "gamma n_step v_min v_max double munchausen_alpha munchausen_temperature munchausen_clip"
    ),
    "the moments of its optimizer, and all updates so far, follow from it": "optimizer amsgrad",
    "its replay ring has the shape that it decides": "replay buffer_size",
    "it goes on in its own folder": "run_dir",
}
"""Reason -> settings that it concerns."""
REASONS = {name: reason for reason, names in REFUSALS.items() for name in names.split()}
"""Setting -> why it may not change; of the others, `OTHERS`."""
OTHERS = "it would be another run under the name of this one"
WAYS_OUT: Mapping[str, str] = {
    "run_dir": "Copy the folder, and resume the copy",
}


@dataclass(frozen=True)
class Change:
    """A setting that a resumed run has another value of.

    Attributes:
        name: Its field.
        before: Its value so far.
        after: Its value from now on.
    """

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        flag = flag_of(self.name)
        if isinstance(self.before, bool) and isinstance(self.after, bool):
            negated = flag_of(f"no_{self.name}")
            return " -> ".join(flag if value else negated for value in (self.before, self.after))
        return f"{flag} {spelled(self.before)} -> {spelled(self.after)}"


def changes_of(
    before: Any, after: Any, names: Iterable[str], run: str, *, ignored: Iterable[str] = ()
) -> list[Change]:
    """Return the settings that change, all of which may.

    Args:
        before: The settings of the run so far.
        after: Those that are asked for.
        names: Fields to compare.
        run: The run's folder, for messages.
        ignored: Fields that are the folder's, or only names.

    Raises:
        UsageError: One may not change; names the flag, the value that it had, and the way out.
    """
    changes = [
        Change(name, getattr(before, name), getattr(after, name))
        for name in names
        if name not in ignored and getattr(before, name) != getattr(after, name)
    ]
    for change in changes:
        if change.name not in MAY_CHANGE:
            raise _refusal(change, run)
    return changes


def _refusal(change: Change, run: str) -> UsageError:
    name, flag = change.name, flag_of(change.name)
    before, after = (_typed(name, value) for value in (change.before, change.after))
    reason = f"the run began with {before}, and may not change it: {REASONS.get(name, OTHERS)}"
    leave = WAYS_OUT.get(name, f"Leave {flag} out, or begin another run with fastdqn train")
    return UsageError(f"{after} for {run}", reason, f"{leave}.")


def _typed(name: str, value: Any) -> str:
    """Return a setting as it is typed."""
    if isinstance(value, bool):
        return flag_of(name if value else f"no_{name}")
    return f"{flag_of(name)} {spelled(value) or 'nothing'}"
