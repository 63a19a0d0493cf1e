"""Devices: which one is meant, what is refused, what is left."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from fastdqn.device import available_bytes, available_cores, resolve_device, synchronize
from fastdqn.errors import UsageError


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that shows two CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without CUDA and MPS."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_card")
def test_auto_is_the_cpu_where_there_is_no_card() -> None:
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.usefixtures("two_cards")
def test_auto_is_cuda_where_there_is_a_card() -> None:
    assert resolve_device("auto") == torch.device("cuda")


def test_auto_is_not_mps(no_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cpu")
    assert resolve_device("mps") == torch.device("mps")


@pytest.mark.usefixtures("two_cards")
def test_devices_are_taken_by_name() -> None:
    for name in ("cpu", "cuda", "cuda:0", "cuda:1"):
        assert resolve_device(name) == torch.device(name)


@pytest.mark.usefixtures("two_cards")
def test_a_card_beyond_the_last_is_refused_with_their_count() -> None:
    with pytest.raises(UsageError, match=r"--device cuda:2: this machine shows 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.usefixtures("no_card")
@pytest.mark.parametrize(
    ("name", "reason"),
    [("cuda", "shows 0 CUDA devices"), ("cuda:3", "shows 0 CUDA"), ("mps", "has no MPS device")],
)
def test_a_missing_device_is_refused_with_a_way_out(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"--device {name}: .*{reason}.*--device auto"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["tpu", "", "meta", "xla", "cuda:", "gpu"])
def test_an_unknown_name_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(UsageError, match="Choose auto, cpu, cuda, cuda:N or mps"):
        resolve_device(name)


def test_the_bytes_left_are_some_and_no_more_than_the_machine_has() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**20 < available_bytes(torch.device("cpu")) <= total


def test_the_bytes_left_on_a_card_are_the_free_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (111, 222))
    assert available_bytes(torch.device("cuda")) == 111


def test_the_bytes_left_for_mps_are_its_budget_less_what_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 100)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 30)
    assert available_bytes(torch.device("mps")) == 70


@pytest.fixture
def own_cores() -> Iterator[set[int]]:
    """The cores of this process, which the test may reduce."""
    if not hasattr(os, "sched_setaffinity"):
        yield {0}
        return
    before = os.sched_getaffinity(0)
    yield set(before)
    os.sched_setaffinity(0, before)


def test_the_cores_are_those_that_this_process_may_use(own_cores: set[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        assert available_cores() == len(own_cores)
        os.sched_setaffinity(0, {min(own_cores)})
        assert available_cores() == 1
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_where_there_is_no_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert available_cores() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


def test_waiting_for_a_device_asks_that_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: asked.append(str(device)))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: asked.append("mps"))
    for name in ("cpu", "cuda:1", "mps"):
        synchronize(torch.device(name))
    assert asked == ["cuda:1", "mps"]
