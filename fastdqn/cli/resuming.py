"""Flags of runs that go on: `fastdqn resume`, and `fastdqn train --resume`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from fastdqn.config import Config, Draft, settled
from fastdqn.errors import UsageError
from fastdqn.foundation.changed_settings import MAY_CHANGE, Change, changes_of
from fastdqn.foundation.policy_folders import CHECKPOINTS

__all__ = [
    "AUTO",
    "MISSING",
    "NAMED_AGAIN",
    "Asked",
    "ResumeArguments",
    "ResumeHelp",
    "TrainArguments",
    "asked_by_auto",
    "asked_by_flags",
]

AUTO, MISSING = "auto", Path("PATH")
NAMED_AGAIN = ("env_id", "env_kwargs", "wrapper")
"""Settings that may be typed as they are: no file may name what is imported for them."""
NAMES_ONLY = ("run_dir", "preset")
"""Settings that say nothing of a training: where it lies, and what its settings are called."""


@dataclass(frozen=True)
class TrainArguments(Draft):
    """Settings of one training run. Later flags win over the preset."""

    resume: str | None = None
    """Go on with the run in this folder; or auto: with that of --run-dir, if it holds a checkpoint,
    else begin it there. See fastdqn resume --help."""


@dataclass(frozen=True)
class ResumeArguments(Draft):
    """Go on with a run where its newest whole checkpoint is, in the same folder.

    The settings are those of the run; the flags below may change them. An environment of a module
    of yours is named again, as it was: --env-id, --env-kwargs and --wrapper.
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help_behavior_hint="(required)")] = (
        MISSING
    )
    """Run directory."""
    from_policy: bool = False
    """Go on from the parameters alone, where the run holds no more than a policy: with an empty
    replay, new episodes, and an optimizer that begins anew."""


@dataclass(frozen=True)
class ResumeHelp(ResumeArguments):
    """What the help shows: flags that may not change are left out."""


def _leave_out_what_may_not_change() -> None:
    for name, kind in get_type_hints(Config).items():
        shown = name in MAY_CHANGE or name in NAMED_AGAIN
        hint = tyro.conf.arg(help_behavior_hint="(as before)") if shown else tyro.conf.Suppress
        ResumeHelp.__annotations__[name] = Annotated[kind, hint]
    ResumeHelp.__doc__ = ResumeArguments.__doc__


_leave_out_what_may_not_change()


@dataclass(frozen=True)
class Asked:
    """What a command asks of a run.

    Attributes:
        run_dir: Its folder.
        settings: By field of Config: what is to be compared with the run's own.
        named: Those that the caller typed.
        from_policy: Whether parameters alone are enough.
        anew: The settings of a run that begins where there is nothing to go on from; or None.
    """

    run_dir: Path
    settings: Mapping[str, Any]
    named: tuple[str, ...]
    from_policy: bool = False
    anew: Config | None = None

    def changed(self, before: Config) -> tuple[Config, list[Change]]:
        """Return the settings from now on, and what they change.

        Raises:
            UsageError: A setting may not change, or has a value that cannot be used.
        """
        of_run = replace(before, run_dir=self.run_dir)
        settings = dict(self.settings)
        if settings.get("buffer_size") == "auto":  # it chose the size that the run has
            del settings["buffer_size"]
        asked = Draft(**{**vars(of_run), **settings})
        ignored = NAMES_ONLY if self.anew is not None else ()
        changes = changes_of(of_run, asked, settings, str(self.run_dir), ignored=ignored)
        return replace(of_run, **{change.name: change.after for change in changes}), changes


def asked_by_flags(
    run_dir: Path, filled: Draft, named: list[str], *, from_policy: bool = False
) -> Asked:
    """Return what flags ask of the run in a folder; what is not typed stays.

    Raises:
        UsageError: There is no such folder, or it is none of a run.
    """
    refuse_no_run(run_dir)
    settings = {name: getattr(filled, name) for name in named}
    return Asked(run_dir, settings, tuple(named), from_policy)


def asked_by_auto(config: Config, named: list[str]) -> Asked:
    """Return what a whole command asks: the run that it describes, begun or gone on with.

    Raises:
        UsageError: Nothing says where the run lies.
    """
    if config.run_dir is None:
        raise UsageError(
            f"--resume {AUTO}", "nothing says where the run lies", "Add --run-dir FOLDER."
        )
    settings = {field.name: getattr(settled(config), field.name) for field in fields(Config)}
    return Asked(config.run_dir, settings, tuple(named), anew=config)


def refuse_no_run(run_dir: Path) -> None:
    """Refuse a folder that holds no run."""
    if not run_dir.is_dir():
        raise UsageError(
            str(run_dir), "there is no such folder", "Give the folder of a run, runs/..."
        )
    if run_dir.absolute().parent.name == CHECKPOINTS:
        way_out = f"Give its run: {run_dir.parent.parent}. The newest checkpoint there is taken."
        raise UsageError(str(run_dir), "it is a checkpoint of a run", way_out)
    if not (run_dir / CHECKPOINTS).is_dir():
        raise UsageError(
            str(run_dir),
            "it holds no checkpoint to go on from",
            "Give the folder of a run, runs/..., or begin one with fastdqn train.",
        )
