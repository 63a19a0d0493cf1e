"""Seeds: the same ones for the same run, others for everything else."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from fastdqn.envs.seeding import Stream, seeds_of


def test_the_same_run_stream_and_round_give_the_same_seeds() -> None:
    assert seeds_of(3, Stream.REPLAY, 8, 2) == seeds_of(3, Stream.REPLAY, 8, 2)


def test_the_seeds_of_a_run_never_change_between_versions() -> None:
    """Golden numbers: a change breaks every published run."""
    assert seeds_of(0, Stream.TRAINING_ENVS, 3) == [2044266242, 306762826, 1633680383]
    assert seeds_of(1, Stream.EVALUATION_ENVS, 2, round_=3) == [792546614, 620323553]


def test_neighbouring_run_seeds_streams_and_rounds_share_no_environment_seed() -> None:
    seeds = [
        seed
        for run_seed, stream, round_ in product(range(12), Stream, range(4))
        for seed in seeds_of(run_seed, stream, 16, round_)
    ]
    assert len(seeds) == 12 * len(Stream) * 4 * 16
    assert len(set(seeds)) == len(seeds)


def test_seeds_do_not_follow_each_other_like_seed_plus_i() -> None:
    seeds = seeds_of(5, Stream.TRAINING_ENVS, 64)
    gaps = {b - a for a, b in pairwise(seeds)}
    assert len(gaps) == 63
    assert min(abs(gap) for gap in gaps) > 1000


def test_more_environments_keep_the_seeds_of_the_first_ones() -> None:
    few = seeds_of(1, Stream.TRAINING_ENVS, 4)
    assert seeds_of(1, Stream.TRAINING_ENVS, 64)[:4] == few


def test_every_seed_is_a_plain_int_that_any_environment_takes() -> None:
    for seed in seeds_of(2, Stream.EVALUATION_ENVS, 1000):
        assert type(seed) is int
        assert 0 <= seed < 2**31


def test_seeds_use_all_31_bits() -> None:
    assert max(seeds_of(2, Stream.EVALUATION_ENVS, 1000)) > 2**30


def test_a_negative_run_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        seeds_of(-1, Stream.NETWORK, 1)
