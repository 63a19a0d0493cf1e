"""Targets, TD errors, losses, gradients and whole updates beside TorchRL's DQNLoss."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from fastdqn.algorithms.objectives import DoubleDQNObjective, DQNObjective
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.transition import Transitions
from tests.peers.tables import Case, case_of, dqn_loss, tensordict_of
from tests.small_learners import random_batch

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:No target network updater"),
]
SEEDS = range(6)
LOSSES = {"huber": "smooth_l1", "mse": "l2"}
"""Our name -> TorchRL's."""
CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-6}
"""Some roundings of float32, in another order."""
CLIP = 0.2
"""Norm of the gradient."""
EITHER = pytest.mark.parametrize("double", [False, True])


def objective_of(double: bool, loss: str = "huber") -> DQNObjective:
    return (DoubleDQNObjective if double else DQNObjective)(loss)


def ours(case: Case, double: bool, loss: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, priorities and the gradient of the weighted mean, over the outputs."""
    objective, outputs = objective_of(double, loss), case.outputs()
    losses, priority = objective.loss(
        outputs, case.passes[: len(objective.passes)], case.batch, None
    )
    weight = case.batch.weight
    mean = (losses if weight is None else weight * losses).mean()
    return losses.detach(), priority, torch.autograd.grad(mean, outputs)[0]


@EITHER
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", SEEDS)
def test_losses_and_td_errors_are_torchrls(
    torchrl: SimpleNamespace, seed: int, loss: str, masked: bool, double: bool
) -> None:
    """Its priority is the square of the TD error, and ours the magnitude."""
    case = case_of(seed, masked=masked, weighted=False)
    data = tensordict_of(case)
    settings = {"double_dqn": double, "loss_function": LOSSES[loss]}
    theirs, _ = dqn_loss(torchrl, case, **settings)
    losses, priority, _ = ours(case, double, loss)
    torch.testing.assert_close(losses, theirs(data)["loss"].detach(), **CLOSE)
    torch.testing.assert_close(priority, data["td_error"].squeeze(1).sqrt(), **CLOSE)


@EITHER
@pytest.mark.parametrize("seed", SEEDS)
def test_targets_are_torchrls(torchrl: SimpleNamespace, seed: int, double: bool) -> None:
    """With Q(s, a) = 0 far from the targets, the priority is the target's magnitude."""
    case = case_of(seed, weighted=False)
    online = case.online.clone()
    online[case.batch.obs] = -100.0
    case = replace(case, online=online)
    data = tensordict_of(case)
    theirs, _ = dqn_loss(torchrl, case, double_dqn=double, loss_function="l2")
    theirs(data)
    _, priority, _ = ours(case, double, "mse")
    target = data["td_error"].squeeze(1).sqrt() - 100.0
    torch.testing.assert_close(priority - 100.0, target, rtol=1e-5, atol=5e-5)
    ended = case.batch.terminated
    torch.testing.assert_close(target[ended], case.batch.reward[ended], rtol=1e-5, atol=5e-5)


@EITHER
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_are_torchrls_but_for_the_mean_of_the_weights(
    torchrl: SimpleNamespace, seed: int, loss: str, double: bool
) -> None:
    """It divides the weighted sum by the sum of the weights, and the update by their number."""
    case = case_of(seed)
    settings = {"double_dqn": double, "loss_function": LOSSES[loss], "reduction": "mean"}
    theirs, table = dqn_loss(torchrl, case, **settings)
    theirs(tensordict_of(case))["loss"].backward()
    _, _, gradient = ours(case, double, loss)
    assert table.grad is not None
    assert case.batch.weight is not None
    expected = table.grad * case.batch.weight.mean()
    torch.testing.assert_close(gradient, expected[case.batch.obs], **CLOSE)
    assert (table.grad[case.batch.next_obs] == 0).all()


def test_where_nothing_is_allowed_we_take_the_largest_value_and_torchrl_minus_infinity(
    torchrl: SimpleNamespace,
) -> None:
    case = case_of(1, masked=True, weighted=False)
    size = len(case.batch.action)
    nothing = torch.zeros_like(case.batch.next_action_mask)  # type: ignore[arg-type]
    discount = torch.full((size,), 0.5)
    batch = replace(
        case.batch,
        next_action_mask=nothing,
        terminated=torch.zeros(size, dtype=torch.bool),
        discount=discount,
    )
    case = replace(case, batch=batch, gamma=0.5, steps=torch.ones_like(case.steps))
    data = tensordict_of(case)
    theirs, _ = dqn_loss(torchrl, case, double_dqn=False, loss_function="smooth_l1")
    assert (theirs(data)["loss"] > 1e37).all()
    _, priority, _ = ours(case, False, "huber")
    best = case.passes[0].amax(1)
    chosen = case.online[batch.obs].gather(1, batch.action.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(priority, (chosen - batch.reward - 0.5 * best).abs(), **CLOSE)


def layers_of(network: MLP) -> nn.Sequential:
    """Return the same network as layers of PyTorch alone, with copies of its parameters."""
    parameters = [parameter.detach().clone() for parameter in network.parameters()]
    layers: list[nn.Module] = []
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def torchrls_update(
    torchrl: SimpleNamespace, network: nn.Module, double: bool, tau: float
) -> tuple[Any, Any]:
    """Return TorchRL's loss of a network and what moves its target."""
    actor = torchrl.QValueActor(
        network, in_keys=["obs"], spec=torchrl.Categorical(3), action_mask_key="mask"
    )
    loss = torchrl.DQNLoss(
        actor,
        action_space="categorical",
        delay_value=True,
        double_dqn=double,
        loss_function="smooth_l1",
    )
    loss.make_value_estimator(gamma=0.9)
    return loss, torchrl.SoftUpdate(loss, tau=tau)


def named(batch: Transitions) -> TensorDict:
    assert batch.weight is not None
    size = len(batch.action)
    following = {
        "obs": batch.next_obs,
        "reward": batch.reward.unsqueeze(1),
        "terminated": batch.terminated.unsqueeze(1),
        "done": batch.terminated.unsqueeze(1),
        "mask": batch.next_action_mask,
    }
    found = {"obs": batch.obs, "action": batch.action, "priority_weight": batch.weight}
    found["mask"] = torch.ones(size, 3, dtype=torch.bool)
    return TensorDict({**found, "next": TensorDict(following, [size])}, [size])


@EITHER
@pytest.mark.parametrize("execution", ["eager", "native"])
def test_fifty_updates_lead_to_the_parameters_of_torchrl_adam_and_soft_targets(
    torchrl: SimpleNamespace, execution: str, double: bool
) -> None:
    """Both clip the gradient's norm, which some gradients pass."""
    torch.manual_seed(3)
    network = MLP((4,), 3, (16, 16))
    loss, updater = torchrls_update(torchrl, layers_of(network), double, tau=0.05)
    parameters = [tensor for tensor in loss.parameters() if tensor.requires_grad]
    adam = torch.optim.Adam(parameters, lr=0.003)
    learner = Learner(
        network,
        gamma=0.9,
        double=double,
        learning_rate=0.003,
        clip_norm=CLIP,
        tau=0.05,
        execution=execution,
    )
    clipped, begun = 0, learner.state.online.clone()
    for number in range(50):
        weight = torch.rand(16, generator=torch.Generator().manual_seed(number))
        batch = random_batch(number, 16, actions=3, masked=True)
        mask = batch.next_action_mask
        assert mask is not None
        mask |= torch.eye(3, dtype=torch.bool)[torch.arange(16) % 3]
        batch = replace(batch, weight=weight)
        adam.zero_grad()
        (loss(named(batch))["loss"] * weight.mean()).backward()
        clipped += float(nn.utils.clip_grad_norm_(parameters, CLIP)) > CLIP
        adam.step()
        updater.step()
        learner.update(batch)
    flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
    assert 0 < clipped < 50, clipped
    assert float((flat - begun).abs().max()) > 0.05
    torch.testing.assert_close(learner.state.online, flat, rtol=1e-3, atol=2e-5)
