"""What a learner consists of beside the parameters of its online network, and back."""

from __future__ import annotations

from torch import Tensor

from fastdqn.foundation.saved_generators import generator_state, restore_generator
from fastdqn.foundation.state import PartState
from fastdqn.learner.learner import Learner

__all__ = ["learner_state", "restore_learner"]


def learner_state(learner: Learner) -> PartState:
    """Return target, moments, counts, step size and metrics; the tensors are the learner's own.

    The parameters of the online network are those of its module, and saved by their names.
    """
    values = {"earlier_updates": learner.earlier_updates}
    named = {**_parameters(learner), **_counts(learner), "metrics": learner.state.metrics}
    state = PartState(values, {**named, "learning_rate": learner.state.learning_rate})
    return state.with_parts({"generator": generator_state(learner.generator)})


def restore_learner(learner: Learner, state: PartState) -> None:
    """Go on from the state of a learner with the same network and optimizer.

    Every tensor is written in place, so that steps that were compiled or recorded go on with it.

    Raises:
        CheckpointError: Names what is missing, of another shape, or not finite.
    """
    earlier = state.whole("earlier_updates")
    for name, tensor in _parameters(learner).items():
        state.finite(name, tensor)
    counts = {name: state.scalar(name, tensor) for name, tensor in _counts(learner).items()}
    if counts["skipped"] > counts["updates"]:
        raise state.refusal("skipped", f"{counts['skipped']} of {counts['updates']} updates")
    rate = learner.state.learning_rate
    if not float(state.finite("learning_rate", rate)) >= 0.0:
        raise state.refusal("learning_rate", "negative")
    state.tensor("metrics", learner.state.metrics)
    restore_generator(learner.generator, state.part("generator"))
    if earlier != learner.earlier_updates:
        learner.go_on_from(earlier)
    named = {**_parameters(learner), **_counts(learner), "metrics": learner.state.metrics}
    state.copy_into({**named, "learning_rate": rate})


def _parameters(learner: Learner) -> dict[str, Tensor]:
    """Return the tensors in the shape of the online parameters [P], by name."""
    slots = enumerate(learner.state.slots)
    return {"target": learner.state.target, **{f"slot{number}": slot for number, slot in slots}}


def _counts(learner: Learner) -> dict[str, Tensor]:
    return {"updates": learner.state.updates, "skipped": learner.state.skipped}
