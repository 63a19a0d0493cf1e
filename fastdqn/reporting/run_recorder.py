"""The callback that writes the run directory and shows the progress."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from fastdqn.checkpoint.writer import Saved
from fastdqn.config import Config
from fastdqn.errors import CheckpointError
from fastdqn.foundation.saved_files import write_json_whole
from fastdqn.reporting.best_policy import BestPolicyFolder, Unsaved
from fastdqn.reporting.console import Console
from fastdqn.reporting.metrics import MetricsLog, TensorBoardMetrics
from fastdqn.reporting.progress import make_progress
from fastdqn.reporting.run_checkpoints import Lent, RunCheckpoints
from fastdqn.reporting.run_directory import result_of, write_config
from fastdqn.reporting.tables import EpisodeLog, EvaluationLog
from fastdqn.training.callbacks import Callback
from fastdqn.training.evaluation import Evaluation
from fastdqn.training.events import BestPolicy, Episode, Report
from fastdqn.training.trainer import Trainer

__all__ = ["RunRecorder"]


CHECKPOINT = "the checkpoint"
MOST_NAMED = 8
"""Environments."""


class RunRecorder(Callback):
    """Writes all files of a run except the plots: logs, checkpoints, config.json, result.json.

    On a full disk a file is written later, when there is room. The failure is printed once and
    does not end the run.

    Args:
        run_dir: The run's folder; exists.
        console: Terminal and log.txt.
        config: The settings.
        env_id: Id of the environment.
        solved_at: Mean return that counts as solved, or None.
        lent: The agent.
        started: `time.perf_counter()` at the start of the command.
        unsaved: The best policy of an earlier call, if it could not be written; or None.

    Attributes:
        started: As above; of a run that goes on, less its seconds so far.
        checkpoints: What makes the checkpoints.
        resumed: When the run went on, for config.json.
    """

    def __init__(
        self,
        run_dir: Path,
        console: Console,
        *,
        config: Config,
        env_id: str,
        solved_at: float | None,
        lent: Lent,
        started: float,
        unsaved: Unsaved | None = None,
    ) -> None:
        self.run_dir, self.console = run_dir, console
        self._config, self._env_id, self.started = config, env_id, started
        self._resolved: dict[str, object] = {}
        self.resumed: list[dict[str, Any]] = []
        self._lost: set[str] = set()
        self._evaluated = self._policies_alone = False
        self._episodes = EpisodeLog(run_dir / "episodes.csv", env_id=env_id, solved_at=solved_at)
        self._evaluations = EvaluationLog(run_dir / "evaluations.csv")
        self._metrics: dict[str, MetricsLog | TensorBoardMetrics] = {
            "metrics.jsonl": MetricsLog(run_dir / "metrics.jsonl")
        }
        if config.tensorboard:
            self._metrics["TensorBoard events"] = TensorBoardMetrics(run_dir / "tensorboard")
        self._best = BestPolicyFolder(run_dir, lent.parameters, lent.describe, unsaved)
        self.checkpoints = RunCheckpoints(run_dir, lent, keep_last=config.keep_last)
        self._progress = make_progress(
            console, quiet=config.quiet, may_stop_early=config.stop_at_return is not None
        )
        self._progress.start()

    def on_episodes(self, episodes: Sequence[Episode]) -> None:
        """Append them to episodes.csv."""
        with self._reporting_failure("episodes.csv", settles=False):
            self._episodes.append(episodes)

    def on_report(self, report: Report) -> None:
        """Append a line to metrics.jsonl and update the progress."""
        for name, metrics in self._metrics.items():
            with self._reporting_failure(name):
                metrics.append(report)
        self._progress.report(report)

    def on_evaluation(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        """Save the best policy, append a line to evaluations.csv and print one."""
        wall_s = time.perf_counter() - self.started
        self._evaluated = True
        if evaluation.best:
            best = BestPolicy(env_steps, evaluation.mean, evaluation.std, evaluation.episodes)
            with self._reporting_failure(
                "the best policy", f"the best policy of env step {env_steps}"
            ):
                self._best.save(best)
        with self._reporting_failure("evaluations.csv"):
            self._evaluations.append(env_steps, wall_s, evaluation)
        self._progress.evaluated(env_steps, evaluation, reached)

    def on_evaluation_progress(self, done: int, episodes: int, steps: int) -> None:
        """Show the progress of an evaluation."""
        self._progress.evaluating(done, episodes, steps)

    def on_no_evaluations(self, reason: str) -> None:
        """Print why there are no evaluations, or no more of them."""
        lost = "No more evaluations" if self._evaluated else "No evaluations, and no best policy"
        self.console.say(f"{lost}: no fresh environments to play in ({reason})", style="yellow")

    def on_checkpoint(self, trainer: Trainer) -> None:
        """Begin a checkpoint, and write result.json; a failure is printed.

        The last one of a run is made at its end, since updates are still to come.
        """
        with self._reporting_failure("episodes.csv"):
            self._episodes.flush()
        self._report_saved()
        if trainer.rollout.env_steps < trainer.until and trainer.status == "running":
            words = f"the checkpoint of {_at(trainer)}"
            with self._reporting_failure(CHECKPOINT, words, settles=False):
                self.checkpoints.begin(trainer)
            self._report_policies_alone()
        self._save_others(trainer, trainer.status)

    def _report_saved(self) -> None:
        """Log the checkpoints that were written meanwhile, and print what could not be."""
        for ended in self.checkpoints.poll():
            if isinstance(ended, OSError) and ended.errno == errno.EBUSY:
                self.console.log(f"{ended.strerror}: {ended.filename}")
                continue
            with self._reporting_failure(CHECKPOINT, "a checkpoint"):
                if isinstance(ended, OSError):
                    raise ended
                self.console.log(_saved_words(ended))

    def _report_policies_alone(self) -> None:
        """Print once why the run cannot go on from its checkpoints."""
        reason = self.checkpoints.failure
        if reason is not None and not self._policies_alone:
            self._policies_alone = True
            self.console.say(f"Checkpoints hold the policy alone: {reason}", style="yellow")

    def on_restart(self, env_steps: int, message: str) -> None:
        """Print a line about a restarted worker, and write the traceback to log.txt."""
        first, *rest = message.splitlines()
        self.console.say(f"Restarted at env step {env_steps:,}: {first}", style="yellow")
        if rest:
            self.console.log("\n".join(rest))

    def on_lost_episodes(self, env_steps: int, lost: Mapping[int, str]) -> None:
        """Print which environments begin new episodes, and why."""
        for reason in dict.fromkeys(lost.values()):
            envs = [env for env, why in lost.items() if why == reason]
            some = ", ".join(map(str, envs[:MOST_NAMED])) + ", ..." * (len(envs) > MOST_NAMED)
            words = f"{len(envs)} of the environments begin new episodes ({some}): {reason}"
            at = f"At env step {env_steps:,}, not bit for bit"
            self.console.say(f"{at}: {words}", style="yellow")

    def on_returns_beyond(self, env_steps: int, message: str) -> None:
        """Print a line about a return that is outside of the objective's support."""
        self.console.say(f"At env step {env_steps:,}: {message}", style="yellow")

    def on_nonfinite(self, env_steps: int, message: str) -> None:
        """Print a line about numbers that are not finite."""
        self.console.say(f"At env step {env_steps:,}: {message}", style="yellow")

    def on_compiled(self, env_steps: int, message: str) -> None:
        """Print a line about a compilation that has finished or failed."""
        self.console.say(f"At env step {env_steps:,}: {message}")

    def write_config(self, resolved: dict[str, object]) -> None:
        """Write config.json; where that fails, every `save` tries again.

        Args:
            resolved: Values that the program chose.
        """
        self._resolved = resolved
        with self._reporting_failure("config.json"):
            write_config(self.run_dir, self._config, resolved, self.resumed)

    def go_on_from(self, env_steps: int, started: float) -> None:
        """Go on with a run whose files were cut back to a checkpoint.

        Args:
            env_steps: Of the checkpoint.
            started: `time.perf_counter()` now, less the wall seconds of the run so far.
        """
        self.started = started
        for name, metrics in self._metrics.items():
            with self._reporting_failure(name):
                metrics.forget_after(env_steps)

    def best_so_far(self) -> BestPolicy | None:
        """Return the best policy of earlier calls that this one goes on from; or None."""
        try:
            best = self._best.read()
            self._evaluated = best is not None
            return best
        except CheckpointError as error:
            words = f"The best policy so far is not kept: {error}"
            self.console.say(words, style="yellow")
            return None

    @property
    def unsaved(self) -> Unsaved | None:
        """The best policy, if it could not be written so far; or None."""
        return self._best.unsaved

    def save(self, trainer: Trainer, status: str) -> None:
        """Write the last checkpoint and result.json, and the best policy, if it waits for room."""
        self._report_saved()
        with self._reporting_failure(CHECKPOINT, f"the checkpoint of {_at(trainer)}"):
            self.checkpoints.save_last(trainer)
        self._report_policies_alone()
        self._save_others(trainer, status)

    def _save_others(self, trainer: Trainer, status: str) -> None:
        if "config.json" in self._lost:
            self.write_config(self._resolved)
        with self._reporting_failure("the best policy"):
            self._best.flush()
        with self._reporting_failure("result.json", f"result.json at {_at(trainer)}"):
            result = result_of(trainer, self._config, self._env_id, status)
            write_json_whole(self.run_dir / "result.json", result)

    def report_missing_files(self) -> None:
        """Print at the end of a run which files are missing."""
        if self._lost:
            missing = ", ".join(sorted(self._lost))
            self.console.say(f"Not written in {self.run_dir}: {missing}", style="bold red")

    @contextmanager
    def _reporting_failure(
        self, what: str, words: str = "", *, settles: bool = True
    ) -> Iterator[None]:
        """Print the first failure of a write; the run goes on.

        Args:
            what: Name of the file or log.
            words: Its name in messages; empty is `what`.
            settles: Whether success without an error means that it is on disk.
        """
        try:
            yield
        except OSError as error:
            if what not in self._lost:
                self._lost.add(what)
                self.console.say(f"Could not write {words or what}: {error}", style="red")
        else:
            if settles and what in self._lost:
                self._lost.discard(what)
                self.console.say(f"Could write {words or what} again")

    def end_progress(self) -> None:
        """End the progress display; a second call does nothing."""
        self._progress.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_progress()
        self.checkpoints.close()
        logs = {"episodes.csv": self._episodes, "evaluations.csv": self._evaluations}
        for name, log in {**logs, **self._metrics}.items():
            with self._reporting_failure(name):
                log.close()


def _at(trainer: Trainer) -> str:
    return f"env step {trainer.rollout.env_steps}"


def _saved_words(saved: Saved) -> str:
    megabytes = saved.written_bytes / 1e6
    return (
        f"Checkpoint {saved.folder.name}: {megabytes:.1f} MB in {saved.took_s:.1f} s, "
        f"training held back for {saved.pause_s * 1e3:.0f} ms"
    )
