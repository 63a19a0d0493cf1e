"""The learner: batches become weights, by a pure step that runs in any execution mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from fastdqn.algorithms.objectives import Objective, objective_of, q_values_of
from fastdqn.algorithms.optimizers import Adam, Optimizer
from fastdqn.errors import UsageError
from fastdqn.execution.compile import run_step
from fastdqn.execution.cuda_graph import Cuda
from fastdqn.execution.modes import Mode, mode_of
from fastdqn.execution.step import PureStep, Step
from fastdqn.foundation.copying import copied, snapshot
from fastdqn.foundation.scalars import whole
from fastdqn.learner.outputs_check import refuse_other_outputs
from fastdqn.learner.settings import (
    TARGETS,
    float32_products,
    refuse_optimizer,
    refuse_precision,
    refuse_settings,
)
from fastdqn.learner.state import METRICS, LearnerState
from fastdqn.learner.steps import LearnerSteps, Source, index_of, native_parts
from fastdqn.learner.update import Update
from fastdqn.native import CudaUpdate, NativeUpdate
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.network_check import kind_of, refuse_batch
from fastdqn.replay import ReplayBuffer, Sampler
from fastdqn.replay.buffer import MAX_DRAW
from fastdqn.transition import Transitions

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["METRICS", "TARGETS", "Learner", "LearnerState"]


class Learner(Update):
    """Updates a network by an objective, Double DQN unless another one is chosen, and its target.

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
        refuse_settings(
            gamma=gamma,
            learning_rate=learning_rate,
            target=target,
            tau=tau,
            clip_norm=clip_norm,
            clip_value=clip_value,
        )
        self._optimizer = optimizer = Adam() if optimizer is None else optimizer
        refuse_optimizer(optimizer)
        self.objective = objective_of(objective, double, loss)
        self._own_random = int(self.objective.num_random)
        self.network = network if isinstance(network, FlatNetwork) else FlatNetwork(network, device)
        self.network.q_values = q_values_of(self.objective)
        refuse_other_outputs(self.network, self.objective)
        self.device = self.network.flat.device
        refuse_precision(precision, self.device)
        self.precision, self.gamma = precision, float(gamma)
        self.target_kind, self.tau = target, float(tau)
        self.target_period = whole("--target-period", target_period, way_out="0 is never.")
        self.clip_norm, self.clip_value = clip_norm, clip_value
        slots = optimizer.num_slots
        self.state = LearnerState.initial(self.network.flat, slots, learning_rate)
        self.generator = torch.Generator(self.device).manual_seed(0)
        self._modes: dict[str, LearnerSteps] = {}
        self._background: set[str] = set()
        self._batch: tuple[Any, ...] = ()  # kind of the last batch, checked
        self.execute_as(execution)

    # The calls

    def execute_as(self, execution: str, *, background: bool = False) -> None:
        """Run the pure steps in this mode from now on; the state stays as it is.

        Steps of a mode that ran before are used again: nothing is compiled or recorded twice.

        Args:
            execution: One of EXECUTIONS, but not `auto`.
            background: Start at once, and compile beside the training, where possible.

        Raises:
            UsageError: There is no such mode, or not on this device.
        """
        if execution not in self._modes:
            mode = mode_of(execution, self.device)
            self._modes[execution] = self._steps_in(mode, background=background)
            self._background = (
                self._background | {execution} if background else self._background - {execution}
            )
        self.execution, self._steps = execution, self._modes[execution]

    def go_on_from(self, updates: int) -> None:
        """Count the period of the hard target on from a training of so many updates."""
        self.earlier_updates, self._modes = updates, {}  # none of which knows of them
        self.execute_as(self.execution)

    def keep_to(self, execution: str) -> None:
        """Run in this mode, and free the steps of the others."""
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
        rows = batch if isinstance(batch, Transitions) else Transitions.from_tensordict(batch)
        if (kind := kind_of(rows)) != self._batch:
            refuse_batch(self.network, rows)
            self._batch = kind
        with float32_products(self.precision, self.device):
            self._steps.update(*rows.tensors(), self._random_bits((), len(rows.action)))
        return self.state.metrics

    def learn(self, source: Source, updates: int | Tensor) -> None:
        """Take optimizer steps on batches that a source chooses, in order. Hot path; never waits.

        Args:
            source: A sampler of a ring on the learner's device, or the replay buffer itself.
            updates: How many batches the sampler draws; or, of a replay buffer, the rows that the
                caller chose: [K, B] int64 from `replay.draw`, one row for each step.

        Raises:
            UsageError: The network does not take what the ring holds, the ring is empty, the
                index or the number is none, or the sampler does not do what `Sampler` asks for.
        """
        if isinstance(source, ReplayBuffer):
            numbers = index_of(updates)
            random_bits = self._random_bits(numbers.shape[:1], numbers.shape[1])
            if random_bits is not None:
                numbers = torch.cat((numbers, random_bits), 1)
        elif isinstance(updates, Tensor):
            raise UsageError("an index for a sampler", "it draws", "Pass a number of updates.")
        else:
            if type(updates) is not int or updates < 0:
                updates = whole("updates", updates, way_out="Try 1.")
            numbers = source.fill(updates, self.num_random(source.batch_size))
        with float32_products(self.precision, self.device):
            self._steps.learn(source, numbers)

    def prepare(self, sampler: Sampler, updates: int) -> None:
        """Ask for what calls with so many updates need, if it is compiled beside the trainer."""
        self._steps.prepare(sampler, updates, self.num_random(sampler.batch_size))

    @property
    def compiling(self) -> list[Step]:
        """The steps that learn from samplers, to report when they are compiled."""
        return self._steps.learning

    def close(self) -> None:
        """Cancel what is still being compiled; such modes go on uncompiled."""
        for execution, steps in list(self._modes.items()):
            if not steps.close():
                del self._modes[execution]
                if self.execution == execution:
                    self.execute_as(steps.mode.plain)

    def sync_target(self) -> None:
        """Copy the online parameters into the target."""
        self.state.target.copy_(self.state.online)

    @property
    def compile_s(self) -> float:
        """Seconds spent compiling and recording so far, in the mode that runs now."""
        return sum(step.wait_s for step in self._steps.all)

    # How the pure steps are run

    def _steps_in(
        self,
        mode: Mode,
        cuda: Cuda = torch.cuda,
        *,
        background: bool = False,
        native: NativeUpdate | CudaUpdate | None = None,
    ) -> LearnerSteps:
        """Build the steps of a mode; `cuda` is `torch.cuda`, or a fake of it."""
        runs, plain = partial(self._run, mode, cuda, background and not mode.native), None
        if mode.native:
            parts = native_parts(native or self.natively(self.state), self._check_ring)
            return LearnerSteps(mode, *parts, runs)
        if background and mode.compiles and mode.graphs:
            as_it_is = replace(mode, name=mode.plain, compiles=False)
            plain = self._modes.get(mode.plain) or self._steps_in(as_it_is, cuda=cuda)
            self._modes[mode.plain] = plain
        return LearnerSteps(mode, self._updating, self._learning_from, runs, plain)

    def _run(
        self,
        mode: Mode,
        cuda: Cuda,
        background: bool,
        step: PureStep,
        *,
        written: Sequence[Tensor] = (),
        **options: Any,
    ) -> Step:
        """Return what runs a pure step in a mode; see `fastdqn.learner.steps.Runs`."""
        tensors = *self.state.written(), *written
        how: dict[str, Any] = {"background": background, "cuda": cuda, **options}
        return run_step(step, mode, self.device, snapshot=lambda *_: snapshot(tensors), **how)

    def _random_bits(self, shape: Sequence[int], batch_size: int) -> Tensor | None:
        """Draw the numbers of updates on the caller's batches; None where they read none."""
        count = self.num_random(batch_size)
        if not count:
            return None
        bits = torch.empty((*shape, count), dtype=torch.int64, device=self.device)
        return bits.random_(0, MAX_DRAW, generator=self.generator)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy state and settings; how the steps are run is built anew at their first call."""
        twin = copied(self, memo, anew=("_modes", "_steps"))
        twin._modes = {}
        twin.execute_as(self.execution, background=self.execution in self._background)
        return twin
