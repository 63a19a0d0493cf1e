"""`python -m benchmarks.studies.sway`: returns over long runs, under two sets of settings or more.

A run is evaluated greedily on fresh environments every so many env steps, with what explains a
return that falls: the Q-values of the batches, the share of the replay ring's transitions that end
an episode, and how wrong Q is there, where the right value is the reward and nothing else. The
evaluations change nothing: a run without them has the same weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from benchmarks.provenance import RESULTS, as_markdown, provenance, save_result
from fastdqn import DQN, Callback
from fastdqn.errors import UsageError
from fastdqn.foundation.formatting import format_return
from fastdqn.reporting.figure_style import THOUSANDS, dress, new_figure
from fastdqn.training.events import Report

__all__ = ["COLUMNS", "SETTINGS", "Curve", "main", "picture", "table", "train"]

Run = dict[str, Any]
"""`settings` (their name), `seed`, `final_mean` of fresh episodes, and `curve`: a record each."""

FRESH_SEED = 1_000_000
"""Plus the run's seed and env steps: environments that no training has seen."""
FINAL_EPISODES = 100

FALLS_TO = "learning_rate_falls_to"
"""Besides settings of `DQN`: where the learning rate ends, linearly over the env steps."""

_BEFORE: dict[str, Any] = {
    "n_step": 1,
    "buffer_size": 100_000,
    "loss": "huber",
    "clip_norm": 10.0,
    "learning_rate": 5e-4,
    "tau": 0.005,
    "gamma": 0.99,
}
_SQUARED = {**_BEFORE, "buffer_size": 1_000_000, "loss": "mse", "clip_norm": None}
_AFTER = {**_SQUARED, "n_step": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "before": _BEFORE,
    "after": _AFTER,
    "without-n-step-3": _SQUARED,
    "without-squared-error": {**_AFTER, "loss": "huber", "clip_norm": 10.0},
    "without-large-ring": {**_AFTER, "buffer_size": 100_000},
    "prioritized": {**_BEFORE, "replay": "prioritized"},
    "prioritized-falling-rate": {**_BEFORE, "replay": "prioritized", FALLS_TO: 0.0},
    "prioritized-n-step-3": {**_BEFORE, "replay": "prioritized", "n_step": 3},
    "falling-rate-without-n-step-3": {**_SQUARED, FALLS_TO: 0.0},
    "falling-rate-and-large-ring": {**_BEFORE, "buffer_size": 1_000_000, FALLS_TO: 0.0},
}
"""Settings by their name, written out; `without-...` lacks one of the changes of `after`."""


