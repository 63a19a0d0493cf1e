"""Each optimizer against torch's own, step by step; clipping against torch's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from fastdqn.algorithms.optimizers import (
    OPTIMIZERS,
    Adam,
    AdamW,
    Optimizer,
    RMSprop,
    clip_by_norm,
    clip_by_value,
)
from fastdqn.errors import UsageError

STEPS = 200
Theirs = Callable[[list[Tensor]], torch.optim.Optimizer]
PAIRS: list[tuple[str, Optimizer, Theirs]] = [
    ("adam", Adam(), torch.optim.Adam),
    ("adam eps", Adam(0.8, 0.9, 1e-3), partial(torch.optim.Adam, betas=(0.8, 0.9), eps=1e-3)),
    ("adam decay", Adam(weight_decay=0.1), partial(torch.optim.Adam, weight_decay=0.1)),
    (
        "amsgrad",
        Adam(beta2=0.9, amsgrad=True),
        partial(torch.optim.Adam, betas=(0.9, 0.9), amsgrad=True),
    ),
    ("adamw", AdamW(), torch.optim.AdamW),
    (
        "adamw amsgrad",
        AdamW(weight_decay=0.1, amsgrad=True),
        partial(torch.optim.AdamW, weight_decay=0.1, amsgrad=True),
    ),
    ("rmsprop", RMSprop(), torch.optim.RMSprop),
    (
        "rmsprop decay",
        RMSprop(alpha=0.9, eps=1e-2, weight_decay=0.1),
        partial(torch.optim.RMSprop, alpha=0.9, eps=1e-2, weight_decay=0.1),
    ),
]


def _gradients(seed: int = 0) -> list[Tensor]:
    """Gradients that shrink over time, so that amsgrad differs, with elements of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-5, 3, 9)
    return [torch.randn(9, generator=generator) * sizes * 0.98**step for step in range(STEPS)]


def _run(optimizer: Optimizer, learning_rate: float) -> list[Tensor]:
    """Return the parameters after each of the steps."""
    flat = torch.linspace(-1.0, 1.0, 9)
    slots = [torch.zeros_like(flat) for _ in range(optimizer.num_slots)]
    path = []
    for number, grad in enumerate(_gradients(), start=1):
        step, rate = torch.tensor(float(number)), torch.tensor(learning_rate)
        flat, slots = optimizer(flat, grad, slots, step, rate)
        path.append(flat)
    return path


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("ours", "theirs"), [p[1:] for p in PAIRS], ids=[p[0] for p in PAIRS])
def test_two_hundred_steps_equal_torch(ours: Optimizer, theirs: Theirs) -> None:
    parameter = torch.linspace(-1.0, 1.0, 9).requires_grad_()
    reference = theirs([parameter])
    reference.param_groups[0]["lr"] = 0.01
    for mine, grad in zip(_run(ours, 0.01), _gradients(), strict=True):
        parameter.grad = grad.clone()
        reference.step()
        torch.testing.assert_close(mine, parameter.detach(), rtol=2e-5, atol=2e-6)
    assert (mine - torch.linspace(-1.0, 1.0, 9)).abs().max() > 0.1


def test_all_settings_compared_with_torch_differ_from_each_other() -> None:
    """Else the comparison could not distinguish them."""
    ends = torch.stack([_run(optimizer, 0.01)[-1] for _, optimizer, _ in PAIRS])
    apart = torch.cdist(ends, ends) + torch.eye(len(PAIRS))
    assert apart.min() > 1e-3


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_arguments_are_read_and_never_written(name: str) -> None:
    optimizer = OPTIMIZERS[name]()
    flat, grad = torch.ones(3), torch.ones(3)
    slots = [torch.full((3,), 0.5) for _ in range(optimizer.num_slots)]
    optimizer(flat, grad, slots, torch.tensor(1.0), torch.tensor(0.1))
    assert all(torch.equal(slot, torch.full((3,), 0.5)) for slot in slots)
    assert torch.equal(flat, torch.ones(3))
    assert torch.equal(grad, torch.ones(3))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_learning_rate_zero_moves_slots_but_no_parameter(name: str) -> None:
    optimizer = OPTIMIZERS[name]()
    flat = torch.randn(5)
    slots = [torch.zeros(5) for _ in range(optimizer.num_slots)]
    after, moved = optimizer(flat, torch.randn(5), slots, torch.tensor(1.0), torch.tensor(0.0))
    assert torch.equal(after, flat)
    assert len(moved) == optimizer.num_slots
    assert all(slot.abs().max() > 0 for slot in moved)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_gradient_of_zero_leaves_finite_parameters(name: str) -> None:
    optimizer = OPTIMIZERS[name](weight_decay=0.0)
    slots = [torch.zeros(3) for _ in range(optimizer.num_slots)]
    after, _ = optimizer(torch.ones(3), torch.zeros(3), slots, torch.tensor(1.0), torch.tensor(0.1))
    assert torch.equal(after, torch.ones(3))


def test_the_first_adam_step_is_the_learning_rate_whatever_the_gradient() -> None:
    """Which it is not without the correction of the bias."""
    grad = torch.tensor([1e-3, -5.0, 1e4])
    slots = [torch.zeros(3), torch.zeros(3)]
    after, _ = Adam()(torch.zeros(3), grad, slots, torch.tensor(1.0), torch.tensor(0.01))
    torch.testing.assert_close(after, -0.01 * grad.sign(), rtol=1e-4, atol=0.0)


# Clipping


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 10.0, 1e6])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e3])
def test_clipping_by_norm_equals_torch(max_norm: float, size: float) -> None:
    grad = torch.randn(40, generator=torch.Generator().manual_seed(1)) * size
    parameter = torch.zeros(40, requires_grad=True)
    parameter.grad = grad.clone()
    norm = torch.nn.utils.clip_grad_norm_([parameter], max_norm)
    clipped = clip_by_norm(grad, norm, max_norm)
    torch.testing.assert_close(clipped, parameter.grad)
    assert clipped.norm() <= max_norm * (1 + 1e-5)
    assert torch.equal(clipped, grad) == bool(norm <= max_norm)


@pytest.mark.parametrize("max_value", [0.1, 1.0, 100.0])
def test_clipping_by_value_equals_torch(max_value: float) -> None:
    grad = torch.randn(40, generator=torch.Generator().manual_seed(2)) * 5
    parameter = torch.zeros(40, requires_grad=True)
    parameter.grad = grad.clone()
    torch.nn.utils.clip_grad_value_([parameter], max_value)
    assert torch.equal(clip_by_value(grad, max_value), parameter.grad)


@pytest.mark.parametrize("max_value", [0.0, -1.0, float("nan")])
def test_clipping_by_a_value_that_is_not_positive_is_refused(max_value: float) -> None:
    with pytest.raises(UsageError, match="--clip-value"):
        clip_by_value(torch.ones(2), max_value)
