"""Blocks as PyTorch runs them: as they are, compiled, or as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdqn.blocks import Block
from fastdqn.captured import Captured
from fastdqn.envs.tensor.protocol import PureTensorEnv, TensorEnv
from fastdqn.execution import GRAPHS, accelerate
from fastdqn.exploration import NUM_ACTING
from fastdqn.iteration import BlockTensors, Iteration
from fastdqn.native import CudaActor, CudaUpdate

__all__ = ["Parts", "TorchBlocks", "run_around"]


class Parts(NamedTuple):
    """The parts of an iteration as they are run around environments that step by themselves."""

    act: Callable[[Tensor], None]
    record: Callable[..., None]
    learn: Callable[[Tensor], None]


def run_around(
    env: TensorEnv, action: Tensor, parts: Parts, block: Block, call: BlockTensors
) -> None:
    """Do the parts of a block around the environments' own eager steps.

    Args:
        env: The environments.
        action: [N] int64, where `parts.act` leaves the actions.
        parts: Acting, recording, learning.
        block: What to do.
        call: Its tensors.
    """
    for repeat in range(block.repeats):
        for row in range(repeat * block.num_steps, (repeat + 1) * block.num_steps):
            parts.act(call.uniform[row])
            parts.record(env.step(action), call.ends[row], call.returns[row])
        if block.num_updates:
            first = repeat * block.num_updates
            parts.learn(call.bits[first : first + block.num_updates])


class _NativeParts:
    """The parts of a block as the card's own kernels run them, and the environments compiled.

    Args:
        iteration: The parts.
        learn: Makes updates from a ring and indices.
        device: Where everything lives.
    """

    def __init__(self, iteration: Iteration, learn: CudaUpdate, device: torch.device) -> None:
        self._iteration, self._learn = iteration, learn
        self._act = CudaActor(iteration.network, learn.make)
        self._draw = accelerate(self._drawn, "compile", device)
        self._advance = accelerate(self._advanced, "compile", device)
        self._index: dict[torch.Size, Tensor] = {}

    def act(self, uniform: Tensor) -> None:
        """Choose actions, see `Iteration.act`."""
        iteration = self._iteration
        self._act(iteration.shown, iteration.epsilon, uniform, None, iteration.action)

    def advance(self, ends: Tensor, returns: Tensor, uniform: Tensor) -> None:
        """Step and record, see `Iteration.advance`."""
        self._advance(ends, returns, uniform)

    def learn(self, bits: Tensor) -> None:
        """Make an update for each row of `bits`, see `Iteration.learn`."""
        index = self._index.get(bits.shape)
        if index is None:
            index = self._index[bits.shape] = torch.zeros_like(bits)
        self._draw(index, bits)
        self._learn(self._iteration.ring.ring, index)

    def _advanced(self, ends: Tensor, returns: Tensor, uniform: Tensor) -> None:
        self._iteration.advance(uniform, ends, returns)

    def _drawn(self, index: Tensor, bits: Tensor) -> None:
        index.copy_(self._iteration.ring.draw(bits))


class TorchBlocks:
    """Runs the blocks of an iteration in one of the ways of PyTorch.

    Where the environments are pure, a whole block is one function. Where they only speak
    tensors, they step eagerly between the parts of it.

    Args:
        iteration: The parts.
        env: The environments.
        execution: One of EXECUTIONS, but not `auto`.
        learned: Every tensor that an update writes; graphs need it.
        device: Where everything lives.
        behind: Start at once, and compile meanwhile; on the CPU.
        native: Learns by kernels of its own, within a graph; `native` needs it.
    """

    def __init__(
        self,
        iteration: Iteration,
        env: TensorEnv,
        execution: str,
        learned: Sequence[Tensor],
        device: torch.device,
        *,
        behind: bool = False,
        native: CudaUpdate | None = None,
    ) -> None:
        self._iteration, self.env, self.execution = iteration, env, execution
        self._learned, self._device, self._behind = learned, device, behind
        self._compiled: dict[Block, Callable[..., None]] = {}
        self._fast: Callable[..., None] = self._run_compiled
        if native is not None:
            execution, self._native = "compile+cudagraph", _NativeParts(iteration, native, device)
            self._fast = Captured(self._run_natively, self._keep, device=device)
        elif execution in GRAPHS:
            whole = self._run_whole if execution == "cudagraph" else self._run_compiled
            self._fast = Captured(whole, self._keep, device=device)
        # The environments' own steps bring new tensors each time, which no graph can read.
        around = "compile" if "compile" in execution else "eager"
        self._parts = Parts(
            accelerate(iteration.act, around, device, behind=behind),
            accelerate(iteration.record, around, device, behind=behind),
            accelerate(
                iteration.learn,
                execution,
                device,
                lambda _: iteration.keep(0, learned),
                by_row=True,
            ),
        )

    @property
    def compile_s(self) -> float:
        """Seconds spent compiling and recording so far."""
        return sum(getattr(step, "compile_s", 0.0) for step in self.compiling)

    @property
    def compiling(self) -> list[Any]:
        """The parts that are compiled or recorded."""
        # A step that is compiled within a recording is counted there.
        recorded = self.execution in GRAPHS or self.execution == "native"
        whole = [self._fast] if recorded else list(self._compiled.values())
        return [*whole, *self._parts]

    def __call__(self, block: Block, call: BlockTensors, epsilon: float) -> None:
        """Run a block; one marked as rare runs eagerly.

        Args:
            block: What to do.
            call: Its tensors, the same at every call with it.
            epsilon: Probability of exploring throughout.
        """
        self._iteration.epsilon.fill_(epsilon)
        tensors = call.ends, call.returns, call.uniform, call.bits
        if not isinstance(self.env, PureTensorEnv):
            run_around(self.env, self._iteration.action, self._parts, block, call)
        elif block.rare or self.execution == "eager":
            self._run_whole(block, *tensors)
        else:
            self._fast(block, *tensors)

    def _run_whole(self, block: Block, *tensors: Tensor) -> None:
        """Do the block as one pure function; the environments are a part of it."""
        self._iteration.block(block.num_steps, block.num_updates, *tensors)

    def _run_compiled(self, block: Block, *tensors: Tensor) -> None:
        if self._device.type == "cpu" or block.repeats == 1:
            self._compiled_for(block)(*tensors)
            return
        # Compiled once, called for each repeat: a graph or the device's queue hides the calls.
        once = replace(block, repeats=1)
        compiled = self._compiled_for(once)
        lengths = block.num_steps, block.num_steps, block.num_steps, block.num_updates
        parts = (
            torch.split(tensor, length) if length else (tensor,) * block.repeats
            for tensor, length in zip(tensors, lengths, strict=True)
        )
        for part in zip(*parts, strict=True):
            compiled(*part)

    def _compiled_for(self, block: Block) -> Callable[..., None]:
        if block not in self._compiled:

            def step(*tensors: Tensor) -> None:
                self._run_whole(block, *tensors)

            self._compiled[block] = accelerate(step, "compile", self._device, behind=self._behind)
        return self._compiled[block]

    def _run_natively(self, block: Block, *tensors: Tensor) -> None:
        """Do the block by the card's kernels, but for the environments, which are compiled."""
        ends, returns, uniform, bits = tensors
        parts = self._native
        for repeat in range(block.repeats):
            for row in range(repeat * block.num_steps, (repeat + 1) * block.num_steps):
                parts.act(uniform[row])
                parts.advance(ends[row], returns[row], uniform[row, :, NUM_ACTING:])
            if block.num_updates:
                first = repeat * block.num_updates
                parts.learn(bits[first : first + block.num_updates])

    def _keep(self, block: Block, *_tensors: Tensor) -> Callable[[], None]:
        """Copy what a block changes, for the warm-up of its capture."""
        state = self.env.state if isinstance(self.env, PureTensorEnv) else ()
        return self._iteration.keep(block.total_steps, (*state, *self._learned))
