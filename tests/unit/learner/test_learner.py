"""The learner: what an update writes, what it leaves alone, what it counts."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastdqn.algorithms.optimizers import Adam, AdamW, Optimizer, RMSprop
from fastdqn.errors import UsageError
from fastdqn.execution.ahead import AheadOfTime
from fastdqn.execution.modes import chunks
from fastdqn.learner.learner import METRICS, Learner, LearnerState
from fastdqn.learner.steps import UPDATES_PER_CALL
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.replay import UniformSampler, gather
from fastdqn.training.schedules import ReplayRatio
from fastdqn.transition import Transitions
from tests.compilers import SlowCompiler
from tests.small_learners import (
    Branches,
    CountUp,
    Descent,
    StandStill,
    Table,
    filled_ring,
    random_batch,
    transitions,
)

OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Adam(weight_decay=0.01),
    "amsgrad": Adam(amsgrad=True),
    "adamw": AdamW(),
    "rmsprop": RMSprop(),
}
TARGETS: dict[str, dict[str, Any]] = {
    "soft": {"target": "soft", "tau": 0.1},
    "hard": {"target": "hard", "target_period": 2},
    "none": {"target": "none"},
}
CLIPS: dict[str, dict[str, Any]] = {
    "free": {"clip_norm": None},
    "norm": {"clip_norm": 0.5},
    "value": {"clip_norm": None, "clip_value": 0.01},
    "both": {"clip_norm": 0.5, "clip_value": 0.01},
}


def _learner(**settings: Any) -> Learner:
    torch.manual_seed(0)
    return Learner(MLP((4,), 2, (8,)), **settings)


def _copy(state: LearnerState) -> dict[str, Tensor]:
    slots = {f"slot {i}": slot.clone() for i, slot in enumerate(state.slots)}
    return {"online": state.online.clone(), "target": state.target.clone(), **slots}


def _same_bits(state: LearnerState, before: dict[str, Tensor]) -> bool:
    now = _copy(state)
    return all(torch.equal(now[k].view(torch.int32), before[k].view(torch.int32)) for k in before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# Every combination


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", ["huber", "mse"])
@pytest.mark.parametrize("double", [True, False])
def test_every_combination_moves_parameters_and_stays_finite(
    double: bool, loss: str, optimizer: str, target: str, clip: str
) -> None:
    learner = _learner(
        double=double,
        loss=loss,
        optimizer=OPTIMIZERS[optimizer],
        learning_rate=0.01,
        **TARGETS[target],
        **CLIPS[clip],
    )
    before = _copy(learner.state)
    for seed in range(3):
        learner.update(random_batch(seed))
    state = learner.state
    assert (int(state.updates), int(state.skipped)) == (3, 0)
    assert state.metrics.isfinite().all()
    for name, tensor in _copy(state).items():
        assert tensor.isfinite().all()
        assert torch.equal(tensor, before[name]) == (name == "target" and target == "none")


@pytest.mark.parametrize("double", [True, False])
def test_an_update_equals_one_written_with_torch_alone(double: bool) -> None:
    """Two networks, torch's loss, clipping and Adam, and the same batches."""
    learner = _learner(double=double, learning_rate=0.01, tau=0.1, clip_norm=0.3, gamma=0.9)
    torch.manual_seed(0)
    online, target = MLP((4,), 2, (8,)), MLP((4,), 2, (8,))
    target.load_state_dict(online.state_dict())
    adam = torch.optim.Adam(online.parameters(), lr=0.01)
    for seed in range(50):
        batch = random_batch(seed)
        learner.update(batch)
        with torch.no_grad():
            chooser = online if double else target
            best = chooser(batch.next_obs).argmax(1)
            value = target(batch.next_obs)[torch.arange(8), best]
            goal = batch.reward + 0.9 * value * (~batch.terminated).float()
        q = online(batch.obs)[torch.arange(8), batch.action]
        (loss := functional.smooth_l1_loss(q, goal)).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(online.parameters(), 0.3)
        adam.step()
        adam.zero_grad()
        for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.1)
        expected = torch.stack((loss, (q - goal).abs().mean(), q.mean(), norm)).detach()
        torch.testing.assert_close(learner.state.metrics, expected, rtol=1e-4, atol=1e-5)
    for module, flat in ((online, learner.state.online), (target, learner.state.target)):
        flattened = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
        torch.testing.assert_close(flat, flattened, rtol=1e-4, atol=1e-5)


