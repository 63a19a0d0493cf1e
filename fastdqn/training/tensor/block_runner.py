"""Runs blocks: act, step the environments and write their rows, draw and learn, in any mode.

Where PyTorch runs them, a whole block is one pure function, compiled or recorded as one graph.
Where native code acts and learns, what lies between is compiled. Tensor environments that
are not pure step eagerly between the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastdqn.algorithms.exploration import NUM_ACTING
from fastdqn.envs.tensor.protocol import PureTensorEnv, TensorEnv, TensorStep
from fastdqn.execution.compile import CompiledStep, run_step
from fastdqn.execution.cuda_graph import Cuda, CudaGraphStep
from fastdqn.execution.in_process import InProcess
from fastdqn.execution.modes import Mode
from fastdqn.execution.step import (
    ComposedStep,
    EagerStep,
    PlainUntilCompiled,
    PureStep,
    Step,
    StepGroup,
)
from fastdqn.native import CudaActor, CudaUpdate, NativeActor, NativeUpdate
from fastdqn.replay import PrioritizedSampler
from fastdqn.training.tensor.blocks import Block, BlockTensors, Call, Parts, in_turn
from fastdqn.training.tensor.iteration import Iteration

__all__ = ["BlockRunner"]

AnyStep = TypeVar("AnyStep", bound=Step)


class BlockRunner:
    """Runs the blocks of an iteration in one mode.

    Args:
        iteration: The parts.
        env: The environments.
        mode: How to run.
        learned: Every tensor that an update writes; graphs need it.
        device: Where everything lives.
        background: Start at once, and compile beside the training.
        native: Learns from a ring and an index in C, or on a card in CUDA C; `native` needs it.
        cuda: `torch.cuda`, or a fake of it.

    Attributes:
        background: See above.
        steps: All that is compiled or recorded.
    """

    def __init__(
        self,
        iteration: Iteration,
        env: TensorEnv,
        mode: Mode,
        learned: Sequence[Tensor],
        device: torch.device,
        *,
        background: bool = False,
        native: NativeUpdate | CudaUpdate | None = None,
        cuda: Cuda = torch.cuda,
    ) -> None:
        self._iteration, self._env, self._mode, self._device = iteration, env, mode, device
        self._learned, self.background, self._cuda = learned, background, cuda
        self._pool, self._epsilon = cache(cuda.graph_pool_handle), 0.0
        self.steps = StepGroup()
        self._runs: dict[Block, Call] = {}
        self._blocks: dict[Block, CompiledStep] = {}
        self._index: dict[torch.Size, Tensor] = {}
        self._acts_in_c = isinstance(native, NativeUpdate)
        self._run = self._run_of(native)

    def __call__(self, block: Block, call: BlockTensors, epsilon: float) -> None:
        """Run a block on its tensors, which are the same at every call with it.

        One marked as uncompiled runs without PyTorch's compiler.
        """
        self._epsilon = epsilon
        if not self._acts_in_c:
            self._iteration.epsilon.fill_(epsilon)
        run = self._runs.get(block)
        if run is None:
            run = self._runs[block] = self._run(block, call)
        run()

    def _run_of(self, native: NativeUpdate | CudaUpdate | None) -> Callable[..., Call]:
        if not isinstance(self._env, PureTensorEnv):
            return self._around(self._env, native if isinstance(native, NativeUpdate) else None)
        if isinstance(native, NativeUpdate):
            return self._in_c(native)
        return self._whole if native is None else self._on_a_card(native)

    # A block as one function

    def _whole(self, block: Block, call: BlockTensors) -> Call:
        """Return what runs a block as one function, its environments included."""
        whole = self._iteration.parts.run_of(block, call)
        graphs, compiles = self._mode.graphs, self._mode.compiles
        if block.uncompiled or not (graphs or compiles):
            return whole
        if not compiles:
            return self._recorded(block, whole)
        # A graph, or the device's queue, hides the calls: compiled once, for a single repeat.
        one = replace(block, repeats=1) if graphs or self._device.type != "cpu" else block
        pieces = call.split(block.repeats // one.repeats)
        compiled = self._compiled_of(one)
        run = in_turn([compiled.bound(*piece) for piece in pieces])
        if not graphs:
            return run
        fast = ComposedStep(run, [(compiled, pieces[0])])
        return self._recorded(block, whole, fast)

    def _compiled_of(self, block: Block) -> CompiledStep:
        def step(*tensors: Tensor) -> None:
            self._iteration.parts.run_of(block, BlockTensors(*tensors))()

        if block not in self._blocks:
            self._blocks[block] = self._compiled(step, counted=not self._mode.graphs)
        return self._blocks[block]

    # A block in parts

    def _in_c(self, native: NativeUpdate) -> Callable[[Block, BlockTensors], Call]:
        """Act and learn in C; the environments, their rows and the draws are one function."""
        between = self._compiled(self._between, alone=True)

        def learn(random_bits: Tensor, drawn: bool) -> Call:
            ring, sampler = self._iteration.ring.ring, self._iteration.sampler
            if isinstance(sampler, PrioritizedSampler):
                return native.bound(ring, random_bits, sampler)
            index = self._place(random_bits)
            bound = native.bound(ring, index)
            return bound if drawn else in_turn([partial(self._draw, index, random_bits), bound])

        own, act = self._iteration.own, self._acting_in_c()
        compiled = Parts(act, lambda uniform, *step: between.bound(own(uniform), *step), learn)
        plain = Parts(
            act, lambda uniform, *step: partial(self._between, own(uniform), *step), learn
        )
        return lambda block, call: (plain if block.uncompiled else compiled).run_of(block, call)

    def _on_a_card(self, native: CudaUpdate) -> Callable[[Block, BlockTensors], Call]:
        """Act and learn by the card's own kernels, within a graph."""
        iteration = self._iteration
        actor = CudaActor(iteration.network, native.make)
        advances = self._compiled(iteration.advance, counted=False)
        draws = self._compiled(self._draw, counted=False)

        def act(uniform: Tensor) -> Call:
            given = iteration.shown, iteration.epsilon, uniform, None, iteration.action
            return partial(actor, *given)

        def parts(advance: Callable[..., Call], draw: Callable[..., Call]) -> Parts:
            def learn(random_bits: Tensor, _: bool) -> Call:
                index = self._place(random_bits)
                learns = partial(native, iteration.ring.ring, index)
                return in_turn([draw(index, random_bits), learns])

            return Parts(act, lambda u, *step: advance(iteration.own(u), *step[:2]), learn)

        plain = parts(partial(partial, iteration.advance), partial(partial, self._draw))
        compiled = parts(advances.bound, draws.bound)

        def make(block: Block, call: BlockTensors) -> Call:
            if block.uncompiled:
                return self._whole(block, call)
            needs: list[tuple[Step, tuple[Tensor, ...]]] = []
            if block.num_steps:
                step = iteration.own(call.uniform[0]), call.ends[0], call.returns[0]
                needs.append((advances, step))
            if block.num_updates:
                random_bits = call.random_bits[: block.num_updates]
                needs.append((draws, (self._place(random_bits), random_bits)))
            fast = ComposedStep(compiled.run_of(block, call), needs)
            return self._recorded(block, plain.run_of(block, call), fast)

        return make

    def _around(
        self, env: TensorEnv, native: NativeUpdate | None
    ) -> Callable[[Block, BlockTensors], Call]:
        """Let environments step by themselves between the parts.

        They bring new tensors at each step, which no graph can read.
        """
        iteration, mode = self._iteration, self._mode
        mode = replace(mode, compiles=mode.compiles or mode.native)
        options: Any = {"background": self.background, "cuda": self._cuda}
        run: Any = partial(run_step, mode=mode, device=self._device, **options)
        record = self._counted(run(self._record))

        def advance(_uniform: Tensor, ends: Tensor, returns: Tensor, _: Tensor) -> Call:
            def step() -> None:
                new = env.step(iteration.action)
                fields = new.obs, new.final_obs, new.reward, new.terminated, new.truncated
                record(*fields, ends, returns)

            return step

        if native is not None:

            def learn(random_bits: Tensor, _: bool) -> Call:
                return partial(native.sampled, iteration.sampler, random_bits)

            return Parts(self._acting_in_c(), advance, learn).run_of
        acts = self._counted(run(iteration.act))
        save = lambda _: iteration.snapshot(0, self._learned)  # noqa: E731
        learns = self._counted(run(iteration.learn, by_row=True, snapshot=save))
        parts = Parts(partial(partial, acts), advance, lambda bits, _: partial(learns, bits))
        return parts.run_of

    def _acting_in_c(self) -> Callable[[Tensor], Call]:
        actor, iteration = NativeActor(self._iteration.network), self._iteration

        def act(uniform: Tensor) -> Call:
            choose = actor.bound(iteration.shown, uniform[:, :NUM_ACTING], iteration.action)
            return lambda: choose(self._epsilon)

        return act

    def _between(self, uniform: Tensor, ends: Tensor, returns: Tensor, random_bits: Tensor) -> None:
        """Let the environments step, write their rows, and choose what to learn from."""
        self._iteration.advance(uniform, ends, returns)
        if len(random_bits):  # or the place of nothing would be allocated within a trace
            self._draw(self._place(random_bits), random_bits)

    def _draw(self, index: Tensor, random_bits: Tensor) -> None:
        if self._iteration.sampler.independent:  # others draw in turns with their feedback
            index.copy_(self._iteration.sampler.draw(random_bits)[0])

    def _record(self, *tensors: Tensor) -> None:
        *step, ends, returns = tensors
        self._iteration.record(TensorStep(*step), ends, returns)

    def _place(self, random_bits: Tensor) -> Tensor:
        """Return where the rows that `random_bits` choose are written."""
        if random_bits.shape not in self._index:
            self._index[random_bits.shape] = torch.zeros_like(random_bits)
        return self._index[random_bits.shape]

    # How steps are run

    def _compiled(
        self, step: PureStep, *, alone: bool = False, counted: bool = True
    ) -> CompiledStep:
        """Return a step that is compiled in this process; `alone` is one beside native code."""
        beside = self.background
        compiler = InProcess(self._device, background=beside, traces_beside=alone)
        made = CompiledStep(step, compiler, optional=alone)
        return self._counted(made) if counted else made  # by the graph that it is recorded in

    def _counted(self, step: AnyStep) -> AnyStep:
        self.steps.steps.append(step)
        return step

    def _recorded(self, block: Block, plain: Call, fast: Step | None = None) -> Step:
        """Return graphs of a block: of its fast form, or of the plain one until that is there."""
        graph = self._graph(block, fast or EagerStep(plain))
        if fast is None or not self.background:
            return self._counted(graph)
        return self._counted(PlainUntilCompiled(self._graph(block, EagerStep(plain)), graph))

    def _graph(self, block: Block, step: Step) -> CudaGraphStep:
        def save() -> Callable[[], None]:
            state = self._env.state if isinstance(self._env, PureTensorEnv) else ()
            return self._iteration.snapshot(block.total_steps, (*state, *self._learned))

        options: Any = {"device": self._device, "pool": self._pool, "cuda": self._cuda}
        return CudaGraphStep(step, save, **options)
