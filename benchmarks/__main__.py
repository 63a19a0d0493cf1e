"""`python -m benchmarks`: end-to-end speed against the naive loop and against the limit."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import tyro

from benchmarks.measure import Setting, limits_of, open_timers
from benchmarks.provenance import RESULTS, as_markdown, provenance


@dataclass(frozen=True)
class Arguments:
    """Time fastdqn end to end, interleaved with the naive loop, and print the ratios."""

    rounds: int = 5
    """Rounds in which everything is timed once, in turn."""
    seconds: float = 3.0
    """Seconds of each timing."""
    save: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Write benchmarks/results/NAME.json and NAME.md."""
    cartpole: bool = True
    """Time CartPole-v1 too."""


def main() -> None:
    """Measure, print, save."""
    arguments = tyro.cli(Arguments, description=Arguments.__doc__)
    torch.set_num_threads(1)
    settings = [Setting()]
    if arguments.cartpole:
        settings.append(Setting(env_id="CartPole-v1", num_envs=32))
    measured = [compare(setting, arguments.rounds, arguments.seconds) for setting in settings]
    header = provenance("python -m benchmarks")
    text = "\n\n".join([as_markdown(header), *(table(entry) for entry in measured)])
    sys.stdout.write(text + "\n")
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        content = {"provenance": header, "comparisons": measured}
        (RESULTS / f"{arguments.save}.json").write_text(json.dumps(content, indent=2) + "\n")
        (RESULTS / f"{arguments.save}.md").write_text(text + "\n")


def compare(setting: Setting, rounds: int, seconds: float) -> dict[str, Any]:
    """Time everything in turn, `rounds` times, and return medians and ratios."""
    with open_timers(setting) as timers:
        laps = []
        for number in range(rounds):
            laps.append({name: timer(seconds) for name, timer in timers.items()})
            sys.stderr.write(f"{setting.env_id}: round {number + 1} of {rounds}\n")
    rates = {name: statistics.median(lap[name] for lap in laps) for name in laps[0]}
    limits = limits_of(rates, setting.device)
    rows = [_row(ratio, laps, limits.sps_max(ratio)) for ratio in setting.ratios]
    return {"setting": asdict(setting), "rates": rates, "rows": rows}


def _row(ratio: float, laps: Sequence[dict[str, float]], sps_max: float) -> dict[str, float]:
    name = f"fastdqn@{ratio:g}"
    against_naive = sorted(lap[name] / lap["naive"] for lap in laps)
    sps = statistics.median(lap[name] for lap in laps)
    return {
        "replay_ratio": ratio,
        "sps": sps,
        "sps_max": sps_max,
        "of_limit": sps / sps_max,
        "times_naive": statistics.median(against_naive),
        "times_naive_lowest": against_naive[0],
        "times_naive_highest": against_naive[-1],
    }


def table(entry: dict[str, Any]) -> str:
    """Return one comparison as a Markdown table."""
    setting, rates = entry["setting"], entry["rates"]
    lines = [
        f"### {setting['env_id']}, MLP {setting['hidden']}-{setting['hidden']}, "
        f"batch {setting['batch_size']}, {setting['num_envs']} envs",
        "",
        f"Naive loop {rates['naive']:,.0f} steps/s; bare env {rates['bare']:,.0f} steps/s; "
        f"update alone {rates['updates']:,.0f}/s. Medians over interleaved rounds.",
        "",
        "| updates per env step | steps/s | x naive (lowest to highest) | SPS / SPS_max |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['replay_ratio']:g} | {row['sps']:,.0f} | {row['times_naive']:.1f} "
        f"({row['times_naive_lowest']:.1f} to {row['times_naive_highest']:.1f}) "
        f"| {row['of_limit']:.2f} |"
        for row in entry["rows"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
