"""Drives AsyncVectorEnv and GroupedVectorEnv side by side and compares what they answer."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.workers.process import without_main_module

if TYPE_CHECKING:
    from collections.abc import Iterator

NUM_WORKERS = 2
START_METHOD = "forkserver"
"""One clean process that has loaded what the environments need, and forks every worker."""

Pair = tuple[AsyncVectorEnv[Any, Any], AsyncVectorEnv[Any, Any]]
"""Ours and Gymnasium's, over the same factories."""
Question = Callable[..., Any]


@dataclass(frozen=True)
class Answer:
    """What a vector answers to a question.

    Attributes:
        value: What it returns, copied; None if it raises.
        error: Type and text of what it raises, or None.
        warned: Category and text of each warning; a traceback is cut to its first and last line.
    """

    value: Any
    error: tuple[type[BaseException], str] | None
    warned: list[tuple[type[Warning], str]]


def ask(question: Question, *about: Any) -> Answer:
    """Ask one question, and keep whatever comes."""
    value, error = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = copy.deepcopy(question(*about))
        except Exception as raised:
            error = type(raised), str(raised)
    return Answer(value, error, [(each.category, _ends_of(str(each.message))) for each in caught])


def _ends_of(text: str) -> str:
    if "Traceback" not in text:
        return text
    lines = text.splitlines()
    return " ... ".join((lines[0], *lines[-2:]))


def make_theirs(factories: Sequence[Any], **settings: Any) -> AsyncVectorEnv[Any, Any]:
    """Build Gymnasium's vector."""
    _preload()
    with without_main_module():
        return AsyncVectorEnv(factories, **{"context": START_METHOD, **settings})


def make_ours(factories: Sequence[Any], **settings: Any) -> AsyncVectorEnv[Any, Any]:
    """Build ours; two workers, so that one of them hosts several environments."""
    _preload()
    defaults = {"context": START_METHOD, "num_workers": NUM_WORKERS}
    return GroupedVectorEnv(factories, **{**defaults, **settings})


def _preload() -> None:
    multiprocessing.set_forkserver_preload(["gymnasium.vector", "cloudpickle", "tests.scripted"])


@contextmanager
def side_by_side(factories: Sequence[Any], **settings: Any) -> Iterator[Pair]:
    """Build both vectors, and close them by force at the end."""
    theirs = make_theirs(factories, **settings)
    try:
        ours = make_ours(factories, **settings)
        try:
            yield ours, theirs
        finally:
            close(ours)
    finally:
        close(theirs)


def close(envs: AsyncVectorEnv[Any, Any]) -> None:
    """Close by force, whatever is pending, in silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        envs.close(terminate=True)
    gc.collect()


def both(pair: Pair, question: Question) -> Any:
    """Ask both the same question, demand the same answer, and return it."""
    ours, theirs = (ask(question, envs) for envs in pair)
    assert_same_answer(ours, theirs)
    return ours.value


def both_refuse(pair: Pair, question: Question) -> None:
    """Demand that both raise the same kind of error; ours says it better, and warns of nothing."""
    ours, theirs = (ask(question, envs) for envs in pair)
    assert ours.error is not None
    assert theirs.error is not None
    assert issubclass(ours.error[0], theirs.error[0])
    assert ours.warned == []


def assert_same_answer(ours: Answer, theirs: Answer) -> None:
    """Demand the same value, warnings and error; our error may be a subclass and may say more."""
    message = f"ours: {ours.error}, {ours.warned}; theirs: {theirs.error}, {theirs.warned}"
    if theirs.error is None or ours.error is None:
        assert ours.error == theirs.error, message
    else:
        assert issubclass(ours.error[0], theirs.error[0]), message
        text = theirs.error[1].replace("AsyncVectorEnv", type_name(ours.error[1]))
        assert text in ours.error[1], message
    # Environments fail at the same time in any order; the end of all errors comes last.
    assert sorted(ours.warned, key=str) == sorted(theirs.warned, key=str), message
    assert ours.warned[-1:] == theirs.warned[-1:], message
    assert_same(ours.value, theirs.value)


def type_name(text: str) -> str:
    """Return the name that a text has for the class: ours, where it is there."""
    name = GroupedVectorEnv.__name__
    return name if name in text else AsyncVectorEnv.__name__


def assert_same(ours: Any, theirs: Any, where: str = "answer") -> None:
    """Compare nested containers: types, keys, dtypes, shapes and values, bit for bit."""
    assert type(ours) is type(theirs), (where, ours, theirs)
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), (where, list(ours), list(theirs))
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{where}[{key!r}]")
    elif isinstance(theirs, tuple | list):
        assert len(ours) == len(theirs), where
        for i, value in enumerate(theirs):
            assert_same(ours[i], value, f"{where}[{i}]")
    elif isinstance(theirs, np.ndarray):
        kinds = (ours.dtype, ours.shape), (theirs.dtype, theirs.shape)
        assert kinds[0] == kinds[1], (where, *kinds)
        if theirs.dtype == object:
            assert_same(ours.ravel().tolist(), theirs.ravel().tolist(), where)
        else:
            assert ours.tobytes() == theirs.tobytes(), (where, ours, theirs)
    elif isinstance(theirs, np.random.Generator):
        assert_same(ours.bit_generator.state, theirs.bit_generator.state, where)
    elif isinstance(theirs, gym.Space):
        assert repr(ours) == repr(theirs), where
        assert ours == theirs, where
    else:
        assert ours == theirs, (where, ours, theirs)
