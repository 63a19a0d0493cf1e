"""The replay ring, case by case: wraps, episode ends, partial rows, draws, bytes."""

from __future__ import annotations

import math
import re
from itertools import chain

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from fastdqn.device import available_bytes
from fastdqn.errors import UsageError
from fastdqn.replay import ReplayBuffer, gather, ring_bytes

CAPACITIES = [1, 2, 3, 4, 5, 7, 10]


def _never(num_envs: int) -> Tensor:
    return torch.zeros(num_envs, dtype=torch.bool)


def _obs(num_envs: int, serial: int) -> Tensor:
    """Observations [env, serial]; those of a final frame carry a serial with a half."""
    return torch.stack((torch.arange(num_envs).float(), torch.full((num_envs,), float(serial))), 1)


def _begin(replay: ReplayBuffer) -> ReplayBuffer:
    replay.begin(_obs(replay.num_envs, 0))
    return replay


def _write(
    replay: ReplayBuffer,
    serial: int,
    *,
    truncated: tuple[int, ...] = (),
    reset: tuple[int, ...] = (),
) -> None:
    """Write vector step `serial`: from frame `serial` to frame serial + 1, in every environment.

    Those in `truncated` end within the step and leave a final frame of serial + 0.5. In those of
    `reset` nothing happened but a reset.
    """
    n = replay.num_envs
    flags = _never(n)
    flags[list(truncated)] = True
    real = np.ones(n, np.bool_)
    real[list(reset)] = False
    replay.write(
        torch.arange(n) + serial * n,
        torch.full((n,), float(serial), dtype=torch.float64),
        _never(n),
        flags,
        _obs(n, serial + 1),
        final_obs=_obs(n, serial) + torch.tensor([0.0, 0.5]),
        ended=np.array(truncated, np.int64),
        real=real,
    )


def _stored(replay: ReplayBuffer) -> list[tuple[int, float, float]]:
    """All drawable transitions as (env, serial of obs, serial of next obs), oldest first."""
    if not len(replay):
        return []
    index = replay.newest(1, len(replay))[0].flip(0)
    rows = gather(replay.ring, index)
    envs, next_envs = rows.obs[:, 0], rows.next_obs[:, 0]
    assert torch.equal(envs, next_envs)
    assert torch.equal(rows.reward, rows.obs[:, 1])
    return list(
        zip(envs.int().tolist(), rows.obs[:, 1].tolist(), rows.next_obs[:, 1].tolist(), strict=True)
    )


