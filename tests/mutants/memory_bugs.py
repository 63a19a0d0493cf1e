"""Bugs of what a training takes of memory, and of what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from fastdqn.agent import memory_parts, memory_plan, preflight
from fastdqn.agent.memory_plan import MemoryPlan
from fastdqn.foundation import host_memory
from fastdqn.replay.sizes import FunctionalSizes, RingSizes
from tests.mutants.planted import Planted, exchange

__all__ = ["PLANTED"]

HOST = "tests/unit/foundation/test_host_memory.py::test_"
PREFLIGHT = "tests/unit/agent/test_preflight.py::test_"

PLANTED = Planted()
turns_red = PLANTED.turns_red


@turns_red(
    HOST + "the_limit_of_a_container_counts",
    PREFLIGHT + "the_limit_of_a_container_refuses_a_training",
)
def the_limits_of_containers_not_read() -> None:
    exchange(host_memory, "_of_cgroups", lambda _: iter(()))


@turns_red(HOST + "every_group_up_to_the_root_counts")
def only_the_innermost_control_group_read() -> None:
    class Alone(PurePosixPath):
        @property
        def parents(self) -> Any:
            return ()

    right = host_memory._inside
    exchange(host_memory, "_inside", lambda *path: Alone(right(*path)))


@turns_red(
    HOST + "files_in_the_cache_of_a_group_are_given_up_for_it",
    HOST + "version_1_counts_with_the_cache_of_the_whole_hierarchy",
)
def files_in_the_cache_counted_as_taken() -> None:
    exchange(host_memory, "RECLAIMABLE", ())


@turns_red(HOST + "the_high_mark_counts_as_the_limit_does")
def the_high_mark_of_a_group_ignored() -> None:
    of_2 = (("memory.max",), "memory.current", "")
    exchange(host_memory, "CGROUPS", {**host_memory.CGROUPS, "cgroup2": of_2})


@turns_red(HOST + "the_limit_of_a_process_counts_less_what_it_has[RLIMIT_AS-ulimit -v]")
def what_a_process_has_not_taken_off_its_limit() -> None:
    right = host_memory._table

    def table(path: Path) -> dict[str, int]:
        found = right(path)
        return dict.fromkeys(found, 0) if path.name == "status" else found

    exchange(host_memory, "_table", table)


@turns_red(
    PREFLIGHT + "the_items_of_the_ring_are_the_bytes_of_its_tensors[given_settings0-prioritized]"
)
def priorities_that_take_nothing() -> None:
    exchange(memory_plan, "tree_bytes", lambda _: 0)


@turns_red(
    PREFLIGHT + "the_items_of_the_ring_are_the_bytes_of_its_tensors[given_settings2-uniform]",
)
def a_ring_of_tensor_environments_with_few_final_observations() -> None:
    exchange(FunctionalSizes, "finals", RingSizes.finals)
    exchange(FunctionalSizes, "parts", RingSizes.parts)


@turns_red(PREFLIGHT + "the_largest_that_fits_fits_and_one_more_row_does_not")
def a_ring_one_row_too_large() -> None:
    right = MemoryPlan.largest

    def largest(self: MemoryPlan, reserve: Callable[[int], int], most: int) -> int:
        return min(right(self, reserve, most) + self.sizes.row_size, most)

    exchange(MemoryPlan, "largest", largest)


@turns_red(PREFLIGHT + "auto_takes_what_fits_beside_the_reserve")
def a_ring_that_takes_the_reserve_as_well() -> None:
    exchange(preflight, "reserve_of", lambda _: 0)


@turns_red(PREFLIGHT + "auto_takes_no_more_than_the_run_has_env_steps")
def a_ring_larger_than_the_run() -> None:
    right = preflight._chosen
    exchange(
        preflight,
        "_chosen",
        lambda config, plan: right(replace(config, total_timesteps=10**7), plan),
    )


@turns_red(PREFLIGHT + "the_tensors_of_the_network_are_counted")
def the_moments_of_the_optimizer_not_counted() -> None:
    class None_:
        num_slots = 0

    exchange(memory_parts, "build_optimizer", lambda _: None_)


@turns_red(PREFLIGHT + "workers_and_their_rows_are_counted_for_training_and_evaluation")
def the_workers_of_evaluations_not_counted() -> None:
    exchange(preflight, "EVALUATION_ENVS", 0)


@turns_red(PREFLIGHT + "a_training_that_does_not_fit_is_refused_with_the_table_and_what_fits")
def what_does_not_fit_built_all_the_same() -> None:
    exchange(MemoryPlan, "refuse_unless_fits", lambda *_: None)
