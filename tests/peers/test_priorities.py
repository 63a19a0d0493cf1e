"""Chances, weights and updates of priorities beside TorchRL's PrioritizedSampler.

Only what both return is compared: with beta 1 a weight is the least chance of the buffer, divided
by that of the row.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from fastdqn.replay import PrioritizedSampler, ReplayBuffer

pytestmark = pytest.mark.oracle
NUM_ENVS = 2
BATCH = 1_024
CLOSE = 1e-4
"""Relative; TorchRL takes powers in one order and we in another, both in float32."""


class Both:
    """The same transitions in our ring and in TorchRL's buffer, known by serial numbers.

    Args:
        torchrl: The library.
        capacity: Transitions, of which vector steps of two are written.
        settings: `alpha`, `eps`, `beta` of both; `within` is TorchRL's
            `max_priority_within_buffer`; `in_c` lets our tree be C.
    """

    def __init__(
        self,
        torchrl: SimpleNamespace,
        capacity: int,
        *,
        alpha: float,
        beta: float = 1.0,
        eps: float = 1e-6,
        within: bool = True,
        in_c: bool = True,
    ) -> None:
        self.capacity, self.written = capacity, 0
        self.ring = ReplayBuffer(capacity, NUM_ENVS, (1,), seed=5)
        self.ring.begin(torch.zeros(NUM_ENVS, 1))
        self.ours = PrioritizedSampler(
            self.ring, BATCH, alpha=alpha, beta_start=beta, beta_end=beta, eps=eps
        )
        if not in_c:
            self.ours.in_c = None
        self.theirs = torchrl.TensorDictReplayBuffer(
            storage=torchrl.LazyTensorStorage(capacity),
            sampler=torchrl.PrioritizedSampler(
                capacity, alpha, beta, eps, max_priority_within_buffer=within
            ),
            batch_size=BATCH,
        )
        np.random.seed(5)  # TorchRL draws from the global generator

    def write(self) -> Tensor:
        """Write a vector step into both; return its serial numbers, in action and storage."""
        serial = torch.arange(self.written, self.written + NUM_ENVS)
        none = torch.zeros(NUM_ENVS, dtype=torch.bool)
        self.ring.write(serial, serial.float(), none, none, torch.zeros(NUM_ENVS, 1))
        self.theirs.extend(TensorDict({"serial": serial}, [NUM_ENVS]))
        self.written += NUM_ENVS
        return serial

    def update(self, serial: Tensor, error: Tensor) -> None:
        """Write the priorities of transitions, by their errors."""
        self.theirs.update_priority(serial % self.capacity, error.abs())
        self.ours.update_priorities(serial, error)

    def our_weights(self) -> dict[int, float]:
        """Return the weight of each transition that a large batch holds."""
        batch, index = self.ours.sample(gamma=0.9)
        assert batch.weight is not None
        assert torch.equal(index, batch.action)  # numbered in the order of writing
        return dict(zip(batch.action.tolist(), batch.weight.tolist(), strict=True))

    def their_weights(self) -> dict[int, float]:
        """Return those of TorchRL."""
        batch = self.theirs.sample()
        return dict(zip(batch["serial"].tolist(), batch["priority_weight"].tolist(), strict=True))

    def assert_alike(self) -> None:
        """Check that both draw the same transitions, with the same weights."""
        ours, theirs = self.our_weights(), self.their_weights()
        assert ours.keys() == theirs.keys()
        for serial, weight in ours.items():
            assert weight == pytest.approx(theirs[serial], rel=CLOSE), serial


def numbers(*values: float) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(("seed", "in_c"), [(seed, seed > 2) for seed in range(10)])
def test_chances_and_weights_are_torchrls_over_a_history_of_writes_and_updates(
    torchrl: SimpleNamespace, seed: int, in_c: bool
) -> None:
    """New transitions have the largest priority of the buffer in both.

    Once the buffer is full they get one of their own at once: what becomes of the largest when it
    leaves differs, see below.
    """
    dice = np.random.default_rng(seed)
    alpha, beta = (float(dice.choice(values)) for values in ([0.0, 0.4, 0.6, 1.0], [0.0, 0.5, 1.0]))
    eps = float(dice.choice([1e-6, 1e-2]))
    both = Both(torchrl, 16, alpha=alpha, beta=beta, eps=eps, in_c=in_c)
    for _ in range(16):
        new = both.write()
        newest = np.arange(max(both.written - both.capacity, 0), both.written)
        known = torch.from_numpy(dice.permutation(newest)[: int(dice.integers(0, 6))])
        if both.written >= both.capacity or both.written == NUM_ENVS:
            known = torch.cat((new, known[~torch.isin(known, new)]))
        if len(known):
            errors = torch.from_numpy(dice.normal(size=len(known)).astype(np.float32))
            both.update(known, errors.sign() * (errors.abs() + 0.2))
        both.assert_alike()


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_both_draw_as_often_as_their_weights_of_beta_1_say(
    torchrl: SimpleNamespace, alpha: float
) -> None:
    """Chi-square over 12 transitions; the chances are those of the closed form."""
    both = Both(torchrl, 12, alpha=alpha)
    serial = torch.cat([both.write() for _ in range(6)])
    errors = torch.linspace(0.1, 3.0, 12)
    both.update(serial, errors)
    chances = ((errors.double() + 1e-6) ** alpha) / ((errors.double() + 1e-6) ** alpha).sum()
    for drawn in (
        torch.cat([both.ours.sample(gamma=0.9)[1] for _ in range(10)]),
        torch.cat([both.theirs.sample()["serial"] for _ in range(10)]),
    ):
        expected = chances * len(drawn)
        counts = torch.bincount(drawn, minlength=12).double()
        assert float(((counts - expected) ** 2 / expected).sum()) < 11 + 5 * 22**0.5


# Conventions that differ


def test_in_an_empty_buffer_a_new_priority_is_1_and_torchrl_adds_eps(
    torchrl: SimpleNamespace,
) -> None:
    both = Both(torchrl, 4, alpha=1.0, eps=0.5)
    serial = both.write()
    both.update(serial[:1], numbers(1.0))
    ours, theirs = both.our_weights(), both.their_weights()
    assert ours[0] / ours[1] == pytest.approx(1 / 1.5, rel=CLOSE)
    assert theirs[0] / theirs[1] == pytest.approx(1.0, rel=CLOSE)


def test_we_divide_weights_by_the_largest_of_the_batch_and_torchrl_by_that_of_the_buffer(
    torchrl: SimpleNamespace,
) -> None:
    both = Both(torchrl, 4, alpha=1.0)
    serial = torch.cat((both.write(), both.write()))
    both.update(serial, numbers(1e-5, 1.0, 2.0, 4.0))
    ours, theirs = both.our_weights(), both.their_weights()
    assert ours.keys() == theirs.keys() == {1, 2, 3}  # the other one is never drawn
    assert max(ours.values()) == 1.0
    assert max(theirs.values()) == pytest.approx(1.1e-5, rel=1e-2)
    scale = max(theirs.values())
    assert {key: weight * scale for key, weight in ours.items()} == pytest.approx(theirs, rel=CLOSE)


def test_the_largest_priority_may_be_that_of_a_row_that_leaves_and_torchrl_forgets_it_then(
    torchrl: SimpleNamespace,
) -> None:
    """The row that it goes to has it from then on in our buffer; TorchRL starts again at 1."""
    both = Both(torchrl, 4, alpha=1.0)
    serial = torch.cat((both.write(), both.write()))
    both.update(serial, numbers(8.0, 3.0, 2.0, 4.0))
    both.write()
    both.assert_alike()
    both.write()
    ours, theirs = both.our_weights(), both.their_weights()
    assert ours[4] / ours[6] == 1.0
    assert theirs[4] / theirs[6] == pytest.approx(1 / 8, rel=CLOSE)


def test_torchrl_keeps_the_largest_priority_ever_unless_it_is_asked_not_to(
    torchrl: SimpleNamespace,
) -> None:
    both = Both(torchrl, 8, alpha=1.0, within=False)
    serial = both.write()
    both.update(serial, numbers(8.0, 2.0))
    both.update(serial, numbers(3.0, 2.0))
    both.write()
    ours, theirs = both.our_weights(), both.their_weights()
    assert ours[1] / ours[2] == pytest.approx(1.5, rel=CLOSE)
    assert theirs[1] / theirs[2] == pytest.approx(4.0, rel=CLOSE)


def test_of_a_row_twice_in_a_batch_we_keep_the_larger_priority_and_torchrl_the_last(
    torchrl: SimpleNamespace,
) -> None:
    both = Both(torchrl, 4, alpha=1.0)
    serial = both.write()
    twice = torch.stack((serial[0], serial[1], serial[0]))
    both.update(twice, numbers(6.0, 2.0, 3.0))
    ours, theirs = both.our_weights(), both.their_weights()
    assert ours[1] / ours[0] == pytest.approx(3.0, rel=CLOSE)
    assert theirs[1] / theirs[0] == pytest.approx(1.5, rel=CLOSE)


def test_an_index_is_that_of_a_transition_for_us_and_that_of_a_place_for_torchrl(
    torchrl: SimpleNamespace,
) -> None:
    """A priority that comes late changes the transition that lies there now, in TorchRL."""
    both = Both(torchrl, 4, alpha=1.0)
    first = both.write()
    both.write()
    both.update(torch.arange(4), numbers(1.0, 1.0, 2.0, 2.0))
    both.write()
    both.update(torch.arange(4, 6), numbers(2.0, 2.0))
    both.update(first, numbers(5.0, 5.0))
    assert set(both.our_weights().values()) == {1.0}
    assert both.their_weights()[4] == pytest.approx(0.4, rel=CLOSE)


def test_errors_have_a_sign_for_us_and_must_not_have_one_for_torchrl(
    torchrl: SimpleNamespace,
) -> None:
    both = Both(torchrl, 4, alpha=0.5)
    serial = both.write()
    both.ours.update_priorities(serial, numbers(-4.0, 1.0))
    ours = both.our_weights()
    assert ours[0] / ours[1] == pytest.approx(0.5, rel=CLOSE)
    both.theirs.update_priority(serial, numbers(-4.0, 1.0))
    with pytest.raises(OverflowError):  # a NaN has no chance
        both.theirs.sample()
