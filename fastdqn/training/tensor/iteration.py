"""One training iteration on the device: act, step, write and learn as pure steps of tensors.

Each part reads and writes tensors that are allocated with the iteration and never move. It draws
no random number, takes no count from the host and never branches on a value: what it needs of
these comes in as tensors. Each therefore runs eagerly, compiled, or in a CUDA graph, and so does a
block of them, see `Iteration.parts`, environments included, where the environments are pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fastdqn.algorithms.exploration import NUM_ACTING, explore
from fastdqn.envs.tensor.protocol import PureTensorEnv, TensorEnv, TensorStep
from fastdqn.errors import UsageError
from fastdqn.foundation.copying import snapshot
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.replay import Sampler
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.skipping_ring import SkippingRing
from fastdqn.training.tensor.blocks import Call, Parts
from fastdqn.training.tensor.guard import guard_of

__all__ = ["FAULT", "SKIPPED", "Iteration"]

FAULT = -(2**31)
"""In the log of ends: a number of this step was not finite, or not one of its space."""
SKIPPED = FAULT + 1
"""In the log of ends: the step is no transition."""


class Iteration:
    """The parts of a training iteration over N environments.

    Args:
        env: The environments; `advance` needs pure ones.
        network: Its latest parameters act.
        learn: Makes updates, in place, one for each row of random bits.
        sampler: Draws from the ring that stores the transitions.
        on_nonfinite: What is done about a NaN or an infinity: `raise`; `skip`, which needs a
            `SkippingRing`; or `replace`.

    Attributes:
        epsilon: Scalar float32, probability of exploring; write into it to change it.
        shown: [N, *O] what the environments show now.
        action: [N] int64, the last actions.
        guard: Judges what the environments return.
        returns: [N] float32, return of each running episode.
        lengths: [N] int32, env steps of each running episode.
        learn: See above.
        num_acting: Uniform numbers of each environment that acting reads, 2 + C.
        num_uniform: Those that a vector step reads, 2 + C + R.
    """

    def __init__(
        self,
        env: TensorEnv,
        network: FlatNetwork,
        learn: Callable[[Tensor], None],
        sampler: Sampler,
        on_nonfinite: str = "raise",
    ) -> None:
        assert isinstance(sampler.replay, FunctionalRing)
        self.network, self.sampler, self.learn = network, sampler, learn
        self.ring = ring = sampler.replay
        self.num_acting = NUM_ACTING + network.num_columns(env.num_envs)
        self.num_uniform = self.num_acting
        if isinstance(env, PureTensorEnv):
            self._pure = env
            self.num_uniform += env.num_random
        new = partial(torch.zeros, device=network.flat.device)
        frames = ring.ring.frames
        self.guard = guard_of(on_nonfinite, env, network.flat.device)
        self.epsilon = new((), dtype=torch.float32)
        self.shown = new((env.num_envs, *frames.shape[1:]), dtype=frames.dtype)
        self.action = new(env.num_envs, dtype=torch.int64)
        self.returns = new(env.num_envs, dtype=torch.float32)
        self.lengths = new(env.num_envs, dtype=torch.int32)

    @property
    def parts(self) -> Parts:
        """All of them as they are, to make a block of."""

        def advance(uniform: Tensor, ends: Tensor, returns: Tensor, _: Tensor) -> Call:
            return partial(self.advance, self.own(uniform), ends, returns)

        return Parts(
            lambda uniform: partial(self.act, uniform),
            advance,
            lambda random_bits, _: partial(self.learn, random_bits),
        )

    @property
    def state(self) -> tuple[Tensor, ...]:
        """What the parts write, but for the ring, the environments and what `learn` writes."""
        return self.shown, self.action, self.returns, self.lengths, *self.guard.state

    def begin(self, obs: Tensor) -> None:
        """Start episodes everywhere that show `obs` [N, *O]; the running ones are cut."""
        self._refuse_dtype(obs)
        obs = self.guard.begin(obs)
        self.ring.cut()
        self.ring.begin(obs)
        self.shown.copy_(obs)
        self.returns.zero_()
        self.lengths.zero_()

    def own(self, uniform: Tensor) -> Tensor:
        """Return the environments' own numbers [N, R] of those of a vector step, as a view."""
        return uniform[:, self.num_acting :]

    def advance(self, uniform: Tensor, ends: Tensor, returns: Tensor) -> None:
        """Let pure environments step with the last actions and their own numbers; record it."""
        with torch.no_grad():
            step = self._pure.advance(self.action, uniform)
        self.record(step, ends, returns)

    def act(self, uniform: Tensor) -> None:
        """Choose an action for what every environment shows by 2 + C numbers, into `action`."""
        network = self.network
        with torch.no_grad():
            numbers = network.numbers_in(uniform, NUM_ACTING)
            q = network.q(network.views(network.flat), self.shown, numbers)
            self.action.copy_(explore(q, self.epsilon, uniform))

    def record(self, step: TensorStep, ends: Tensor, returns: Tensor) -> None:
        """Write what followed the actions into the ring, and what ended into the log.

        Args:
            step: What the environments returned; copied.
            ends: [N] int32; written: the length of an episode that terminated here, minus the
                length of one that was truncated, FAULT where a number cannot be used, SKIPPED where
                it is no transition, else 0.
            returns: [N] float32; written: return of the episode up to here.
        """
        self._refuse_dtype(step.obs)
        self._refuse_dtype(step.final_obs)
        with torch.no_grad():
            step = replace(step, reward=step.reward.float())
            step, fine, real = self.guard(step)
            terminated, truncated = step.terminated, step.truncated
            self._store(step, real)
            self.sampler.wrote()
            self.shown.copy_(step.obs)
            total, length = self.returns + step.reward, self.lengths + 1
            over = terminated | truncated
            end = torch.where(terminated, length, torch.where(truncated, -length, 0))
            if real is not None:
                end, over = torch.where(real, end, SKIPPED), over | ~real
            ends.copy_(torch.where(fine, end, FAULT))
            returns.copy_(total)
            self.returns.copy_(total.masked_fill(over, 0.0))
            self.lengths.copy_(length.masked_fill(over, 0))

    def _store(self, step: TensorStep, real: Tensor | None) -> None:
        """Write a step into the ring; `real` [N] says which are transitions, None all."""
        flags, frames = (step.terminated, step.truncated), (step.obs, step.final_obs)
        if real is None:
            self.ring.write(self.action, step.reward, *flags, *frames)
        else:
            assert isinstance(self.ring, SkippingRing)
            self.ring.write_some(real, (self.action, step.reward, *flags, *frames))

    def _refuse_dtype(self, obs: Tensor) -> None:
        """Refuse observations that the ring would have to convert; looks at no value."""
        if obs.dtype != self.shown.dtype:
            raise UsageError(
                f"observations of {obs.dtype} from tensor environments",
                f"their single_observation_space is stored in {self.shown.dtype}",
                f"Return obs.to({self.shown.dtype}), or change the space.",
            )

    def snapshot(self, num_rows: int, others: Sequence[Tensor]) -> Callable[[], None]:
        """Copy what `num_rows` vector steps would change, and `others`; return what undoes it."""
        restore_ring = self.ring.snapshot(num_rows)
        restore_others = snapshot((*self.state, *others))

        def restore() -> None:
            restore_ring()
            restore_others()

        return restore
