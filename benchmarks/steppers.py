"""What `benchmarks.studies.stepping` times: every kind of vector here, stepped at random."""

from __future__ import annotations

import importlib
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from benchmarks.measure import Timer, bare_timer, repeat
from fastdqn.device import available_cores
from fastdqn.envs.description import describe
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.sources.envpool import EnvPoolSource
from fastdqn.envs.sources.source import EnvSource, make_source
from fastdqn.envs.specs.ids import factory_of
from fastdqn.envs.workers.allocation import Allocation
from fastdqn.envs.workers.process import without_main_module
from fastdqn.errors import UsageError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["KINDS", "Crowd", "open_steppers", "step_source", "step_vector", "timer_of"]

GROUPS = 2
NUM_DRAWN = 256
"""Rows of actions drawn before the timing, taken in turn."""

StepFunction = Callable[[Any], int]
"""Takes one row of actions, returns how many environments took a real step."""


@dataclass(frozen=True)
class Crowd:
    """The environments of one comparison.

    Attributes:
        env_id: Gymnasium id.
        num_envs: Environments, N.
        cores: CPU cores that this process may use.
        async_limit: Most environments for which `async` starts its N processes.
    """

    env_id: str
    num_envs: int
    cores: int
    async_limit: int = 64


def timer_of(step: StepFunction, actions: Sequence[Any]) -> Timer:
    """Return a timer that steps with the rows of `actions` in turn and counts real env steps."""
    turn = cycle(actions)

    def run_for(seconds: float) -> float:
        count = 0

        def once() -> None:
            nonlocal count
            count += step(next(turn))

        elapsed = repeat(once, seconds)
        return count / elapsed

    return run_for


def step_vector(envs: Any) -> StepFunction:
    """Return the step of a Gymnasium vector in NEXT_STEP mode.

    An environment that ended in one step is only reset by the next: that is no step.
    """
    idle = 0

    def step(actions: Any) -> int:
        nonlocal idle
        real = int(envs.num_envs) - idle
        _, _, terminated, truncated, _ = envs.step(actions)
        idle = int(np.count_nonzero(terminated | truncated))
        return real

    return step


def step_source(source: EnvSource) -> StepFunction:
    """Return the step of a source as a run takes it, rows that are not real left out."""

    def step(actions: Any) -> int:
        source.send(actions)
        source.recv()
        return int(np.count_nonzero(source.rows.real))

    return step


def step_groups(source: EnvSource) -> StepFunction:
    """Return the step of a source whose groups take turns: each goes on as soon as it is back."""
    groups, size = range(source.num_groups), source.num_envs // source.num_groups
    for group in groups:
        source.send(np.zeros(size, np.int64), group)

    def step(actions: Any) -> int:
        real = 0
        for group in groups:
            source.recv(group)
            real += int(np.count_nonzero(source.rows_of(group).real))
            source.send(actions[group * size : (group + 1) * size], group)
        return real

    return step


@contextmanager
def open_steppers(crowd: Crowd, kinds: Sequence[str]) -> Iterator[dict[str, Timer]]:
    """Build what will be timed, reset, and leave out what this machine or the id does not have.

    Yields:
        Timers by kind, in the order of `kinds`.
    """
    with ExitStack() as stack:
        timers = {}
        for kind in kinds:
            timer = KINDS[kind](crowd, stack)
            if timer is not None:
                timer(0.05)  # first calls are slower
                timers[kind] = timer
        yield timers


def _drawn(crowd: Crowd) -> list[npt.NDArray[np.int64]]:
    num_actions = describe(factory_of(crowd.env_id)).num_actions
    draws = np.random.default_rng(0).integers(num_actions, size=(NUM_DRAWN, crowd.num_envs))
    return list(draws)


def _bare(crowd: Crowd, stack: ExitStack) -> Timer:
    return bare_timer(crowd.env_id, stack)


def _bare_on_all_cores(crowd: Crowd, stack: ExitStack) -> Timer:
    """Time as many bare processes as there are cores, all at once: what the cores really give."""
    context = multiprocessing.get_context("spawn")
    ends = []
    with without_main_module():
        for _ in range(crowd.cores):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve_bare, args=(crowd.env_id, theirs), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(mine.close)
            ends.append(mine)

    def run_for(seconds: float) -> float:
        for end in ends:
            end.send(seconds)
        return float(sum(end.recv() for end in ends))

    return run_for