def _shown_row(replay: ReplayBuffer) -> int:
    """Row of the ring at the write head, seen from where its frames lie in memory."""
    frames, shown = replay.ring.frames, replay.shown()
    return int((shown.storage_offset() - frames.storage_offset()) // shown.numel())


# Golden


def test_eight_rows_after_twelve_writes_hold_the_golden_serials_and_cursor() -> None:
    """Four blocks of 3 serial numbers in a ring of 8 places, with the vector step as the place.

    One row of a ring of 8 waits for its successor, so that its capacity is 7 transitions: the
    serial 4 at the cursor is the oldest place still to be read as bytes, but no longer drawn.
    """
    replay = _begin(ReplayBuffer(7, 1, (2,)))
    for serial in range(12):
        _write(replay, serial)
    assert replay.num_rows == 8
    assert replay.ring.action.tolist() == [8, 9, 10, 11, 4, 5, 6, 7]
    assert _shown_row(replay) == 4
    assert [serial for _, serial, _ in _stored(replay)] == [5, 6, 7, 8, 9, 10, 11]


def test_four_blocks_of_three_environments_keep_the_newest_eight_and_their_row() -> None:
    replay = _begin(ReplayBuffer(8, 3, (2,)))
    for serial in range(4):
        _write(replay, serial)
    assert (replay.num_rows, replay.capacity) == (4, 9)
    assert replay.ring.action.tolist() == list(range(12))
    assert _shown_row(replay) == 0
    newest = gather(replay.ring, replay.newest(1, 9)[0]).action.tolist()
    assert newest == [11, 10, 9, 8, 7, 6, 5, 4, 3]


# Sizes


@pytest.mark.parametrize("num_envs", [1, 2, 3, 4])
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_capacity_is_reached_rounded_up_to_whole_vector_steps(capacity: int, num_envs: int) -> None:
    replay = _begin(ReplayBuffer(capacity, num_envs, (2,)))
    for serial in range(3 * capacity + 3):
        assert len(replay) == min(serial * num_envs, replay.capacity)
        _write(replay, serial)
    assert capacity <= replay.capacity < capacity + num_envs
    assert replay.capacity % num_envs == 0
    rows = replay.capacity // num_envs
    serials = range(3 * capacity + 3 - rows, 3 * capacity + 3)
    assert _stored(replay) == [(env, s, s + 1) for s in serials for env in range(num_envs)]


@pytest.mark.parametrize(("capacity", "num_envs"), [(0, 1), (-1, 1), (1, 0), (8, -2)])
def test_a_size_below_one_is_refused(capacity: int, num_envs: int) -> None:
    with pytest.raises(UsageError, match=r"--(buffer-size|num-envs) -?\d: it must be at least 1"):
        ReplayBuffer(capacity, num_envs, (2,))


@pytest.mark.parametrize(
    ("obs_shape", "dtype"),
    [((2,), torch.float32), ((4, 84, 84), torch.uint8), ((), torch.int64), ((3,), torch.int16)],
)
@pytest.mark.parametrize(("capacity", "num_envs"), [(1, 1), (16, 4), (17, 4), (5, 64)])
def test_ring_bytes_are_the_bytes_of_all_tensors(
    capacity: int, num_envs: int, obs_shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    replay = ReplayBuffer(capacity, num_envs, obs_shape, dtype)
    assert ring_bytes(capacity, num_envs, obs_shape, dtype) == _held_bytes(replay)


@pytest.mark.parametrize("capacity", [1, 16, 17])
@pytest.mark.parametrize(("num_masked", "num_groups"), [(3, 1), (0, 2), (3, 2), (1, 4)])
def test_ring_bytes_count_masks_and_groups(capacity: int, num_masked: int, num_groups: int) -> None:
    replay = ReplayBuffer(capacity, 4, (2,), num_masked=num_masked, num_groups=num_groups)
    sizes = (capacity, 4, (2,), torch.float32)
    counted = ring_bytes(*sizes, num_masked=num_masked, num_groups=num_groups)
    assert counted == _held_bytes(replay)
    if num_masked:
        unmasked = ring_bytes(*sizes, num_groups=num_groups)
        assert counted - unmasked == num_masked * len(replay.ring.frames)


def _held_bytes(replay: ReplayBuffer) -> int:
    """The bytes of every tensor that a ring holds."""
    held = list(replay.ring.cells().values())
    valid = vars(replay.valid)
    held += [tensor for name, tensor in valid.items() if isinstance(tensor, Tensor)]
    held = [tensor for tensor in held if tensor is not replay.window]
    beside = [name for name, value in vars(replay).items() if isinstance(value, Tensor)]
    assert beside == ["window"]  # 16 bytes
    assert len(held) > 6
    return sum(tensor.untyped_storage().nbytes() for tensor in held)


def test_observations_keep_their_dtype_and_their_bytes_per_row() -> None:
    replay = ReplayBuffer(800, 8, (4, 84, 84), torch.uint8)
    assert replay.ring.frames.dtype is torch.uint8
    frame = 4 * 84 * 84
    assert replay.ring.frames[0].nbytes == frame
    assert len(replay.ring.frames) == 808 + 100  # each frame once, one final frame in eight
    per_transition = ring_bytes(800, 8, (4, 84, 84), torch.uint8) / 800
    assert frame < per_transition < 1.15 * frame


def test_the_dtypes_of_all_fields_are_those_of_the_schema() -> None:
    replay = _begin(ReplayBuffer(4, 2, (2,)))
    _write(replay, 0)
    rows = gather(replay.ring, replay.draw(1, 3)[0])
    dtypes = {name: value.dtype for name, value in rows.to_tensordict().items()}
    assert dtypes == {
        "obs": torch.float32,
        "action": torch.int64,
        "reward": torch.float32,
        "next_obs": torch.float32,
        "terminated": torch.bool,
        "truncated": torch.bool,
    }


def test_a_ring_too_large_is_refused_with_a_size_that_fits() -> None:
    with pytest.raises(UsageError, match=r"--buffer-size 1,000,000,000,000: it needs") as caught:
        ReplayBuffer(10**12, 16, (4, 84, 84), torch.uint8)
    advised = re.search(r"At most --buffer-size (\d+) fits", str(caught.value))
    assert advised
    taken = ring_bytes(int(advised[1]), 16, (4, 84, 84), torch.uint8)
    assert 0.7 < taken / available_bytes(torch.device("cpu")) < 1.1


def test_more_environments_than_fit_are_refused_with_the_flag_to_change() -> None:
    with pytest.raises(UsageError, match=r"Give fewer than --num-envs 1000000000000"):
        ReplayBuffer(10, 10**12, (4, 84, 84), torch.uint8)


# Episode ends


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_ended_episodes_keep_their_true_last_observation_over_wraps(
    capacity: int, num_envs: int
) -> None:
    replay = _begin(ReplayBuffer(capacity, num_envs, (2,)))
    expected = []
    for serial in range(4 * capacity + 4):
        ended = tuple(env for env in range(num_envs) if (serial + env) % (env + 1) == 0)
        _write(replay, serial, truncated=ended)
        expected += [
            (env, serial, serial + (0.5 if env in ended else 1.0)) for env in range(num_envs)
        ]
        assert _stored(replay) == expected[-replay.capacity :]


def test_the_frame_after_an_end_is_the_first_of_the_next_episode() -> None:
    replay = _begin(ReplayBuffer(8, 2, (2,)))
    _write(replay, 0, truncated=(1,))
    _write(replay, 1)
    assert _stored(replay) == [(0, 0, 1), (1, 0, 0.5), (0, 1, 2), (1, 1, 2)]


@pytest.mark.parametrize("finals", [1, 2, 3, 5])
def test_when_final_frames_run_out_the_ring_holds_fewer_but_never_wrong_ones(finals: int) -> None:
    replay = _begin(ReplayBuffer(20, 2, (2,), final_capacity=finals))
    places = max(finals, 2)
    for serial in range(30):
        _write(replay, serial, truncated=(0, 1) if serial % 3 == 0 else ())
        stored = _stored(replay)
        expected = [
            (env, s, s + (0.5 if s % 3 == 0 else 1.0)) for s in range(serial + 1) for env in (0, 1)
        ]
        assert stored == expected[-len(stored) :]
        ends = [s for _, s, next_serial in stored if next_serial == s + 0.5]
        assert len(ends) <= places
        assert (0, serial, serial + (0.5 if serial % 3 == 0 else 1.0)) in stored
    assert len(replay) < replay.capacity


def test_what_was_written_stays_when_the_caller_reuses_its_arrays() -> None:
    replay = _begin(ReplayBuffer(4, 2, (2,)))
    obs, final = _obs(2, 1), _obs(2, 0) + torch.tensor([0.0, 0.5])
    reward, ended = torch.zeros(2), _never(2)
    replay.write(
        torch.zeros(2, dtype=torch.int64),
        reward,
        _never(2),
        ended,
        obs,
        final_obs=final,
        ended=np.array([1]),
    )
    for reused in (obs, final, reward):
        reused.fill_(-77.0)
    ended.fill_(True)
    assert _stored(replay) == [(0, 0, 1), (1, 0, 0.5)]
    assert not replay.ring.truncated[:2].any()


def test_rewards_in_double_precision_are_stored_in_single() -> None:
    replay = _begin(ReplayBuffer(4, 2, (2,)))
    reward = torch.tensor([0.1, -1e9], dtype=torch.float64)
    replay.write(torch.zeros(2).long(), reward, _never(2), _never(2), _obs(2, 1))
    assert torch.equal(replay.ring.reward[:2], reward.float())


def test_terminated_and_truncated_are_stored_apart() -> None:
    replay = _begin(ReplayBuffer(4, 2, (2,)))
    replay.write(
        torch.zeros(2).long(),
        torch.zeros(2),
        torch.tensor([True, False]),
        torch.tensor([False, True]),
        _obs(2, 1),
    )
    rows = gather(replay.ring, torch.tensor([0, 1]))
    assert rows.terminated.tolist() == [True, False]
    assert rows.truncated.tolist() == [False, True]


# Partial rows


def test_steps_that_were_only_resets_are_never_stored() -> None:
    replay = _begin(ReplayBuffer(6, 3, (2,)))
    _write(replay, 0)
    _write(replay, 1, reset=(0, 2))
    _write(replay, 2, reset=(0, 1, 2))
    assert _stored(replay) == [(1, 1, 2)]
    _write(replay, 3)
    assert _stored(replay) == [(0, 3, 4), (1, 3, 4), (2, 3, 4)]


def test_partial_rows_over_many_wraps_leave_the_newest_rows() -> None:
    replay = _begin(ReplayBuffer(9, 3, (2,)))
    rows: list[list[tuple[int, int, int]]] = []
    for serial in range(60):
        reset = tuple(env for env in range(3) if (serial * (env + 2)) % 5 == 0)
        _write(replay, serial, reset=reset)
        rows.append([(env, serial, serial + 1) for env in range(3) if env not in reset])
        assert _stored(replay) == list(chain.from_iterable(rows[-3:]))


def test_ends_are_kept_in_a_step_in_which_other_columns_were_no_transition() -> None:
    """A crashed worker's columns hold nonsense while another environment ends within the step."""
    replay = _begin(ReplayBuffer(9, 3, (2,)))
    _write(replay, 0)
    nan, obs, final = torch.nan, _obs(3, 2), _obs(3, 1) + torch.tensor([0.0, 0.5])
    final[0] = final[2] = nan
    obs[2, 1] = 70.0  # what the crashed environment shows after its restart
    replay.write(
        torch.tensor([3, 4, -99]),
        torch.tensor([1.0, 1.0, nan], dtype=torch.float64),
        torch.tensor([False, False, True]),
        torch.tensor([False, True, True]),
        obs,
        final_obs=final,
        ended=np.array([1]),
        real=np.array([True, True, False]),
    )
    first = [(0, 0, 1), (1, 0, 1), (2, 0, 1)]
    assert _stored(replay) == [*first, (0, 1, 2), (1, 1, 1.5)]
    after = _obs(3, 3)
    after[2, 1] = 71.0
    flags = _never(3)
    replay.write(torch.arange(3), torch.tensor([2.0, 2.0, 70.0]), flags, flags, after)
    assert _stored(replay)[5:] == [(0, 2, 3), (1, 2, 3), (2, 70, 71)]
    assert not gather(replay.ring, replay.draw(1, 500)[0]).reward.isnan().any()


def test_the_draw_returns_to_its_order_once_the_last_partial_row_has_left() -> None:
    replay = _begin(ReplayBuffer(9, 3, (2,)))
    born = replay.valid._list.clone()
    places = replay.valid._list.data_ptr()
    for serial in range(5):
        _write(replay, serial)
    assert torch.equal(replay.valid._list, born)
    _write(replay, 5, reset=(1,))
    for serial in range(6, 9):
        assert not torch.equal(replay.valid._list, born)
        _write(replay, serial)
    for serial in range(9, 20):
        _write(replay, serial)
        assert torch.equal(replay.valid._list, born)
        assert _stored(replay) == [
            (env, s, s + 1) for s in range(serial - 2, serial + 1) for env in range(3)
        ]
    _write(replay, 20, reset=(0, 2))
    assert _stored(replay)[-1] == (1, 20, 21)
    assert len(replay) == 7
    assert replay.valid._list.data_ptr() == places


# Masks


def _masked(replay: ReplayBuffer) -> list[list[bool]]:
    """The masks of the next observations of all transitions, oldest first."""
    mask = gather(replay.ring, replay.newest(1, len(replay))[0].flip(0)).next_action_mask
    assert mask is not None
    return mask.tolist()


YES, NO, LEFT, RIGHT = [True, True], [False, False], [True, False], [False, True]


def test_masks_lie_at_their_frames_over_ends_and_a_cut() -> None:
    replay = ReplayBuffer(8, 2, (2,), num_masked=2)
    replay.begin(_obs(2, 0), torch.tensor([LEFT, RIGHT]))
    shown = replay.shown_mask()
    assert shown is not None
    assert shown.tolist() == [LEFT, RIGHT]
    n = torch.zeros(2, dtype=torch.int64), torch.zeros(2), _never(2), _never(2)
    replay.write(
        *n,
        _obs(2, 1),
        final_obs=_obs(2, 1),
        ended=np.array([1]),
        action_mask=torch.tensor([LEFT, YES]),
        final_action_mask=torch.tensor([YES, NO]),
    )
    replay.write(*n, _obs(2, 2), action_mask=torch.tensor([RIGHT, LEFT]))
    assert _masked(replay) == [LEFT, NO, RIGHT, LEFT]
    replay.cut()
    replay.begin(_obs(2, 50), torch.tensor([NO, NO]))
    assert _masked(replay) == [LEFT, NO, RIGHT, LEFT]


def test_where_no_mask_is_given_everything_is_allowed_even_over_older_masks() -> None:
    replay = ReplayBuffer(2, 1, (2,), num_masked=2)
    n = torch.zeros(1, dtype=torch.int64), torch.zeros(1), _never(1), _never(1)
    replay.begin(_obs(1, 0), torch.tensor([NO]))
    final, ended = _obs(1, 1), np.array([0])
    for mask in (torch.tensor([NO]), None):
        for _ in range(6):
            replay.write(*n, _obs(1, 1), action_mask=mask)
        assert _masked(replay) == [YES if mask is None else NO] * 2
        for _ in range(6):
            replay.write(
                *n,
                _obs(1, 1),
                final_obs=final,
                ended=ended,
                action_mask=mask,
                final_action_mask=mask,
            )
        assert _masked(replay) == [YES if mask is None else NO] * 2
    replay.begin(_obs(1, 0))
    shown = replay.shown_mask()
    assert shown is not None
    assert shown.tolist() == [YES]


def test_a_ring_without_masks_refuses_one_and_shows_none() -> None:
    replay = _begin(ReplayBuffer(8, 2, (2,)))
    mask = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(UsageError, match=r"an action mask: .*num_masked"):
        replay.begin(_obs(2, 0), mask)
    n = torch.zeros(2, dtype=torch.int64), torch.zeros(2), _never(2), _never(2)
    with pytest.raises(UsageError, match=r"an action mask: .*num_masked"):
        replay.write(*n, _obs(2, 1), action_mask=mask)
    assert len(replay) == 0
    assert replay.shown_mask() is None
    assert replay.ring.masks is None


def test_a_sample_with_masks_names_them_and_holds_copies() -> None:
    replay = ReplayBuffer(8, 2, (2,), num_masked=3)
    replay.begin(_obs(2, 0))
    _write(replay, 0)
    sample = replay.sample(5)
    assert sample["next_action_mask"].shape == (5, 3)
    assert sample["next_action_mask"].dtype is torch.bool
    sample["next_action_mask"].zero_()
    assert _masked(replay) == [[True] * 3] * 2


def test_extend_takes_masks_and_allows_everything_where_they_are_missing() -> None:
    replay = ReplayBuffer(8, 2, (2,), num_masked=2)
    replay.extend(_given([0, 0], [1, 1]).set("next_action_mask", torch.tensor([LEFT, NO])))
    replay.extend(_given([1, 40], [2, 41]))
    replay.extend(_given([2, 41], [3, 42]).set("next_action_mask", torch.tensor([RIGHT, LEFT])))
    assert _masked(replay) == [LEFT, NO, YES, YES, RIGHT, LEFT]


# Groups


def _turn(
    replay: ReplayBuffer, serial: int, real: list[bool] | None = None, *, ends: bool = False
) -> None:
    """Write vector step `serial` of the group whose turn it is; its first environment may end."""
    m = replay.row_size
    group = serial % replay.num_groups
    obs = torch.stack((torch.arange(m).float() + group * m, torch.full((m,), serial + 0.0)), 1)
    if serial < replay.num_groups:
        replay.begin(obs - torch.tensor([0.0, replay.num_groups]), group=group)
    reward = obs[:, 1] - replay.num_groups
    given = None if real is None else np.array(real)
    replay.write(
        torch.arange(m),
        reward,
        _never(m),
        _never(m),
        obs,
        final_obs=obs + torch.tensor([0.0, 0.5]),
        ended=np.array([0] * ends, np.int64),
        real=given,
    )


@pytest.mark.parametrize("num_groups", [2, 3])
@pytest.mark.parametrize("row_size", [1, 2])
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_groups_take_turns_and_the_newest_rows_of_both_stay(
    capacity: int, row_size: int, num_groups: int
) -> None:
    replay = ReplayBuffer(capacity, row_size * num_groups, (2,), num_groups=num_groups)
    rows = -(-capacity // row_size)
    assert (replay.num_rows, replay.row_size) == (rows + num_groups, row_size)
    assert replay.capacity == rows * row_size >= capacity
    for serial in range(4 * capacity + 9):
        _turn(replay, serial)
        serials = range(max(0, serial + 1 - rows), serial + 1)
        assert _stored(replay) == [
            (s % num_groups * row_size + column, s - num_groups, s)
            for s in serials
            for column in range(row_size)
        ]
        head = [(serial + 1 + ahead) % replay.num_rows for ahead in range(num_groups)]
        drawn = replay.draw(1, 200)[0] // row_size
        assert not any((drawn == row).any() for row in head)


@pytest.mark.parametrize("num_groups", [2, 3])
def test_ended_episodes_of_groups_keep_their_last_observation_over_wraps(num_groups: int) -> None:
    replay = ReplayBuffer(10, 2 * num_groups, (2,), num_groups=num_groups)
    expected: list[tuple[int, float, float]] = []
    for serial in range(60):
        ends = serial % 5 == 0
        _turn(replay, serial, ends=ends)
        first, before = serial % num_groups * 2, serial - num_groups
        expected += [(first, before, serial + 0.5 * ends), (first + 1, before, serial)]
        assert _stored(replay) == expected[-10:]


def test_draws_are_uniform_over_groups_of_partial_rows() -> None:
    replay = ReplayBuffer(240, 6, (2,), seed=11, num_groups=3)
    for serial in range(400):
        _turn(replay, serial, [serial % 5 != 0, serial % 7 != 1])
    stored = replay.newest(1, len(replay))[0]
    assert 180 < len(stored) < 220
    counts = torch.bincount(replay.draw(1, 200 * len(stored))[0], minlength=len(replay.ring.action))
    assert counts.sum() == counts[stored].sum()
    chi_square = float(((counts[stored] - 200.0) ** 2 / 200.0).sum())
    assert len(stored) / 2 < chi_square < _chi_square_bound(len(stored) - 1)


def test_each_group_shows_what_it_began_with_until_its_own_turn() -> None:
    replay = ReplayBuffer(12, 4, (2,), num_masked=2, num_groups=2)
    masks = [torch.tensor([LEFT, LEFT]), torch.tensor([RIGHT, NO])]
    for group in (1, 0):
        replay.begin(_obs(2, 10 * group), masks[group], group)
    for group in (0, 1):
        shown = replay.shown_mask(group)
        assert torch.equal(replay.shown(group), _obs(2, 10 * group))
        assert shown is not None
        assert torch.equal(shown, masks[group])
    n = torch.zeros(2, dtype=torch.int64), torch.zeros(2), _never(2), _never(2)
    replay.write(*n, _obs(2, 1))
    assert torch.equal(replay.shown(0), _obs(2, 1))
    assert torch.equal(replay.shown(1), _obs(2, 10))


@pytest.mark.parametrize("written", [0, 1, 2, 3, 4, 7])
def test_a_cut_keeps_what_every_group_shows_even_before_its_first_turn(written: int) -> None:
    """Three groups, of which some may have written nothing yet."""
    replay = ReplayBuffer(20, 6, (2,), num_groups=3)
    for serial in range(written):
        _turn(replay, serial)
    before = _stored(replay)
    assert len(before) == 2 * written
    replay.cut()
    for group in range(3):
        replay.begin(torch.full((2, 2), -1.0), group=group)
    assert _stored(replay) == before


def test_a_cut_of_groups_costs_no_transition_although_it_keeps_old_rows_late() -> None:
    """Row 1 ends and is cut after it, row 0 is cut: the final frame of row 1 is the older one."""
    replay = ReplayBuffer(2, 2, (2,), num_groups=2)
    n = torch.zeros(1, dtype=torch.int64), torch.zeros(1), _never(1), _never(1)
    ends = torch.tensor([[7.0, 7.0]]), np.array([0])
    replay.write(*n, _obs(1, 1))
    replay.write(*n, _obs(1, 1), final_obs=ends[0], ended=ends[1])
    replay.cut()
    replay.write(*n, _obs(1, 2), final_obs=ends[0], ended=ends[1])
    assert len(replay) == replay.capacity == 2
    rows = gather(replay.ring, replay.newest(1, 2)[0])
    assert torch.equal(rows.next_obs, torch.full((2, 2), 7.0))


@pytest.mark.parametrize("num_groups", [1, 2])
def test_a_cut_before_the_first_turn_of_a_group_keeps_nothing_of_it(num_groups: int) -> None:
    replay = ReplayBuffer(8, 4, (2,), num_groups=num_groups)
    for group in range(num_groups):
        replay.begin(torch.full((4 // num_groups, 2), 5.0), group=group)
    replay.cut()
    assert not replay.ring.frames[len(replay.ring.action) :].any()


@pytest.mark.parametrize(("num_envs", "groups"), [(4, 3), (1, 2), (5, 4)])
def test_environments_that_do_not_split_into_equal_groups_are_refused(
    num_envs: int, groups: int
) -> None:
    with pytest.raises(UsageError, match=rf"--env-groups {groups}: --num-envs {num_envs} does not"):
        ReplayBuffer(10, num_envs, (2,), num_groups=groups)


@pytest.mark.parametrize("groups", [0, -1])
def test_fewer_than_one_group_are_refused(groups: int) -> None:
    with pytest.raises(UsageError, match=r"--env-groups -?\d: it must be at least 1"):
        ReplayBuffer(10, 4, (2,), num_groups=groups)


@pytest.mark.parametrize("group", [-1, 2, 7])
def test_a_group_that_is_not_there_is_refused(group: int) -> None:
    replay = ReplayBuffer(10, 4, (2,), num_masked=2, num_groups=2)
    with pytest.raises(UsageError, match=rf"group {group}: there are 2"):
        replay.shown(group)
    with pytest.raises(UsageError, match=rf"group {group}: there are 2"):
        replay.shown_mask(group)
    with pytest.raises(UsageError, match=rf"group {group}: there are 2"):
        replay.begin(_obs(2, 0), group=group)


def test_extend_takes_no_groups() -> None:
    replay = ReplayBuffer(10, 4, (2,), num_groups=2)
    with pytest.raises(UsageError, match="extend with 2 groups"):
        replay.extend(_given([0, 0], [1, 1]))
    assert len(replay) == 0


# Draws


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 7])
def test_no_draw_starts_where_the_successor_is_not_written_yet(
    capacity: int, num_envs: int
) -> None:
    replay = _begin(ReplayBuffer(capacity, num_envs, (2,), seed=7))
    for serial in range(2 * capacity + 3):
        _write(replay, serial)
        index = replay.draw(10, 1000).flatten()
        head = _shown_row(replay)
        assert not (index // num_envs == head).any()
        rows = gather(replay.ring, index)
        assert torch.equal(rows.next_obs[:, 1], rows.obs[:, 1] + 1)
        assert rows.obs[:, 1].max() == serial
        assert rows.obs[:, 1].min() == max(0, serial + 1 - replay.capacity // num_envs)


def _chi_square_bound(degrees: int, z: float = 3.09) -> float:
    """The 99.9 % quantile of chi-square (Wilson, Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + z * math.sqrt(spread)) ** 3)


def test_draws_are_uniform_although_episodes_are_of_very_different_lengths() -> None:
    """Environment e resets every lengths[e] steps, so that it stores a different share."""
    lengths = (2, 3, 7, 1000)
    replay = _begin(ReplayBuffer(200, 4, (2,), seed=3))
    for serial in range(170):
        reset = tuple(env for env in range(4) if serial % lengths[env] == 0)
        _write(replay, serial, reset=reset)
    stored = replay.newest(1, len(replay))[0]
    assert 120 < len(stored) < 180
    draws = 200 * len(stored)
    counts = torch.bincount(replay.draw(1, draws)[0], minlength=len(replay.ring.action))
    assert counts.sum() == counts[stored].sum()
    chi_square = float(((counts[stored] - 200.0) ** 2 / 200.0).sum())
    assert chi_square < _chi_square_bound(len(stored) - 1)
    assert chi_square > len(stored) / 2  # not a shuffled list either: with replacement


def test_the_same_seed_draws_the_same_and_another_seed_does_not() -> None:
    draws = []
    for seed in (5, 5, 6):
        replay = _begin(ReplayBuffer(64, 2, (2,), seed=seed))
        for serial in range(32):
            _write(replay, serial)
        draws.append(replay.draw(3, 16))
    assert draws[0].shape == (3, 16)
    assert draws[0].dtype is torch.int64
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0][0], draws[0][1])


def test_newest_counts_back_from_the_last_write_and_repeats_when_short() -> None:
    replay = _begin(ReplayBuffer(6, 2, (2,)))
    _write(replay, 0)
    actions = gather(replay.ring, replay.newest(2, 3).flatten()).action
    assert actions.view(2, 3).tolist() == [[1, 0, 1], [1, 0, 1]]
    for serial in range(1, 9):
        _write(replay, serial)
    assert gather(replay.ring, replay.newest(1, 4)[0]).action.tolist() == [17, 16, 15, 14]


def test_an_empty_ring_refuses_to_be_read() -> None:
    replay = _begin(ReplayBuffer(6, 2, (2,)))
    for read in (lambda: replay.draw(1, 2), lambda: replay.newest(1, 2), lambda: replay.sample(2)):
        with pytest.raises(UsageError, match="it is empty"):
            read()


def test_a_sample_is_a_tensordict_of_copies() -> None:
    replay = _begin(ReplayBuffer(6, 2, (2,)))
    _write(replay, 0, truncated=(1,))
    sample = replay.sample(32)
    assert isinstance(sample, TensorDict)
    assert sample.batch_size == (32,)
    assert set(sample.keys()) == {
        "obs",
        "action",
        "reward",
        "next_obs",
        "terminated",
        "truncated",
    }
    steps = set(zip(sample["action"].tolist(), sample["next_obs"][:, 1].tolist(), strict=True))
    assert steps == {(0, 1.0), (1, 0.5)}
    for value in sample.values():
        value.zero_()
    assert _stored(replay) == [(0, 0, 1), (1, 0, 0.5)]


# Cut and extend


def test_a_cut_keeps_the_last_observation_of_running_episodes_only() -> None:
    replay = _begin(ReplayBuffer(12, 3, (2,)))
    _write(replay, 0)
    _write(replay, 1, truncated=(1,))
    replay.cut()
    replay.begin(_obs(3, 90))
    assert _stored(replay)[3:] == [(0, 1, 2), (1, 1, 1.5), (2, 1, 2)]
    _write(replay, 90)
    assert _stored(replay)[6:] == [(0, 90, 91), (1, 90, 91), (2, 90, 91)]


def test_a_cut_before_anything_is_written_or_twice_changes_nothing() -> None:
    replay = ReplayBuffer(4, 2, (2,), final_capacity=2)
    replay.cut()
    _begin(replay)
    assert len(replay) == 0
    _write(replay, 0)
    replay.cut()
    replay.cut()
    replay.begin(_obs(2, 50))
    assert _stored(replay) == [(0, 0, 1), (1, 0, 1)]


def _given(obs: list[float], next_obs: list[float]) -> TensorDict:
    n = len(obs)
    envs = torch.arange(n).float()
    return TensorDict(
        {
            "obs": torch.stack((envs, torch.tensor(obs)), 1),
            "action": torch.zeros(n, dtype=torch.int64),
            "reward": torch.tensor(obs),
            "next_obs": torch.stack((envs, torch.tensor(next_obs)), 1),
            "terminated": _never(n),
            "truncated": _never(n),
        },
        batch_size=[n],
    )


def test_extend_takes_tensordicts_and_keeps_both_sides_of_a_jump() -> None:
    replay = ReplayBuffer(8, 2, (2,))
    replay.extend(_given([0, 0], [1, 1]))
    replay.extend(_given([1, 40], [2, 41]))
    replay.extend(_given([2, 41], [3, 42]))
    assert _stored(replay) == [(0, 0, 1), (1, 0, 1), (0, 1, 2), (1, 40, 41), (0, 2, 3), (1, 41, 42)]


def test_extend_after_a_cut_or_an_end_leaves_kept_last_observations_alone() -> None:
    replay = _begin(ReplayBuffer(8, 2, (2,)))
    _write(replay, 0, truncated=(0,))
    replay.extend(_given([70, 1], [71, 2]))
    assert _stored(replay)[:2] == [(0, 0, 0.5), (1, 0, 1)]
    replay.cut()
    replay.begin(_obs(2, 80))
    replay.extend(_given([90, 90], [91, 91]))
    assert _stored(replay)[2:4] == [(0, 70, 71), (1, 1, 2)]


def test_extend_refuses_a_batch_that_is_not_one_vector_step() -> None:
    replay = _begin(ReplayBuffer(8, 2, (2,)))
    for serials in ([0.0], [0.0, 0.0, 0.0]):
        with pytest.raises(UsageError, match=r"takes one transition per environment"):
            replay.extend(_given(serials, serials))
    assert len(replay) == 0
