"""The learner: replayed rows become weights, by a pure step that is run as fast as one likes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from fastdqn.compiled import Compiled
from fastdqn.errors import UsageError
from fastdqn.execution import accelerate
from fastdqn.losses import LOSSES, double_dqn_target, dqn_target, td_error
from fastdqn.native import NativeUpdate
from fastdqn.networks import FlatNetwork
from fastdqn.optimizers import Adam, Optimizer, clip_by_norm, clip_by_value
from fastdqn.replay import ReplayBuffer, Ring, gather
from fastdqn.transition import Transitions

__all__ = ["METRICS", "TARGETS", "Learner", "LearnerState", "chunks"]

METRICS = ("loss", "td_error_abs", "q_mean", "grad_norm")
"""What `LearnerState.metrics` holds, in order, of the last update."""
TARGETS = ("soft", "hard", "none")
UPDATES_PER_CALL = (4, 2, 1)


@dataclass(frozen=True, slots=True)
class LearnerState:
    """Everything that an update reads and writes; each tensor is written in place.

    Attributes:
        online: [P] float32, parameters of the online network.
        target: [P] float32, parameters of the target network.
        slots: The optimizer's own tensors, [P] float32 each.
        updates: Scalar int64, updates so far.
        skipped: Scalar int64, updates that changed nothing since their gradient was not finite.
        learning_rate: Scalar float32; write into it to change the rate.
        metrics: [4] float32, see METRICS.
    """

    online: Tensor
    target: Tensor
    slots: list[Tensor]
    updates: Tensor
    skipped: Tensor
    learning_rate: Tensor
    metrics: Tensor


class Learner:
    """Updates a Q-network by DQN or Double DQN with a target network.

    An update is one pure step over `state`; non-finite losses or gradients change no parameter,
    no moment and no target, and are counted in `state.skipped`.

    Args:
        network: A module from observations [B, *O] to Q-values [B, A], or its flat form.
        gamma: Discount per env step.
        double: Choose the next action with the online network (Double DQN).
        loss: `huber` or `mse`.
        optimizer: See `fastdqn.optimizers`.
        learning_rate: Step size.
        clip_norm: Bound on the norm of the gradient, or None.
        clip_value: Bound on every element of the gradient, or None.
        target: `soft` (a fraction tau each update), `hard` (a copy every `target_period`
            updates, or when `sync_target` is called) or `none` (bootstrap from the online one).
        tau: Fraction of the soft update.
        target_period: Updates between hard copies; 0 copies only on `sync_target`.
        execution: `eager` or `compile`.
        device: Where the parameters live.

    Raises:
        UsageError: A value that cannot be used, named with its flag.
    """

    def __init__(
        self,
        network: nn.Module | FlatNetwork,
        *,
        gamma: float = 0.99,
        double: bool = True,
        loss: str = "huber",
        optimizer: Optimizer | None = None,
        learning_rate: float = 5e-4,
        clip_norm: float | None = 10.0,
        clip_value: float | None = None,
        target: str = "soft",
        tau: float = 0.005,
        target_period: int = 0,
        execution: str = "eager",
        device: torch.device | str = "cpu",
    ) -> None:
        _refuse(gamma, learning_rate, loss, target, tau, clip_norm, clip_value)
        self.network = network if isinstance(network, FlatNetwork) else FlatNetwork(network, device)
        self.gamma, self.double = gamma, double
        self.target_kind, self.tau, self.target_period = target, tau, target_period
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self._loss_name = loss
        self._loss = LOSSES[loss]
        self._optimizer = optimizer or Adam()
        flat = self.network.flat
        self.device = flat.device
        self.state = LearnerState(
            online=flat,
            target=flat.clone(),
            slots=[torch.zeros_like(flat) for _ in range(self._optimizer.num_slots)],
            updates=torch.zeros((), dtype=torch.int64, device=self.device),
            skipped=torch.zeros((), dtype=torch.int64, device=self.device),
            learning_rate=torch.tensor(learning_rate, dtype=torch.float32, device=self.device),
            metrics=torch.full((len(METRICS),), torch.nan, device=self.device),
        )
        self.execute_as(execution)

    # The calls

    def execute_as(self, execution: str) -> None:
        """Run the pure step as `eager` or `compile` from now on; the state stays as it is."""
        self.execution = execution
        if execution == "native":
            self._native = self._make_native()
            self._replayed_step = self._replay_natively
            self._given_step = self._give_natively
            return
        self._replayed_step = accelerate(self._replayed, execution, self.device)
        self._given_step = accelerate(self._given, execution, self.device)

    def _give_natively(self, state: LearnerState, *fields: Tensor) -> None:
        self._native.given(Transitions(*fields))

    def _replay_natively(self, state: LearnerState, ring: Ring, index: Tensor) -> None:
        self._native(ring, index)

    def _make_native(self) -> NativeUpdate:
        state = self.state
        return NativeUpdate(
            self.network,
            {
                "bootstrap": state.online if self.target_kind == "none" else state.target,
                "updates": state.updates,
                "skipped": state.skipped,
                "learning_rate": state.learning_rate,
                "metrics": state.metrics,
            },
            state.slots,
            optimizer=self._optimizer,
            loss=self._loss_name,
            target=self.target_kind,
            clip_norm=self.clip_norm,
            clip_value=self.clip_value,
            plain={
                "gamma": self.gamma,
                "tau": self.tau,
                "double_dqn": self.double,
                "target_period": self.target_period,
            },
        )

    def update(self, batch: Transitions | TensorDict) -> Tensor:
        """Take one optimizer step on a batch that the caller drew.

        Args:
            batch: B transitions on the learner's device, with or without action masks; read.

        Returns:
            [4] float32 on the device, see METRICS; overwritten by the next update.
        """
        given = batch if isinstance(batch, Transitions) else Transitions.from_tensordict(batch)
        self._given_step(self.state, *given.tensors())
        return self.state.metrics

    def learn(self, replay: ReplayBuffer, index: Tensor) -> None:
        """Take one optimizer step for each row of `index`, in order. Hot path; never waits.

        Args:
            replay: On the learner's device; read.
            index: [K, B] int64 from `replay.draw`.
        """
        done = 0
        for count in chunks(len(index)):
            self._replayed_step(self.state, replay.ring, index[done : done + count])
            done += count

    def sync_target(self) -> None:
        """Copy the online parameters into the target."""
        self.state.target.copy_(self.state.online)

    @property
    def compile_s(self) -> float:
        """Seconds spent compiling so far."""
        steps = (self._replayed_step, self._given_step)
        return sum(step.compile_s for step in steps if isinstance(step, Compiled))

    # The pure step

    def step(self, state: LearnerState, batch: Transitions) -> None:
        """Take one optimizer step on `batch`, as it is: for steps that hold it as their part.

        Args:
            state: Written in place, usually `self.state`.
            batch: B transitions on the learner's device; read.
        """
        self._step(state, batch)

    def _replayed(self, state: LearnerState, ring: Ring, index: Tensor) -> None:
        for batch in index.unbind(0):
            self._step(state, gather(ring, batch))

    def _given(self, state: LearnerState, *fields: Tensor) -> None:
        self._step(state, Transitions(*fields))

    def _step(self, state: LearnerState, batch: Transitions) -> None:
        with torch.no_grad():
            goal = self._goal(state, batch)
        grad, norm, metrics = self._gradient(state, batch, goal)
        with torch.no_grad():
            self._commit(state, grad, norm, metrics)

    def _goal(self, state: LearnerState, batch: Transitions) -> Tensor:
        """Return the bootstrapped target values [B]."""
        net, views = self.network, self.network.views
        given, mask = (batch.reward, batch.terminated), batch.next_action_mask
        bootstrap = state.online if self.target_kind == "none" else state.target
        next_q = net(views(bootstrap), batch.next_obs)
        if not self.double:
            return dqn_target(*given, next_q, self.gamma, next_action_mask=mask)
        online_q = net(views(state.online), batch.next_obs)
        return double_dqn_target(*given, online_q, next_q, self.gamma, next_action_mask=mask)

    def _gradient(
        self, state: LearnerState, batch: Transitions, goal: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient [P], its norm and the metrics [4]."""
        with torch.enable_grad():
            leaves = [view.detach().requires_grad_() for view in self.network.views(state.online)]
            q = self.network(leaves, batch.obs)
            error = td_error(q, batch.action, goal)
            loss = self._loss(error)
            parts = torch.autograd.grad(loss, leaves, materialize_grads=True)
        grad = torch.cat([part.reshape(-1) for part in parts])
        norm = torch.linalg.vector_norm(grad)
        error = error.detach()
        q_mean = (error + goal).mean()
        return grad, norm, torch.stack((loss.detach(), error.abs().mean(), q_mean, norm))

    def _commit(self, state: LearnerState, grad: Tensor, norm: Tensor, metrics: Tensor) -> None:
        """Write the new parameters, moments and target, or nothing where a number is not finite."""
        fine = torch.isfinite(metrics).all()
        state.updates.add_(1)
        state.skipped.add_(~fine)
        step = (state.updates - state.skipped).clamp(min=1).float()
        clipped = self._clip(grad, norm)
        flat, slots = self._optimizer(state.online, clipped, state.slots, step, state.learning_rate)
        state.online.copy_(torch.where(fine, flat, state.online))
        for old, new in zip(state.slots, slots, strict=True):
            old.copy_(torch.where(fine, new, old))
        self._move_target(state, fine)
        state.metrics.copy_(metrics)

    def _clip(self, grad: Tensor, norm: Tensor) -> Tensor:
        if self.clip_norm is not None:
            grad = clip_by_norm(grad, norm, self.clip_norm)
        if self.clip_value is not None:
            grad = clip_by_value(grad, self.clip_value)
        return grad

    def _move_target(self, state: LearnerState, fine: Tensor) -> None:
        """Move the target towards the online parameters by a weight that lives on the device."""
        if self.target_kind == "soft":
            state.target.lerp_(state.online, fine * self.tau)
        elif self.target_kind == "hard" and self.target_period:
            due = (state.updates - state.skipped) % self.target_period == 0
            state.target.lerp_(state.online, (due & fine).float())