def _serve_bare(env_id: str, end: Connection) -> None:
    """Step one environment for as long as is asked, again and again, until the end is closed."""
    torch.set_num_threads(1)
    with ExitStack() as stack, suppress(EOFError, OSError):
        timer = bare_timer(env_id, stack)
        while True:
            end.send(timer(end.recv()))


def _vector(kind: Callable[..., Any], crowd: Crowd, stack: ExitStack) -> Timer:
    with without_main_module():
        envs = kind([factory_of(crowd.env_id)] * crowd.num_envs)
    stack.callback(envs.close)
    envs.reset(seed=0)
    return timer_of(step_vector(envs), _drawn(crowd))


def _async(crowd: Crowd, stack: ExitStack) -> Timer | None:
    if crowd.num_envs > crowd.async_limit:
        return None
    return _vector(partial(AsyncVectorEnv, context="spawn"), crowd, stack)


def _grouped_source(spare: int, crowd: Crowd, stack: ExitStack) -> Timer | None:
    """Time the grouped workers as a run drives them; `spare` cores have no worker."""
    if spare and crowd.cores == 1:
        return None
    factory = factory_of(crowd.env_id)
    workers = crowd.cores - spare
    source = make_source("grouped", factory, describe(factory), crowd.num_envs, workers)
    return _source(source, crowd, stack)


def _source(source: EnvSource, crowd: Crowd, stack: ExitStack) -> Timer:
    stack.callback(source.close)
    source.reset(range(crowd.num_envs))
    return timer_of(step_source(source), _drawn(crowd))


def _two_groups(crowd: Crowd, stack: ExitStack) -> Timer | None:
    """Time two groups that take turns; the caller, who also signals, has one of each less."""
    size = crowd.num_envs // GROUPS
    share = size // crowd.cores - 1
    if crowd.cores == 1 or crowd.num_envs % GROUPS or share < 1:
        return None
    factory, allocation = factory_of(crowd.env_id), Allocation(crowd.cores - 1, share)
    source = make_source(
        "grouped",
        factory,
        describe(factory),
        crowd.num_envs,
        num_groups=GROUPS,
        allocation=allocation,
    )
    stack.callback(source.close)
    source.reset(range(crowd.num_envs))
    return timer_of(step_groups(source), _drawn(crowd))


def _envpool_source(crowd: Crowd, stack: ExitStack) -> Timer | None:
    try:
        source = EnvPoolSource(crowd.env_id, crowd.num_envs, crowd.cores)
    except UsageError:
        return None  # not installed, or without this id
    return _source(source, crowd, stack)


def _envpool(crowd: Crowd, stack: ExitStack) -> Timer | None:
    try:
        envpool = importlib.import_module("envpool")
    except ModuleNotFoundError:
        return None
    if crowd.env_id not in envpool.list_all_envs():
        return None
    n = crowd.num_envs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bounds of its own that lose precision
        envs = envpool.make_gymnasium(crowd.env_id, num_envs=n, num_threads=min(crowd.cores, n))
        envs.reset()
    stack.callback(envs.close)
    return timer_of(step_vector(envs), _drawn(crowd))


def _tensor(crowd: Crowd, stack: ExitStack) -> Timer | None:
    try:
        tensor: Any = importlib.import_module("fastdqn.envs.tensor")
    except ModuleNotFoundError:
        return None
    if crowd.env_id not in tensor.TENSOR_ENVS:
        return None
    envs = tensor.make_tensor_env(crowd.env_id, crowd.num_envs, "cpu")
    stack.callback(envs.close)
    envs.reset(0)

    def step(actions: torch.Tensor) -> int:
        envs.step(actions)
        return crowd.num_envs  # it resets within the step

    return timer_of(step, [torch.from_numpy(row) for row in _drawn(crowd)])


KINDS: dict[str, Callable[[Crowd, ExitStack], Timer | None]] = {
    "bare": _bare,
    "bare on all cores": _bare_on_all_cores,
    "sync": partial(_vector, SyncVectorEnv),
    "async": _async,
    "grouped": partial(_vector, GroupedVectorEnv),
    "grouped, all workers": partial(
        _vector, partial(GroupedVectorEnv, num_workers=available_cores())
    ),
    "grouped source": partial(_grouped_source, 0),
    "grouped in a run": partial(_grouped_source, 1),
    "grouped in 2 groups": _two_groups,
    "envpool": _envpool,
    "envpool source": _envpool_source,
    "tensor": _tensor,
}
"""Kind -> what builds its timer, or None where it cannot be had."""
