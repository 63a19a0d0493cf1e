"""What a rollout of tensor environments consists of beside ring and sampler, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdqn.envs.tensor.episodic import EpisodicEnv
from fastdqn.envs.tensor.protocol import PureTensorEnv, TensorEnv
from fastdqn.foundation.saved_generators import generator_state, restore_generator
from fastdqn.foundation.state import PartState
from fastdqn.training.tensor.rollout import TensorRollout

__all__ = ["restore_rollout", "rollout_state"]

COUNTS = ("earlier_steps", "rows", "updates", "episodes")


def rollout_state(rollout: TensorRollout) -> PartState:
    """Return counts, generator, running episodes and environments; tensors are its own."""
    values = {name: getattr(rollout, name) for name in COUNTS}
    guard = PartState({}, rollout._iteration.guard.named())
    parts = {"generator": generator_state(rollout.generator), "env": _env_state(rollout.env)}
    parts |= {"guard": guard, "nonfinite": rollout._tally.state()}
    return PartState(values, _running(rollout)).with_parts(parts)


def restore_rollout(rollout: TensorRollout, state: PartState, num_actions: int) -> None:
    """Go on from a state, in place; its ring is restored already.

    Environments that are not pure do not come back: they show what they show, and the caller
    resets them.

    Raises:
        CheckpointError: Names what is none, or differs from what the ring shows.
    """
    ring, running = rollout.ring, _running(rollout)
    written = int(ring.row)
    counts = {name: state.whole(name) for name in COUNTS}
    state.whole("rows", written, written)
    action = state.tensor("action", running["action"])
    if not 0 <= int(action.min()) <= int(action.max()) < num_actions:
        raise state.refusal("action", f"not in [0, {num_actions}) throughout")
    if int(state.tensor("lengths", running["lengths"]).min()) < 0:
        raise state.refusal("lengths", "negative somewhere")
    state.finite("returns", running["returns"])
    head = written % ring.num_rows * ring.num_envs
    heads = ring.ring.frames[head : head + ring.num_envs]
    if not torch.equal(state.tensor("shown", running["shown"]).to(heads.device), heads):
        raise state.refusal("shown", "not what the ring shows")
    _restore_guard(rollout, state.part("guard"))
    rollout._tally.restore(state.part("nonfinite"))
    restore_generator(rollout.generator, state.part("generator"))
    _restore_env(rollout.env, state.part("env"))
    state.copy_into(running)
    for name, count in counts.items():
        setattr(rollout, name, count)


def _running(rollout: TensorRollout) -> dict[str, Tensor]:
    names = ("shown", "action", "returns", "lengths")
    return {name: getattr(rollout._iteration, name) for name in names}


def _restore_guard(rollout: TensorRollout, state: PartState) -> None:
    """Go on with what a guard has counted and keeps; what it may show again is looked at."""
    guard = rollout._iteration.guard
    named = guard.named()
    state.scalar("count", guard.count)
    for name, tensor in named.items():
        found = state.tensor(name, tensor)
        if found.dtype is torch.bool and bool((found.view(torch.uint8) > 1).any()):
            raise state.refusal(name, "not of flags throughout")
    if "start_obs" in named:
        shown = state.finite("start_obs", named["start_obs"]).to(rollout.device)
        if bool(guard.refuses(shown).any()):
            raise state.refusal("start_obs", "none that the environment may show")
    state.copy_into(named)


def _env_state(env: TensorEnv) -> PartState:
    if not isinstance(env, PureTensorEnv):
        return PartState()
    state = PartState({}, {f"state{number}": tensor for number, tensor in enumerate(env.state)})
    if isinstance(env, EpisodicEnv):
        state = state.with_parts({"generator": generator_state(env._generator)})
    return state


def _restore_env(env: TensorEnv, state: PartState) -> None:
    if not isinstance(env, PureTensorEnv):
        return
    state.copy_into({f"state{number}": tensor for number, tensor in enumerate(env.state)})
    if isinstance(env, EpisodicEnv):
        restore_generator(env._generator, state.part("generator"))
