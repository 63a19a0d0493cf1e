"""Named bugs and the tests that each of them must turn red.

A bug is planted by exchanging functions of the package before any test module is imported. It
has to run to the end: a test counts as red only where an assertion fails.
"""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastdqn.agent import learning, loading
from fastdqn.agent import network as agent_network
from fastdqn.agent.dqn import DQN
from fastdqn.agent.learning import Trainable
from fastdqn.agent.saved_description import SavedDescription
from fastdqn.algorithms import exploration, objectives, td_losses
from fastdqn.algorithms.optimizers import Adam
from fastdqn.envs import masks, provider, sharing
from fastdqn.envs.sources import reused_arrays, source, vector_source
from fastdqn.envs.sources.reused_arrays import ReuseWatch
from fastdqn.envs.sources.source import GroupedSource
from fastdqn.envs.sources.vector_source import VectorSource
from fastdqn.envs.space_check import SpaceCheck
from fastdqn.envs.specs import construction
from fastdqn.envs.workers import env_access, hosted_envs, local_pool, pool, supervised_pool
from fastdqn.envs.workers.failures import EnvFailures
from fastdqn.envs.workers.hosted_envs import HostedEnvs
from fastdqn.envs.workers.observation_writer import CheckedWriter, NumberWriter
from fastdqn.envs.workers.supervised_pool import SupervisedPool
from fastdqn.envs.workers.supervision import RestartBudget, SupervisedWorker
from fastdqn.execution import modes
from fastdqn.execution.cuda_graph import CudaGraphStep
from fastdqn.execution.in_process import InProcess
from fastdqn.execution.step import PlainUntilCompiled
from fastdqn.execution.trace import Source
from fastdqn.foundation import copying, trial_env
from fastdqn.learner import update
from fastdqn.learner.learner import Learner, LearnerState
from fastdqn.native import NativeActor, binding
from fastdqn.networks import network_check, network_trial
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.policies import policy, predict
from fastdqn.replay import storage
from fastdqn.replay.buffer import ReplayBuffer
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.row_writer import Rows
from fastdqn.replay.valid_transitions import FinalObservations, ValidTransitions
from fastdqn.training import events, games, schedules
from fastdqn.training.host import guard, rollout
from tests.mutants import network_bugs
from tests.mutants.best_policy_bugs import PLANTED as OF_THE_BEST
from tests.mutants.call_bugs import PLANTED as OF_CALLS
from tests.mutants.checkpoint_bugs import PLANTED as OF_CHECKPOINTS
from tests.mutants.episode_bugs import PLANTED as OF_EPISODES
from tests.mutants.memory_bugs import PLANTED as OF_MEMORY
from tests.mutants.native_bugs import plants
from tests.mutants.nonfinite_bugs import PLANTED as OF_NONFINITE
from tests.mutants.objective_bugs import PLANTED as OF_OBJECTIVES
from tests.mutants.replay_bugs import PLANTED
from tests.mutants.resume_bugs import PLANTED as OF_RESUMING
from tests.mutants.run_bugs import PLANTED as OF_RUNS
from tests.mutants.schedule_bugs import SCHEDULED
from tests.mutants.settings_bugs import PLANTED as OF_SETTINGS
from tests.mutants.soak_bugs import PLANTED as OF_SOAKS

__all__ = ["MUTANTS", "Mutant"]

RING = "tests/unit/replay/test_buffer.py::test_"
LAWS = "tests/property/test_ring_laws.py::test_"
GOLDEN = "tests/golden/test_equations.py::test_"
LOSSES = "tests/unit/algorithms/test_td_losses.py::test_"
OPTIMIZERS = "tests/unit/algorithms/test_optimizers.py::test_"
NETWORKS = "tests/unit/networks/test_networks.py::test_"
POLICY = "tests/unit/policies/test_policy.py::test_"
SCHEDULES = "tests/unit/training/test_schedules.py::test_"
LEARNER = "tests/unit/learner/test_learner.py::test_"
HOTPATH = "tests/hotpath/test_hotpath.py::test_"
MASKS = "tests/unit/envs/test_masks.py::test_"
MASKED_VECTORS = "tests/equivalence/test_masked_vectors.py::test_"
HOST = "tests/unit/envs/test_hosted_envs.py::test_"
NATIVE = "tests/equivalence/test_native.py::test_"
GROUPS = "tests/unit/training/test_env_groups.py::test_"
FIRE = "tests/faults/test_supervision.py::test_"
RESTARTS = "tests/faults/test_restarts.py::test_"
BUDGET = "tests/unit/envs/test_supervision.py::test_"
LOCAL = "tests/unit/envs/test_local_pool.py::test_"
EXPORTED = "tests/unit/execution/test_compiler_process.py::test_"
COMPILED = "tests/unit/execution/test_compile.py::test_"
STEP = "tests/unit/execution/test_step.py::test_"
MOVING = "tests/equivalence/test_learning_while_compiling.py::test_"
EXECUTION = "tests/unit/execution/test_modes.py::test_"
CHECK = "tests/unit/networks/test_network_check.py::test_"
BINDING = "tests/unit/native/test_binding.py::test_"
COPIES = "tests/equivalence/test_copies.py::test_"
EVALUATION = "tests/unit/training/test_evaluation.py::test_"
LOADING = "tests/unit/agent/test_loading.py::test_"
GOING_ON = "tests/unit/agent/test_going_on.py::test_"
FORGED = "tests/property/test_forged_policies.py::test_"
SHARING = "tests/unit/envs/test_sharing.py::test_"
LATE_MASKS = "tests/unit/envs/test_late_masks.py::test_"
SPACES = "tests/unit/envs/test_space_check.py::test_"
REUSED = "tests/equivalence/test_reused_arrays.py::test_"
ACTIONS = "tests/equivalence/test_action_dtypes.py::test_"
MAKE = "tests/unit/envs/test_description.py::test_"
SEAMS = "tests/architecture/test_seams.py::test_"
TRACES = "tests/unit/foundation/test_trial_env.py::test_"