def test_a_users_module_learns_and_shows_what_it_learned() -> None:
    module = Branches()
    learner = Learner(module, learning_rate=0.01)
    obs = torch.randn(3, 4)
    before = module(obs)
    losses = [float(learner.update(random_batch(0))[0]) for _ in range(100)]
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.allclose(module(obs), before, atol=1e-3)
    network = learner.network
    assert torch.equal(module(obs), network(network.views(learner.state.online), obs))


class HalfUsed(nn.Module):
    """Has a layer that its forward pass leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, obs: Tensor) -> Tensor:
        q: Tensor = self.used(obs)
        return q


def test_parameters_that_the_forward_pass_leaves_out_stay_as_they_are() -> None:
    module = HalfUsed()
    idle, used = module.idle.weight.clone(), module.used.weight.clone()
    Learner(module, learning_rate=0.01).update(random_batch())
    assert torch.equal(module.idle.weight, idle)
    assert not torch.equal(module.used.weight, used)


def test_learners_over_one_flat_network_share_its_parameters() -> None:
    network = FlatNetwork(MLP((4,), 2, (8,)))
    learner = Learner(network)
    assert learner.network is network
    assert learner.state.online is network.flat
    assert learner.state.target.data_ptr() != network.flat.data_ptr()


# What is not moved


@pytest.mark.parametrize("optimizer", ["adam", "amsgrad", "rmsprop"])
def test_learning_rate_zero_changes_no_parameter_and_still_counts(optimizer: str) -> None:
    learner = _learner(optimizer=OPTIMIZERS[optimizer], learning_rate=0.0)
    before = _copy(learner.state)
    for seed in range(5):
        learner.update(random_batch(seed))
    assert torch.equal(learner.state.online, before["online"])
    assert torch.equal(learner.state.target, before["target"])
    assert not torch.equal(learner.state.slots[0], before["slot 0"])
    assert int(learner.state.updates) == 5


def test_the_learning_rate_written_on_the_device_takes_effect_at_the_next_update() -> None:
    learner = _learner(optimizer=Descent(), learning_rate=0.0, clip_norm=None)
    before = learner.state.online.clone()
    learner.update(random_batch())
    steps = []
    for rate in (0.01, 0.02):
        learner.state.online.copy_(before)
        learner.state.target.copy_(before)
        learner.state.learning_rate.fill_(rate)
        learner.update(random_batch())
        steps.append(learner.state.online - before)
    assert steps[0].abs().max() > 1e-4
    torch.testing.assert_close(steps[1], 2 * steps[0], rtol=1e-3, atol=1e-6)


POISON: dict[str, dict[str, float]] = {
    "reward nan": {"reward": math.nan},
    "reward inf": {"reward": math.inf},
    "reward too large for the loss": {"reward": 1e30},
    "observation nan": {"obs": math.nan},
    "next observation -inf": {"next_obs": -math.inf},
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("poison", POISON)
def test_an_update_that_is_not_finite_changes_no_bit_and_is_counted(
    poison: str, optimizer: str, target: str
) -> None:
    """The third of three updates is poisoned; with the hard target it is not yet due.

    Afterwards the learner goes on as if the poisoned update had never been.
    """
    settings = {**TARGETS[target], "target_period": 5}
    learner, clean = (
        _learner(loss="mse", optimizer=OPTIMIZERS[optimizer], learning_rate=0.01, **settings)
        for _ in range(2)
    )
    for seed in range(2):
        learner.update(random_batch(seed))
        clean.update(random_batch(seed))
    before = _copy(learner.state)
    batch = random_batch(2)
    ((name, value),) = POISON[poison].items()
    bad = getattr(batch, name).clone()
    bad[int(batch.terminated.logical_not().nonzero()[0])] = value
    metrics = learner.update(dataclasses.replace(batch, **{name: bad}))
    assert not metrics.isfinite().all()
    assert _same_bits(learner.state, before)
    assert (int(learner.state.updates), int(learner.state.skipped)) == (3, 1)
    learner.update(random_batch(3))
    clean.update(random_batch(3))
    assert _same_bits(learner.state, _copy(clean.state))
    assert (int(learner.state.updates), int(learner.state.skipped)) == (4, 1)


def test_a_hard_copy_due_at_a_poisoned_update_leaves_the_target_alone() -> None:
    learner = _learner(target="hard", target_period=2)
    learner.update(random_batch(0))
    before = _copy(learner.state)
    assert not torch.equal(before["online"], before["target"])
    batch = random_batch(1)
    learner.update(dataclasses.replace(batch, reward=batch.reward * math.nan))
    assert _same_bits(learner.state, before)


def test_what_follows_a_terminated_row_cannot_poison_an_update() -> None:
    batch = random_batch(0)
    assert batch.terminated.any()
    next_obs = batch.next_obs.clone()
    next_obs[batch.terminated] = math.nan
    learner, clean = _learner(), _learner()
    learner.update(dataclasses.replace(batch, next_obs=next_obs))
    clean.update(batch)
    assert int(learner.state.skipped) == 0
    assert torch.equal(learner.state.online, clean.state.online)


# Target networks


@pytest.mark.parametrize("ratio", [0.25, 1.0, 8.0])
@pytest.mark.parametrize("num_envs", [1, 4, 64, 512])
def test_hard_copies_are_counted_in_updates_for_any_number_of_environments(
    num_envs: int, ratio: float
) -> None:
    """Each update adds 1 to the online parameters, so that the target shows its last copy."""
    period = 7
    replay = filled_ring(num_envs=1, rows=2, obs_size=1)
    learner = Learner(
        Table(1, 1), optimizer=CountUp(), target="hard", target_period=period, clip_norm=None
    )
    account = ReplayRatio(ratio)
    for env_steps in range(num_envs, max(num_envs, int(128 / ratio)) + 1, num_envs):
        due = account.due(env_steps)
        learner.learn(replay, torch.zeros(due, 1, dtype=torch.int64))
        account.pay(due)
        copies = account.updates // period
        assert learner.state.online.item() == account.updates == int(learner.state.updates)
        assert learner.state.target.item() == copies * period
    assert copies >= 4


@pytest.mark.parametrize("earlier", [0, 5, 14, 12345])
def test_hard_copies_go_on_from_the_updates_of_an_earlier_training(earlier: int) -> None:
    """The optimizer does not: its moments are new, and so is the count of its bias."""
    counted: list[float] = []

    class CountSteps(CountUp):
        def __call__(
            self,
            flat: Tensor,
            grad: Tensor,
            slots: list[Tensor],
            step: Tensor,
            learning_rate: Tensor,
        ) -> tuple[Tensor, list[Tensor]]:
            counted.append(float(step))
            return super().__call__(flat, grad, slots, step, learning_rate)

    period, replay = 7, filled_ring(num_envs=1, rows=2, obs_size=1)
    learner = Learner(
        Table(1, 1), optimizer=CountSteps(), target="hard", target_period=period, clip_norm=None
    )
    learner.go_on_from(earlier)
    for made in range(1, 20):
        learner.learn(replay, torch.zeros(1, 1, dtype=torch.int64))
        since = (earlier + made) % period
        assert learner.state.target.item() == (made - since if since <= made else 0.0)
    assert counted == list(range(1, 20))


@pytest.mark.parametrize(("tau", "updates"), [(0.005, 200), (0.3, 10), (1.0, 1)])
def test_the_soft_target_follows_its_closed_form(tau: float, updates: int) -> None:
    learner = _learner(optimizer=StandStill(), target="soft", tau=tau)
    online = learner.state.online.clone()
    start = torch.randn_like(online)
    learner.state.target.copy_(start)
    learner.learn(filled_ring(), torch.zeros(updates, 3, dtype=torch.int64))
    expected = online + (1 - tau) ** updates * (start - online)
    torch.testing.assert_close(learner.state.target, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(learner.state.online, online)


def test_the_soft_target_moves_towards_the_parameters_of_the_same_update() -> None:
    learner = Learner(Table(1, 1), optimizer=CountUp(), target="soft", tau=0.25)
    for expected in (0.25, 0.6875, 1.265625):
        learner.update(random_batch(obs_size=1, actions=1))
        assert learner.state.target.item() == expected


def test_without_a_target_network_the_online_one_is_bootstrapped_from() -> None:
    learner = Learner(Table(2, 2), gamma=0.5, target="none", loss="mse", learning_rate=0.0)
    learner.state.target.fill_(1e6)
    learner.state.online.copy_(torch.tensor([0.0, 0.0, 4.0, 6.0]))
    batch = transitions([0], [0], [1.0], [1], [False], num_states=2)
    assert learner.update(batch)[1].item() == 4.0
    assert torch.equal(learner.state.target, torch.full((4,), 1e6))


def test_a_hard_target_without_period_waits_for_sync_target() -> None:
    learner = _learner(target="hard", target_period=0, learning_rate=0.01)
    start = learner.state.target.clone()
    for seed in range(10):
        learner.update(random_batch(seed))
    assert torch.equal(learner.state.target, start)
    place = learner.state.target.data_ptr()
    learner.sync_target()
    assert torch.equal(learner.state.target, learner.state.online)
    assert learner.state.target.data_ptr() == place != learner.state.online.data_ptr()


# Batches and metrics


def test_metrics_are_those_of_the_last_update() -> None:
    """Errors 1 - 0 - 0 and 3 - 2 - 0: Huber 0.5 each, gradients 1/2 in two places."""
    learner = Learner(Table(2, 2), gamma=0.5, target="none", learning_rate=0.0)
    assert learner.state.metrics.isnan().all()
    learner.state.online.copy_(torch.tensor([1.0, 0.0, 0.0, 3.0]))
    batch = transitions([0, 1], [0, 1], [0.0, 2.0], [0, 0], [True, True], num_states=2)
    metrics = learner.update(batch)
    assert metrics is learner.state.metrics
    named = dict(zip(METRICS, metrics.tolist(), strict=True))
    assert named == {
        "loss": 0.5,
        "td_error_abs": 1.0,
        "q_mean": 2.0,
        "grad_norm": pytest.approx(math.sqrt(0.5)),
    }


def test_the_norm_in_the_metrics_is_that_before_clipping() -> None:
    norms = [
        _learner(loss="mse", **clip).update(random_batch())[3].item() for clip in CLIPS.values()
    ]
    assert len(set(norms)) == 1
    assert norms[0] > 0.5


def test_a_tensordict_and_transitions_are_the_same_batch() -> None:
    learner, other = _learner(), _learner()
    learner.update(random_batch())
    other.update(random_batch().to_tensordict())
    assert _same_bits(learner.state, _copy(other.state))


def test_learning_from_the_ring_equals_updates_on_what_it_holds() -> None:
    replay = filled_ring()
    index = replay.draw(7, 5)
    learner, other = _learner(), _learner()
    learner.learn(replay, index)
    ring = replay.ring
    for row in index:
        other.update(
            Transitions(
                ring.frames[row],
                ring.action[row],
                ring.reward[row],
                ring.frames[ring.next_index[row]],
                ring.terminated[row],
                ring.truncated[row],
            )
        )
    assert _same_bits(learner.state, _copy(other.state))
    assert int(learner.state.updates) == 7


@pytest.mark.parametrize("double", [True, False])
def test_masks_in_the_ring_are_used_as_those_of_a_batch_are(double: bool) -> None:
    replay = filled_ring(num_masked=2)
    index = replay.draw(7, 5)
    learner, other, unmasked = (_learner(double=double, learning_rate=0.01) for _ in range(3))
    learner.learn(replay, index)
    ring = replay.ring
    assert ring.masks is not None
    for row in index:
        batch = gather(ring, row)
        assert batch.next_action_mask is not None
        assert torch.equal(batch.next_action_mask, ring.masks[ring.next_index[row]])
        other.update(batch.to_tensordict())
        unmasked.update(dataclasses.replace(batch, next_action_mask=None))
    assert _same_bits(learner.state, _copy(other.state))
    assert not torch.equal(learner.state.online, unmasked.state.online)


def test_masks_that_allow_everything_or_nothing_change_no_bit() -> None:
    learner, all_allowed, none_allowed = (_learner(learning_rate=0.01) for _ in range(3))
    for seed in range(5):
        batch = random_batch(seed)
        learner.update(batch)
        everything = torch.ones(8, 2, dtype=torch.bool)
        all_allowed.update(dataclasses.replace(batch, next_action_mask=everything))
        none_allowed.update(dataclasses.replace(batch, next_action_mask=~everything))
    assert _same_bits(learner.state, _copy(all_allowed.state))
    assert _same_bits(learner.state, _copy(none_allowed.state))


def test_whole_numbers_of_numpy_are_updates_and_others_are_refused() -> None:
    learner, sampler = Learner(MLP((4,), 2, (8,))), UniformSampler(filled_ring(), 8)
    learner.learn(sampler, np.int64(3))  # type: ignore[arg-type]
    assert int(learner.state.updates) == 3
    others: list[Any] = [2.5, True, "3", -1]
    for wrong in others:
        with pytest.raises(UsageError, match=f"updates .*{wrong}"):
            learner.learn(sampler, wrong)


def test_learning_from_no_batch_does_nothing() -> None:
    learner = _learner()
    before = _copy(learner.state)
    learner.learn(filled_ring(), torch.zeros(0, 8, dtype=torch.int64))
    assert _same_bits(learner.state, before)
    assert int(learner.state.updates) == 0


def test_an_update_writes_its_state_in_place() -> None:
    learner = _learner(optimizer=Adam(amsgrad=True))
    state = learner.state
    tensors = [state.online, state.target, *state.slots, state.updates, state.metrics]
    places = [tensor.data_ptr() for tensor in tensors]
    learner.learn(filled_ring(), torch.zeros(9, 4, dtype=torch.int64))
    learner.update(random_batch())
    assert learner.state is state
    now = [state.online, state.target, *state.slots, state.updates, state.metrics]
    assert [tensor.data_ptr() for tensor in now] == places


def test_actions_of_a_wrong_shape_are_refused_before_anything_changes() -> None:
    learner = _learner()
    before = _copy(learner.state)
    batch = random_batch()
    for wrong in (
        dataclasses.replace(batch, action=batch.action.unsqueeze(1)),
        dataclasses.replace(batch, reward=batch.reward.unsqueeze(1)),
        dataclasses.replace(batch, terminated=batch.terminated.unsqueeze(1)),
        dataclasses.replace(batch, next_obs=batch.next_obs[:1]),
    ):
        with pytest.raises(ValueError, match=r"want \[B"):
            learner.update(wrong)
    assert _same_bits(learner.state, before)


@pytest.mark.parametrize(
    ("updates", "calls"),
    [(0, []), (1, [1]), (3, [2, 1]), (4, [4]), (7, [4, 2, 1]), (17, [4, 4, 4, 4, 1])],
)
def test_updates_are_split_into_calls_of_few_sizes(updates: int, calls: list[int]) -> None:
    assert chunks(updates, UPDATES_PER_CALL) == calls


# Refusals


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("gamma", -0.1),
        ("gamma", 1.1),
        ("gamma", math.nan),
        ("learning_rate", -1e-3),
        ("learning_rate", math.nan),
        ("loss", "l1"),
        ("target", "sometimes"),
        ("tau", 0.0),
        ("tau", 1.5),
        ("clip_norm", 0.0),
        ("clip_norm", -1.0),
        ("clip_value", 0.0),
        ("execution", "warp"),
    ],
)
def test_values_that_cannot_be_used_are_refused_with_their_flag(setting: str, value: Any) -> None:
    flag = "--" + setting.replace("_", "-")
    with pytest.raises(UsageError, match=rf"{flag} {value}: .*(Try|Choose) "):
        _learner(**{setting: value})


# Beside a compiler


def test_a_learner_asked_to_start_at_once_learns_eagerly_until_it_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiler: Any = SlowCompiler()
    monkeypatch.setattr(
        "fastdqn.execution.compile.AheadOfTime", partial(AheadOfTime, process=compiler)
    )
    torch.manual_seed(0)
    learner, sampler = Learner(Branches()), UniformSampler(filled_ring(), 8)
    learner.execute_as("compile", background=True)
    learner.prepare(sampler, 3)  # calls of two and of one
    (step,) = learner.compiling
    assert len(compiler.requests) == 2
    learner.learn(sampler, 3)
    assert int(learner.state.updates) == 3
    assert (step.ready, len(compiler.requests)) == (False, 2)
    learner.close()
    assert compiler.waiting == {}
    assert learner.execution == "eager"
    learner.learn(sampler, 3)
    assert int(learner.state.updates) == 6


def test_a_replay_buffer_learns_from_rows_and_a_sampler_from_a_number_of_draws() -> None:
    learner, replay = _learner(), filled_ring()
    with pytest.raises(UsageError, match=r"3 updates from a replay buffer: it chooses none\. Pass"):
        learner.learn(replay, 3)
    with pytest.raises(UsageError, match="an index for a sampler"):
        learner.learn(UniformSampler(replay, 8), replay.draw(3, 8))
    assert int(learner.state.updates) == 0
