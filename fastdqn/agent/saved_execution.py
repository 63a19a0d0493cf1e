"""How a training ran: the mode of its updates and what acted, so that one that goes on does alike.

What was measured once is not measured again: two modes that are equal but for rounding would let
a training that was stopped and goes on end elsewhere than one that was not.
"""

from __future__ import annotations

from typing import Any

from fastdqn.errors import UsageError
from fastdqn.execution.modes import EXECUTIONS, is_auto, mode_of
from fastdqn.foundation.state import PartState
from fastdqn.learner.learner import Learner
from fastdqn.native import NativeActor, why_not_act
from fastdqn.policies.actors import GraphActor, HostActor, actors_for
from fastdqn.policies.policy import Actor, Policy
from fastdqn.replay import Sampler

__all__ = ["SavedExecution", "execution_values", "read_execution", "restore_actor"]

IN_C, EAGER = "C", "eager"
MOST_WORDS = 10_000
"""Letters of a reason."""


class SavedExecution:
    """How a training ran.

    Attributes:
        mode: Of the updates.
        reason: Why.
        actor: What acted, by the name that `restore_actor` takes.
    """

    def __init__(self, mode: str, reason: str, actor: str) -> None:
        self.mode, self.reason, self.actor = mode, reason, actor


def execution_values(asked: str, learner: Learner, policy: Policy, reason: str) -> dict[str, Any]:
    """Return plain values for `read_execution`."""
    return {
        "asked": asked,
        "device": learner.device.type,
        "execution": learner.execution,
        "execution_reason": reason,
        "actor": _name_of(policy.actor),
    }


def read_execution(
    state: PartState, asked: str, learner: Learner, sampler: Sampler
) -> SavedExecution | None:
    """Return how a training ran; None where it was asked for otherwise, or cannot run so here.

    Raises:
        CheckpointError: A value is none.
    """
    mode, reason = state.text("execution"), state.text("execution_reason")
    actor, before = state.text("actor"), state.text("asked")
    device = state.text("device")
    if mode not in EXECUTIONS or is_auto(mode) or len(reason) > MOST_WORDS:
        raise state.refusal("execution", f"{mode[:20]!r}, which is no mode")
    reason = "".join(each if each.isprintable() else " " for each in reason)  # it is shown
    if before != asked or device != learner.device.type:
        return None
    try:
        native = mode_of(mode, learner.device).native
    except UsageError:
        return None
    if native and learner.why_not_native(sampler) is not None:
        return None
    return SavedExecution(mode, reason, actor)


def restore_actor(policy: Policy, name: str) -> None:
    """Let a policy act by what `execution_values` named; the plain operations if that is not here.

    Args:
        policy: Its actor is set.
        name: Of the actor.
    """
    if name == IN_C:
        if why_not_act(policy.network) is None:
            policy.actor = NativeActor(policy.network)
    elif name != EAGER and policy.network.flat.device.type == "cuda":
        policy.actor = actors_for(policy).get(name, policy.actor)


def _name_of(actor: Actor) -> str:
    """Return the name of an actor, on CUDA that of `actors_for`."""
    if isinstance(actor, NativeActor):
        return IN_C
    if isinstance(actor, HostActor):
        return "cpu copy"
    if isinstance(actor, GraphActor):
        return "cudagraph" if actor._native is None else "native"
    return EAGER
