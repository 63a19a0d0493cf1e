"""Blocks as PyTorch runs them: as they are, compiled, or as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdqn.envs.tensor.protocol import PureTensorEnv, TensorEnv
from fastdqn.execution.compiled import CompiledInside
from fastdqn.execution.cuda_graph import CudaGraphStep
from fastdqn.execution.meanwhile import Meanwhile, Need
from fastdqn.execution.modes import GRAPHS, accelerate
from fastdqn.native import CudaUpdate
from fastdqn.training.tensor.block_plan import Block
from fastdqn.training.tensor.iteration import BlockTensors, Iteration
from fastdqn.training.tensor.native_graph import NativeGraph

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
            parts.learn(call.random_bits[first : first + block.num_updates])


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
        background: Start at once, and compile meanwhile.
        native: Learns by kernels of its own, within a graph; `native` needs it.
        cuda: `torch.cuda`, or what stands in for it.
    """

    def __init__(
        self,
        iteration: Iteration,
        env: TensorEnv,
        execution: str,
        learned: Sequence[Tensor],
        device: torch.device,
        *,
        background: bool = False,
        native: CudaUpdate | None = None,
        cuda: Any = torch.cuda,
    ) -> None:
        self._iteration, self.env, self.execution = iteration, env, execution
        self._learned, self._device, self._background, self._cuda = (
            learned,
            device,
            background,
            cuda,
        )
        self._compiled: dict[Block, Any] = {}
        self._fast: Callable[..., None] = self._run_compiled
        if native is not None:
            execution, graph = "compile+cudagraph", NativeGraph(iteration, native, device)
            self._fast = self._recorded(graph.plain, graph.compiled, graph.needs)
        elif execution == "compile+cudagraph":
            self._fast = self._recorded(self._run_whole, self._run_compiled, self._needs)
        elif execution == "cudagraph":
            self._fast = self._captured(self._run_whole)
        # The environments' own steps bring new tensors each time, which no graph can read.
        around = "compile" if "compile" in execution else "eager"
        self._parts = Parts(
            accelerate(iteration.act, around, device, background=background),
            accelerate(iteration.record, around, device, background=background),
            accelerate(
                iteration.learn,
                execution,
                device,
                lambda _: iteration.snapshot(0, learned),
                cuda,
                by_row=True,
                background=background,
            ),
        )

    def _recorded(
        self,
        plain: Callable[..., None],
        compiled: Callable[..., None],
        needs: Callable[..., Sequence[Need]],
    ) -> CudaGraphStep | Meanwhile:
        """Return graphs of the compiled form, or of the plain one until the other is there."""
        fast = self._captured(compiled)
        return Meanwhile(self._captured(plain), fast, needs) if self._background else fast

    def _captured(self, step: Callable[..., None]) -> CudaGraphStep:
        return CudaGraphStep(step, self._keep, device=self._device, cuda=self._cuda)

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
        tensors = call.ends, call.returns, call.uniform, call.random_bits
        if not isinstance(self.env, PureTensorEnv):
            run_around(self.env, self._iteration.action, self._parts, block, call)
        elif block.uncompiled or self.execution == "eager":
            self._run_whole(block, *tensors)
        else:
            self._fast(block, *tensors)

    def _run_whole(self, block: Block, *tensors: Tensor) -> None:
        """Do the block as one pure function; the environments are a part of it."""
        self._iteration.block(block.num_steps, block.num_updates, *tensors)

    def _run_compiled(self, block: Block, *tensors: Tensor) -> None:
        graph = self.execution in GRAPHS
        if block.repeats == 1 or (self._device.type == "cpu" and not graph):
            self._compiled_for(block)(*tensors)
            return
        # Compiled once, called for each repeat: a graph or the device's queue hides the calls.
        compiled = self._compiled_for(replace(block, repeats=1))
        parts = (
            torch.split(tensor, length) if length else (tensor,) * block.repeats
            for tensor, length in zip(tensors, _lengths(block), strict=True)
        )
        for part in zip(*parts, strict=True):
            compiled(*part)

    def _needs(self, block: Block, *tensors: Tensor) -> list[Need]:
        """Return what `_run_compiled` needs within a graph, see `Meanwhile`."""
        first = tuple(t[:n] for t, n in zip(tensors, _lengths(block), strict=True))
        return [(self._compiled_for(replace(block, repeats=1)), first)]

    def _compiled_for(self, block: Block) -> Any:
        if block not in self._compiled:

            def step(*tensors: Tensor) -> None:
                self._run_whole(block, *tensors)

            # Within a graph it is the graph that is exchanged when this has been compiled.
            self._compiled[block] = (
                CompiledInside(step, self._device)
                if self.execution in GRAPHS
                else accelerate(step, "compile", self._device, background=self._background)
            )
        return self._compiled[block]

    def _keep(self, block: Block, *_tensors: Tensor) -> Callable[[], None]:
        """Copy what a block changes, for the warm-up of its capture."""
        state = self.env.state if isinstance(self.env, PureTensorEnv) else ()
        return self._iteration.snapshot(block.total_steps, (*state, *self._learned))


def _lengths(block: Block) -> tuple[int, int, int, int]:
    """Return how much of each of a call's tensors one repeat of its block is given."""
    return block.num_steps, block.num_steps, block.num_steps, block.num_updates