def chunks(updates: int, sizes: Sequence[int] = UPDATES_PER_CALL) -> list[int]:
    """Split a number of updates into calls of a few fixed sizes, largest first."""
    calls: list[int] = []
    for size in sizes:
        count, updates = divmod(updates, size)
        calls += [size] * count
    return calls


def _refuse(  # noqa: PLR0917 - called once, with names that are its own
    gamma: float,
    learning_rate: float,
    loss: str,
    target: str,
    tau: float,
    clip_norm: float | None,
    clip_value: float | None,
) -> None:
    checks = [
        (0.0 <= gamma <= 1.0, f"--gamma {gamma}", "it is a discount in [0, 1]", "Try 0.99."),
        (learning_rate >= 0, f"--learning-rate {learning_rate}", "it is negative", "Try 5e-4."),
        (loss in LOSSES, f"--loss {loss}", "there is no such loss", f"Choose {', '.join(LOSSES)}."),
        (
            target in TARGETS,
            f"--target {target}",
            "there is no such target",
            f"Choose {', '.join(TARGETS)}.",
        ),
        (0.0 < tau <= 1.0, f"--tau {tau}", "it is a fraction in (0, 1]", "Try 0.005."),
        (clip_norm is None or clip_norm > 0, f"--clip-norm {clip_norm}", "not positive", "Try 10."),
        (
            clip_value is None or clip_value > 0,
            f"--clip-value {clip_value}",
            "not positive",
            "Try 1.",
        ),
    ]
    for fine, got, reason, way_out in checks:
        if not fine:
            raise UsageError(got, reason, way_out)