@dataclass(frozen=True)
class Mutant:
    """A bug that can be planted.

    Attributes:
        plant: Exchanges functions of the package, in this process and for good.
        tests: Node ids, each of which must turn red.
    """

    plant: Callable[[], None]
    tests: tuple[str, ...]


MUTANTS: dict[str, Mutant] = {}
"""Name -> bug, in the order of the table."""


def turns_red(*tests: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Enter a bug into MUTANTS under the name of its function."""

    def enter(plant: Callable[[], None]) -> Callable[[], None]:
        MUTANTS[plant.__name__.replace("_", " ")] = Mutant(plant, tests)
        return plant

    return enter


def exchange(name: str, new: object, *owners: object) -> None:
    """Put `new` in the place of what the owners (modules, classes) call `name`."""
    for owner in owners:
        assert hasattr(owner, name)
        setattr(owner, name, new)


# Targets and errors


@turns_red(
    GOLDEN + "double_dqn_chooses_with_the_online_and_values_with_the_target_network",
    GOLDEN + "the_learner_feeds_the_equations_with_the_right_networks_and_states",
)
def double_dqn_with_the_networks_swapped() -> None:
    right = td_losses.double_value

    def swapped(online: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return right(target, online, mask)

    exchange("double_value", swapped, td_losses, objectives)


@turns_red(
    GOLDEN + "dqn_takes_the_largest_value_of_the_target_network",
    GOLDEN + "value_iteration_by_updates_finds_q_star_of_the_chain",
)
def terminated_ignored() -> None:
    def discount_of(terminated: Tensor, gamma: float) -> Tensor:
        return torch.full_like(terminated, gamma, dtype=torch.float32)

    exchange("discount_of", discount_of, td_losses, update, storage)


@turns_red(
    GOLDEN + "a_time_limit_does_not_cut_the_value_of_going_on",
    GOLDEN + "an_episode_cut_at_five_bootstraps_from_its_true_last_observation",
)
def discount_of_truncated_steps_zero() -> None:
    right = storage.gather

    def gather(*given: Any, **options: Any) -> Any:
        batch = right(*given, **options)
        assert batch.discount is not None
        return replace(batch, discount=batch.discount.masked_fill(batch.truncated, 0.0))

    exchange("gather", gather, update)


@turns_red(
    GOLDEN + "lesson_numbers_for_targets_and_errors",
    LOSSES + "a_terminated_row_ignores_what_follows_even_if_it_is_not_a_number",
)
def gamma_squared() -> None:
    right = td_losses.discount_of

    def discount_of(terminated: Tensor, gamma: float) -> Tensor:
        return right(terminated, gamma**2)

    exchange("discount_of", discount_of, td_losses, update, storage)


@turns_red(LOSSES + "the_error_is_value_minus_target_and_its_gradient_reaches_taken_actions_only")
def target_not_detached() -> None:
    def error(q: Tensor, action: Tensor, target: Tensor) -> Tensor:
        return q.gather(1, action.unsqueeze(1)).squeeze(1) - target

    exchange("td_error", error, td_losses, objectives)


@turns_red(
    LOSSES + "the_error_refuses_shapes_that_would_broadcast",
    LOSSES + "the_error_is_value_minus_target_and_its_gradient_reaches_taken_actions_only",
    LEARNER + "an_update_equals_one_written_with_torch_alone",
)
def errors_broadcast_to_a_square() -> None:
    def error(q: Tensor, action: Tensor, target: Tensor) -> Tensor:
        return (q.gather(1, action.reshape(-1, 1)) - target.reshape(1, -1).detach()).mean(1)

    exchange("td_error", error, td_losses, objectives)


@turns_red(
    LOSSES + "targets_refuse_shapes_that_would_broadcast",
    LOSSES + "double_dqn_refuses_either_network_with_another_batch",
)
def shapes_not_checked() -> None:
    exchange("_refuse_shapes", lambda *_: None, td_losses)


@turns_red(
    LOSSES + "losses_and_their_gradients_equal_torch",
    LOSSES + "the_huber_gradient_is_the_error_clipped_to_one",
    LEARNER + "an_update_equals_one_written_with_torch_alone",
)
def huber_replaced_by_mse() -> None:
    exchange("huber_loss", td_losses.mse_loss, td_losses)
    td_losses.LOSSES["huber"] = torch.square


# Updates


@turns_red(
    OPTIMIZERS + "two_hundred_steps_equal_torch[adam]",
    OPTIMIZERS + "the_first_adam_step_is_the_learning_rate_whatever_the_gradient",
)
def adam_without_bias_correction() -> None:
    right = Adam._move

    def move(  # noqa: PLR0917 - the signature of the method it stands in for
        self: Adam, flat: Tensor, grad: Tensor, slots: list[Tensor], step: Tensor, rate: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        return right(self, flat, grad, slots, torch.full_like(step, 1e6), rate)

    exchange("_move", move, Adam)


@turns_red(
    LOSSES + "soft_updates_follow_their_closed_form",
    LEARNER + "the_soft_target_follows_its_closed_form",
    LEARNER + "the_soft_target_moves_towards_the_parameters_of_the_same_update",
)
def tau_and_one_minus_tau_exchanged() -> None:
    def soft_update_(target: list[Tensor], online: list[Tensor], tau: float) -> None:
        torch._foreach_lerp_(target, online, 1 - tau)

    def move_target(self: Learner, state: LearnerState, fine: Tensor) -> None:
        state.target.lerp_(state.online, fine * (1 - self.tau))

    exchange("soft_update_", soft_update_, td_losses)
    exchange("_move_target", move_target, Learner)


@turns_red(LEARNER + "the_soft_target_moves_towards_the_parameters_of_the_same_update")
def target_moved_before_the_update() -> None:
    commit, move = Learner._commit, Learner._move_target

    def early(self: Learner, state: LearnerState, *rest: Tensor) -> Tensor:
        move(self, state, torch.tensor(True))
        return commit(self, state, *rest)

    exchange("_commit", early, Learner)
    exchange("_move_target", lambda *_: None, Learner)


@turns_red(
    LEARNER + "hard_copies_are_counted_in_updates_for_any_number_of_environments",
    LEARNER + "learning_from_the_ring_equals_updates_on_what_it_holds",
)
def updates_counted_twice() -> None:
    right = Learner._commit

    def commit(self: Learner, state: LearnerState, *rest: Tensor) -> Tensor:
        made = right(self, state, *rest)
        state.updates.add_(1)
        return made

    exchange("_commit", commit, Learner)


@turns_red(SCHEDULES + "the_ratio_is_exact_for_any_number_of_environments")
def updates_paid_twice() -> None:
    def pay(self: schedules.ReplayRatio, updates: int) -> None:
        self.updates += 2 * updates

    exchange("pay", pay, schedules.ReplayRatio)


@turns_red(SCHEDULES + "env_steps_before_the_start_owe_nothing")
def a_burst_at_the_start_of_learning() -> None:
    def due(self: schedules.ReplayRatio, env_steps: int) -> int:
        owed = int(self.ratio * env_steps) - self.updates
        return owed if env_steps > self.start else 0

    exchange("due", due, schedules.ReplayRatio)


@turns_red(LEARNER + "learning_from_the_ring_equals_updates_on_what_it_holds")
def one_batch_for_all_updates_of_a_call() -> None:
    right = Learner._learning_from

    def learning_from(self: Learner, source: Any) -> Callable[[Tensor], None]:
        learn = right(self, source)
        return lambda numbers: learn(numbers[:1].expand_as(numbers))

    exchange("_learning_from", learning_from, Learner)


@turns_red(LEARNER + "an_update_that_is_not_finite_changes_no_bit_and_is_counted")
def poisoned_updates_applied() -> None:
    right = Learner._gradient

    def gradient(self: Learner, *given: Any) -> tuple[Tensor, ...]:
        grad, norm, metrics, priority = right(self, *given)
        return grad, norm, metrics.nan_to_num(posinf=0.0, neginf=0.0), priority

    exchange("_gradient", gradient, Learner)


@turns_red(LEARNER + "an_update_equals_one_written_with_torch_alone")
def gradient_not_clipped() -> None:
    exchange("clip_by_norm", lambda grad, _norm, _bound: grad, update)


@turns_red(LEARNER + "without_a_target_network_the_online_one_is_bootstrapped_from")
def target_network_used_where_none_was_asked_for() -> None:
    right = Learner._passes

    def passes(self: Learner, state: LearnerState, *given: Any) -> list[Tensor]:
        return right(self, replace(state, online=state.target), *given)

    exchange("_passes", passes, Learner)


@turns_red(
    GOLDEN + "the_loss_of_a_row_is_weighted_and_then_averaged[eager]",
)
def weights_of_rows_ignored() -> None:
    exchange("_weighted", lambda losses, _: losses, update)


@turns_red(GOLDEN + "the_discount_of_a_row_alone_says_what_follows_counts[True-expected0-eager]")
def discounts_of_a_batch_derived_anyway() -> None:
    right = Learner._step

    def step(self: Learner, state: LearnerState, batch: Any, *random: Any) -> Any:
        return right(self, state, replace(batch, discount=None), *random)

    exchange("_step", step, Learner)


@turns_red(
    SEAMS + "each_batch_is_drawn_after_the_feedback_of_the_one_before[eager]",
    SEAMS + "each_batch_is_drawn_after_the_feedback_of_the_one_before[cudagraph]",
    SEAMS + "tensor_environments_draw_after_the_feedback_too",
)
def batches_of_a_call_drawn_together() -> None:
    right = Learner.learn_from

    def learn_from(self: Learner, state: LearnerState, source: Any, random_bits: Tensor) -> None:
        drawn = [source.draw(bits[: source.batch_size]) for bits in random_bits.unbind(0)]
        for number, batch in enumerate(drawn):
            together: Any = Drawn(source, batch)
            right(self, state, together, random_bits[number : number + 1])

    exchange("learn_from", learn_from, Learner)


class Drawn:
    """A sampler whose next batch is drawn already."""

    def __init__(self, source: Any, batch: Any) -> None:
        self.ring, self.batch_size, self._batch = source.ring, source.batch_size, batch
        self.feedback, self.written, self.independent = source.feedback, source.written, False

    def draw(self, _: Tensor) -> Any:
        return self._batch


@turns_red(SEAMS + "a_skipped_update_feeds_nothing_back")
def priorities_of_skipped_updates_fed_back() -> None:
    right = Learner._step

    def step(self: Learner, *given: Any) -> tuple[Tensor, Tensor]:
        priority, made = right(self, *given)
        return priority.nan_to_num(), torch.ones_like(made)

    exchange("_step", step, Learner)


# Acting


@turns_red(
    POLICY + "the_count_of_exploring_environments_is_binomial",
    POLICY + "environments_explore_at_different_times_with_different_actions",
)
def one_exploration_draw_for_all_environments() -> None:
    right = exploration.explore

    def explore(q: Tensor, epsilon: float, uniform: Tensor, mask: Tensor | None = None) -> Tensor:
        first = uniform[:1, 0].expand(len(q))
        return right(q, epsilon, torch.stack((first, uniform[:, 1]), 1), mask)

    exchange("explore", explore, exploration, policy)


@turns_red(POLICY + "environments_explore_at_different_times_with_different_actions")
def one_random_action_for_all_environments() -> None:
    right = exploration.explore

    def explore(q: Tensor, epsilon: float, uniform: Tensor, mask: Tensor | None = None) -> Tensor:
        first = uniform[:1, 1].expand(len(q))
        return right(q, epsilon, torch.stack((uniform[:, 0], first), 1), mask)

    exchange("explore", explore, exploration, policy)


@turns_red(
    SCHEDULES + "decaying_schedules_really_decay_and_never_leave_their_range",
    SCHEDULES + "a_line_goes_from_start_to_end_and_stays",
    GOLDEN + "the_exponential_schedule_is_the_lesson_formula",
)
def constant_epsilon() -> None:
    kinds = (schedules.Linear, schedules.Exponential, schedules.Multiplicative)
    exchange("__call__", lambda self, _env_steps, _episodes: self.start, *kinds)


@turns_red(POLICY + "an_update_changes_the_next_action")
def policy_with_stale_parameters() -> None:
    right = policy.Policy.__init__

    def init(self: policy.Policy, network: FlatNetwork, seed: int = 0) -> None:
        right(self, network, seed)
        self._parameters = network.views(network.flat.clone())

    exchange("__init__", init, policy.Policy)


@turns_red(NETWORKS + "images_are_scaled_by_255_exactly_once")
def images_scaled_twice() -> None:
    right = MLP._encode

    def encode(self: MLP, obs: Tensor) -> Tensor:
        return right(self, obs) * self.scale

    exchange("_encode", encode, MLP)


# The ring


@turns_red(
    RING + "eight_rows_after_twelve_writes_hold_the_golden_serials_and_cursor",
    RING + "capacity_is_reached_rounded_up_to_whole_vector_steps",
    LAWS + "the_ring_holds_the_newest_transitions_of_any_history",
)
def cursor_off_by_one_at_the_wrap() -> None:
    right = Rows.around

    def around(self: Rows, row: int) -> tuple[int, ...]:
        lap = row // self.num_rows
        return tuple((place + lap) % self.num_rows for place in right(self, row))

    exchange("around", around, Rows)


@turns_red(
    RING + "steps_that_were_only_resets_are_never_stored",
    LAWS + "resetting_within_the_step_or_in_the_next_one_stores_the_same_transitions",
)
def dead_rows_drawn() -> None:
    right = ValidTransitions.append
    exchange("append", lambda self, row, _real: right(self, row, None), ValidTransitions)


@turns_red(RING + "no_draw_starts_where_the_successor_is_not_written_yet")
def newest_row_drawn_before_its_successor_is_written() -> None:
    right = ValidTransitions.nth
    exchange("nth", lambda self, n: right(self, n + self.row_size), ValidTransitions)


@turns_red(
    RING + "no_draw_starts_where_the_successor_is_not_written_yet",
    RING + "capacity_is_reached_rounded_up_to_whole_vector_steps",
)
def oldest_row_drawn_after_it_was_overwritten() -> None:
    right = ValidTransitions.forget
    exchange("forget", lambda self, row: right(self, row - 1), ValidTransitions)


@turns_red(
    RING + "ended_episodes_keep_their_true_last_observation_over_wraps",
    RING + "the_frame_after_an_end_is_the_first_of_the_next_episode",
    GOLDEN + "an_episode_cut_at_five_bootstraps_from_its_true_last_observation",
)
def next_observation_taken_after_the_reset() -> None:
    right = ReplayBuffer.write

    def write(self: ReplayBuffer, *row: Tensor, **given: Any) -> None:
        right(self, *row, real=given.get("real"))

    exchange("write", write, ReplayBuffer)


@turns_red(RING + "when_final_frames_run_out_the_ring_holds_fewer_but_never_wrong_ones")
def final_frames_overwritten_while_in_use() -> None:
    right = FinalObservations.allocate

    def allocate(self: FinalObservations, row: int, count: int) -> Any:
        return right(self, row, count)[0], -1

    exchange("allocate", allocate, FinalObservations)


@turns_red(RING + "a_cut_keeps_the_last_observation_of_running_episodes_only")
def episodes_joined_over_a_cut() -> None:
    exchange("cut", lambda _self: None, ReplayBuffer)


@turns_red(RING + "what_was_written_stays_when_the_caller_reuses_its_arrays")
def final_observations_aliased() -> None:
    """The frames of an end are copied one step late, when the caller has reused their array."""
    right = Rows.store_final
    late: list[Tensor] = []

    def keep_final(self: Rows, row: int, envs: Any, frames: Tensor, masks: Any) -> int:
        lost = right(self, row, envs, frames, masks)
        places = self._ring.next_index[torch.from_numpy(envs + self.place(row).start)]
        late[:] = [places, torch.from_numpy(envs), frames]
        return lost

    def length(self: ReplayBuffer) -> int:
        if late:
            self.ring.frames[late[0]] = late[2][late[1]]
        return len(self.valid)

    exchange("store_final", keep_final, Rows)
    exchange("__len__", length, ReplayBuffer)


@turns_red(RING + "draws_are_uniform_although_episodes_are_of_very_different_lengths")
def draws_that_prefer_old_transitions() -> None:
    right = ValidTransitions.nth

    def nth(self: ValidTransitions, n: Tensor) -> Tensor:
        return right(self, torch.minimum(n, n.flip(-1)))

    exchange("nth", nth, ValidTransitions)


@turns_red(
    RING + "the_dtypes_of_all_fields_are_those_of_the_schema",
    HOTPATH + "a_vector_step_makes_no_float64_tensor",
)
def rewards_kept_in_float64() -> None:
    right = ReplayBuffer.__init__

    def init(self: ReplayBuffer, *given: Any, **named: Any) -> None:
        right(self, *given, **named)
        self.ring = replace(self.ring, reward=self.ring.reward.double())

    exchange("__init__", init, ReplayBuffer)


@turns_red(LAWS + "the_ring_holds_the_newest_transitions_of_any_history")
def the_newest_transition_continued_at_the_write_head() -> None:
    right = ReplayBuffer.write

    def write(self: ReplayBuffer, *row: Any, **given: Any) -> None:
        right(self, *row, **given)
        self.ring.continues[self._rows.place(self._row - 1)] = True

    exchange("write", write, ReplayBuffer)


@turns_red(LAWS + "the_ring_holds_the_newest_transitions_of_any_history")
def transitions_continued_over_a_cut() -> None:
    exchange("join", lambda *_: None, Rows)


@turns_red(
    "tests/unit/replay/test_functional_ring.py::"
    "test_what_can_be_drawn_is_what_a_plain_list_would_hold_in_order"
)
def ends_continued_on_the_device() -> None:
    right = FunctionalRing.write

    def write(self: FunctionalRing, *given: Tensor) -> None:
        right(self, *given)
        self.ring.continues[self._slots(self.row - 2)] = self.row > 1

    exchange("write", write, FunctionalRing)


# Masks


@turns_red(MASKS + "what_is_forbidden_next_does_not_count_in_the_target")
def forbidden_actions_in_the_target() -> None:
    right = Learner._step

    def step(self: Learner, state: LearnerState, batch: Any, *random: Any) -> Any:
        return right(self, state, replace(batch, next_action_mask=None), *random)

    exchange("_step", step, Learner)


@turns_red(
    MASKS + "a_prediction_is_the_best_of_what_is_allowed",
    MASKED_VECTORS + "an_evaluation_does_the_best_of_what_is_allowed",
)
def forbidden_actions_when_greedy() -> None:
    def free(greedy: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, obs, _mask=None: greedy(self, obs)

    exchange("greedy", free(policy.Policy.greedy), policy.Policy)
    exchange("greedy_on_host", free(policy.Policy.greedy_on_host), policy.Policy)


@turns_red(MASKS + "the_masked_taxi_never_stands_still_and_the_free_one_does")
def forbidden_actions_when_exploring() -> None:
    exchange("_any_allowed", _anything, exploration)


def _anything(action_mask: Tensor, uniform: Tensor) -> Tensor:
    return (uniform[:, 0] * action_mask.shape[1]).long()


@turns_red(
    MASKED_VECTORS + "made_sources_read_masks",
    MASKED_VECTORS + "masks_in_the_block_of_our_own_vector_are_read_there_without_infos",
)
def last_mask_taken_after_the_reset() -> None:
    right = HostedEnvs._reset_one

    def reset_one(self: HostedEnvs, i: int, *given: Any) -> Any:
        info = right(self, i, *given)
        self.rows.final_action_mask[i] = self.rows.action_mask[i]
        return info

    exchange("_reset_one", reset_one, HostedEnvs)


@turns_red(HOST + "an_observation_of_another_shape_is_never_broadcast")
def an_observation_broadcast_over_its_row() -> None:
    def set_item(self: CheckedWriter, _: slice, obs: Any) -> None:
        self._row[...] = obs

    exchange("__setitem__", set_item, CheckedWriter)


@turns_red(HOST + "a_step_leaves_in_the_block_what_the_environments_tell[float32-SAME_STEP]")
def a_last_observation_taken_after_the_reset() -> None:
    right = HostedEnvs._reset_one

    def reset_one(self: HostedEnvs, i: int, *given: Any) -> Any:
        info = right(self, i, *given)
        self.rows.final_obs[i] = self.rows.obs[i]
        return info

    exchange("_reset_one", reset_one, HostedEnvs)


@turns_red(NATIVE + "at_the_place_of_each_group_it_acts_as_anywhere")
def one_place_to_act_at_for_all_groups() -> None:
    right = NativeActor._place

    def place(self: NativeActor, obs: Tensor, mask: Tensor | None) -> Any:
        known = {len(place.seen): place for place in self._places.values()}
        return known.get(len(obs)) or right(self, obs, mask)

    exchange("_place", place, NativeActor)


@turns_red(NATIVE + "acting_follows_other_memory_at_the_same_place")
def a_place_to_act_at_known_by_where_it_begins() -> None:
    right, kept = NativeActor._place, dict[int, Any]()

    def place(self: NativeActor, obs: Tensor, mask: Tensor | None) -> Any:
        return kept.setdefault(obs.data_ptr(), right(self, obs, mask))

    exchange("_place", place, NativeActor)


@turns_red(EVALUATION + "few_episodes_are_dealt_out_evenly")
def few_episodes_side_by_side() -> None:
    def spread(episodes: int, num_envs: int) -> Any:
        return np.minimum(np.arange(num_envs), episodes)

    exchange("_spread", spread, games)


@turns_red(EVALUATION + "a_full_evaluation_ends_early_only_where_the_goal_is_out_of_reach")
def an_evaluation_that_ends_early_whatever_it_brought() -> None:
    exchange("within_reach", lambda *_: False, events.Evaluation)


@turns_red(MASKED_VECTORS + "made_sources_read_masks[grouped-0-1-MaskedCounterEnv]")
def an_older_mask_kept_where_nothing_is_said() -> None:
    right = HostedEnvs._read_mask

    def read_mask(self: HostedEnvs, i: int, info: dict[str, Any]) -> None:
        if "action_mask" in info:
            right(self, i, info)

    exchange("_read_mask", read_mask, HostedEnvs)


@turns_red(MASKED_VECTORS + "masks_are_those_of_the_next_observation_and_no_action_is_forbidden")
def nothing_said_taken_for_nothing_allowed() -> None:
    """Gymnasium's infos hold zeros for environments that say nothing while others do."""
    right = VectorSource._read_masks

    def read_masks(self: VectorSource, into: Any, message: Any, which: Any) -> None:
        right(self, into, {key: message[key] for key in message if key != "_action_mask"}, which)

    exchange("_read_masks", read_masks, VectorSource)


# Groups of environments


@turns_red(GROUPS + "while_one_group_is_waited_for_the_others_step")
def one_group_waited_for_before_the_next_is_sent() -> None:
    def send(self: rollout.HostRollout, epsilon: float) -> None:
        group = self._waiting.popleft()
        shown, mask = self.replay.shown(group.index), self.replay.shown_mask(group.index)
        group.action = self.policy.act(shown, epsilon, mask)
        self.source.send(group.action.numpy(), group.index)
        self._stepping.append(group)

    exchange("send", send, rollout.HostRollout)


@turns_red(GROUPS + "every_environment_goes_through_what_it_does_in_a_single_group")
def every_group_acts_for_the_first() -> None:
    right = rollout.HostRollout._choose_for

    def choose_for(self: rollout.HostRollout, group: Any, epsilon: float) -> Any:
        group.shown = self._groups[0].shown
        return right(self, group, epsilon)

    exchange("_choose_for", choose_for, rollout.HostRollout)


@turns_red(
    GROUPS + "env_steps_and_episodes_are_counted_as_they_are_written",
    GROUPS + "updates_per_env_step_are_exact_at_every_moment",
)
def a_step_of_one_group_counted_for_all() -> None:
    right = rollout.HostRollout.write

    def write(self: rollout.HostRollout) -> Any:
        episodes = right(self)
        self.env_steps += self.source.num_envs - self.source.num_envs // self.source.num_groups
        return episodes

    exchange("write", write, rollout.HostRollout)


@turns_red(
    GROUPS + "after_a_reset_in_the_middle_the_group_whose_turn_it_is_begins",
    GROUPS + "an_agent_learns_again_and_again_in_a_vector_of_the_callers_own",
)
def a_step_under_way_answers_the_next_reset() -> None:
    right = GroupedSource.reset

    def reset(self: GroupedSource, seeds: Any) -> None:
        self._sent.clear()
        right(self, seeds)

    exchange("reset", reset, GroupedSource)


@turns_red(GROUPS + "a_nan_is_reported_by_the_environments_own_number")
def environments_numbered_within_their_group() -> None:
    right = guard.Guard.__init__

    def init(self: guard.Guard, *arguments: Any) -> None:
        right(self, *arguments)
        self.first_env = 0

    exchange("__init__", init, guard.Guard)


# The hot path


@turns_red(
    HOTPATH + "acting_learning_and_writing_never_look_at_the_device",
    HOTPATH + "a_vector_step_brings_its_actions_to_the_host_and_nothing_else",
)
def a_look_at_the_loss_in_each_update() -> None:
    def huber(error: Tensor) -> Tensor:
        float(error.detach().sum())
        return functional.smooth_l1_loss(error, torch.zeros_like(error), reduction="none")

    td_losses.LOSSES["huber"] = huber


# Workers that die


@turns_red(
    FIRE + "workers_killed_from_outside_at_any_moment_join_no_two_lives",
    FIRE + "others_go_on_while_a_worker_is_restarted",
    LOCAL + "no_transition_joins_two_lives",
)
def a_restart_joined_to_the_old_episode() -> None:
    exchange("mark_unreal", lambda *_: None, supervised_pool, local_pool)


@turns_red(RESTARTS + "a_worker_that_dies_idle_is_replaced_by_whatever_comes_next")
def fresh_environments_stepped_before_anybody_saw_them() -> None:
    right = SupervisedPool._replace

    def replace_(self: SupervisedPool, member: Any, *given: Any) -> None:
        right(self, member, *given)
        member.shown = [True] * len(member.shown)

    exchange("_replace", replace_, SupervisedPool)


@turns_red(
    FIRE + "workers_killed_from_outside_at_any_moment_join_no_two_lives",
    LOCAL + "only_the_seed_of_the_environment_that_failed_is_fresh",
)
def a_restart_with_the_same_seeds() -> None:
    exchange("fresh_seeds", lambda seeds, _: list(seeds), supervised_pool, local_pool)


@turns_red(FIRE + "a_vector_in_another_autoreset_mode_is_as_safe_a_source")
def restarts_of_a_foreign_loop_ignored() -> None:
    exchange("_cut", lambda *_: None, VectorSource)


@turns_red(
    BUDGET + "a_spent_budget_names_its_flag",
    BUDGET + "a_worker_that_never_steps_is_given_up_before_the_budget_is_spent",
    RESTARTS + "one_restart_too_many_is_an_error_that_names_everything",
)
def a_budget_that_is_never_spent() -> None:
    def spend(self: RestartBudget, trouble: str, _: int) -> float:
        self.count += 1
        self.restarts.append(trouble)
        return 0.0

    exchange("spend", spend, RestartBudget)


@turns_red(
    BUDGET + "a_spent_budget_refuses_what_follows_by_the_same_error",
    RESTARTS + "once_the_budget_is_spent_no_later_step_is_collected",
)
def steps_go_on_after_a_spent_budget() -> None:
    exchange("refuse_if_over", lambda _: None, RestartBudget)


@turns_red(RESTARTS + "two_workers_that_hang_cost_one_deadline")
def a_deadline_for_one_worker_after_the_other() -> None:
    right = SupervisedPool._wait_for

    def wait_for(self: SupervisedPool, member: Any, group: int, _: float) -> None:
        right(self, member, group, time.monotonic() + self.deadline_s)

    exchange("_wait_for", wait_for, SupervisedPool)


@turns_red(
    RESTARTS + "attributes_that_were_set_outlive_the_worker",
)
def attributes_lost_with_the_worker() -> None:
    right = SupervisedPool._start_again

    def start_again(self: SupervisedPool, member: SupervisedWorker) -> None:
        for attributes in member.attributes:
            attributes.clear()
        right(self, member)

    exchange("_start_again", start_again, SupervisedPool)


# Other processes, and trials


@turns_red(MAKE + "an_id_known_to_this_process_alone_is_known_in_the_workers")
def workers_that_know_gymnasiums_own_ids_alone() -> None:
    exchange("packed_registry", lambda: b"", pool)


@turns_red(
    TRACES + "a_trial_leaves_generators_and_classes_as_they_were",
    TRACES + "spaces_give_the_samples_that_they_give_with_gymnasiums_vectors",
)
def a_trial_that_moves_the_generators_of_spaces() -> None:
    exchange("_undo_space", lambda _: lambda: None, trial_env)


@turns_red(TRACES + "a_trial_leaves_generators_and_classes_as_they_were")
def a_trial_that_counts() -> None:
    exchange("_undo_class", lambda _: lambda: None, trial_env)


# Beside a compiler


@turns_red(COMPILED + "a_thread_compiles_beside_the_calls")
def a_call_that_waits_for_the_compiler() -> None:
    right = InProcess.submit

    def submit(self: InProcess, *given: Any) -> Any:
        future = right(self, *given)
        if future is not None:
            future.result(timeout=2.0)
        return future

    exchange("submit", submit, InProcess)


@turns_red(
    STEP + "it_runs_plain_until_it_is_compiled_and_moves_between_two_calls",
    STEP + "graphs_move_once_for_each_variant_and_leave_no_trace",
    MOVING + "blocks_do_what_eager_blocks_do_whenever_they_move",
)
def a_step_that_is_done_in_both_forms_where_it_moves() -> None:
    right, moved = PlainUntilCompiled._move, set[int]()

    def move(self: PlainUntilCompiled, tensors: tuple[Tensor, ...]) -> None:
        if id(self) not in moved:
            moved.add(id(self))
            self.plain(*tensors)
        right(self, tensors)

    exchange("_move", move, PlainUntilCompiled)


@turns_red(STEP + "a_move_that_fails_leaves_no_trace")
def a_warm_up_that_fails_and_stays() -> None:
    def rehearse(self: CudaGraphStep, args: tuple[Any, ...], restore: Callable[[], None]) -> None:
        self._step(*args)
        restore()

    exchange("_rehearse", rehearse, CudaGraphStep)


@turns_red(EXPORTED + "what_operations_make_without_a_tensor_is_made_in_each_call")
def graphs_that_are_traced_anew_where_they_are_loaded() -> None:
    exchange("of", lambda graph: Source(pickle.dumps(graph), {}, {}), Source)  # type: ignore[arg-type]
    exchange("function", lambda source: pickle.loads(source.text), Source)  # noqa: S301


@turns_red(COMPILED + "closed_it_forgets_what_a_thread_compiles_and_asks_for_nothing")
def a_step_that_is_closed_and_moves() -> None:
    exchange("close", lambda _: None, InProcess)


@turns_red(
    EXECUTION + "on_cuda_auto_measures_what_needs_no_compiler_and_compiles_what_repays_it",
    MOVING + "auto_starts_without_a_compiler_and_records_nothing_twice",
)
def a_compiler_that_is_tried_before_the_training() -> None:
    def worth_trying(*, native: bool) -> list[str]:
        return ["eager", "cudagraph", "native" if native else "compile+cudagraph"]

    exchange("worth_trying", worth_trying, modes)


# What is saved and loaded


@turns_red(
    LOADING + "the_environment_of_a_factory_comes_back",
    LOADING + "arguments_come_back_as_what_they_were",
)
def load_forgets_the_arguments_of_the_environment() -> None:
    right = construction.rebuilt
    exchange("rebuilt", lambda spec, _, wrappers: right(spec, spec.kwargs, wrappers), loading)
    exchange("to_plain", lambda _: {}, learning)


@turns_red(
    LOADING + "the_environment_of_a_factory_comes_back",
    LOADING + "a_policy_of_a_factory_brings_after_loading_what_it_brought_before",
)
def load_forgets_the_wrappers_of_the_environment() -> None:
    right = construction.rebuilt
    exchange("rebuilt", lambda spec, kwargs, _: right(spec, kwargs, ()), loading)


@turns_red(LOADING + "what_an_entry_point_puts_around_an_environment_is_put_there_once")
def wrappers_that_come_with_the_environment_put_on_again() -> None:
    def chain_of(env: Any) -> list[Any]:
        return []

    exchange("_tried", lambda _: ([], ""), loading)
    exchange("chain_of", chain_of, construction)


@turns_red(LOADING + "a_module_is_imported_where_the_caller_names_it_alone")
def what_a_file_names_is_imported() -> None:
    exchange("_refuse_unknown", lambda *_, **__: None, loading)


@turns_red(FORGED + "what_a_file_claims_is_compared_before_anything_is_built")
def the_sizes_that_a_file_claims_are_believed() -> None:
    exchange("refuse_other_shapes", lambda *_: None, loading)


@turns_red(
    GOING_ON + "what_is_counted_goes_on_after_loading",
    GOING_ON + "copies_by_episodes_go_on_from_the_episodes",
)
def episodes_that_begin_again_after_loading() -> None:
    right = Trainable._go_on_from

    def go_on_from(self: Trainable, message: SavedDescription) -> None:
        right(self, replace(message, episodes=0))

    exchange("_go_on_from", go_on_from, Trainable)


@turns_red(GOING_ON + "what_is_counted_goes_on_after_loading")
def updates_that_begin_again_after_loading() -> None:
    def go_on_from(self: schedules.ReplayRatio, env_steps: int, updates: int) -> None:
        self.start += env_steps

    exchange("go_on_from", go_on_from, schedules.ReplayRatio)


@turns_red(GOING_ON + "nothing_bursts_after_loading")
def a_burst_of_updates_after_loading() -> None:
    def go_on_from(self: schedules.ReplayRatio, env_steps: int, updates: int) -> None:
        self.updates = updates

    exchange("go_on_from", go_on_from, schedules.ReplayRatio)


@turns_red(
    GOING_ON + "the_hard_target_is_copied_when_it_would_have_been",
    LEARNER + "hard_copies_go_on_from_the_updates_of_an_earlier_training",
    NATIVE + "the_hard_target_goes_on_from_earlier_updates_as_the_eager_one",
)
def a_hard_target_whose_period_begins_again_after_loading() -> None:
    exchange("go_on_from", lambda self, updates: None, Learner)


@turns_red(GOING_ON + "environments_and_exploration_go_on_with_new_numbers")
def the_first_episodes_again_after_loading() -> None:
    right = Trainable._go_on_from

    def go_on_from(self: Trainable, message: SavedDescription) -> None:
        right(self, replace(message, rounds=0))

    exchange("_go_on_from", go_on_from, Trainable)


# What environments hand over


@turns_red(
    SHARING + "a_vector_of_one_object_is_refused_with_two_indices[no workers]",
    SHARING + "the_two_that_are_one_are_named[0]",
    SHARING + "a_lent_vector_of_one_object_is_refused",
    SHARING + "objects_that_are_handed_out_in_turn_are_found_when_they_come_again",
)
def one_environment_in_several_places_of_a_process() -> None:
    exchange("refuse_shared", lambda *_: None, env_access, vector_source)


@turns_red(
    SHARING + "an_agent_of_one_object_is_refused_whatever_steps_it",
    SHARING + "a_vector_of_one_object_is_refused_with_two_indices[one in a worker]",
)
def a_factory_that_is_believed_to_build_anew() -> None:
    exchange("_must_build_anew", lambda _: True, sharing)


@turns_red(
    LATE_MASKS + "a_mask_that_comes_late_ends_the_run_at_once_and_says_how_to_obey_it",
    LATE_MASKS + "a_lent_vector_whose_masks_come_late_is_refused[sync-SAME_STEP]",
    LATE_MASKS + "a_lent_vector_whose_masks_come_late_is_refused[grouped-SAME_STEP]",
)
def late_masks_passed_over() -> None:
    exchange("refuse_unexpected_mask", lambda *_: None, hosted_envs, source, masks)


@turns_red(
    LATE_MASKS + "a_mask_that_comes_late_ends_the_run_at_once_and_says_how_to_obey_it",
    SPACES + "an_observation_outside_its_space_ends_a_run_at_once",
)
def workers_restarted_for_what_no_restart_mends() -> None:
    exchange("final", lambda _: None, EnvFailures)


@turns_red(
    SPACES + "a_line_refuses_what_its_space_does_not_hold_by_environment_value_and_space",
    SPACES + "an_observation_outside_its_space_ends_a_run_at_once",
)
def observations_copied_unseen() -> None:
    def copied(self: CheckedWriter | NumberWriter, obs: Any) -> None:
        with np.errstate(all="ignore"):
            row = self._row if isinstance(self, CheckedWriter) else np.asarray(self._column)
            row[... if isinstance(self, CheckedWriter) else self._index] = np.asarray(obs)

    exchange("__setitem__", lambda self, _, obs: copied(self, obs), CheckedWriter, NumberWriter)


@turns_red(
    SPACES + "a_lent_vector_is_refused_with_the_environment_that_leaves_its_space",
    SPACES + "a_vector_of_the_callers_own_is_compared_with_its_space",
)
def observations_of_vectors_copied_unseen() -> None:
    exchange("wrong", lambda *_: None, SpaceCheck)


@turns_red(
    REUSED + "a_lent_sync_vector_that_reuses_its_arrays_is_learned_from_as_it_was",
    REUSED + "its_masks_are_copied_too",
)
def arrays_of_a_lent_vector_that_stay_the_environments_own() -> None:
    exchange("copied_observations_in", lambda _: contextlib.nullcontext(), provider)
    exchange("look", lambda *_, **__: None, ReuseWatch)


@turns_red(
    REUSED + "processes_whose_environments_reuse_their_arrays_are_refused_at_once",
    REUSED + "a_vector_that_spoils_its_last_observations_is_refused_within_a_few_ends",
)
def last_observations_that_are_believed() -> None:
    exchange("_overwritten", lambda *_, **__: None, reused_arrays)
    exchange("look", lambda *_, **__: None, ReuseWatch)


@turns_red(
    ACTIONS + "every_dtype_and_start_gives_the_transitions_of_a_plain_loop[sync-uint8 from 0]",
    ACTIONS + "an_agent_learns_and_predicts_in_the_dtype_of_the_actions",
)
def actions_sent_as_they_were_chosen() -> None:
    def counted(actions: Any, env: Any) -> Any:
        return actions + env.first_action

    exchange("as_env_actions", counted, source, vector_source, predict)


# What fits, and what is copied


@turns_red(
    CHECK + "a_network_that_does_not_fit_is_refused_at_construction[too wide]",
    BINDING + "a_learner_refuses_a_buffer_of_other_widths_in_every_way_of_running",
    BINDING + "a_batch_that_is_not_as_documented_is_refused[wide-native]",
)
def observations_of_any_width_for_an_mlp() -> None:
    exchange("_why_not_shown", lambda *_: None, network_check)


@turns_red(
    CHECK + "a_network_that_does_not_fit_is_refused_at_construction[an action too few]",
    CHECK + "a_network_that_does_not_fit_is_refused_at_construction[[B, A + 1]]",
)
def networks_of_any_number_of_actions() -> None:
    def refuse_unfit(network: Any, *_: Any, **__: Any) -> None:
        network_check.num_actions_of(network, torch.zeros(3, 4), "somewhere")

    exchange("refuse_unfit", refuse_unfit, agent_network)


@turns_red(
    BINDING + "a_ring_that_native_code_would_read_wrongly_is_refused[rewards of float64-c]",
    BINDING + "what_is_bound_is_looked_at_when_it_is_bound[rewards of float64]",
)
def a_ring_whose_columns_may_be_of_any_dtype() -> None:
    exchange("refuse_tensor", lambda *_: None, binding)


@turns_red(
    COPIES + "a_copy_learns_as_the_original_bit_for_bit[id-0-eager]",
    COPIES + "the_copy_of_a_flat_network_shows_its_own_vector",
)
def a_copy_whose_network_shows_another_vector() -> None:
    exchange("__deepcopy__", copying.copied, FlatNetwork)


@turns_red(COPIES + "the_copy_of_a_replay_buffer_goes_on_as_it_would")
def a_copy_that_writes_beside_its_ring() -> None:
    def deepcopy(self: Rows, memo: dict[int, Any]) -> Rows:
        return copying.copied(self, memo)

    exchange("__deepcopy__", deepcopy, Rows)


@turns_red(
    COPIES + "a_copy_that_was_taken_in_the_middle_of_a_training_is_whole_and_goes_on[grouped]"
)
def a_copy_that_forgets_how_far_it_was() -> None:
    def deepcopy(self: DQN, memo: dict[int, Any]) -> DQN:
        twin = copying.copied(self, memo, shared=("_provider", "description"), anew=("_rollout",))
        twin._rollout = None
        return twin

    exchange("__deepcopy__", deepcopy, DQN)


@turns_red(
    CHECK + "a_network_that_acts_at_random_is_warned_of",
)
def randomness_that_is_not_looked_for() -> None:
    exchange("_is_random", lambda *_: False, network_trial)


# The C


BY_ROOM = PLANTED | OF_THE_BEST | OF_OBJECTIVES | SCHEDULED | OF_SETTINGS | OF_RESUMING | OF_RUNS
BY_ROOM |= network_bugs.PLANTED | OF_CHECKPOINTS | OF_CALLS | OF_MEMORY | OF_SOAKS | plants()
BY_ROOM |= OF_NONFINITE | OF_EPISODES
MUTANTS |= {name: Mutant(*planted) for name, planted in BY_ROOM.items()}
