"""Guards against numbers of tensor environments that are not finite, as pure functions.

Each turns what the environments returned into what is stored and shown, on the device, and branches
on no value. What changes is a tensor that is written in place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gymnasium.spaces import Space
from torch import Tensor

from fastdqn.envs.tensor.protocol import (
    PureTensorEnv,
    TensorEnv,
    TensorStep,
    holds_integers,
    membership_of,
)
from fastdqn.errors import NonFiniteError, UsageError
from fastdqn.training.nonfinite import limits_of

__all__ = ["Judged", "TensorGuard", "guard_of", "refusal_of"]


class Judged(NamedTuple):
    """A vector step as it is stored and shown.

    Attributes:
        step: Its rewards are float32; `terminated` and `truncated` are False where it is skipped.
        fine: [N] bool, False where the training has to end.
        real: [N] bool, which are transitions; None is all.
    """

    step: TensorStep
    fine: Tensor
    real: Tensor | None = None


class TensorGuard:
    """Finds what cannot be used, for an error: `raise`.

    Args:
        env: The environments.
        device: Where they live.

    Attributes:
        holds: Returns of observations [N, *O] which ones the space holds, [N] bool.
        count: Scalar int64, steps so far with a number that is not finite; only others count.
    """

    def __init__(self, env: TensorEnv, device: torch.device) -> None:
        self.holds = membership_of(env.single_observation_space, device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self._integers = holds_integers(env.single_observation_space)

    @property
    def state(self) -> tuple[Tensor, ...]:
        """What a step writes here."""
        return tuple(self.named().values())

    def named(self) -> dict[str, Tensor]:
        """Return what a step writes here, by name."""
        return {"count": self.count}

    def refuses(self, obs: Tensor) -> Tensor:
        """Return which first observations [N, *O] no training can begin with, [N] bool."""
        return ~self.holds(obs)

    def begin(self, obs: Tensor) -> Tensor:
        """Return what environments show after a reset that showed `obs` [N, *O]."""
        return obs

    def __call__(self, step: TensorStep) -> Judged:
        """Judge a step."""
        fine = torch.isfinite(step.reward) & self.holds(step.obs) & self.holds(step.final_obs)
        return Judged(step, fine)

    def _in_space(self, step: TensorStep) -> Tensor:
        """Return where integers are those of the space: others are an error in any case."""
        if self._integers:
            return self.holds(step.obs) & self.holds(step.final_obs)
        return torch.ones_like(step.terminated)

    def _finite(self, obs: Tensor) -> Tensor:
        """Return which observations are finite, [N] bool."""
        return (
            torch.ones(len(obs), dtype=torch.bool, device=obs.device)
            if (self._integers)
            else self.holds(obs)
        )


class ReplacingGuard(TensorGuard):
    """Puts finite numbers in the place of those that are not: `replace`."""

    def __init__(self, env: TensorEnv, device: torch.device) -> None:
        super().__init__(env, device)
        self._least, self._most = _limits(env.single_observation_space, device)

    def refuses(self, obs: Tensor) -> Tensor:
        """Return which first observations are integers outside of the space."""
        return ~self.holds(obs) & self._integers

    def begin(self, obs: Tensor) -> Tensor:
        """Return finite numbers, and count environments that showed others."""
        self.count.add_((~self._finite(obs)).sum())
        return self._replaced(obs)

    def _replaced(self, obs: Tensor) -> Tensor:
        if self._integers:
            return obs
        bounded = torch.minimum(torch.maximum(obs, self._least), self._most).to(obs.dtype)
        instead = torch.where(torch.isnan(obs), 0.0, bounded).to(obs.dtype)
        return torch.where(torch.isfinite(obs), obs, instead)

    def __call__(self, step: TensorStep) -> Judged:
        """Return a step of finite numbers."""
        paid = torch.isfinite(step.reward)
        sound = paid & self._finite(step.obs) & self._finite(step.final_obs)
        self.count.add_((~sound).sum())
        reward = torch.where(paid, step.reward, 0.0)
        obs, final_obs = self._replaced(step.obs), self._replaced(step.final_obs)
        finite = TensorStep(obs, final_obs, reward, step.terminated, step.truncated)
        return Judged(finite, self._in_space(step))


class SkippingGuard(ReplacingGuard):
    """Leaves out steps with numbers that are not finite, and begins new episodes: `skip`.

    A pure environment begins anew in the state of its last start, which is kept here; another one
    cannot be reset alone: it goes on, and what follows an observation that is not finite is left
    out, too.

    Attributes:
        spoiled: [N] bool, whose shown observation is not its own.
        has_start: [N] bool, of which environments a start is known.
        start_obs: [N, *O] the first observation of each one's last episode.
        start_state: Tensors like `env.state`, with which it began; empty if it is not pure.
    """

    def __init__(self, env: TensorEnv, device: torch.device) -> None:
        super().__init__(env, device)
        self._env_state = env.state if isinstance(env, PureTensorEnv) else ()
        self.start_state = [part.clone() for part in self._env_state]
        self.spoiled = torch.zeros(env.num_envs, dtype=torch.bool, device=device)
        self.has_start = torch.zeros_like(self.spoiled)
        self.start_obs: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """Return what a step writes here, by name."""
        named = {**super().named(), "spoiled": self.spoiled, "has_start": self.has_start}
        if self.start_obs is not None:
            named["start_obs"] = self.start_obs
        return named | {f"start{number}": each for number, each in enumerate(self.start_state)}

    def begin(self, obs: Tensor) -> Tensor:
        """Keep the starts after a reset of all environments."""
        if self.start_obs is None:
            self.start_obs = torch.zeros_like(obs)
        finite = self._finite(obs)
        self.spoiled.copy_(~finite)
        self.has_start.copy_(finite & bool(self._env_state))
        self.start_obs.copy_(shown := super().begin(obs))
        for kept, now in zip(self.start_state, self._env_state, strict=True):
            kept.copy_(now)
        return shown

    def __call__(self, step: TensorStep) -> Judged:
        """Return what is stored and shown of a step, and which of it are transitions."""
        starts, ended = self._finite(step.obs), step.terminated | step.truncated
        sound = torch.isfinite(step.reward) & self._finite(step.final_obs)
        sound = sound & (starts | ended)
        real = sound & ~self.spoiled
        replaced = super().__call__(step)
        renewed = (~starts | (~sound & ~ended)) & self.has_start
        obs = self._begun(step, replaced.step.obs, renewed, ended & starts)
        self.spoiled.copy_(~starts & ~renewed)
        finite, flags = replaced.step, (step.terminated & real, step.truncated & real)
        shown = TensorStep(obs, finite.final_obs, finite.reward, *flags)
        return Judged(shown, replaced.fine, real)

    def _begun(self, step: TensorStep, obs: Tensor, renewed: Tensor, fresh: Tensor) -> Tensor:
        """Let `renewed` [N] begin anew, keep the starts of `fresh` [N]; return what is shown."""
        assert self.start_obs is not None
        for kept, now in zip(self.start_state, self._env_state, strict=True):
            kept.copy_(torch.where(_like(fresh, now), now, kept))
            now.copy_(torch.where(_like(renewed, now), kept, now))
        if self._env_state:
            self.has_start.logical_or_(fresh)
            self.start_obs.copy_(torch.where(_like(fresh, obs), step.obs, self.start_obs))
        return torch.where(_like(renewed, obs), self.start_obs, obs)


def guard_of(on_nonfinite: str, env: TensorEnv, device: torch.device) -> TensorGuard:
    """Return the guard that does what is asked: `raise`, `skip` or `replace`."""
    kinds = {"raise": TensorGuard, "skip": SkippingGuard, "replace": ReplacingGuard}
    return kinds[on_nonfinite](env, device)


def refusal_of(
    space: Space[Any], env: int, what: str, env_steps: int
) -> NonFiniteError | UsageError:
    """Return the refusal of what an environment returned by so many env steps."""
    if not what.startswith("reward") and holds_integers(space):
        return UsageError(
            f"environment {env} with the {what} by env step {env_steps}",
            f"its observation space {' '.join(str(space).split())} holds no such value",
            "Fix the environment, or let its single_observation_space say what it shows.",
        )
    return NonFiniteError(
        f"environment {env} returned the {what} by env step {env_steps}: DQN cannot learn from "
        "it. Fix the environment, let it return finite numbers, or pass --on-nonfinite skip."
    )


def _like(flags: Tensor, values: Tensor) -> Tensor:
    """Return [N] flags in a shape that goes with values [N, ...]."""
    return flags.view(-1, *[1] * (values.ndim - 1))


def _limits(space: Space[Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the limits of `limits_of` in float32; where they are the same everywhere, scalars."""
    least, most = (torch.as_tensor(limit, dtype=torch.float32) for limit in limits_of(space))
    return least.to(device), most.to(device)
