"""Capturing, in order: what is run, recorded and replayed, and that warming up leaves no trace.

There is no GPU here. A stand-in for `torch.cuda` writes every call on a tape; its graph records
the operations of the step and repeats them, as CUDA's does, on the tensors of then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.execution.cuda_graph import CudaGraphStep
from fastdqn.execution.step import EagerStep
from fastdqn.execution.trace import COMPILER
from tests.fake_cuda import FakeStreams

ONE, TWO = torch.ones(()), torch.full((), 2.0)


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda, self.work = cuda, list[Callable[[], object]]()

    def replay(self) -> None:
        self._cuda.tape.append("replay")
        for work in self.work:
            work()


class FakeCuda(FakeStreams):
    """Its graphs note the operations of a step that gives them away."""

    def __init__(self) -> None:
        super().__init__()
        self.recording: FakeGraph | None = None

    def CUDAGraph(self) -> FakeGraph:
        return FakeGraph(self)

    @contextmanager
    def graph(self, graph: FakeGraph, *, pool: str, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"  # another thread may be compiling
        self.tape.append(f"capture in {pool}")
        self.recording = graph
        yield
        self.recording = None
        self.tape.append("recorded")

    def launch(self, work: Callable[[], object]) -> None:
        """Do the work of an operation, or only note it while a graph is recorded."""
        if self.recording is not None:
            self.recording.work.append(work)
        else:
            work()


class Counting:
    """A step that adds its argument to a total, and what brings the total back."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.total, self._cuda = torch.zeros(2), cuda

    def step(self, times: Tensor, amount: Tensor) -> None:
        self._cuda.tape.append("step")
        self._cuda.launch(lambda: self.total.add_(amount * times))

    def snapshot(self, times: Tensor, amount: Tensor) -> Callable[[], None]:
        kept = self.total.clone()
        self._cuda.tape.append("keep")

        def restore() -> None:
            self._cuda.tape.append("restore")
            self.total.copy_(kept)

        return restore


def recorded(**settings: Any) -> tuple[FakeCuda, Counting, CudaGraphStep]:
    cuda = FakeCuda()
    counting = Counting(cuda)
    return (
        cuda,
        counting,
        CudaGraphStep(EagerStep(counting.step), counting.snapshot, cuda=cuda, **settings),
    )


def test_the_first_call_warms_up_aside_takes_it_back_records_and_replays() -> None:
    cuda, counting, step = recorded()
    step(ONE, torch.ones(2))
    assert cuda.tape == [
        "keep",
        "side waits for main",
        "on side",
        *["step", "restore"] * 3,
        "off side",
        "main waits for side",
        "new pool",
        "capture in pool 1",
        "step",
        "recorded",
        "replay",
    ]
    assert counting.total.tolist() == [1.0, 1.0]


def test_later_calls_only_replay_and_read_what_the_tensors_hold_then() -> None:
    cuda, counting, step = recorded()
    amount = torch.ones(2)
    step(ONE, amount)
    cuda.tape.clear()
    amount.fill_(5.0)
    step(ONE, amount)
    assert cuda.tape == ["replay"]
    assert counting.total.tolist() == [6.0, 6.0]


class DisturbedCuda(FakeCuda):
    """Its recordings fail as CUDA's do when another thread waits for the whole card."""

    disturbed = True

    @contextmanager
    def graph(self, graph: FakeGraph, **given: Any) -> Iterator[None]:
        with super().graph(graph, **given):
            yield
        if self.disturbed:
            raise RuntimeError("operation failed due to a previous error during capture")


def test_a_recording_that_a_compiler_disturbs_is_made_another_time() -> None:
    cuda = DisturbedCuda()
    counting, amount = Counting(cuda), torch.ones(2)
    step = CudaGraphStep(EagerStep(counting.step), counting.snapshot, cuda=cuda)
    with COMPILER:
        step(ONE, amount)
    assert counting.total.tolist() == [1.0, 1.0]
    assert len(step._graphs) == 0
    cuda.disturbed = False
    step(ONE, amount)
    step(ONE, amount)
    assert counting.total.tolist() == [3.0, 3.0]
    assert len(step._graphs) == 1
    assert cuda.tape.count("replay") == 2


def test_a_recording_that_fails_by_itself_is_an_error() -> None:
    cuda = DisturbedCuda()
    counting = Counting(cuda)
    with pytest.raises(RuntimeError, match="during capture"):
        CudaGraphStep(EagerStep(counting.step), counting.snapshot, cuda=cuda)(ONE, torch.ones(2))
    assert counting.total.tolist() == [0.0, 0.0]


def test_another_tensor_is_another_graph_in_the_same_pool() -> None:
    cuda, counting, step = recorded()
    amount, other = torch.ones(2), torch.full((2,), 10.0)
    for args in ((ONE, amount), (TWO, amount), (ONE, other), (ONE, amount), (TWO, amount)):
        step(*args)
    assert len(step._graphs) == 3
    assert cuda.tape.count("new pool") == 1
    assert cuda.tape.count("capture in pool 1") == 3
    assert counting.total.tolist() == [16.0, 16.0]


def test_a_view_of_another_shape_is_another_graph() -> None:
    _, counting, step = recorded()
    amount = torch.ones(2)
    step(ONE, amount)
    step(ONE, amount[:1])
    assert len(step._graphs) == 2
    assert counting.total.tolist() == [2.0, 2.0]


def test_a_capture_that_fails_leaves_the_stream_as_it_was_and_can_be_tried_again() -> None:
    cuda, failing = FakeCuda(), True

    def step(place: Tensor) -> None:
        if failing and cuda.recording is not None:
            raise RuntimeError("not permitted when stream is capturing")
        cuda.launch(lambda: place.add_(1.0))

    total = torch.zeros(1)
    recorded_step = CudaGraphStep(EagerStep(step), lambda place: place.zero_, cuda=cuda)
    with pytest.raises(RuntimeError, match="capturing"):
        recorded_step(total)
    assert cuda.tape[-1] == "main is current again"
    assert len(recorded_step._graphs) == 0
    failing, cuda.recording = False, None
    recorded_step(total)
    assert total.tolist() == [1.0]


def test_tensors_that_lie_elsewhere_each_time_are_copied_to_one_graph() -> None:
    cuda, counting, step = recorded(copies_inputs=True)
    for number in range(1, 4):
        step(torch.ones(()), torch.full((4,), float(number))[::2])
    assert (len(step._graphs), cuda.tape.count("replay")) == (1, 3)
    assert counting.total.tolist() == [6.0, 6.0]


def test_steps_may_share_a_pool() -> None:
    cuda = FakeCuda()
    pool = cache(cuda.graph_pool_handle)
    for _ in range(2):
        counting = Counting(cuda)
        step = EagerStep(counting.step)
        CudaGraphStep(step, counting.snapshot, cuda=cuda, pool=pool)(ONE, torch.ones(2))
    assert cuda.tape.count("new pool") == 1


@pytest.mark.cuda
def test_a_recorded_step_equals_a_plain_one_on_the_gpu() -> None:
    total, amount = torch.zeros(4, device="cuda"), torch.ones(4, device="cuda")

    def snapshot(amount: Tensor) -> Callable[[], None]:
        kept = total.clone()

        def restore() -> None:
            total.copy_(kept)

        return restore

    def add(amount: Tensor) -> None:
        total.add_(amount)

    step = CudaGraphStep(EagerStep(add), snapshot)
    for number in range(5):
        amount.fill_(float(number))
        step(amount)
    assert total.tolist() == [10.0] * 4
