"""The kernel that writes rows against PyTorch's way: on a card, and emulated on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.replay import ReplayBuffer, UniformSampler
from fastdqn.replay.row_writer import RowWriter, writer_for
from tests.emulated.card import has_compiler, make_writer

EMULATED = pytest.mark.skipif(not has_compiler(), reason="no g++ to emulate a card with")
PLACES = [pytest.param("cpu", marks=EMULATED), pytest.param("cuda", marks=pytest.mark.cuda)]
KINDS: dict[str, dict[str, Any]] = {
    "one group": {},
    "three groups": {"num_groups": 3},
    "masks": {"num_masked": 5},
    "few finals": {"final_capacity": 7},
    "bytes": {"obs_dtype": torch.uint8},
    "sixteen bytes": {"obs_shape": (4,)},
}


def pair(device: str, **kind: Any) -> tuple[ReplayBuffer, ReplayBuffer]:
    """Return a ring that a kernel writes into, and one that PyTorch writes into."""
    given: dict[str, Any] = {"obs_shape": (3,), "obs_dtype": torch.float32, **kind}
    fast, plain = (ReplayBuffer(40, 6, device=device, **given) for _ in range(2))
    if device == "cpu":
        fast._writer = RowWriter(fast.ring, fast.window, make_writer)
    assert fast._writer is not None
    plain._writer = None
    return fast, plain


class Steps:
    """Vector steps of noise in which episodes end."""

    def __init__(self, replay: ReplayBuffer) -> None:
        self.size, self.device = replay.row_size, replay.device
        self.frames, self.masks = replay.ring.frames, replay.ring.masks
        self.generator = torch.Generator().manual_seed(0)

    def frame(self) -> Tensor:
        shape = (self.size, *self.frames.shape[1:])
        noise = torch.randint(0, 250, shape, generator=self.generator)
        return noise.to(self.device, self.frames.dtype)

    def flags(self, share: float) -> Tensor:
        return (torch.rand(self.size, generator=self.generator) < share).to(self.device)

    def mask(self) -> Tensor | None:
        if self.masks is None or torch.rand((), generator=self.generator) < 0.3:
            return None
        shape = self.size, self.masks.shape[1]
        return (torch.rand(shape, generator=self.generator) < 0.5).to(self.device)

    def next(self) -> tuple[list[Tensor], dict[str, Any]]:
        action = torch.randint(5, (self.size,), generator=self.generator).to(self.device)
        reward = torch.randn(self.size, generator=self.generator).to(self.device)
        terminated, truncated = self.flags(0.3), self.flags(0.1)
        ended = (terminated | truncated).cpu().nonzero().squeeze(1).numpy()
        given = {"final_obs": self.frame(), "ended": ended}
        given |= {"action_mask": self.mask(), "final_action_mask": self.mask()}
        return [action, reward, terminated, truncated, self.frame()], given


def same(fast: ReplayBuffer, plain: ReplayBuffer) -> None:
    assert len(fast) == len(plain)
    pairs = zip(fast.ring.cells().items(), plain.ring.cells().values(), strict=True)
    for (name, mine), theirs in pairs:
        assert torch.equal(mine, theirs), name
    assert torch.equal(fast.valid.order, plain.valid.order)


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize("name", KINDS)
def test_a_kernel_writes_what_pytorch_writes(name: str, device: str) -> None:
    rings = pair(device, **KINDS[name])
    steps, fast = Steps(rings[1]), rings[0]
    for replay in rings:
        for group in range(replay.num_groups):
            replay.begin(torch.full_like(steps.frame(), 7), group=group)
    for number in range(40):
        step, given = steps.next()
        real = None
        if number % 11 == 4:  # some only reset, and none of them ended
            real = ~(step[2] | step[3]).cpu().numpy()
            given["ended"] = given["ended"][:0]
        for replay in rings:
            replay.write(*step, **given, real=real)
        same(*rings)
        assert fast.window.tolist() == [fast.valid.first, len(fast)]
    samplers = [UniformSampler(replay, 16) for replay in rings]
    drawn = [sampler.draw(sampler.fill(3))[0] for sampler in samplers]
    assert torch.equal(*drawn)


@EMULATED
def test_what_a_kernel_does_not_know_pytorch_writes() -> None:
    rings = pair("cpu")
    fast, steps = rings[0], Steps(rings[1])
    for replay in rings:
        replay.begin(steps.frame().zero_())
    for number in range(9):
        step, given = steps.next()
        if number % 3 == 1:
            step[1] = step[1].double()
        if number % 3 == 2:
            step[0] = step[0].numpy()  # type: ignore[call-overload]
        for replay in rings:
            replay.write(*step, **given)
        same(*rings)
    assert fast._writer is not None
    assert fast._writer._kernels.launched == ["write_row"] * 3  # type: ignore[attr-defined]


@EMULATED
def test_what_lies_between_words_pytorch_writes() -> None:
    """A card stops a program that reads sixteen bytes at another place."""
    rings = pair("cpu", obs_shape=(4,))
    fast, steps = rings[0], Steps(rings[1])
    memory = torch.zeros(6 * 4 + 1)
    shifted = memory[1:].view(6, 4)
    assert shifted.is_contiguous()
    for replay in rings:
        replay.begin(steps.frame().zero_())
    step, given = steps.next()
    shifted.copy_(step[4])
    step[4] = shifted
    for replay in rings:
        replay.write(*step, **given)
    same(*rings)
    assert fast._writer is not None
    assert fast._writer._kernels.launched == []  # type: ignore[attr-defined]


@EMULATED
def test_a_mask_for_a_ring_without_masks_is_refused() -> None:
    for replay in pair("cpu"):
        step, given = Steps(replay).next()
        given["action_mask"] = torch.ones(6, 5, dtype=torch.bool)
        with pytest.raises(UsageError, match="this ring has none"):
            replay.write(*step, **given)


def test_on_the_cpu_there_is_no_kernel() -> None:
    replay = ReplayBuffer(40, 6, (3,))
    assert writer_for(replay.ring, replay.window) is None
