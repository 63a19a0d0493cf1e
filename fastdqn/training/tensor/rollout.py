"""The rollout of tensor environments: vector steps and updates as one function on the device.

A block of vector steps and updates is one function of tensors, run eagerly, compiled, or as one
CUDA graph. Random numbers are drawn before it and passed in; afterwards the host reads once, the
log of the episodes that ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fastdqn.algorithms.exploration import bend_
from fastdqn.envs.tensor.protocol import TensorEnv
from fastdqn.errors import NonFiniteError, UsageError
from fastdqn.execution.modes import mode_of
from fastdqn.execution.step import Progress
from fastdqn.foundation.copying import Whole, copied
from fastdqn.learner.learner import Learner
from fastdqn.native import refuse_sampler
from fastdqn.networks.network_check import refuse_frames
from fastdqn.replay import UniformSampler
from fastdqn.replay.buffer import MAX_DRAW
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.sampler_check import SamplerFactory, sampler_of
from fastdqn.replay.skipping_ring import SkippingRing
from fastdqn.training.events import Episode
from fastdqn.training.nonfinite import TensorTally
from fastdqn.training.tensor.block_runner import BlockRunner
from fastdqn.training.tensor.blocks import Block, BlockTensors
from fastdqn.training.tensor.guard import refusal_of
from fastdqn.training.tensor.iteration import FAULT, SKIPPED, Iteration
from fastdqn.transition import STORAGE_DTYPES

__all__ = ["TensorRollout"]


class TensorRollout(Whole):
    """Acts in N tensor environments, stores transitions and learns from them, all on one device.

    Where the environments are pure, a whole block is one function. Other tensor environments step
    eagerly between the parts of it; observations stay on the device, too.

    Args:
        env: The environments.
        learner: Makes the updates; its latest parameters act.
        capacity: Transitions to hold.
        batch_size: Transitions per update, B.
        seed: Seed of the environments and of everything that is drawn here.
        execution: `eager`, `native`, `compile`, `cudagraph` or `compile+cudagraph`.
        sampler: Builds what draws the batches.
        n_step: Rewards that a drawn transition adds up.
        ladder: [N] float32 on the device, see `exploration.bend_`; None explores alike everywhere.
        on_nonfinite: What is done about a NaN or an infinity: `raise`, `skip` or `replace`. A step
            that is skipped counts as an env step here, since blocks are planned before.

    Attributes:
        ring: What was seen.
        generator: The one source of random numbers.
        num_envs: Environments, N.
        earlier_steps: Env steps of a training that this one goes on from.
        rows: Vector steps so far.
        updates: Updates so far.
        episodes: Finished episodes so far.

    Raises:
        UsageError: A value that cannot be used, named with its flag.
    """

    num_workers = num_restarts = 0
    restarts: Sequence[str] = ()

    def __init__(
        self,
        env: TensorEnv,
        learner: Learner,
        *,
        capacity: int,
        batch_size: int,
        seed: int,
        execution: str = "eager",
        sampler: SamplerFactory = UniformSampler,
        n_step: int = 1,
        ladder: Tensor | None = None,
        on_nonfinite: str = "raise",
    ) -> None:
        self.device = learner.device
        _refuse(env, self.device, batch_size)
        self.env, self.batch_size, self._learner = env, batch_size, learner
        self._space = space = env.single_observation_space
        frame = space.shape or (), STORAGE_DTYPES[str(space.dtype)]
        kind = SkippingRing if on_nonfinite == "skip" else FunctionalRing
        self.ring = kind(capacity, env.num_envs, *frame, device=self.device, n_step=n_step)
        self.generator = torch.Generator(self.device)
        self.num_envs, self._ladder = env.num_envs, ladder
        self.earlier_steps = self.rows = self.updates = self.episodes = 0
        refuse_frames(learner.network, self.ring.ring.frames, None, env.env_id)
        self.sampler = sampler_of(sampler, self.ring, batch_size)
        learn = partial(learner.learn_from, learner.state, self.sampler)
        self._iteration = Iteration(env, learner.network, learn, self.sampler, on_nonfinite)
        self._tally = TensorTally(on_nonfinite)
        self._calls: dict[Block, BlockTensors] = {}
        self._runners: dict[str, BlockRunner] = {}
        self.execute_as(execution)
        self.reset([seed])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy environments, ring, generator and counts; how blocks are run is built anew."""
        twin = copied(self, memo, anew=("_runners", "_blocks", "_calls"))
        twin._runners, twin._calls = {}, {}
        twin.execute_as(self.execution, background=self._blocks.background)
        return twin

    # The calls

    @property
    def env_steps(self) -> int:
        """Real transitions so far."""
        return self.earlier_steps + self.rows * self.num_envs

    @property
    def nonfinite(self) -> int:
        """Steps of environments so far with a number that is not finite. Waits for the device."""
        return int(self._iteration.guard.count)

    def nonfinite_words(self) -> str:
        """Return what the first of them was since the last call, or nothing."""
        return self._tally.take_words()

    @property
    def replay(self) -> FunctionalRing:
        """The ring, by the name that it has in the rollout on the host."""
        return self.ring

    @property
    def compile_s(self) -> float:
        """Seconds spent compiling so far."""
        return sum(runner.steps.wait_s for runner in self._runners.values())

    @property
    def compiling(self) -> list[Progress]:
        """What is being compiled, to report when it is ready."""
        return [self._blocks.steps]

    def execute_as(self, execution: str, *, background: bool = False) -> None:
        """Run blocks in this mode from now on; everything else stays.

        Args:
            execution: One of EXECUTIONS, but not `auto`.
            background: Start at once, and compile beside the training, where possible.

        Raises:
            UsageError: There is no such mode, or not on this device.
        """
        if execution not in self._runners:
            self._runners[execution] = self._runner(execution, background=background)
        self.execution, self._blocks = execution, self._runners[execution]

    def rebuild(self) -> None:
        """Build anew how blocks are run, e.g. since the learner counts on from other updates."""
        self._runners = {}
        self.execute_as(self.execution, background=self._blocks.background)

    def _runner(self, execution: str, *, background: bool) -> BlockRunner:
        mode, native, learner = mode_of(execution, self.device), None, self._learner
        if mode.native:
            refuse_sampler(self.sampler)
            native = learner.natively(learner.state)
        written = *learner.state.written(), *self.sampler.written()
        parts = self._iteration, self.env, mode, written, self.device
        return BlockRunner(*parts, background=background, native=native)

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin new episodes everywhere, and all random numbers anew; running episodes are cut.

        Args:
            seeds: The first one is that of all environments and draws.

        Raises:
            NonFiniteError: An environment shows a number that is not finite.
            UsageError: One shows integers that its space does not hold.
        """
        obs = self.env.reset(seeds[0])
        self.generator.manual_seed(seeds[0])
        wrong = self._iteration.guard.refuses(obs).cpu().numpy()
        if wrong.any():
            env = int(wrong.argmax())
            what = f"observation {obs[env].tolist()}"
            raise refusal_of(self._space, env, what, self.env_steps)
        self._iteration.begin(obs)

    def advance(self, block: Block, epsilon: float) -> list[Episode]:
        """Do a block, then look at the device once. Hot path.

        Args:
            block: What to do; one marked as uncompiled runs eagerly.
            epsilon: Probability of exploring throughout the block.

        Returns:
            The episodes that ended, in order.

        Raises:
            NonFiniteError: An environment returned a NaN or an infinity.
            UsageError: One returned integers that its space does not hold; or there is nothing yet
                to learn from.
        """
        if block.num_updates and not (self.rows or block.num_steps):
            raise UsageError(f"{block}", "the ring is empty", "Begin with a vector step.")
        episodes: list[Episode] = []
        for piece in block.pieces():
            call = self._filled(piece)
            self._blocks(piece, call, epsilon)
            self.rows += piece.total_steps
            self.updates += piece.total_updates
            episodes += self._read(call) if piece.num_steps else []
        return episodes

    def _filled(self, block: Block) -> BlockTensors:
        """Return the tensors of a call with new random numbers in them."""
        call = self._calls.get(block)
        if call is None:
            call = self._calls[block] = self._allocated(block)
        call.uniform.uniform_(generator=self.generator)
        if self._ladder is not None:
            bend_(call.uniform, self._ladder)
        call.random_bits.random_(0, MAX_DRAW, generator=self.generator)
        return call

    def _allocated(self, block: Block) -> BlockTensors:
        new, steps = partial(torch.zeros, device=self.device), (block.total_steps, self.num_envs)
        width = self.batch_size + self._learner.num_random(self.batch_size)
        return BlockTensors(
            new(steps, dtype=torch.int32),
            new(steps, dtype=torch.float32),
            new((*steps, self._iteration.num_uniform), dtype=torch.float32),
            new((block.total_updates, width), dtype=torch.int64),
        )

    # What the host reads

    def _read(self, call: BlockTensors) -> list[Episode]:
        """Read the log of the call that was just made; the one wait for the device."""
        ends = call.ends.cpu().numpy()
        found, before = np.argwhere(ends).tolist(), self.rows - len(ends)
        for row, env in found:
            if ends[row, env] == FAULT:
                raise self._fault(before + row, env)
        if self._tally.on_nonfinite == "skip":
            self._tally.note_skipped(ends == SKIPPED, self.earlier_steps + before * self.num_envs)
            found = np.argwhere((ends != 0) & (ends != SKIPPED)).tolist()
        if not found:
            return []
        returns = call.returns.cpu().numpy()
        return [
            self._episode(before + row + 1, int(ends[row, env]), float(returns[row, env]))
            for row, env in found
        ]

    def _episode(self, rows: int, end: int, return_: float) -> Episode:
        self.episodes += 1
        env_steps = self.earlier_steps + rows * self.num_envs
        return Episode(self.episodes, env_steps, return_, abs(end), end < 0)

    def _fault(self, row: int, env: int) -> NonFiniteError | UsageError:
        """Name what vector step `row` brought, as far as the ring still holds it."""
        rows, width = self.ring.num_rows, self.env.num_envs
        if self.rows - row >= rows:
            return refusal_of(self._space, env, "number", (row + 1) * width)
        ring, slot = self.ring.ring, row % rows * width + env
        last, first = ring.frames[rows * width + slot], ring.frames[(slot + width) % (rows * width)]
        shown = first if bool(self._iteration.guard.holds(last[None])) else last
        reward = float(ring.reward[slot])
        what = f"observation {shown.tolist()}" if math.isfinite(reward) else f"reward {reward}"
        return refusal_of(self._space, env, what, (row + 1) * width)


def _refuse(env: TensorEnv, device: torch.device, batch_size: int) -> None:
    space = env.single_observation_space
    if space.shape is None or str(space.dtype) not in STORAGE_DTYPES:
        raise UsageError(
            f"observation space {space} of {env.env_id}",
            "tensor environments show one tensor of numbers",
            "Flatten it on the device first.",
        )
    if env.device != device:
        raise UsageError(
            f"{env.env_id} on {env.device} and a network on {device}",
            "an iteration in tensor environments has one device",
            f"Build the environments with device={str(device)!r}.",
        )
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}", "a batch has a row", "Try 64.")
