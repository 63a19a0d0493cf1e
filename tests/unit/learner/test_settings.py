"""Precision: what is refused, how PyTorch is set, and what bfloat16 does and does not touch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.algorithms.optimizers import Adam
from fastdqn.config import Config
from fastdqn.errors import UsageError
from fastdqn.learner.learner import Learner
from fastdqn.learner.settings import PRECISIONS, float32_products, refuse_precision
from fastdqn.networks.mlp import MLP
from tests.learner_settings import SETTINGS, written
from tests.small_learners import Looking

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.mark.parametrize("wrong", ["adam", "", Adam, torch.optim.Adam, 3, print], ids=str)
def test_what_is_no_optimizer_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"^optimizer .*Pass Adam\(\), AdamW\(\) or RMSprop\(\)"):
        Learner(MLP((4,), 2), optimizer=wrong)


def test_each_device_has_its_precisions() -> None:
    possible = {CPU: {"float32", "bf16"}, CUDA: set(PRECISIONS), MPS: {"float32"}}
    for device, names in possible.items():
        for name in PRECISIONS:
            if name in names:
                refuse_precision(name, device)
            else:
                with pytest.raises(UsageError, match=f"--precision {name} on {device}: .*float32"):
                    refuse_precision(name, device)


def test_an_unknown_precision_is_refused_with_the_list() -> None:
    for build in (
        lambda: refuse_precision("half", CPU),
        lambda: Learner(MLP((4,), 2), precision="half"),
        lambda: Config(precision="half"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match="Choose float32, tf32, bf16"):
            build()


@pytest.fixture
def switches() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def _settings_of_cuda() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize("was", [("highest", True), ("high", True), ("highest", False)])
def test_cuda_is_reported_and_what_was_told_before_comes_back(was: tuple[str, bool]) -> None:
    torch.set_float32_matmul_precision(was[0])
    torch.backends.cudnn.allow_tf32 = was[1]
    for precision, message in {
        "float32": ("highest", False),
        "bf16": ("highest", False),
        "tf32": ("high", True),
    }.items():
        with float32_products(precision, CUDA):
            assert _settings_of_cuda() == message
        assert _settings_of_cuda() == was
        with float32_products(precision, CPU):
            assert _settings_of_cuda() == was


@pytest.mark.usefixtures("switches")
def test_products_are_reported_even_if_an_update_raises() -> None:
    was = _settings_of_cuda()
    with pytest.raises(ValueError, match="inside"), float32_products("tf32", CUDA):
        raise ValueError("inside")
    assert _settings_of_cuda() == was


def _learned(name: str, precision: str, updates: int = 40) -> Learner:
    learner = SETTINGS[name].build(precision=precision)
    sampler = SETTINGS[name].sampler()
    for _ in range(updates):
        learner.learn(sampler, 1)
    return learner


@pytest.mark.parametrize("name", SETTINGS)
def test_bfloat16_learns_about_what_float32_does(name: str) -> None:
    """Not the same numbers, and not far from them."""
    full, half = _learned(name, "float32"), _learned(name, "bf16")
    born = SETTINGS[name].build().state.online
    moved = (full.state.online - born).norm()
    apart = (half.state.online - full.state.online).norm()
    assert 0 < apart < 0.3 * moved
    assert {tensor.dtype for tensor in written(half.state)} == {torch.float32, torch.int64}
    assert int(half.state.skipped) == 0


def test_only_the_forward_passes_see_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, errors, targets and gradients are float32; layers are not."""
    learner = SETTINGS["huber, adam, soft, double, norm"].build(precision="bf16")
    seen: dict[str, set[torch.dtype]] = {name: set() for name in ("layer", "q", "loss", "grad")}
    values, clip, linear = learner._outputs, learner._clip, torch.nn.functional.linear

    def valued(*given: Any) -> Tensor:
        q = values(*given)
        seen["q"].add(q.dtype)
        return q

    def clipped(grad: Tensor, norm: Tensor) -> Tensor:
        seen["grad"] |= {grad.dtype, norm.dtype}
        return clip(grad, norm)

    def layer(*given: Any) -> Tensor:
        result: Tensor = linear(*given)
        seen["layer"].add(result.dtype)
        return result

    monkeypatch.setattr(learner, "_outputs", valued)
    noted = Looking(look=lambda priority: seen["loss"].add(priority.dtype))
    monkeypatch.setattr(learner, "objective", noted)
    monkeypatch.setattr(learner, "_clip", clipped)
    monkeypatch.setattr(torch.nn.functional, "linear", layer)
    learner.learn(SETTINGS["huber, adam, soft, double, norm"].sampler(), 1)
    assert seen.pop("layer") == {torch.bfloat16}
    assert list(seen.values()) == [{torch.float32}] * 3


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_loss_falls(precision: str) -> None:
    setting = SETTINGS["newest, mse"]
    learner = setting.build(precision=precision, gamma=0.0, learning_rate=1e-2)
    sampler = setting.sampler()
    losses = []
    for _ in range(120):
        learner.learn(sampler, 1)
        losses.append(float(learner.state.metrics[0]))
    assert losses[-1] < 0.5 * losses[0]
