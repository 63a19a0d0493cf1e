"""What the C and the CUDA C have in common: which parts they know, and by which numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fastdqn.algorithms.objectives import DoubleDQNObjective, DQNObjective, Objective
from fastdqn.algorithms.optimizers import Adam, AdamW, Optimizer, RMSprop
from fastdqn.errors import UsageError
from fastdqn.native.binding import ONE_STEP, refuse_tensor
from fastdqn.native.c_library import DTYPES, MAX_LAYERS, ROW_FIELDS, TARGETS, why_no_library
from fastdqn.native.cuda_plan import why_not_on
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.networks.network_check import why_not_sizes
from fastdqn.replay import NewestSampler, PrioritizedSampler, Ring, Sampler, UniformSampler
from fastdqn.toolchain.nvrtc import why_no_nvrtc
from fastdqn.transition import Transitions

__all__ = [
    "Learned",
    "batch_as_ring",
    "refuse_by_kernels",
    "refuse_sampler",
    "why_not_act",
    "why_not_native",
]

LOSSES = {"huber": 0, "mse": 1}
OBJECTIVES = (DQNObjective, DoubleDQNObjective)
SAMPLERS = (UniformSampler, NewestSampler)
OPTIMIZERS: Mapping[type, int] = MappingProxyType({Adam: 0, AdamW: 1, RMSprop: 2})
SLOTS = ("first slot", "second slot", "third slot")
SCALARS = {"updates": torch.int64, "skipped": torch.int64, "learning_rate": torch.float32}
NUM_METRICS = 4
"""As in mlp.c and mlp.cu."""


@dataclass(frozen=True)
class Learned:
    """What an update reads and writes, and how.

    Attributes:
        network: Of an MLP.
        tensors: The learner's own, by the names of `Settings` and `Call`: `bootstrap` (what next
            values come from: the target or, without one, the online parameters), `updates`,
            `skipped`, `learning_rate`, `metrics`.
        slots: The optimizer's tensors.
        optimizer: Adam, AdamW or RMSprop.
        objective: One of OBJECTIVES.
        target: `soft`, `hard` or `none`.
        clip_norm: Bound on the gradient's norm, or None.
        clip_value: Bound on its elements, or None.
        plain: Numbers by those names: `gamma`, `tau`, `target_period`, `target_phase`.

    Raises:
        UsageError: A tensor is not of the sizes that go with the network.
    """

    network: FlatNetwork
    tensors: Mapping[str, Tensor]
    slots: list[Tensor]
    optimizer: Optimizer
    objective: Objective
    target: str
    clip_norm: float | None
    clip_value: float | None
    plain: Mapping[str, float]

    def __post_init__(self) -> None:
        flat, slots = self.network.flat, self.optimizer.num_slots
        device, tensors = flat.device, self.tensors
        if len(self.slots) != slots:
            got = f"{len(self.slots)} slots for {type(self.optimizer).__name__}"
            raise UsageError(got, f"it keeps {slots}", "Build the state for this optimizer.")
        vectors = {"bootstrap": tensors["bootstrap"], **dict(zip(SLOTS, self.slots, strict=False))}
        for name, vector in vectors.items():
            refuse_tensor(name, vector, flat.shape, torch.float32, device)
        for name, dtype in SCALARS.items():
            refuse_tensor(name, tensors[name], (), dtype, device)
        refuse_tensor("metrics", tensors["metrics"], (NUM_METRICS,), torch.float32, device)

    @property
    def numbers(self) -> dict[str, Any]:
        """All numbers by the names of `Settings` and `Call`; a bound that is infinite is none."""
        objective, optimizer = self.objective, self.optimizer
        assert isinstance(objective, DQNObjective)
        assert isinstance(optimizer, Adam | RMSprop)
        if isinstance(optimizer, RMSprop):
            moments = {"beta1": 0.0, "beta2": optimizer.alpha, "amsgrad": False}
        else:
            moments = {name: getattr(optimizer, name) for name in ("beta1", "beta2", "amsgrad")}
        return {
            **self.plain,
            **moments,
            "optimizer": OPTIMIZERS[type(optimizer)],
            "eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay,
            "clip_norm": math.inf if self.clip_norm is None else self.clip_norm,
            "clip_value": math.inf if self.clip_value is None else self.clip_value,
            "double_dqn": isinstance(objective, DoubleDQNObjective),
            "loss": LOSSES[objective.error_loss],
            "target": TARGETS[self.target],
        }

    def fill(self, struct: Any, numbers: Mapping[str, Any]) -> None:
        """Write numbers, and the addresses of the tensors, into a `Settings` or a `Call`."""
        addresses = {name: tensor.data_ptr() for name, tensor in self.tensors.items()}
        for name, number in {**numbers, **addresses}.items():
            setattr(struct, name, number)
        for place, slot in enumerate(self.slots):
            struct.slots[place] = slot.data_ptr()


def why_not_native(
    network: FlatNetwork,
    objective: Objective,
    optimizer: Optimizer,
    precision: str = "float32",
    sampler: Sampler | None = None,
) -> str | None:
    """Return why these parts cannot be updated in C or in CUDA C, or None where they can.

    Whatever is in no list here is refused. On the CPU the library is compiled at the first call.

    Args:
        network: On its device.
        objective: What is made smaller.
        optimizer: Moves the parameters.
        precision: Of the passes.
        sampler: Chooses the batches; None leaves that open.
    """
    if type(objective) not in OBJECTIVES:
        return f"it knows DQN and Double DQN, and the objective is {type(objective).__name__}"
    if sampler is not None and (why_not := _why_not_drawn(sampler)):
        return why_not
    if precision != "float32":
        return f"it computes in float32, and --precision is {precision}"
    if type(optimizer) not in OPTIMIZERS:
        return f"it does not know the optimizer {type(optimizer).__name__}"
    return why_not_act(network)


def _why_not_drawn(sampler: Sampler) -> str | None:
    on_cpu = sampler.ring.action.is_cpu
    if sampler.ring.n_step > 1 and not on_cpu:
        return f"{ONE_STEP}, and --n-step is {sampler.ring.n_step}"
    if type(sampler) in SAMPLERS:
        return None
    if type(sampler) is PrioritizedSampler and sampler.in_c is not None:
        return None
    ways = "uniformly, by priorities" if on_cpu else "uniformly"
    return f"it draws {ways} or takes the newest, and the sampler is {type(sampler).__name__}"


def refuse_sampler(sampler: Sampler) -> None:
    """Refuse a sampler whose batches are not drawn in C, nor in CUDA C.

    Raises:
        UsageError: Says which there are.
    """
    if why_not := _why_not_drawn(sampler):
        raise UsageError("--execution native", why_not, "Use --execution eager or compile.")


def why_not_act(network: FlatNetwork) -> str | None:
    """Return why this network cannot act in C or in CUDA C, or None where it can; see above."""
    module, device = network.module, network.flat.device
    if device.type not in {"cpu", "cuda"}:
        return f"it runs on the CPU and on CUDA, and the network is on {device}"
    why_not = _why_not_kind(network)
    if why_not is not None or not isinstance(module, MLP):
        return why_not
    if len(module.layers) > MAX_LAYERS:
        return f"it knows {MAX_LAYERS} layers, and the network has {len(module.layers)}"
    irregular = why_not_sizes(module)
    if irregular or network.flat.shape != (sum(map(math.prod, module.shapes)),):
        return irregular or "the network's vector holds other parameters than its layers"
    if device.type == "cpu":
        return why_no_library()
    return _why_no_kernel(module) or why_no_nvrtc() or why_not_on(module, device)


def _why_not_kind(network: FlatNetwork) -> str | None:
    module, name = network.module, type(network.module).__name__
    if type(module) is not MLP:
        return f"it knows multilayer perceptrons only, and the network is {name}"
    unknown = {
        "--noisy": module.noisy,
        f"--activation {module.activation}": module.activation != "relu",
        "several numbers for each action": module.num_atoms is not None,
    }
    for option, used in unknown.items():
        if used:
            return f"it does not know multilayer perceptrons with {option}"
    if network.num_random(1):
        return f"it draws nothing while it acts, and the network {name} reads random numbers"
    if network.q_values is not None:
        return "it takes outputs for Q-values, and the objective makes Q-values of them"
    return None


def _why_no_kernel(module: MLP) -> str | None:
    unknown = {"--dueling": module.dueling, "--layer-norm": module.layer_norm}
    for option, used in unknown.items():
        if used:
            return f"its kernels do not know multilayer perceptrons with {option}"
    return None


def refuse_by_kernels(module: MLP) -> None:
    """Refuse an MLP with a part that the C knows and the CUDA C does not.

    Raises:
        UsageError: Names the part.
    """
    if why_not := _why_no_kernel(module):
        raise UsageError("--execution native", why_not, "Use --execution cudagraph.")


def batch_as_ring(batch: Transitions) -> tuple[Ring, dict[str, Tensor]]:
    """Return a batch as a ring of its own: observations first, then the next ones.

    Beside it are the batch's own discounts and weights, by the names of the C.
    """
    size = len(batch.action)
    mask = batch.next_action_mask
    ring = Ring(
        _stored(torch.cat([batch.obs, batch.next_obs])),
        torch.arange(size, 2 * size, device=batch.action.device),
        batch.action.long().contiguous(),
        batch.reward.float().contiguous(),
        batch.terminated.bool().contiguous(),
        batch.truncated,
        torch.zeros_like(batch.truncated),
        None if mask is None else torch.cat([mask, mask]),
    )
    factors = {name: getattr(batch, name) for name in ROW_FIELDS}
    return ring, {name: own.contiguous() for name, own in factors.items() if own is not None}


def _stored(frames: Tensor) -> Tensor:
    return frames if frames.dtype in DTYPES else frames.float()
