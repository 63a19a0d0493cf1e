"""The folder of a run: made before anything starts; its config.json and result.json."""

from __future__ import annotations

import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdqn.config import Config, plain
from fastdqn.errors import UsageError
from fastdqn.foundation.saved_files import without_nan, write_json_whole

if TYPE_CHECKING:
    from fastdqn.training.trainer import Trainer

__all__ = ["commit", "describe_machine", "make_run_dir", "result_of", "versions", "write_config"]

SCHEMA = 1
PROBE_BYTES = 4096
EVALUATED = ("mean", "std", "episodes")
OF_THE_BEST = ("mean", "env_step")
PACKAGES = ("fastdqn", "torch", "gymnasium", "numpy", "tensordict", "safetensors")


def make_run_dir(config: Config, *, goes_on: bool = False) -> Path:
    """Make the run's folder and check that files can be written there.

    Args:
        config: Has the folder, or the parts of its name.
        goes_on: Whether a run that it holds already goes on there.

    Raises:
        UsageError: It cannot be made or written, or it already holds a run.
    """
    path = Path("runs") / _name(config) if config.run_dir is None else Path(config.run_dir)
    if (path / "config.json").exists() and not goes_on:
        raise UsageError(
            f"--run-dir {path}",
            "it already holds a run",
            "Choose another folder, or go on with it: fastdqn resume, or --resume auto.",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        _try_to_write(path / ".writable")
    except OSError as error:
        raise UsageError(
            f"--run-dir {path}",
            f"it cannot be written ({error.strerror or error})",
            "Choose a folder of yours with --run-dir.",
        ) from error
    return path


def _try_to_write(probe: Path) -> None:
    """Write some bytes, since an empty file fits on a full disk, too."""
    try:
        probe.write_text(" " * PROBE_BYTES)
    finally:
        probe.unlink(missing_ok=True)


def _name(config: Config) -> str:
    dqn = "double-dqn" if config.double else "dqn"
    algorithm = config.preset or (dqn if config.objective == "dqn" else config.objective)
    env = re.sub(r"[^\w.-]+", "-", config.env_id)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{env}__{algorithm}__{config.seed}__{stamp}"
    taken = sum(1 for _ in Path("runs").glob(f"{name}*"))
    return f"{name}-{taken}" if taken else name


def write_config(
    run_dir: Path, config: Config, resolved: dict[str, Any], resumed: Sequence[dict[str, Any]] = ()
) -> None:
    """Write config.json: settings, what `auto` became, versions, machine, commit, command.

    Args:
        run_dir: The run's folder.
        config: The settings.
        resolved: Values that the program chose, e.g. the device.
        resumed: When the run went on, by which command, and what that changed.
    """
    content = {
        "schema": SCHEMA,
        "command": shlex.join(["fastdqn", *sys.argv[1:]]),
        "config": plain(config),
        "resolved": resolved,
        "versions": versions(),
        "machine": describe_machine(),
        "commit": commit(),
        **({"resumed": list(resumed)} if resumed else {}),
    }
    write_json_whole(run_dir / "config.json", content)


def result_of(trainer: Trainer, config: Config, env_id: str, status: str) -> dict[str, Any]:
    """Return the contents of result.json; unknown numbers are None.

    Args:
        trainer: The loop, running or ended.
        config: The settings of the run.
        env_id: Id of the environment.
        status: `running`, `completed`, `solved`, `stopped` or `failed`.
    """
    rollout, learner, watch = trainer.rollout, trainer.learner, trainer.watch
    env_steps, updates = rollout.env_steps, trainer.ratio.updates
    own = updates - trainer.ratio.earlier
    result = {
        "schema": SCHEMA,
        "env_id": env_id,
        "seed": config.seed,
        "preset": config.preset or None,
        "device": str(learner.device),
        "execution": learner.execution,
        "precision": learner.precision,
        "num_envs": rollout.num_envs,
        "num_workers": rollout.num_workers,
        "env_steps": env_steps,
        "updates": updates,
        "replay_ratio_measured": own / max(env_steps - trainer.ratio.start, 1) if own else 0.0,
        "episodes": rollout.episodes,
        "wall_s": {
            "total": time.perf_counter() - trainer.started,
            "startup": trainer.startup_s,
            "compile": watch.seconds["compile"],
            "train": watch.train_s,
        },
        "sps": {"train": trainer.train_sps, "peak": trainer.peak_sps},
        "time_share": watch.shares(),
        "return": {
            "train_mean_100": trainer.return_mean_100,
            **{f"eval_{name}": getattr(trainer.evaluation, name, None) for name in EVALUATED},
            **{f"best_{name}": getattr(trainer.best_policy, name, None) for name in OF_THE_BEST},
        },
        "time_to_target_s": {
            "train_wall": trainer.solved_train_s,
            "total_wall": trainer.solved_total_s,
        },
        "worker_restarts": trainer.worker_restarts,
        "nonfinite": trainer.nonfinite.counts(),
        "status": status,
        "world_size": 1,
    }
    return without_nan(result)


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that numbers depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def describe_machine() -> str:
    """Return processor and system in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(errors="replace"))
        model = found.group(1) if found else model
    return f"{model}, {platform.system()} {platform.release()}"


def commit() -> str | None:
    """Return the commit of a source checkout, or None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
