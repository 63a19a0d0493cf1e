"""result.json: the result of a run, for other programs."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from fastdqn.config import Config
from fastdqn.training.trainer import Trainer

__all__ = ["result_of", "write_json_whole"]

SCHEMA = 1


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
    return {
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
        "replay_ratio_measured": _number(
            own / max(env_steps - trainer.ratio.start, 1) if own else 0.0
        ),
        "episodes": rollout.episodes,
        "wall_s": {
            "total": time.perf_counter() - trainer.started,
            "startup": trainer.startup_s,
            "compile": watch.seconds["compile"],
            "train": watch.train_s,
        },
        "sps": {"train": _number(trainer.train_sps), "peak": _number(trainer.peak_sps)},
        "time_share": watch.shares(),
        "return": _returns(trainer),
        "time_to_target_s": {
            "train_wall": _number(trainer.solved_train_s),
            "total_wall": _number(trainer.solved_total_s),
        },
        "worker_restarts": trainer.worker_restarts,
        "status": status,
    }


def _returns(trainer: Trainer) -> dict[str, Any]:
    evaluation = trainer.evaluation
    return {
        "train_mean_100": _number(trainer.return_mean_100),
        "eval_mean": _number(evaluation.mean) if evaluation else None,
        "eval_std": _number(evaluation.std) if evaluation else None,
        "eval_episodes": evaluation.episodes if evaluation else None,
    }


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def write_json_whole(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old one or the whole new one.

    Raises:
        OSError: The disk is full or the folder cannot be written; the old file stays.
    """
    draft = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=2)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
