"""Memory that is left: the machine's, and what control groups and ulimits leave of it."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path

import pytest

from fastdqn.foundation.host_memory import (
    MemoryLimit,
    available_host_bytes,
    memory_limits,
    tightest,
)

GIB, MIB = 2**30, 2**20
UNLIMITED = resource.RLIM_INFINITY, resource.RLIM_INFINITY
V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate"
CPU = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"


def unlimited(_: int) -> tuple[int, int]:
    return UNLIMITED


def tree(root: Path, files: Mapping[str, str | int]) -> Path:
    """Write files below a root; 8 GiB of the machine are left unless they say otherwise."""
    for name, text in {"proc/meminfo": meminfo(8 * GIB), **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def meminfo(free: int) -> str:
    return f"MemTotal: 99999999 kB\nMemFree: 17 kB\nMemAvailable:  {free // 1024} kB"


def group(
    folder: str, limit: int | str, used: int, *, high: int | str = "max", reclaimable: int = 0
) -> dict[str, str | int]:
    """Return the files of a control group of version 2."""
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.high": high,
        f"{folder}/memory.current": used,
        f"{folder}/memory.stat": f"anon 12\ninactive_file {reclaimable}\nactive_file 0\nfile 9999",
    }


def of_version_2(path: str, mounted: str = V2) -> dict[str, str | int]:
    return {"proc/self/cgroup": f"0::{path}", "proc/self/mountinfo": mounted}


def left(root: Path) -> int:
    return available_host_bytes(root, unlimited)


# The machine


def test_without_limits_it_is_what_the_machine_says_is_available(tmp_path: Path) -> None:
    assert left(tree(tmp_path, {})) == 8 * GIB
    assert [limit.name for limit in memory_limits(tmp_path, unlimited)] == ["memory of the machine"]


def test_a_system_without_proc_has_its_physical_memory(tmp_path: Path) -> None:
    assert left(tmp_path) > 2**27


def test_this_machine_has_some_and_names_what_bounds_it() -> None:
    found = tightest(memory_limits())
    assert found.free > MIB
    assert found.name
    assert available_host_bytes() > MIB


# Control groups of version 2


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    files = of_version_2("/") | group("sys/fs/cgroup", 2 * GIB, GIB)
    assert left(tree(tmp_path, files)) == GIB


def test_the_machine_counts_where_it_has_less_than_the_limit(tmp_path: Path) -> None:
    files = of_version_2("/") | group("sys/fs/cgroup", 20 * GIB, GIB)
    assert left(tree(tmp_path, files)) == 8 * GIB


def test_files_in_the_cache_of_a_group_are_given_up_for_it(tmp_path: Path) -> None:
    files = of_version_2("/") | group("sys/fs/cgroup", 2 * GIB, GIB, reclaimable=300 * MIB)
    assert left(tree(tmp_path, files)) == GIB + 300 * MIB


def test_active_files_and_slab_are_given_up_too_and_shared_memory_is_not(tmp_path: Path) -> None:
    files = of_version_2("/") | group("sys/fs/cgroup", 2 * GIB, GIB)
    files["sys/fs/cgroup/memory.stat"] = (
        f"active_file {MIB}\nslab_reclaimable {2 * MIB}\nshmem {99 * MIB}\nfile {100 * MIB}\n"
        f"slab_unreclaimable {50 * MIB}\nanon {77 * MIB}"
    )
    assert left(tree(tmp_path, files)) == GIB + 3 * MIB


def test_more_cache_than_is_taken_leaves_no_more_than_the_limit(tmp_path: Path) -> None:
    files = of_version_2("/") | group("sys/fs/cgroup", 2 * GIB, MIB, reclaimable=GIB)
    assert left(tree(tmp_path, files)) == 2 * GIB


def test_the_high_mark_counts_as_the_limit_does(tmp_path: Path) -> None:
    files = of_version_2("/") | group("sys/fs/cgroup", 4 * GIB, GIB, high=2 * GIB)
    assert left(tree(tmp_path, files)) == GIB


def test_a_group_above_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = of_version_2("/") | group("sys/fs/cgroup", 4 * GIB, 2 * GIB, high=GIB)
    assert left(tree(tmp_path, files)) == 0


def test_every_group_up_to_the_root_counts(tmp_path: Path) -> None:
    inner, middle = "sys/fs/cgroup/user.slice/job", "sys/fs/cgroup/user.slice"
    files = of_version_2("/user.slice/job")
    files |= group(inner, 6 * GIB, MIB) | group(middle, 3 * GIB, GIB)
    assert left(tree(tmp_path, files)) == 2 * GIB
    found = tightest(memory_limits(tmp_path, unlimited))
    assert found.name == f"control group, {tmp_path / middle / 'memory.max'}"


def test_no_limit_is_none(tmp_path: Path) -> None:
    files = of_version_2("/a") | group("sys/fs/cgroup/a", "max", GIB)
    assert left(tree(tmp_path, files)) == 8 * GIB


def test_a_container_that_sees_the_path_of_its_host_finds_its_own_group(tmp_path: Path) -> None:
    """As in `docker run --cgroupns=host`: the group's folder is what is mounted."""
    mounted = V2.replace(" / /sys", " /docker/abc /sys")
    files = of_version_2("/docker/abc", mounted) | group("sys/fs/cgroup", 2 * GIB, GIB)
    assert left(tree(tmp_path, files)) == GIB
    below = of_version_2("/docker/abc/job") | group("sys/fs/cgroup/job", GIB, 0)
    below["proc/self/mountinfo"] = mounted
    assert left(tree(tmp_path, below)) == GIB


