"""What the small parts of a training consist of, and back: its accounts, evaluations and counts."""

from __future__ import annotations

import math
from typing import Any

import torch

from fastdqn.envs.seeding import Stream
from fastdqn.foundation.state import PartState
from fastdqn.training.events import BestPolicy, Evaluation
from fastdqn.training.schedules import ReplayRatio
from fastdqn.training.selection import Selection
from fastdqn.training.value_range import ValueRange

__all__ = [
    "best_values",
    "finite_or_none",
    "optional_number",
    "ratio_state",
    "read_best",
    "restore_ratio",
    "restore_selection",
    "restore_value_range",
    "selection_state",
    "value_range_state",
]

MOST_EPISODES = 10_000_000
"""Of an evaluation."""
BOUNDS = ("v_min", "v_max")


def finite_or_none(number: float | None) -> float | None:
    """Return a number as JSON holds it: None where it is not finite, or none."""
    return None if number is None or not math.isfinite(number) else float(number)


def optional_number(state: PartState, name: str) -> float | None:
    """Return a number of a state, or None."""
    return None if state.values.get(name) is None else state.number(name)


# The replay ratio


def ratio_state(ratio: ReplayRatio) -> PartState:
    """Return the counts of which what is due follows, with its fraction."""
    return PartState({"start": ratio.start, "updates": ratio.updates, "earlier": ratio.earlier})


def restore_ratio(ratio: ReplayRatio, state: PartState, env_steps: int, num_envs: int) -> None:
    """Go on with the account of a training of so many env steps, of N environments.

    Raises:
        CheckpointError: Names what is none, or an account that would make a burst of updates.
    """
    start, updates = state.whole("start"), state.whole("updates")
    earlier = state.whole("earlier", 0, updates)
    taken = ReplayRatio(ratio.ratio, start)
    taken.updates, taken.earlier = updates, earlier
    most = math.ceil(ratio.ratio * num_envs) + 1
    if taken.due(env_steps) > most:
        what = f"{updates}: {taken.due(env_steps)} would be due at once, where at most {most} are"
        raise state.refusal("updates", what)
    ratio.start, ratio.updates, ratio.earlier = start, updates, earlier


# Returns beyond the support


def value_range_state(value_range: ValueRange) -> PartState:
    """Return which bounds are still watched, and when they were last."""
    watched = {name: name in value_range.open for name in BOUNDS}
    return PartState({**watched, "seen": value_range.seen})


def restore_value_range(value_range: ValueRange, state: PartState) -> None:
    """Watch the bounds that were watched, as far as this objective has them."""
    seen = state.whole("seen")
    watched = {name for name in BOUNDS if state.flag(name)}
    value_range.open &= watched
    value_range.seen = seen


# Evaluations


def selection_state(selection: Selection) -> PartState:
    """Return what was played and found so far, and the seeds that were taken."""
    evaluator, last = selection.evaluator, selection.last
    values: dict[str, Any] = {
        "extra_steps": selection.extra_steps,
        "screened_steps": selection.screened_steps,
        "failed": selection._failed,
        "best": best_values(selection.best),
        "call": evaluator.call,
        "rounds": {stream.name: evaluator._rounds[stream] for stream in Stream},
        "last": None if last is None else _counts_of(last),
    }
    if last is None:
        return PartState(values)
    returns, lengths = torch.from_numpy(last.returns), torch.from_numpy(last.lengths)
    return PartState(values, {"returns": returns, "lengths": lengths})


def restore_selection(selection: Selection, state: PartState) -> None:
    """Go on from what was played and found.

    Raises:
        CheckpointError: Names what is none.
    """
    extra, screened = state.whole("extra_steps"), state.whole("screened_steps")
    failed, call, best = state.flag("failed"), state.whole("call"), read_best(state)
    counter = state.part("rounds")
    rounds = {stream: counter.whole(stream.name) for stream in Stream}
    last = None if state.values.get("last") is None else _read_last(state)
    selection.extra_steps, selection.screened_steps = extra, screened
    selection._failed, selection.best, selection.last = failed, best, last
    selection.evaluator.call = call
    selection.evaluator._rounds.clear()
    selection.evaluator._rounds.update({k: count for k, count in rounds.items() if count})


def best_values(best: BestPolicy | None) -> dict[str, Any] | None:
    """Return the evaluation of the best policy as plain values."""
    if best is None:
        return None
    numbers = {"mean": finite_or_none(best.mean), "std": finite_or_none(best.std)}
    return {"env_step": best.env_step, "episodes": best.episodes, **numbers}


def read_best(state: PartState) -> BestPolicy | None:
    """Return the evaluation of the best policy that a state has as `best`, or None."""
    if state.values.get("best") is None:
        return None
    best = state.part("best")
    mean, std = best.number("mean"), best.number("std")
    episodes = best.whole("episodes", 1, MOST_EPISODES)
    return BestPolicy(best.whole("env_step"), mean, std, episodes)


def _counts_of(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "episodes": evaluation.episodes,
        "num_cut": evaluation.num_cut,
        "max_steps": evaluation.max_steps,
        "num_nonfinite": evaluation.num_nonfinite,
        "best": evaluation.best,
    }


def _read_last(state: PartState) -> Evaluation:
    last = state.part("last")
    episodes = last.whole("episodes", 1, MOST_EPISODES)
    like = torch.empty(episodes, dtype=torch.int64, device="meta")
    lengths = state.tensor("lengths", like).cpu().numpy().copy()
    returns = state.tensor("returns", like.double())
    cut, most = last.whole("num_cut", 0, episodes), last.whole("max_steps")
    odd = last.whole("num_nonfinite")
    if lengths.min() < 0:
        raise state.refusal("lengths", "negative somewhere")
    return Evaluation(returns.cpu().numpy().copy(), lengths, cut, most, last.flag("best"), odd)
