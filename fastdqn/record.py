"""The witness that writes the run directory and shows the progress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from fastdqn.agent import DQN
from fastdqn.checkpoint import save_checkpoint
from fastdqn.episodes import EpisodeLog
from fastdqn.evaluation import Evaluation
from fastdqn.loop import Loop
from fastdqn.metrics import MetricsGroup, MetricsLog, TensorBoardMetrics
from fastdqn.panel import evaluation_line, report_line
from fastdqn.progress import Console, Progress, make_progress
from fastdqn.report import Episode, Report
from fastdqn.result import result_of, write_json_whole

__all__ = ["RunRecord"]


class RunRecord:
    """Writes episodes.csv, metrics.jsonl, log.txt, checkpoints and result.json of one run.

    A full disk costs the file that was being written and is told; it does not end the run.

    Args:
        run_dir: The run's folder; exists.
        agent: Whose policy is saved.
        console: Terminal and log.txt.
    """

    def __init__(self, run_dir: Path, agent: DQN, console: Console) -> None:
        self.run_dir, self.agent, self.console = run_dir, agent, console
        config = agent.config
        self._episodes = EpisodeLog(
            run_dir / "episodes.csv", env_id=agent.description.env_id, solved_at=agent.solved_at
        )
        boards = [TensorBoardMetrics(run_dir / "tensorboard")] if config.tensorboard else []
        self._metrics = MetricsGroup(MetricsLog(run_dir / "metrics.jsonl"), *boards)
        self._lost: set[str] = set()
        self._quiet = config.quiet
        self._progress: Progress = make_progress(console, quiet=config.quiet)
        self._progress.start()

    def saw_episodes(self, episodes: Sequence[Episode]) -> None:
        """Add them to episodes.csv."""
        with self._telling("episodes.csv"):
            self._episodes.write(episodes)

    def saw_report(self, report: Report) -> None:
        """Add a line to metrics.jsonl and move the progress on."""
        with self._telling("metrics.jsonl"):
            self._metrics.write(report)
        with self._telling("log.txt"):
            self._progress.report(report)
            if self._quiet:
                self.console.log(report_line(report))

    def saw_evaluation(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        """Say what the greedy policy reached."""
        figures = (env_steps, evaluation.mean, evaluation.std, evaluation.episodes, reached)
        with self._telling("log.txt"):
            self._progress.evaluated(*figures)
            if self._quiet:
                self.console.log(evaluation_line(*figures))

    def saw_checkpoint(self, trainer: Loop) -> None:
        """Save the policy and result.json; a failure is told and leaves the older ones."""
        with self._telling("episodes.csv"):
            self._episodes.flush()
        self.save(trainer, trainer.status)

    def saw_restart(self, env_steps: int, told: str) -> None:
        """Say in a line that a worker was restarted, and in log.txt all that is known."""
        first, *rest = told.splitlines()
        with self._telling("log.txt"):
            self.console.say(f"Restarted at env step {env_steps:,}: {first}", style="yellow")
            if rest:
                self.console.log("\n".join(rest))

    def saw_compiled(self, env_steps: int, told: str) -> None:
        """Say in a line what became of a compile beside the training."""
        with self._telling("log.txt"):
            self.console.say(f"At env step {env_steps:,}: {told}")

    def save(self, trainer: Loop, status: str) -> None:
        """Write a checkpoint and result.json."""
        env_steps = trainer.rollout.env_steps
        agent, folder = self.agent, self.run_dir / "checkpoints"
        counts = {"env_steps": env_steps, "episodes": trainer.rollout.episodes}
        description = {**agent.describe(), **counts}
        with self._telling(f"the checkpoint of env step {env_steps}"):
            save_checkpoint(folder, env_steps, agent.parameters(), description)
        with self._telling(f"result.json at env step {env_steps}"):
            result = result_of(trainer, agent.config, agent.description.env_id, status)
            write_json_whole(self.run_dir / "result.json", result)

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Tell, the first time, what a full disk costs; the run goes on."""
        try:
            yield
        except OSError as error:
            if what not in self._lost:
                self._lost.add(what)
                with suppress(OSError):  # log.txt lies on the same disk
                    self.console.say(f"Could not write {what}: {error}", style="red")

    def end_progress(self) -> None:
        """Leave the terminal to ordinary lines; calling it twice does no harm."""
        self._progress.stop()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        with self._telling("log.txt"):
            self.end_progress()
        with self._telling("episodes.csv"):
            self._episodes.close()
        with self._telling("metrics.jsonl"):
            self._metrics.close()
