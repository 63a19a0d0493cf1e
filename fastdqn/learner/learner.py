"""The learner: replayed rows become weights, by a pure step that is run as fast as one likes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from fastdqn.algorithms.objectives import Objective, objective_of
from fastdqn.algorithms.optimizers import Optimizer
from fastdqn.errors import UsageError
from fastdqn.execution.background import Background
from fastdqn.execution.meanwhile import Meanwhile
from fastdqn.execution.modes import GRAPHS, accelerate, chunks, refuse_step_execution
from fastdqn.foundation.copying import copied
from fastdqn.learner.precision import float32_products
from fastdqn.learner.update import METRICS, TARGETS, LearnerState, Update
from fastdqn.learner.ways import Way, graphs_of, native_way, recorded
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.network_check import kind_of, refuse_batch, refuse_frames
from fastdqn.replay import ReplayBuffer, Ring, Sampler
from fastdqn.replay.sampler import GivenRows
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
        self._ways: dict[str, Way] = {}
        self._background: set[str] = set()
        self._fitting: Callable[[], Ring | None] = lambda: None  # the ring that was looked at
        self._batch: tuple[Any, ...] = ()  # of the last batch, what was looked at
        self.execute_as(execution)

    # The calls

    def execute_as(self, execution: str, *, background: bool = False) -> None:
        """Run the pure step in this way from now on; the state stays as it is.

        A way that was taken before is taken again as it was left: nothing is compiled or
        recorded twice.

        Args:
            execution: One of EXECUTIONS, but not `auto`.
            background: Start at once, and compile beside the trainer, where that can be done.

        Raises:
            UsageError: There is no such way, or not on this device.
        """
        if execution not in self._ways:
            refuse_step_execution(execution, self.device)
            self._ways[execution] = self._way(execution, background=background)
            self._background = (
                self._background | {execution} if background else self._background - {execution}
            )
        self.execution = execution
        way = self._ways[execution]
        self._replayed_step, self._given_step = way.replayed, way.given
        self._sampled_step, self._chosen_step = way.sampled, way.chosen

    def go_on_from(self, updates: int) -> None:
        """Count the period of the hard target on from a training of so many updates."""
        self.earlier_updates, self._ways = updates, {}  # none of which knows of them
        self.execute_as(self.execution)

    def keep_to(self, execution: str) -> None:
        """Take this way, and free what the others hold."""
        self.execute_as(execution)
        self._ways = {execution: self._ways[execution]}

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
        if self._chosen_step is None and (kind := kind_of(given)) != self._batch:
            refuse_batch(self.network, given)
            self._batch = kind  # the C has looked for itself
        with float32_products(self.precision, self.device):
            self._given_step(self.state, *given.tensors())
        return self.state.metrics

    def learn(self, replay: ReplayBuffer, index: Tensor) -> None:
        """Take one optimizer step for each row of `index`, in order. Hot path; never waits.

        Args:
            replay: On the learner's device; read.
            index: [K, B] int64 from `replay.draw`.

        Raises:
            UsageError: The network does not take what the ring holds, or the index is none.
        """
        looked_at_by_c = self._chosen_step is not None
        if not looked_at_by_c and (index.ndim != 2 or index.dtype is not torch.int64):
            got = f"index {list(index.shape)} {index.dtype}"
            raise UsageError(got, "it has a row [B] int64 for each update", "See `replay.draw`.")
        self._learn(replay.ring, index)

    def learn_sampled(self, sampler: Sampler, updates: int) -> None:
        """Take optimizer steps on batches that a sampler chooses. Hot path; never waits.

        The same as `learn(replay, sampler.draw(updates))`; graphs hold the choice too.

        Args:
            sampler: Of a ring on the learner's device.
            updates: How many.

        Raises:
            UsageError: Its ring is empty, or the network does not take what it holds.
        """
        if self._fitting() is not sampler.ring:
            self._look_at(sampler.ring)
        if self._chosen_step is not None:
            self._chosen_step(sampler, updates)
            return
        if self._sampled_step is None:
            self._learn(sampler.ring, sampler.draw(sampler.fill(updates))[0])
            return
        random_bits, done = sampler.fill(updates), 0
        with float32_products(self.precision, self.device):
            for count in chunks(updates, UPDATES_PER_GRAPH):
                part = random_bits
                if count != updates:
                    part = sampler.place(count).copy_(random_bits[done : done + count])
                self._sampled_step(sampler, part)
                done += count

    def prepare(self, ring: Ring, batch_size: int, updates: int) -> None:
        """Ask for what calls with so many updates need, if it is compiled beside the trainer."""
        step = self._replayed_step
        if isinstance(step, Background):
            for count in sorted(set(chunks(updates, UPDATES_PER_CALL)), reverse=True):
                index = torch.zeros((count, batch_size), dtype=torch.int64, device=self.device)
                step.prepare(self.state, ring, index)

    @property
    def compiling(self) -> list[Any]:
        """The steps that are compiled now, for those who tell when they are ready."""
        return [self._sampled_step or self._replayed_step]

    def close(self) -> None:
        """Ask no compiler for anything any longer; what is not ready is forgotten."""
        for way in list(self._ways):
            steps = [s for s in self._ways[way] if isinstance(s, Background | Meanwhile)]
            if all(step.ready for step in steps):
                continue
            for step in steps:
                step.close()
            del self._ways[way]
            if self.execution == way:
                self.execute_as("cudagraph" if way in GRAPHS else "eager")

    def sync_target(self) -> None:
        """Copy the online parameters into the target."""
        self.state.target.copy_(self.state.online)

    @property
    def compile_s(self) -> float:
        """Seconds spent compiling and recording so far, by the way that is taken now."""
        steps = (self._replayed_step, self._given_step, self._sampled_step)
        return sum(getattr(step, "compile_s", 0.0) for step in steps)

    # How the pure step is run

    def _way(self, execution: str, cuda: Any = torch.cuda, *, background: bool = False) -> Way:
        """Build the ways into the step; `cuda` is `torch.cuda`, or what stands in for it."""
        if execution == "native":
            return native_way(self.natively(self.state), self.state, cuda)
        steps = self._replayed, self._given
        if execution in GRAPHS:
            plain = recorded(self.state, *steps, cuda=cuda)
            plain = self._ways.setdefault("cudagraph", plain)
            return graphs_of(execution, self.state, *steps, plain, background=background, cuda=cuda)
        how: Any = {"device": self.device, "background": background}
        replayed = accelerate(self._replayed, execution, by_row=True, **how)
        return Way(replayed, accelerate(self._given, execution, **how))

    def _learn(self, ring: Ring, index: Tensor) -> None:
        if self._fitting() is not ring:
            self._look_at(ring)
        done = 0
        with float32_products(self.precision, self.device):
            for count in chunks(len(index), UPDATES_PER_CALL):
                self._replayed_step(self.state, ring, index[done : done + count])
                done += count

    def _look_at(self, ring: Ring) -> None:
        """Refuse a ring that the network does not fit; one that does is remembered, not kept."""
        refuse_frames(self.network, ring.frames, ring.masks, "the replay buffer")
        self._fitting = weakref.ref(ring)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy state and settings; how the step is run is built anew at its first call."""
        ways = ("_ways", "_replayed_step", "_given_step", "_sampled_step", "_chosen_step")
        twin = copied(self, memo, anew=(*ways, "_fitting"))
        twin._ways, twin._fitting = {}, lambda: None
        twin.execute_as(self.execution, background=self.execution in self._background)
        return twin

    def step(self, state: LearnerState, batch: Transitions) -> None:
        """Take one optimizer step on `batch`, as it is: for steps that hold it as their part.

        Args:
            state: Written in place, usually `self.state`.
            batch: B transitions on the learner's device; read.
        """
        self._step(state, batch)

    def _replayed(self, state: LearnerState, ring: Ring, index: Tensor) -> None:
        self.learn_from(state, GivenRows(ring, index.shape[1]), index)

    def _given(self, state: LearnerState, *fields: Tensor) -> None:
        self._step(state, Transitions(*fields))
