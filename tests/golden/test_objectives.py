"""Distributional and Munchausen losses against slow loops in plain Python, with decoys.

A decoy is the same loop with one mistake; the rows are such that each mistake is far off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.algorithms.distributional import C51Objective, project
from fastdqn.algorithms.munchausen import MunchausenObjective, log_policy, soft_value
from fastdqn.algorithms.quantiles import IQNObjective, QRObjective, quantile_huber
from fastdqn.transition import Transitions

Row = list[float]
FAR = 0.05
"""How far a decoy is off at least, in some row; rounding is a thousand times smaller."""
REWARD, DISCOUNT = [0.5, -1.0, 2.0, 0.25], [0.9, 0.0, 0.729, 0.5]
ACTION = [0, 2, 1, 1]
MASK = [[True, False, True], [True] * 3, [False] * 3, [False, True, True]]


def batch_of(*, masked: bool = True) -> Transitions:
    """Return four rows: one whose best action is forbidden, one without a future, one without
    any allowed action, one whose own best action is forbidden."""
    rows, mask = len(REWARD), torch.tensor(MASK) if masked else None
    none = torch.zeros(rows, dtype=torch.bool)
    obs = torch.zeros(rows, 1)
    return Transitions(
        *(obs, torch.tensor(ACTION), torch.tensor(REWARD), obs, none, none),
        next_action_mask=mask,
        discount=torch.tensor(DISCOUNT),
        action_mask=None if mask is None else mask.flip(1) | (torch.arange(4) == 1)[:, None],
    )


def outputs_of(seed: int, *sizes: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(4, 3, *sizes, generator=generator)


def allowed(mask: Tensor | None, row: int) -> list[int]:
    fine = [a for a in range(3) if mask is None or bool(mask[row, a])]
    return fine or [0, 1, 2]


def best(q: Row, actions: Sequence[int]) -> int:
    return max(actions, key=lambda a: q[a])


def softmax(logits: Row) -> Row:
    powers = [math.exp(number - max(logits)) for number in logits]
    return [power / sum(powers) for power in powers]


def assert_right(found: Tensor, expected: Row) -> None:
    torch.testing.assert_close(found.detach(), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def assert_wrong(found: Tensor, decoy: Row) -> None:
    assert max(abs(a - b) for a, b in zip(found.tolist(), decoy, strict=True)) > FAR


# C51

V_MIN, V_MAX, K = -2.0, 3.0, 6


def projected(reward: float, discount: float, probs: Row, mistake: str = "") -> Row:
    """Algorithm 1 of Bellemare et al. (2017), where an atom that is hit keeps its mass."""
    count = len(probs)
    spacing = (V_MAX - V_MIN) / (count - 1)
    mass = [0.0] * count
    for j, p in enumerate(probs):
        z = reward + discount * (V_MIN + j * spacing)
        place = min(max((z - V_MIN) / spacing, 0.0), count - 1.0)
        low, high = math.floor(place), math.ceil(place)
        if mistake == "sides exchanged":
            place = low + high - place
        if low == high:
            mass[low] += 0.0 if mistake == "hits lost" else p
        else:
            mass[low] += p * abs(high - place)
            mass[high] += p * abs(place - low)
    return mass


def c51(online: Tensor, choosing: Tensor, target: Tensor, mistake: str = "") -> tuple[Row, Row]:
    batch, losses, priorities = batch_of(), [], []
    atoms = [V_MIN + i * (V_MAX - V_MIN) / (K - 1) for i in range(K)]
    if mistake == "networks exchanged":
        choosing, target = target, choosing
    mask = None if mistake == "no mask" else batch.next_action_mask
    for row, action in enumerate(ACTION):
        q = [sum(map(float.__mul__, softmax(logits), atoms)) for logits in choosing[row].tolist()]
        probs = softmax(target[row, best(q, allowed(mask, row))].tolist())
        mass = projected(REWARD[row], DISCOUNT[row], probs, mistake)
        logs = [math.log(p) for p in softmax(online[row, action].tolist())]
        losses.append(-sum(m * log for m, log in zip(mass, logs, strict=True)))
        entropy = -sum(m * math.log(m) for m in mass if m)
        priorities.append(losses[-1] - entropy)
    return losses, priorities


@pytest.mark.parametrize("double", [True, False])
def test_c51_is_the_cross_entropy_with_the_projected_target(double: bool) -> None:
    online, choosing, target = (outputs_of(seed, K) for seed in (1, 11, 6))
    objective = C51Objective(num_atoms=K, v_min=V_MIN, v_max=V_MAX, double=double)
    passes = [target, choosing][: 1 + double]
    losses, priority = objective.loss(online, passes, batch_of(), None)
    chosen_by = choosing if double else target
    right = c51(online, chosen_by, target)
    assert_right(losses, right[0])
    assert_right(priority, right[1])
    for mistake in ("sides exchanged", "hits lost", "no mask"):
        assert_wrong(losses, c51(online, chosen_by, target, mistake)[0])
    if double:
        assert_wrong(losses, c51(online, choosing, target, "networks exchanged")[0])


def test_mass_that_moves_by_half_an_atom_lies_on_both_sides() -> None:
    """Atoms -1, 0, 1, 2. Decoys: unclipped 0.8 of mass or an index beyond, hits lost 0.3."""
    probs = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).expand(4, 4)
    reward, discount = torch.tensor([0.5, 1.0, 2.0, -9.0]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    found = project(reward, discount, probs, -1.0, 2.0)
    expected = [[0.05, 0.15, 0.25, 0.55], [0, 0.1, 0.2, 0.7], [0, 0, 0, 1], [1, 0, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_q_value_is_the_mean_of_the_atoms() -> None:
    """Decoys: the most likely atom, 0; the mean logit, 0.46."""
    objective = C51Objective(num_atoms=3, v_min=-1, v_max=3)
    logits = torch.tensor([[[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]]).log()
    torch.testing.assert_close(objective.q_values(logits), torch.tensor([[1.0, 0.5]]))


# Quantiles


def huber(error: float) -> float:
    return error**2 / 2 if abs(error) < 1 else abs(error) - 0.5


def pairs(theta: Row, fractions: Row, target: Row, mistake: str = "") -> float:
    """Sum over the quantiles, mean over the targets."""
    total = 0.0
    for value, fraction in zip(theta, fractions, strict=True):
        for number in target:
            error = number - value
            if mistake == "sides exchanged":
                error = -error
            weight = abs(fraction - (error < 0))
            if mistake == "indices exchanged":
                other = fractions[target.index(number) % len(fractions)]
                weight = abs(other - (error < 0))
            total += weight * huber(error)
    return total / (len(theta) if mistake == "mean over the quantiles" else len(target))


def quantiles(
    online: Tensor, fractions: list[Row], choosing: Tensor, target: Tensor, mistake: str = ""
) -> Row:
    batch, losses = batch_of(), []
    if mistake == "networks exchanged":
        choosing, target = target, choosing
    mask = None if mistake == "no mask" else batch.next_action_mask
    for row, action in enumerate(ACTION):
        q = [sum(row_) / len(row_) for row_ in choosing[row].tolist()]
        following = target[row, best(q, allowed(mask, row))].tolist()
        moved = [REWARD[row] + DISCOUNT[row] * z for z in following]
        losses.append(pairs(online[row, action].tolist(), fractions[row], moved, mistake))
    return losses


MISTAKES = ("sides exchanged", "indices exchanged", "no mask")


@pytest.mark.parametrize("double", [True, False])
def test_qr_is_the_huber_loss_of_all_pairs(double: bool) -> None:
    online, choosing, target = (outputs_of(seed, 5) for seed in (1, 2, 3))
    objective = QRObjective(num_quantiles=5, double=double)
    passes = [target, choosing][: 1 + double]
    losses, priority = objective.loss(online, passes, batch_of(), None)
    fractions = [[0.1, 0.3, 0.5, 0.7, 0.9]] * 4
    chosen_by = choosing if double else target
    assert_right(losses, quantiles(online, fractions, chosen_by, target))
    assert torch.equal(priority, losses)
    for mistake in MISTAKES:
        assert_wrong(losses, quantiles(online, fractions, chosen_by, target, mistake))
    if double:
        wrong = quantiles(online, fractions, choosing, target, "networks exchanged")
        assert_wrong(losses, wrong)
    means = outputs_of(1, 5).mean(2)
    torch.testing.assert_close(objective.q_values(online), means)


@pytest.mark.parametrize("double", [True, False])
def test_iqn_reads_the_fractions_beside_the_quantiles(double: bool) -> None:
    """The fractions of the online network count, not those of the targets; they are no action."""
    drawn = [torch.rand(4, 1, 5, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    parts = [outputs_of(seed, 5) for seed in (1, 2, 3)]
    online, choosing, target = (
        torch.cat(both, 1).requires_grad_() for both in zip(parts, drawn, strict=True)
    )
    objective = IQNObjective(num_quantiles=5, double=double)
    passes = [target.detach(), choosing.detach()][: 1 + double]
    losses, _ = objective.loss(online, passes, batch_of(), None)
    fractions = drawn[0][:, 0].tolist()
    chosen_by = parts[1] if double else parts[2]
    assert_right(losses, quantiles(parts[0], fractions, chosen_by, parts[2]))
    for mistake in MISTAKES:
        assert_wrong(losses.detach(), quantiles(parts[0], fractions, chosen_by, parts[2], mistake))
    others = drawn[2][:, 0].tolist()
    assert_wrong(losses.detach(), quantiles(parts[0], others, chosen_by, parts[2]))
    (gradient,) = torch.autograd.grad(losses.sum(), online)
    assert gradient[:, 3].abs().max() == 0.0
    assert objective.q_values(online).shape == (4, 3)


def test_pairs_of_other_counts_are_summed_over_quantiles_and_averaged_over_targets() -> None:
    """Decoy: averaged over the quantiles, two thirds of it."""
    theta, target = [[0.0, 3.0]], [[1.0, 5.0, -2.0]]
    loss = quantile_huber(torch.tensor(theta), torch.tensor([0.25, 0.75]), torch.tensor(target))
    assert loss.item() == pytest.approx(pairs(theta[0], [0.25, 0.75], target[0]))
    wrong = pairs(theta[0], [0.25, 0.75], target[0], "mean over the quantiles")
    assert abs(loss.item() - wrong) > 0.5


# Munchausen

TAU = 0.5


def munchausen(
    online: Tensor, target_next: Tensor, target: Tensor, settings: Row, mistake: str = ""
) -> Row:
    alpha, tau, clip = settings
    batch, errors = batch_of(), []
    mask, next_mask = batch.action_mask, batch.next_action_mask
    if mistake == "no mask at s":
        mask = None
    if mistake == "no mask at s'":
        next_mask = None
    if mistake == "states exchanged":
        target, target_next = target_next, target
    for row, action in enumerate(ACTION):
        here, there = allowed(mask, row), allowed(next_mask, row)
        q, next_q = target[row].tolist(), target_next[row].tolist()
        policy = dict(zip(here, softmax([q[a] / tau for a in here]), strict=True))
        bonus = tau * math.log(policy[action]) if action in policy else -math.inf
        bonus = bonus if mistake == "no clip" else min(max(bonus, clip), 0.0)
        following = softmax([next_q[a] / tau for a in there])
        value = sum(
            p * (next_q[a] - (0 if mistake == "no entropy" else tau * math.log(p)))
            for a, p in zip(there, following, strict=True)
        )
        y = REWARD[row] + alpha * bonus + DISCOUNT[row] * value
        errors.append(online[row, action].item() - y)
    return errors


def test_munchausen_adds_the_clipped_log_policy_and_the_entropy() -> None:
    online, target_next, target = (outputs_of(seed, scale=1.5) for seed in (1, 2, 6))
    settings = [0.7, TAU, -1.0]
    objective = MunchausenObjective("huber", *settings)
    losses, priority = objective.loss(online, [target_next, target], batch_of(), None)
    right = munchausen(online, target_next, target, settings)
    assert_right(priority, [abs(error) for error in right])
    assert_right(losses, [huber(error) for error in right])
    squared, _ = MunchausenObjective("mse", *settings).loss(
        online, [target_next, target], batch_of(), None
    )
    assert_right(squared, [error**2 for error in right])
    for mistake in ("no clip", "no entropy", "states exchanged", "no mask at s", "no mask at s'"):
        decoy = munchausen(online, target_next, target, settings, mistake)
        assert_wrong(priority, [abs(error) for error in decoy])


def test_the_softmax_policy_of_large_values_and_a_small_temperature() -> None:
    """Q of 1e4 and tau 0.03. Decoys: divided first, the logarithms are off by 0.03; inf, NaN."""
    q = torch.tensor([[10_000.0, 10_000.015625, 9_000.0]])
    weights = [math.exp(-0.015625 / 0.03), 1.0, 0.0]
    value = 10_000.015625 + 0.03 * math.log(sum(weights))
    assert soft_value(q, 0.03).item() == pytest.approx(value, abs=2e-3)
    found = [log_policy(q, torch.tensor([a]), 0.03).item() for a in range(3)]
    expected = [0.03 * (math.log(w / sum(weights)) if w else -math.inf) for w in weights]
    assert found[:2] == pytest.approx(expected[:2], abs=1e-5)
    assert found[2] == pytest.approx(-1_000.0, abs=0.1)


# What all have in common


def everything() -> list[tuple[Any, Sequence[int]]]:
    return [
        (MunchausenObjective(), ()),
        (C51Objective(num_atoms=K), (K,)),
        (QRObjective(num_quantiles=K), (K,)),
        (IQNObjective(num_quantiles=K), (K,)),
    ]


@pytest.mark.parametrize(("objective", "sizes"), everything())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_where_the_discount_is_0_no_output_of_the_next_state_does_harm(
    objective: Any, sizes: Sequence[int], value: float
) -> None:
    online, *fine = (outputs_of(seed, *sizes) for seed in (1, 2, 3))
    if isinstance(objective, IQNObjective):  # with a row of fractions
        online, *fine = (torch.cat((each, each[:, :1].sigmoid()), 1) for each in (online, *fine))
    bad = [passed.clone() for passed in fine]
    for number, each in enumerate(objective.passes):
        if each.sees == "next_obs":
            bad[number][1] = value  # the row whose discount is 0
    for found, right in zip(
        objective.loss(online, bad, batch_of(), None),
        objective.loss(online, fine, batch_of(), None),
        strict=True,
    ):
        torch.testing.assert_close(found, right)
        assert found.isfinite().all()