def test_a_process_outside_of_its_name_space_takes_what_it_sees(tmp_path: Path) -> None:
    files = of_version_2("/../../other") | group("sys/fs/cgroup", 2 * GIB, GIB)
    assert left(tree(tmp_path, files)) == GIB


def test_where_mounts_are_not_listed_the_usual_place_is_read(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/"} | group("sys/fs/cgroup", 2 * GIB, GIB)
    assert left(tree(tmp_path, files)) == GIB


@pytest.mark.parametrize("broken", ["", "many", "-1", "1.5", "max"])
def test_what_is_no_number_sets_no_limit(tmp_path: Path, broken: str) -> None:
    files = of_version_2("/") | group("sys/fs/cgroup", broken, GIB)
    assert left(tree(tmp_path, files)) == 8 * GIB


@pytest.mark.parametrize("line", ["", "nonsense", "a b - c", "1 2 3 / - cgroup2", " - "])
def test_mounts_that_cannot_be_read_set_no_limit(tmp_path: Path, line: str) -> None:
    files = of_version_2("/", line or "\n") | group("sys/fs/cgroup", 2 * GIB, GIB)
    assert left(tree(tmp_path, files)) == 8 * GIB


# Version 1, alone and beside version 2


def of_version_1(path: str) -> dict[str, str | int]:
    return {
        "proc/self/cgroup": f"9:name=systemd:/\n4:cpu,memory:{path}\n3:cpuset:/x\n0::/",
        "proc/self/mountinfo": f"{CPU}\n{V1}",
    }


def group_1(folder: str, limit: int, used: int, reclaimable: int = 0) -> dict[str, str | int]:
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": used,
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {reclaimable}",
    }


def test_version_1_counts_with_the_cache_of_the_whole_hierarchy(tmp_path: Path) -> None:
    place = "sys/fs/cgroup/memory/job"
    files = of_version_1("/job") | group_1(place, 2 * GIB, GIB, 100 * MIB)
    files |= group_1("sys/fs/cgroup/memory", 9223372036854771712, 5 * GIB)
    assert left(tree(tmp_path, files)) == GIB + 100 * MIB


def test_version_1_counts_up_to_the_root(tmp_path: Path) -> None:
    files = of_version_1("/a/b") | group_1("sys/fs/cgroup/memory/a", GIB, 0)
    files |= group_1("sys/fs/cgroup/memory/a/b", 9223372036854771712, 0)
    assert left(tree(tmp_path, files)) == GIB


def test_both_versions_side_by_side_count(tmp_path: Path) -> None:
    mounts = f"{V1}\n{V2.replace('/sys/fs/cgroup ', '/sys/fs/cgroup/unified ')}"
    files = of_version_2("/", mounts) | {"proc/self/cgroup": "4:memory:/\n0::/"}
    files |= group_1("sys/fs/cgroup/memory", 3 * GIB, 0)
    files |= group("sys/fs/cgroup/unified", 2 * GIB, 0)
    assert left(tree(tmp_path, files)) == 2 * GIB


# ulimit


def rlimits(**soft: int) -> object:
    numbers = {getattr(resource, name): bytes_ for name, bytes_ in soft.items()}
    return lambda number: (numbers.get(number, resource.RLIM_INFINITY), resource.RLIM_INFINITY)


@pytest.mark.parametrize(
    ("name", "command"), [("RLIMIT_AS", "ulimit -v"), ("RLIMIT_DATA", "ulimit -d")]
)
def test_the_limit_of_a_process_counts_less_what_it_has(
    tmp_path: Path, name: str, command: str
) -> None:
    status = f"Name: x\nVmSize: {GIB // 1024} kB\nVmData: {GIB // 1024} kB\nVmRSS: 17 kB"
    root, limits = tree(tmp_path, {"proc/self/status": status}), rlimits(**{name: 3 * GIB})
    found = tightest(memory_limits(root, limits))  # type: ignore[arg-type]
    assert found == MemoryLimit(f"limit of a process, {command}", 2 * GIB, of_process=True)
    limits = rlimits(**{name: MIB})
    assert available_host_bytes(root, limits) == 0  # type: ignore[arg-type]


def test_a_limit_of_a_process_whose_memory_is_not_known_counts_for_nothing(tmp_path: Path) -> None:
    limits = rlimits(RLIMIT_AS=MIB)
    assert available_host_bytes(tree(tmp_path, {}), limits) == 8 * GIB  # type: ignore[arg-type]


def test_the_limits_of_this_process_are_read(tmp_path: Path) -> None:
    status = {"proc/self/status": "VmSize: 1 kB\nVmData: 1 kB"}
    limits = memory_limits(tree(tmp_path, status))
    bounded = [resource.getrlimit(n)[0] for n in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    assert len(limits) == 1 + sum(soft != resource.RLIM_INFINITY for soft in bounded)