@dataclass(frozen=True)
class Arguments:
    """Train long, evaluate often, and show how the returns sway."""

    env_id: str = "CartPole-v1"
    """Gymnasium id."""
    timesteps: int = 900_000
    """Env steps of a run."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the runs of each settings."""
    every: int = 20_000
    """Env steps between two evaluations."""
    episodes: int = 10
    """Fresh episodes of an evaluation."""
    high: float = 475.0
    """Return that an evaluation should reach."""
    settings: tuple[str, ...] = ("before", "after")
    """Names of settings, see SETTINGS."""
    folder: Path = Path("runs/sway")
    """Where each run is kept as a file; a run that lies there is not repeated."""
    save: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Write benchmarks/results/NAME.md, NAME.json and NAME.png."""

    def __post_init__(self) -> None:
        for name in set(self.settings).difference(SETTINGS):
            way_out = f"Choose among {', '.join(SETTINGS)}."
            raise UsageError(f"--settings {name}", "there are no such settings", way_out)


@dataclass(eq=False)
class Curve(Callback):
    """Evaluates an agent at each report.

    Args:
        agent: Learns; its reports come at the interval of its setting `log_interval`.
        episodes: Fresh episodes of an evaluation.
        rate_falls_to: Learning rate at the last env step, reached linearly; None is constant.

    Attributes:
        records: Numbers of each evaluation, in order.
    """

    agent: DQN
    episodes: int
    rate_falls_to: float | None = None
    records: list[dict[str, Any]] = field(default_factory=list)

    def on_report(self, report: Report) -> None:
        """Evaluate greedily and record the numbers."""
        if self.rate_falls_to is not None:
            done = min(report.env_steps / report.total_env_steps, 1.0)
            rate = self.agent.config.learning_rate * (1 - done) + self.rate_falls_to * done
            self.agent.learner.state.learning_rate.fill_(rate)
        seed = FRESH_SEED + self.agent.config.seed + report.env_steps
        returns = self.agent.evaluate(self.episodes, seed=seed).returns
        mean = format_return(float(returns.mean()))
        sys.stderr.write(f"{report.env_steps:,} env steps: {mean}, Q {report.q_mean:.1f}\n")
        self.records.append(
            {
                "env_steps": report.env_steps,
                "mean": float(returns.mean()),
                "lowest": float(returns.min()),
                "q_mean": report.q_mean,
                "loss": report.loss,
                "grad_norm": report.grad_norm,
                **at_ends(self.agent),
            }
        )


def at_ends(agent: DQN) -> dict[str, float]:
    """Return the share of the ring's transitions that end an episode, and the error of Q there.

    Truncated ones do not count. `error_at_ends` is the mean of |Q(s, a) - r|, NaN without any.
    """
    replay = agent.replay
    ring, (first, _) = replay.ring, replay.span()
    rows = replay.nth(torch.arange(len(replay)), first)
    ends = rows[ring.terminated[rows].bool()]
    with torch.no_grad():
        q = agent.network(ring.frames[ends].float())
    error = q.gather(1, ring.action[ends].long().unsqueeze(1)).squeeze(1) - ring.reward[ends]
    share = len(ends) / max(len(replay), 1)
    return {"share_of_ends": share, "error_at_ends": float(error.abs().mean())}


def train(name: str, seed: int, arguments: Arguments) -> Run:
    """Train one run in this process, or read it from the folder.

    Args:
        name: Of the settings.
        seed: Of the run.
        arguments: Its length, its evaluations, and the folder.
    """
    asked = {"settings": name, "seed": seed, **SETTINGS[name], **_asked_of(arguments)}
    path = arguments.folder / f"{name}-{seed}.json"
    if path.exists():
        kept: Run = json.loads(path.read_text(encoding="utf-8"))
        if kept["asked"] == json.loads(json.dumps(asked)):
            return kept
    run = {"settings": name, "seed": seed, **_trained(SETTINGS[name], seed, arguments)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**run, "asked": asked}) + "\n", encoding="utf-8")
    return run


def _asked_of(arguments: Arguments) -> dict[str, Any]:
    names = ("env_id", "timesteps", "every", "episodes")
    return {name: getattr(arguments, name) for name in names}


def _trained(settings: dict[str, Any], seed: int, arguments: Arguments) -> Run:
    kind: dict[str, Any] = {"num_workers": 0, "device": "cpu", "quiet": True}
    named = {name: value for name, value in settings.items() if name != FALLS_TO}
    agent = DQN(arguments.env_id, seed=seed, log_interval=arguments.every, **kind, **named)
    curve = Curve(agent, arguments.episodes, settings.get(FALLS_TO))
    agent.learn(arguments.timesteps, callback=curve)
    final = agent.evaluate(FINAL_EPISODES, seed=FRESH_SEED + seed)
    return {"curve": curve.records, "final_mean": final.mean}


def column(run: Run, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return one number of each evaluation, [K] float64; NaN where it was null."""
    values = [record[name] for record in run["curve"]]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def late(run: Run, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return one number of the evaluations of the second half."""
    values = column(run, name)
    return values[len(values) // 2 :]


COLUMNS: dict[str, Callable[[Run, float], str]] = {
    "settings": lambda run, _: str(run["settings"]),
    "seed": lambda run, _: str(run["seed"]),
    "evaluations that reach it": lambda run, high: f"{(column(run, 'mean') >= high).mean():.0%}",
    "second half": lambda run, high: f"{(late(run, 'mean') >= high).mean():.0%}",
    "mean": lambda run, _: format_return(float(late(run, "mean").mean())),
    "lowest": lambda run, _: format_return(float(late(run, "mean").min())),
    "final greedy mean": lambda run, _: format_return(run["final_mean"]),
    "largest Q mean": lambda run, _: f"{np.nanmax(column(run, 'q_mean')):.1f}",
    "error at ends": lambda run, _: f"{np.nanmedian(late(run, 'error_at_ends')):.1f}",
}
"""Header -> cell of a run and the return to reach."""


def table(runs: Sequence[Run], high: float) -> str:
    """Return a line for each run as Markdown.

    Args:
        runs: Any number.
        high: Return that an evaluation should reach.
    """
    head = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    rows = ["| " + " | ".join(cell(run, high) for cell in COLUMNS.values()) + " |" for run in runs]
    return "\n".join([*head, *rows])


def picture(runs: Sequence[Run], title: str) -> Any:
    """Return a figure of greedy means over env steps: a panel for each settings, a line a seed."""
    names = list(dict.fromkeys(run["settings"] for run in runs))
    figure = new_figure(title)
    panels = figure.subplots(-(-len(names) // 2), 2, sharey=True, squeeze=False).flat
    figure.set_size_inches(10, 3.5 + 1.5 * len(names) // 2)
    for panel, name in zip(panels, names, strict=False):
        for run in runs:
            if run["settings"] == name:
                label = f"seed {run['seed']}"
                panel.plot(column(run, "env_steps"), column(run, "mean"), label=label, alpha=0.8)
        dress(panel, x="env steps", y="greedy mean return" if name == names[0] else "")
        panel.xaxis.set_major_formatter(THOUSANDS)
        panel.set_title(name, loc="left", fontsize=10)
    panels[0].legend(frameon=False, fontsize=9)
    return figure


def means(runs: Sequence[Run], high: float) -> str:
    """Return a sentence for each settings: over all of its runs, what the table has for each."""
    lines = []
    for name in dict.fromkeys(run["settings"] for run in runs):
        own = [run for run in runs if run["settings"] == name]
        greedy = np.concatenate([late(run, "mean") for run in own])
        final = np.array([run["final_mean"] for run in own])
        lines.append(
            f"{name}: {(greedy >= high).mean():.0%} of the evaluations of the second half reach "
            f"{high:g}, lowest {format_return(float(greedy.min()))}; final greedy means "
            f"{', '.join(format_return(float(mean)) for mean in final)}."
        )
    return "\n\n".join(lines)


LEGEND = """\
Greedy means of {episodes} fresh episodes every {every:,} env steps of {timesteps:,} of {env_id};
to be reached: {high:g}. `second half`, `mean` and `lowest`: of the evaluations of the second half
of a run. `final greedy mean`: 100 other episodes. `largest Q mean`: of a batch. `error at ends`:
median over the second half of |Q(s, a) - r| where an episode ends in the ring; 0 is right."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print, save; return 0."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    torch.set_num_threads(1)
    runs = []
    for seed in arguments.seeds:
        for name in arguments.settings:
            runs.append(train(name, seed, arguments))
            sys.stderr.write(table(runs[-1:], arguments.high).splitlines()[-1] + "\n")
    runs.sort(key=lambda run: arguments.settings.index(run["settings"]))
    _show(runs, arguments)
    return 0


def _show(runs: Sequence[Run], arguments: Arguments) -> None:
    """Print the runs, and save table, records and picture if there is a name."""
    header, path = (
        provenance("python -m benchmarks.studies.sway"),
        RESULTS / f"{arguments.save}.png",
    )
    named = {name: SETTINGS[name] for name in arguments.settings}
    lines = [
        f"- `{name}`: {', '.join(f'{field} {value}' for field, value in settings.items())}"
        for name, settings in named.items()
    ]
    legend = LEGEND.format(**vars(arguments))
    parts = [as_markdown(header), legend, "\n".join(lines), table(runs, arguments.high)]
    text = "\n\n".join([*parts, means(runs, arguments.high)])
    sys.stdout.write(text + "\n")
    if arguments.save:
        text += f"\n\n![greedy means over env steps]({arguments.save}.png)"
        save_result(arguments.save, {"provenance": header, "settings": named, "runs": runs}, text)
        picture(runs, arguments.env_id).savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
