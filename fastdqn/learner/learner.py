"""The learner: replayed rows become weights, by a pure step that is run as fast as one likes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from fastdqn.algorithms.objectives import Objective, objective_of
from fastdqn.algorithms.optimizers import Optimizer
from fastdqn.errors import UsageError
from fastdqn.execution.background import Background
from fastdqn.execution.compiled import CompiledInside
from fastdqn.execution.cuda_graph import CudaGraphStep, StaticInputs
from fastdqn.execution.meanwhile import Meanwhile
from fastdqn.execution.modes import COMPILING, GRAPHS, accelerate, chunks, refuse_step_execution
from fastdqn.foundation.copying import copied, snapshot
from fastdqn.learner.precision import float32_products
from fastdqn.learner.steps import LearnerSteps, Source
from fastdqn.learner.update import METRICS, TARGETS, LearnerState, Update
from fastdqn.native import CudaUpdate, NativeUpdate, refuse_sampler
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.network_check import kind_of, refuse_batch, refuse_frames
from fastdqn.replay import ReplayBuffer, Ring, Sampler
from fastdqn.replay.buffer import MAX_DRAW
from fastdqn.replay.sampler import GivenRows, uniform_of
from fastdqn.transition import Transitions

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["METRICS", "TARGETS", "Learner", "LearnerState"]

UPDATES_PER_CALL = (4, 2, 1)
UPDATES_PER_GRAPH = (64, 32, 16, 8, 4, 2, 1)


class Learner(Update):
    """Updates a Q-network by DQN or Double DQN with a target network.

    An update is one pure step over `state`; non-finite losses or gradients change no parameter,
    no moment and no target, and are counted in `state.skipped`.

    Args:
        network: A module from observations [B, *O] to Q-values [B, A], or its flat form.
        gamma: Discount per env step.
        objective: What is made smaller; None is what `double` and `loss` say.
        double: Choose the next action with the online network (Double DQN); None is True.
        loss: `huber` or `mse`; None is `huber`.
        optimizer: See `fastdqn.algorithms.optimizers`.
        learning_rate: Step size.
        clip_norm: Bound on the norm of the gradient, or None.
        clip_value: Bound on every element of the gradient, or None.
        target: `soft` (a fraction tau each update), `hard` (a copy every `target_period`
            updates, or when `sync_target` is called) or `none` (bootstrap from the online one).
        tau: Fraction of the soft update.
        target_period: Updates between hard copies; 0 copies only on `sync_target`.
        precision: Of the forward and backward passes: `float32`; `tf32`, which shortens float32
            products on CUDA; or `bf16`, on CUDA and the CPU. Parameters stay float32.
        execution: `eager`; `native`, which needs an MLP on the CPU or on CUDA; `compile`;
            `cudagraph` or `compile+cudagraph`, which need CUDA.
        device: Where the parameters live.

    Attributes:
        state: Everything that an update reads and writes.
        generator: Source of the random numbers of updates on batches that the caller chose; a
            sampler draws them otherwise.
        network: The flat network.
        execution: How the step is run now.

    Raises:
        UsageError: A value that cannot be used, named with its flag.
    """

    def __init__(
        self,
        network: nn.Module | FlatNetwork,
        *,
        gamma: float = 0.99,
        objective: Objective | None = None,
        double: bool | None = None,
        loss: str | None = None,
        optimizer: Optimizer | None = None,
        learning_rate: float = 5e-4,
        clip_norm: float | None = 10.0,
        clip_value: float | None = None,
        target: str = "soft",
        tau: float = 0.005,
        target_period: int = 0,
        precision: str = "float32",
        execution: str = "eager",
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            network,
            gamma=gamma,
            objective=objective_of(objective, double, loss),
            optimizer=optimizer,
            learning_rate=learning_rate,
            clip_norm=clip_norm,
            clip_value=clip_value,
            target=target,
            tau=tau,
            target_period=target_period,
            precision=precision,
            device=device,
        )
        self.state = self._initial_state(learning_rate)
        self.generator = torch.Generator(self.device).manual_seed(0)
        self._modes: dict[str, LearnerSteps] = {}
        self._background: set[str] = set()
        self._batch: tuple[Any, ...] = ()  # of the last batch, what was looked at
        self.execute_as(execution)

    # The calls

    def execute_as(self, execution: str, *, background: bool = False) -> None:
        """Run the pure steps in this mode from now on; the state stays as it is.

        Steps of a mode that was taken before go on as they were left: nothing is compiled or
        recorded twice.

        Args:
            execution: One of EXECUTIONS, but not `auto`.
            background: Start at once, and compile beside the trainer, where that can be done.

        Raises:
            UsageError: There is no such mode, or not on this device.
        """
        if execution not in self._modes:
            refuse_step_execution(execution, self.device)
            self._modes[execution] = self._steps_in(execution, background=background)
            self._background = (
                self._background | {execution} if background else self._background - {execution}
            )
        self.execution, self._steps = execution, self._modes[execution]

    def go_on_from(self, updates: int) -> None:
        """Count the period of the hard target on from a training of so many updates."""
        self.earlier_updates, self._modes = updates, {}  # none of which knows of them
        self.execute_as(self.execution)

    def keep_to(self, execution: str) -> None:
        """Run in this mode, and free what the others hold."""
        self.execute_as(execution)
        self._modes = {execution: self._steps}

    def update(self, batch: Transitions | TensorDict) -> Tensor:
        """Take one optimizer step on a batch that the caller drew.

        Args:
            batch: B transitions on the learner's device, with or without action masks; read.

        Returns:
            [4] float32 on the device, see METRICS; overwritten by the next update.

        Raises:
            UsageError: Its fields are not as documented, or not what the network takes.
        """
        given = batch if isinstance(batch, Transitions) else Transitions.from_tensordict(batch)
        if (kind := kind_of(given)) != self._batch:
            refuse_batch(self.network, given)
            self._batch = kind
        with float32_products(self.precision, self.device):
            self._steps.update(*given.tensors(), self._random_bits((), len(given.action)))
        return self.state.metrics

    def learn(self, source: Source, updates: int | Tensor) -> None:
        """Take optimizer steps on batches that a source chooses, in order. Hot path; never waits.

        Args:
            source: A sampler of a ring on the learner's device, or the replay buffer itself.
            updates: How many batches the sampler draws; or, of a replay buffer, the rows that the
                caller chose: [K, B] int64 from `replay.draw`, one row for each step.

        Raises:
            UsageError: The network does not take what the ring holds, the ring is empty, or the
                index is none.
        """
        if isinstance(source, ReplayBuffer):
            numbers = _index(updates)
            random_bits = self._random_bits(numbers.shape[:1], numbers.shape[1])
            if random_bits is not None:
                numbers = torch.cat((numbers, random_bits), 1)
        elif isinstance(updates, int):
            numbers = source.fill(updates, self.num_random(source.batch_size))
        else:
            raise UsageError("an index for a sampler", "it draws", "Give a number of updates.")
        with float32_products(self.precision, self.device):
            self._steps.learn(source, numbers)

    def prepare(self, sampler: Sampler, updates: int) -> None:
        """Ask for what calls with so many updates need, if it is compiled beside the trainer."""
        step = self._steps.step_of(sampler)
        if isinstance(step, Background):
            for count in sorted(set(chunks(updates, UPDATES_PER_CALL)), reverse=True):
                step.prepare(sampler.place(count, self.num_random(sampler.batch_size)))

    @property
    def compiling(self) -> list[Any]:
        """The steps that learn from samplers, for those who tell when they are compiled."""
        return self._steps.learning

    def close(self) -> None:
        """Ask no compiler for anything any longer; what is not ready is forgotten."""
        for mode, running in list(self._modes.items()):
            steps = [running.update, *running.learning]
            moving = [step for step in steps if isinstance(step, Background | Meanwhile)]
            if all(step.ready for step in moving):
                continue
            for step in moving:
                step.close()
            del self._modes[mode]
            if self.execution == mode:
                self.execute_as("cudagraph" if mode in GRAPHS else "eager")

    def sync_target(self) -> None:
        """Copy the online parameters into the target."""
        self.state.target.copy_(self.state.online)

    @property
    def compile_s(self) -> float:
        """Seconds spent compiling and recording so far, in the mode that runs now."""
        steps = (self._steps.update, *self._steps.learning)
        return sum(getattr(step, "compile_s", 0.0) for step in steps)

    # How the pure steps are run

    def _steps_in(
        self, execution: str, cuda: Any = torch.cuda, *, background: bool = False
    ) -> LearnerSteps:
        """Build the steps of a mode; `cuda` is `torch.cuda`, or what stands in for it."""
        if execution == "native":
            native = self.natively(self.state)
            return self._native_steps(native, cuda, graphs=isinstance(native, CudaUpdate))
        runs = partial(self._run, execution, cuda, background)
        sizes = {"eager": (), "compile": UPDATES_PER_CALL}.get(execution, UPDATES_PER_GRAPH)
        plain = None
        if background and execution in GRAPHS and execution in COMPILING:
            plain = self._modes.get("cudagraph") or self._steps_in("cudagraph", cuda)
            self._modes["cudagraph"] = plain
        return LearnerSteps(self._updating, self._learning_from, runs, sizes=sizes, plain=plain)

    def _native_steps(
        self, native: NativeUpdate | CudaUpdate, cuda: Any = torch.cuda, *, graphs: bool
    ) -> LearnerSteps:
        def updating(*fields: Tensor) -> None:
            native.given(Transitions(*fields[:-1]))

        def learning_from(source: Source) -> Callable[[Tensor], None]:
            self._look_at(source.ring)
            if isinstance(source, ReplayBuffer):
                return partial(native, source.ring)
            refuse_sampler(source)
            return partial(native.sampled, weakref.proxy(source))

        runs = partial(self._run, "cudagraph" if graphs else "eager", cuda, False)
        sizes = UPDATES_PER_GRAPH if graphs else ()
        return LearnerSteps(updating, learning_from, runs, sizes=sizes)

    def _run(
        self,
        execution: str,
        cuda: Any,
        background: bool,
        step: Callable[..., None],
        plain: Callable[..., None] | None,
        *,
        by_row: bool,
        kept: bool,
        written: Sequence[Tensor] = (),
    ) -> Callable[..., None]:
        """Return what runs a pure step in a mode; see `fastdqn.learner.steps.Runs`."""
        device = self.device
        if execution not in GRAPHS:
            return accelerate(step, execution, device, by_row=by_row, background=background)
        inside = CompiledInside(step, device, by_row=by_row) if execution in COMPILING else None
        tensors = *self.state.written(), *written
        graph = CudaGraphStep(
            inside or step, lambda *_: snapshot(tensors), device=device, cuda=cuda
        )
        fast = graph if kept else StaticInputs(graph)
        if inside is None or plain is None:
            return fast
        return Meanwhile(plain, fast, lambda *args: inside.needs(*(a.contiguous() for a in args)))

    def _updating(self, *given: Tensor | None) -> None:
        """Take one step on the fields of a batch, and random bits [R] or None; pure."""
        *fields, random_bits = given
        random = None if random_bits is None else uniform_of(random_bits)
        self._step(self.state, Transitions(*fields), random)  # type: ignore[arg-type]

    def _random_bits(self, shape: Sequence[int], batch_size: int) -> Tensor | None:
        """Draw the numbers of updates on the caller's batches; None where they read none."""
        count = self.num_random(batch_size)
        if not count:
            return None
        bits = torch.empty((*shape, count), dtype=torch.int64, device=self.device)
        return bits.random_(0, MAX_DRAW, generator=self.generator)

    def _learning_from(self, source: Source) -> Callable[[Tensor], None]:
        """Return the pure step that learns from a source, given numbers [K, B].

        Raises:
            UsageError: The network does not take what its ring holds.
        """
        self._look_at(source.ring)
        kept, state = weakref.ref(source), self.state

        def learn(numbers: Tensor) -> None:
            alive = kept()
            assert alive is not None
            if isinstance(alive, ReplayBuffer):
                alive = GivenRows(alive, self._batch_size_in(numbers.shape[1]))
            self.learn_from(state, alive, numbers)

        return learn

    def _look_at(self, ring: Ring) -> None:
        """Refuse a ring that the network does not fit."""
        refuse_frames(self.network, ring.frames, ring.masks, "the replay buffer")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy state and settings; how the steps are run is built anew at their first call."""
        twin = copied(self, memo, anew=("_modes", "_steps"))
        twin._modes = {}
        twin.execute_as(self.execution, background=self.execution in self._background)
        return twin


def _index(updates: int | Tensor) -> Tensor:
    """Return an index [K, B] int64 that the caller gave, or refuse it."""
    if not isinstance(updates, Tensor):
        way_out = "Give `replay.draw(updates, batch_size)`, or a Sampler."
        raise UsageError(f"{updates!r} updates from a replay buffer", "it chooses none", way_out)
    if updates.ndim != 2 or updates.dtype is not torch.int64:
        got = f"index {list(updates.shape)} {updates.dtype}"
        raise UsageError(got, "it has a row [B] int64 for each update", "See `replay.draw`.")
    return updates
