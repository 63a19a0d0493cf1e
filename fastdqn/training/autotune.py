"""Short measurements of modes and actors before a training, which restore its state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from fastdqn.algorithms.exploration import NUM_ACTING
from fastdqn.device import synchronize
from fastdqn.errors import UsageError
from fastdqn.execution.modes import choose_execution, is_auto, mode_of
from fastdqn.foundation.copying import snapshot
from fastdqn.foundation.trial_env import generators_restored
from fastdqn.learner.learner import Learner
from fastdqn.native import NativeActor
from fastdqn.policies.actors import actors_for
from fastdqn.policies.policy import Policy
from fastdqn.replay import Sampler

__all__ = ["fastest_actor", "fastest_mode", "learning_seconds", "tune"]

CALLS, ROUNDS, ENOUGH_S = 10, 20, 0.2
"""Calls of a round, rounds at most, and seconds after which three rounds are enough."""
ROUND_S = 0.05
"""Seconds of a round at most: the eager mode is slow, and a run waits for the measurement."""
MAX_UPDATES = 16
LEARNING_CALLS = 3
"""About as long as the few env steps that learning is compared with."""

Choice = tuple[str, str]
"""The name of the fastest, and one clause with what was measured."""


def tune(
    asked: str, learner: Learner, policy: Policy, sampler: Sampler, *, expected_updates: int
) -> str:
    """Choose the mode of the learner and the actor of the policy, by measurement where useful.

    Args:
        asked: What the user wants of the updates, one of EXECUTIONS. Asked for `eager`, the
            policy acts eagerly, too.
        learner: Its mode is set.
        policy: Its actor is set: the fastest one on CUDA, the one in C with `native` on the CPU.
        sampler: Its ring may still be empty.
        expected_updates: Of the whole run.

    Returns:
        One clause that says why, with what was measured.

    Raises:
        UsageError: What was asked cannot run on this device.
    """
    mode, reason = choose_execution(
        asked,
        learner.device,
        expected_updates,
        parameters=learner.state.online.numel(),
        measure=partial(fastest_mode, learner, sampler, _due(sampler)),
        why_not_native=partial(learner.why_not_native, sampler),
    )
    learner.execute_as(mode, background=is_auto(asked))
    learner.prepare(sampler, _due(sampler))
    runs = mode_of(mode, learner.device)
    if runs.native and not runs.graphs:
        policy.actor = NativeActor(policy.network)
    if learner.device.type != "cuda" or (runs.eager and not is_auto(asked)):
        return reason
    _, message = fastest_actor(policy, sampler.buffer.shown(), sampler.buffer.shown_mask())
    return f"{reason}; {message}"


def fastest_mode(
    learner: Learner, sampler: Sampler, updates: int, candidates: Sequence[str]
) -> Choice:
    """Time updates in each mode and set the learner to the fastest.

    State and generators are restored bit for bit; recorded graphs stay valid, since they read and
    write the same tensors.

    Args:
        learner: Is timed.
        sampler: Chooses batches.
        updates: In one call.
        candidates: Modes; the first one has to run, and a later one that cannot is reported.

    Returns:
        The mode, and one clause that says what was measured.
    """

    def run(mode: str) -> Callable[[], object]:
        learner.execute_as(mode)
        return partial(learner.learn, sampler, updates)

    with _trial(learner, sampler) as restore:
        best, message = _compare(candidates, run, learner.device, updates, restore)
    learner.keep_to(best)
    return best, f"measured per update: {message}"


def learning_seconds(learner: Learner, sampler: Sampler | None) -> float:
    """Time the updates of a vector step in the learner's mode.

    The result is 0 where updates take no time of the CPU from environments (another device), and
    in tensor environments, which have no sampler here. State and generators are restored.
    """
    if sampler is None or learner.device.type != "cpu":
        return 0.0
    updates = _due(sampler)
    run = partial(learner.learn, sampler, updates)
    with _trial(learner, sampler):
        run()
        elapsed_s = _timed(run, learner.device, LEARNING_CALLS)
    return elapsed_s / LEARNING_CALLS * sampler.due / updates


@contextmanager
def _trial(learner: Learner, sampler: Sampler) -> Iterator[Callable[[], None]]:
    """Let updates draw as if the ring were full; yield what restores the state, called at the end.

    Generators are restored, too.
    """
    with sampler.rehearsal(), generators_restored():
        restore = snapshot((*learner.state.written(), *sampler.written()))
        try:
            yield restore
        finally:
            restore()


def _due(sampler: Sampler) -> int:
    return min(max(sampler.due, 1), MAX_UPDATES)


def fastest_actor(
    policy: Policy, obs: torch.Tensor, action_mask: torch.Tensor | None = None
) -> Choice:
    """Time each actor, actions brought to the host included, and set the policy to the fastest.

    Draws nothing from the policy's generator, nor from PyTorch's own.

    Args:
        policy: Its actor is set.
        obs: [N, *O] on the device; read.
        action_mask: [N, A] bool beside it, or None.

    Returns:
        The kind, and one clause that says what was measured.
    """
    columns = NUM_ACTING + policy.network.num_columns(len(obs))
    uniform = torch.full((len(obs), columns), 0.5, device=obs.device)  # one address, for a graph
    actors = actors_for(policy)

    def run(kind: str) -> Callable[[], object]:
        return partial(actors[kind].on_host, obs, 0.5, uniform, action_mask)

    with generators_restored():
        best, message = _compare(list(actors), run, policy.network.flat.device, 1, lambda: None)
    policy.actor = actors[best]
    return best, f"acting by {best}, measured per vector step: {message}"


def _compare(
    candidates: Sequence[str],
    prepare: Callable[[str], Callable[[], object]],
    device: torch.device,
    units: int,
    restore: Callable[[], None],
) -> Choice:
    """Return the candidate of the fewest seconds, and all of their times, the fastest first."""
    seconds, failed = dict[str, float](), list[str]()
    for name in candidates:
        try:
            seconds[name] = _seconds(prepare(name), device) / units
        except (RuntimeError, UsageError) as error:  # e.g. a module that waits within a graph
            if name == candidates[0]:
                raise
            failed.append(f"{name} cannot run ({str(error).splitlines()[0]})")
        finally:
            restore()
    ranked = sorted(seconds, key=seconds.__getitem__)
    times = [f"{name} {seconds[name] * 1e6:.0f} us" for name in ranked]
    return ranked[0], ", ".join(times + failed)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call once everything is warm: the best of a few rounds.

    A round has CALLS calls, or as many as take ROUND_S.
    """
    run()
    one_s = _timed(run, device, 1)
    calls = max(1, min(CALLS, int(ROUND_S / one_s) if one_s else CALLS))
    rounds: list[float] = []
    while len(rounds) < 3 or (len(rounds) < ROUNDS and sum(rounds) < ENOUGH_S):
        rounds.append(_timed(run, device, calls))
    return min(rounds) / calls


def _timed(run: Callable[[], object], device: torch.device, calls: int) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return time.perf_counter() - start
