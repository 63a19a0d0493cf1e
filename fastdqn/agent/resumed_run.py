"""A run that goes on from a checkpoint: what it says, and what its files become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fastdqn.agent.learning import Trainable
from fastdqn.checkpoint.saving import Chunk
from fastdqn.foundation.state import Chunked
from fastdqn.replay.chunks import RingChunks
from fastdqn.reporting.cutting_back import Counts, cut_back
from fastdqn.reporting.run_checkpoints import Lent
from fastdqn.reporting.run_recorder import RunRecorder
from fastdqn.training.events import BestPolicy
from fastdqn.training.trainer import Trainer

__all__ = ["Resumed", "chunks_of", "lent_by"]

EVALUATED_OTHERWISE = ("--eval-", "--total-timesteps", "--stop-at-return")
"""Settings with which a run is evaluated at other env steps, or for something else."""


@dataclass
class Resumed:
    """How a run goes on.

    Attributes:
        folder: The checkpoint.
        counts: How far it is.
        changed: Settings that are others from now on, in words.
        skipped: Why newer checkpoints could not be read.
        inexact: Why it does not go on bit for bit, a clause each.
        earlier: When the run went on before, for config.json.
        command: What goes on with it.
        chunks: Of the ring, filled from the checkpoint; or None.
        filled: Their files.
    """

    folder: Path
    counts: Counts
    changed: Sequence[str] = ()
    skipped: Sequence[str] = ()
    inexact: Sequence[str] = ()
    earlier: Sequence[dict[str, Any]] = ()
    command: str = ""
    chunks: Chunked | None = None
    filled: Mapping[int, Chunk] = field(default_factory=dict)

    def cut_back(self, run_dir: Path) -> None:
        """Cut the run's files back to the checkpoint."""
        self.skipped = [*self.skipped, *cut_back(run_dir, self.counts)]

    def introduce(self, trainer: Trainer, record: RunRecorder, best: BestPolicy | None) -> None:
        """Let files, best policy and checkpoints go on, and say what goes on and how.

        Args:
            trainer: Restored, not yet running.
            record: Writes the files.
            best: What the folder of the best policy holds, or None.
        """
        env_steps, say = self.counts.env_steps, record.console.say
        record.go_on_from(env_steps, trainer.started)
        at = {"env_step": env_steps, "command": self.command, "changed": list(self.changed)}
        record.resumed = [*self.earlier, at]
        if self.chunks is not None:
            record.checkpoints.resumed(self.folder, self.filled, self.chunks)
        for reason in self.skipped:
            say(f"Skipped  {reason}", style="yellow")
        say(
            f"Resumed at env step {env_steps:,} from {self.folder.name}: "
            f"{trainer.ratio.updates:,} updates, {self.counts.episodes:,} episodes"
        )
        for change in self.changed:
            say(f"Changed: {change}")
        for reason in self.inexact:
            say(f"Not bit for bit: {reason}", style="yellow")
        self._adopt(trainer, best)
        if trainer.status == "solved" and any("--stop-at-return" in each for each in self.changed):
            trainer.status = "running"

    def _adopt(self, trainer: Trainer, best: BestPolicy | None) -> None:
        """Let the best policy of the folder be the one to beat, unless the run finds it again.

        It finds again what it had not found by the checkpoint, if it goes on as it did before.
        """
        if best is None or (best.env_step > self.counts.env_steps and self._finds(best, trainer)):
            return
        known = trainer.best_policy
        if known is None or best.mean > known.mean:
            trainer.best = best
            if trainer.selection is not None:
                trainer.selection.best = best

    def _finds(self, best: BestPolicy, trainer: Trainer) -> bool:
        """Return whether the run comes to a policy of after the checkpoint once more."""
        otherwise = any(change.startswith(EVALUATED_OTHERWISE) for change in self.changed)
        return not self.inexact and not otherwise and best.env_step <= trainer.until


def chunks_of(agent: Trainable) -> Chunked:
    """Return the replay ring of an agent in chunks."""
    return RingChunks(agent._ring, limits={"action": agent.description.num_actions})


def lent_by(agent: Trainable, chunks: Chunked | None = None) -> Lent:
    """Return what checkpoints need of an agent.

    Args:
        agent: The agent.
        chunks: Of its ring, if it was filled from a checkpoint; None makes them.
    """
    replay = agent.config.save_replay
    ring = (chunks or chunks_of(agent)) if replay else None
    state = partial(agent.training_state, replay=replay)
    return Lent(agent.parameters, agent.describe, state, lambda: ring)
