"""GroupedVectorEnv answers every question as Gymnasium's AsyncVectorEnv does.

Each test asks both the same questions over the same environments. What Gymnasium's own tests ask
beside this can be run with `make gymnasium-tests`. It is longer than most files: tables.
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    OneOf,
    Sequence,
    Text,
    Tuple,
)
from gymnasium.vector import AutoresetMode

from tests.scripted import ScriptedEnv, WordSpace, scripted
from tests.side_by_side import (
    ask,
    assert_same_answer,
    both,
    both_refuse,
    close,
    make_ours,
    make_theirs,
    side_by_side,
)

if TYPE_CHECKING:
    from tests.side_by_side import Pair, Question

pytestmark = [pytest.mark.usefixtures("nothing_left"), pytest.mark.dropin]

SAME_STEP, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
NUM_ENVS = 3
BOTH = (make_ours, make_theirs)
each_memory = pytest.mark.parametrize("shared_memory", [True, False], ids=["block", "no block"])
each_mode = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)

FIXED = {
    "float32": Box(-1, 1, (2, 3), np.float32),
    "float64": Box(-1, 1, (2,), np.float64),
    "float16": Box(-1, 1, (2,), np.float16),
    "uint8 picture": Box(0, 255, (4, 5, 3), np.uint8),
    "int32": Box(-5, 5, (2,), np.int32),
    "bool": Box(0, 1, (3,), np.bool_),  # type: ignore[arg-type] # it is allowed
    "no axis": Box(-1, 1, (), np.float32),
    "discrete": Discrete(5),
    "discrete from -2": Discrete(5, start=-2),
    "discrete int32": Discrete(5, dtype=np.int32),
    "multi-binary": MultiBinary([2, 3]),
    "multi-discrete": MultiDiscrete([3, 4]),
    "multi-discrete from 10": MultiDiscrete([3, 4], start=[10, 20], dtype=np.int16),
    "tuple": Tuple((Discrete(3), Box(0, 1, (2,), np.float64))),
    "dict": Dict({"z": Box(0, 255, (2, 2), np.uint8), "a": Discrete(4)}),
    "nested": Dict({"b": Tuple((Dict({"x": Box(0, 1)}), MultiBinary(2))), "a": Discrete(2)}),
}
"""Spaces that fit into a block of shared memory."""
FROZEN = {
    "text": Text(6),
    "text in a dict": Dict({"word": Text(min_length=2, max_length=4), "number": Discrete(3)}),
    "one of": OneOf([Discrete(3), Box(0, 1, (2,))]),
    "one of in a tuple": Tuple((OneOf([MultiBinary(2), Text(3)]), Discrete(2))),
}
"""Spaces that fit, but not in Gymnasium: it reads their block once, before the first reset, and
frees it while its workers write to it."""
LOOSE = {
    "graph": Graph(Box(-1, 1, (2,)), Discrete(4)),
    "sequence": Sequence(Discrete(4)),
    "stacked sequence": Sequence(Box(0, 1, (2,)), stack=True),
    "graph in a tuple": Tuple((Graph(Box(-1, 1, (2,)), None), Discrete(2))),
    "custom": WordSpace(),
    "custom in a dict": Dict({"word": WordSpace(), "number": Discrete(3)}),
}
"""Spaces that do not."""


def sampled(pair: Pair, seed: int) -> Any:
    """Return one batch of actions for both."""
    space = pair[1].action_space
    space.seed(seed)
    return space.sample()


def reset_where(mask: Any, **more: Any) -> Question:
    """Ask for a reset of some environments; Gymnasium takes the mask out of the options it gets."""
    return lambda envs: envs.reset(options={"reset_mask": mask, "level": 2}, **more)


def rolled(pair: Pair, steps: int = 7) -> set[str]:
    """Step both over the ends of episodes and compare everything; return the keys of all infos."""
    both(pair, methodcaller("reset", seed=4))
    seen: set[str] = set()
    for step in range(steps):
        actions = sampled(pair, step)
        *_, terminated, truncated, infos = both(pair, methodcaller("step", actions))
        seen |= set(infos)
        both(pair, methodcaller("get_attr", "last_action"))
        ended = terminated | truncated
        if pair[1].autoreset_mode is DISABLED and ended.any():
            both(pair, reset_where(ended))
    return seen


# Spaces


@each_memory
@pytest.mark.parametrize("space", FIXED.values(), ids=FIXED)
def test_observations_and_actions_of_a_fixed_shape(
    space: gym.Space[Any], shared_memory: bool
) -> None:
    factories = scripted(NUM_ENVS, obs_space=space, action_space=space)
    with side_by_side(factories, shared_memory=shared_memory) as pair:
        rolled(pair)


@pytest.mark.parametrize("space", [*LOOSE.values(), *FROZEN.values()], ids=[*LOOSE, *FROZEN])
def test_observations_and_actions_of_any_shape_without_a_block(space: gym.Space[Any]) -> None:
    factories = scripted(NUM_ENVS, obs_space=space, action_space=space)
    with side_by_side(factories, shared_memory=False) as pair:
        rolled(pair)


@pytest.mark.parametrize("space", FROZEN.values(), ids=FROZEN)
def test_what_gymnasiums_block_freezes_moves_in_ours(space: gym.Space[Any]) -> None:
    factories = scripted(NUM_ENVS, obs_space=space, action_space=space)
    theirs = make_theirs(factories, shared_memory=False)
    ours = make_ours(factories, shared_memory=True)
    try:
        rolled((ours, theirs))
    finally:
        close(ours)
        close(theirs)


@each_mode
@each_memory
@pytest.mark.parametrize("space", ["float32", "discrete", "dict", "nested"])
def test_every_autoreset_mode_resets_as_gymnasium_does(
    space: str, shared_memory: bool, mode: AutoresetMode
) -> None:
    factories = scripted(NUM_ENVS, obs_space=FIXED[space])
    with side_by_side(factories, shared_memory=shared_memory, autoreset_mode=mode) as pair:
        seen = rolled(pair, 9)
    assert ("final_obs" in seen) == (mode is SAME_STEP)


@pytest.mark.parametrize(
    "actions",
    [[0, 1, 2], (0, 1, 2), np.array([0, 1, 2], np.int8), np.array([0.0, 1.0, 2.0])],
    ids=["list", "tuple", "int8", "floats"],
)
def test_each_environment_gets_its_action_as_the_caller_gave_it(actions: Any) -> None:
    with side_by_side(scripted(NUM_ENVS)) as pair:
        both(pair, methodcaller("reset"))
        both(pair, methodcaller("step", actions))
        both(pair, methodcaller("get_attr", "last_action"))


@each_memory
@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("space", ["float32", "discrete", "dict"])
def test_what_a_caller_holds_is_a_copy_or_the_vectors_own(
    space: str, copy: bool, shared_memory: bool
) -> None:
    def leaves(obs: Any) -> list[Any]:
        return list(obs.values()) if isinstance(obs, dict) else [obs]

    def facts(envs: Any) -> dict[str, Any]:
        first, _ = envs.reset(seed=1)
        kept = [leaf.copy() for leaf in leaves(first)]
        second = envs.step([0, 1, 2])[0]
        message = {
            "same object": first is second,
            "the vector's": second is envs.observations,
            "same memory": [*map(np.shares_memory, leaves(first), leaves(second))],
            "first unchanged": [*map(np.array_equal, leaves(first), kept)],
            "writable": [leaf.flags.writeable for leaf in leaves(second)],
        }
        envs.close()
        return {**message, "after close": second}

    factories = scripted(NUM_ENVS, obs_space=FIXED[space])
    with side_by_side(factories, shared_memory=shared_memory, copy=copy) as pair:
        message = both(pair, facts)
    assert all(message["same memory"]) is not copy


# Infos


INFOS: dict[str, list[list[dict[Any, Any]]]] = {
    "numbers": [[{"i": 1, "f": 0.5, "b": True}], [{"i": 2, "f": 1.5, "b": False}], [{"i": 3}]],
    "int, then float": [[{"x": 1}], [{"x": 2.7}], [{"x": -0.5}]],
    "float, then int": [[{"x": 1.5}], [{"x": 2}], [{"x": True}]],
    "numpy scalars": [[{"x": np.float32(1), "y": np.int8(3), "z": np.bool_(1)}], [{}], [{}]],
    "numpy, then Python": [[{"x": np.float32(1)}], [{"x": 0.1}], [{"x": np.float64(0.1)}]],
    "complex": [[{"x": 1j}], [{"x": np.complex64(2)}], [{}]],
    "arrays": [[{"x": np.arange(3)}], [{"x": np.ones(3, np.int64)}], [{}]],
    "int arrays, then float arrays": [[{"x": np.arange(2)}], [{"x": np.full(2, 0.7)}], [{}]],
    "no axis": [[{"x": np.array(3.0)}], [{}], [{"x": np.array(4.0)}]],
    "words": [[{"x": "a"}], [{"x": "long"}], [{"y": "b", "x": np.str_("c")}]],
    "nothing": [[{"x": None}], [{}], [{"x": None}]],
    "lists and sets": [[{"x": [1, 2], "y": {3}}], [{"x": (4,)}], [{"x": []}]],
    "spaces": [[{"x": Discrete(3)}], [{}], [{"x": Box(0, 1)}]],
    "nested": [[{"d": {"x": 1, "deep": {"w": "a"}}}], [{"d": {"y": 0.5}}], [{"z": 1}]],
    "empty nested": [[{"d": {}}], [{"d": {"x": 1}}], [{}]],
    "now and then": [[{}, {"x": 1}], [{}, {}, {"y": "b"}], [{"z": 1.0}, {}, {}, {}]],
    "other order": [[{"a": 1, "b": 2}], [{"b": 3, "a": 4}], [{"c": 5, "a": 6}]],
    "underscores": [[{"_x": 1}], [{"x": 2}], [{}]],
    "keys that are no words": [[{1: 1}], [{(2, 3): "t"}], [{None: 0}]],
    "final_obs of the environment": [[{"final_obs": 1}], [{}], [{"final_obs": np.ones(2)}]],
    "final_info of the environment": [[{"final_info": {"x": 1}}], [{}], [{}]],
    "numbers, then words": [[{"x": None}], [{"x": 1}], [{"x": "a"}]],
}
"""By name: what each of the three environments says, step after step."""


@pytest.mark.parametrize("infos", INFOS.values(), ids=INFOS)
def test_infos_are_gathered_as_gymnasium_gathers_them(infos: list[list[dict[Any, Any]]]) -> None:
    factories = [partial(ScriptedEnv, i, length=2 + i, infos=said) for i, said in enumerate(infos)]
    with side_by_side(factories, autoreset_mode=SAME_STEP) as pair:
        seen = rolled(pair, 5)
    assert {"final_info", "final_obs", "seed", "_seed"} <= seen


@each_mode
@each_memory
def test_infos_of_resets_and_steps_in_every_mode(shared_memory: bool, mode: AutoresetMode) -> None:
    infos = [{}, {"x": 1, "d": {"y": "a"}}, {}, {"x": 2}]
    factories = scripted(NUM_ENVS, infos=infos)
    with side_by_side(factories, shared_memory=shared_memory, autoreset_mode=mode) as pair:
        assert {"x", "_x", "d", "_d"} <= rolled(pair, 9)


# Conversations: waiting, misuse, closing


def _close_with(pending: Question, **how: Any) -> list[Question]:
    return [methodcaller("reset"), pending, methodcaller("close", **how), attrgetter("closed")]


STEP = methodcaller("step_async", [0, 1, 2])
MEANWHILE: list[Question] = [
    STEP,
    methodcaller("reset_async"),
    methodcaller("call_async", "message"),
    methodcaller("set_attr", "colour", "red"),
    methodcaller("get_attr", "env_id"),
    methodcaller("render"),
]
WAITS: list[Question] = [methodcaller(f"{call}_wait") for call in ("step", "reset", "call")]
RESERVED = ("reset", "step", "close", "_setattr", "_check_spaces")

CONVERSATIONS: dict[str, list[Question]] = {
    "waiting for nothing": WAITS,
    "a step is pending": [methodcaller("reset"), STEP, *MEANWHILE, *WAITS[1:], WAITS[0]],
    "a reset is pending": [methodcaller("reset_async", seed=3), *MEANWHILE, WAITS[0], WAITS[1]],
    "a call is pending": [methodcaller("call_async", "message", 2, scale=3), *MEANWHILE, WAITS[2]],
    "closed twice": [methodcaller("close"), methodcaller("close"), attrgetter("closed")],
    "closed": [methodcaller("close"), *MEANWHILE, *WAITS, methodcaller("reset"),
               methodcaller("step", [0, 1, 2]), attrgetter("np_random")],
    "closed while a step is pending": _close_with(STEP),
    "closed while a reset is pending": _close_with(methodcaller("reset_async")),
    "closed while a call is pending": _close_with(methodcaller("call_async", "message")),
    "closed by force": [methodcaller("reset"), methodcaller("close", terminate=True)],
    "closed by force while a step is pending": _close_with(STEP, terminate=True),
    "closed within a time": _close_with(STEP, timeout=5),
    "calls": [methodcaller("call", "message"), methodcaller("call", "message", 4, scale=2),
              methodcaller("call", "env_id"), methodcaller("get_attr", "length")],
    "attributes": [methodcaller("set_attr", "colour", "red"), methodcaller("get_attr", "colour"),
                   methodcaller("set_attr", "colour", ["a", "b", "c"]),
                   methodcaller("get_attr", "colour"),
                   methodcaller("set_attr", "colour", np.arange(3)),
                   methodcaller("get_attr", "colour"),
                   methodcaller("set_attr", "colour", (1, 2)),
                   methodcaller("set_attr", "length", [1, 1, 1]),
                   methodcaller("reset"), methodcaller("step", [0, 0, 0])],
    "seeds": [methodcaller("reset", seed=5), attrgetter("np_random_seed"), attrgetter("np_random"),
              methodcaller("reset", seed=[7, None, 9]), attrgetter("np_random_seed"),
              methodcaller("reset", seed=(1, 2, 3)), attrgetter("np_random_seed"),
              methodcaller("reset"), attrgetter("np_random"),
              methodcaller("reset", seed=True), attrgetter("np_random_seed")],
    "too few seeds": [methodcaller("reset", seed=[1, 2]), methodcaller("reset", seed=[])],
    "a numpy seed": [methodcaller("reset", seed=np.int64(3))],
    "options": [methodcaller("reset", options={"level": 2}), methodcaller("reset", options={})],
    "frames": [methodcaller("render")],
    "one action for all": [methodcaller("reset"), methodcaller("step", 0)],
    "no action": [methodcaller("reset"), methodcaller("step", None)],
}  # fmt: skip


@pytest.mark.parametrize("questions", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_conversation_goes_as_with_gymnasium(questions: list[Question]) -> None:
    factories = scripted(NUM_ENVS, infos=[{"said": 1}], render_mode="rgb_array")
    with side_by_side(factories) as pair:
        for question in questions:
            both(pair, question)


REFUSALS: dict[str, Question] = {
    **{f"call of {name}": methodcaller("call", name) for name in RESERVED},
    "call of what is not there": methodcaller("call", "nonsense"),
    "reading a broken attribute": methodcaller("get_attr", "broken"),
    "too few actions": methodcaller("step", [0, 1]),
    "too many actions": methodcaller("step", [0, 1, 2, 0]),
}


@pytest.mark.parametrize("question", REFUSALS.values(), ids=REFUSALS)
def test_a_call_that_cannot_be_made_leaves_our_environments_as_they_are(question: Question) -> None:
    """Gymnasium's class shuts workers down."""
    with side_by_side(scripted(NUM_ENVS)) as pair:
        both(pair, methodcaller("reset"))
        both_refuse(pair, question)
        assert ask(methodcaller("step", [0, 1, 2]), pair[0]).error is None


MASKS = {
    "list": [True, False, True],
    "none": None,
    "int": np.array([1, 0, 1]),
    "float": np.array([1.0, 0.0, 1.0]),
    "too short": np.array([True]),
    "too long": np.array([True] * 4),
    "two axes": np.array([[True, False, True]]),
    "two axes of int": np.array([[1, 0, 1]]),
    "no environment": np.zeros(3, np.bool_),
    "some": np.array([True, False, True]),
    "all": np.ones(3, np.bool_),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_reset_mask_is_taken_or_refused_as_in_gymnasium(mask: Any) -> None:
    with side_by_side(scripted(NUM_ENVS, infos=[{"said": 1}])) as pair:
        both(pair, methodcaller("reset", seed=1))
        both(pair, methodcaller("step", [0, 1, 2]))
        both(pair, reset_where(mask, seed=[5, None, 7]))
        both(pair, methodcaller("step", [0, 1, 2]))
        both(pair, attrgetter("np_random_seed"))


@pytest.mark.parametrize("call", ["step", "reset", "call"])
def test_a_timeout_says_what_gymnasium_says(call: str) -> None:
    starts = {"step": [0, 1, 2], "reset": None, "call": "message"}
    naps = {"message" if call == "call" else call: 0.4}
    with side_by_side(scripted(NUM_ENVS, naps_s={} if call == "step" else naps)) as pair:
        if call == "step":
            both(pair, methodcaller("reset"))
            both(pair, methodcaller("set_attr", "naps_s", naps))
        both(pair, methodcaller(f"{call}_async", starts[call]))
        both(pair, methodcaller(f"{call}_wait", timeout=0.05))
        for envs in pair:  # whether the call is still pending differs, and so do the warnings
            close(envs)
            assert envs.closed


# Environments that fail


@pytest.mark.parametrize("unlucky", [(0,), (1,), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("method", ["reset", "step"])
def test_what_environments_raise_is_logged_and_raised_as_in_gymnasium(
    method: str, unlucky: tuple[int, ...]
) -> None:
    """The last error is raised; with several at once that may be the one of any environment."""
    asked: dict[str, Question] = {
        "reset": methodcaller("reset", seed=1),
        "step": methodcaller("step", [0, 1, 2]),
    }
    factories = [
        partial(ScriptedEnv, i, fails=[method] if i in unlucky else []) for i in range(NUM_ENVS)
    ]
    with side_by_side(factories) as pair:
        if method != "reset":
            both(pair, methodcaller("reset"))
        ours, theirs = (ask(asked[method], envs) for envs in pair)
        assert sorted(ours.warned, key=str) == sorted(theirs.warned, key=str)
        assert ours.warned[-1] == theirs.warned[-1]
        for error in (ours.error, theirs.error):
            assert error in [(ValueError, f"{method} of {i} is out of luck") for i in unlucky]
        both(pair, methodcaller("close"))


@pytest.mark.parametrize("method", ["message", "render"])
def test_what_a_method_raises_is_raised_and_costs_no_environment(method: str) -> None:
    """Gymnasium's class shuts workers down."""
    factories = [partial(ScriptedEnv, i, fails=[method]) for i in range(NUM_ENVS)]
    with side_by_side(factories) as pair:
        both(pair, methodcaller("reset"))
        both_refuse(pair, methodcaller("call", method))
        assert ask(methodcaller("step", [0, 1, 2]), pair[0]).error is None


# Construction


def built(make: Any, factories: list[Any], **settings: Any) -> None:
    """Build a vector and close it."""
    close(make(factories, **settings))


def wrong_worker(index: int, env_fn: Any, pipe: Any) -> None:
    """Stand for a worker function that takes too few arguments."""


WRONG: dict[str, dict[str, Any]] = {
    "max_concurrency 0": {"max_concurrency": 0},
    "max_concurrency -1": {"max_concurrency": -1},
    "max_concurrency 2.0": {"max_concurrency": 2.0},
    "max_concurrency '2'": {"max_concurrency": "2"},
    "observation_mode": {"observation_mode": "invalid"},
    "observation_mode of three": {"observation_mode": (Discrete(3),) * 3},
    "observation_mode of no spaces": {"observation_mode": ("a", "b")},
    "autoreset_mode": {"autoreset_mode": "never"},
    "context": {"context": "nonsense"},
    "worker": {"worker": wrong_worker},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_refused_as_in_gymnasium(wrong: dict[str, Any]) -> None:
    answers = [ask(partial(built, **wrong), make, scripted(2)) for make in BOTH]
    assert answers[1].error
    assert_same_answer(*answers)


@pytest.mark.parametrize("space", LOOSE.values(), ids=LOOSE)
def test_a_space_without_a_fixed_shape_is_refused_a_block_as_in_gymnasium(
    space: gym.Space[Any],
) -> None:
    factories = scripted(2, obs_space=space)
    answers = [ask(built, make, factories) for make in BOTH]
    assert answers[1].error
    assert_same_answer(*answers)


HIGHER = [Box(0, high, (2,), np.float32) for high in (1, 2, 3)]
DIFFERING: dict[str, list[gym.Space[Any]]] = {
    "bounds": list(HIGHER),
    "shapes": [Box(0, 1, (n,), np.float32) for n in (2, 3, 2)],
    "dtypes": [Box(0, 1, (2,), dtype) for dtype in (np.float32, np.float64, np.float32)],
    "kinds": [Discrete(3), Box(0, 1, (2,)), MultiBinary(3)],
    "nothing": [HIGHER[0]] * 3,
    "ranges": [Discrete(3), Discrete(4), Discrete(5)],
}
MODES_OF_OBS: dict[str, Any] = {
    "same": "same",
    "different": "different",
    "two spaces": (Box(0, 3, (3, 2), np.float32), HIGHER[2]),
}


def _sub_spaces(factories: list[Any], **settings: Any) -> Question:
    """Build a vector with a maker, look at its spaces, roll it and close it."""

    def question(make: Any) -> Any:
        envs = make(factories, **settings)
        try:
            spaces = envs.single_observation_space, envs.observation_space
            return *spaces, envs.reset(seed=1), envs.step([0, 1, 2])
        finally:
            close(envs)

    return question


@each_memory
@pytest.mark.parametrize("mode", MODES_OF_OBS.values(), ids=MODES_OF_OBS)
@pytest.mark.parametrize("spaces", DIFFERING.values(), ids=DIFFERING)
def test_environments_that_differ_are_taken_or_refused_as_in_gymnasium(
    spaces: list[gym.Space[Any]], mode: Any, shared_memory: bool
) -> None:
    factories = [partial(ScriptedEnv, i, space) for i, space in enumerate(spaces)]
    question = _sub_spaces(factories, observation_mode=mode, shared_memory=shared_memory)
    assert_same_answer(*(ask(question, make) for make in BOTH))


def test_other_action_spaces_are_refused_as_in_gymnasium() -> None:
    factories = [partial(ScriptedEnv, i, action_space=Discrete(2 + i)) for i in range(3)]
    answers = [ask(built, make, factories) for make in BOTH]
    assert answers[1].error
    assert_same_answer(*answers)


@pytest.mark.parametrize("shared_memory", [True, False])
def test_what_describes_a_vector_is_what_gymnasium_says(shared_memory: bool) -> None:
    factories = scripted(NUM_ENVS, render_mode="rgb_array")
    settings = {"shared_memory": shared_memory, "daemon": False, "max_concurrency": 2}
    names = (
        "num_envs", "single_observation_space", "observation_space", "single_action_space",
        "action_space", "metadata", "render_mode", "autoreset_mode", "observation_mode", "spec",
        "closed", "shared_memory", "copy", "daemon", "worker", "max_concurrency", "context",
        "np_random_seed", "np_random", "observations",
    )  # fmt: skip
    with side_by_side(factories, **settings) as pair:
        both(pair, methodcaller("reset", seed=[1, 2, 3]))
        for name in names:
            both(pair, attrgetter(name))
        both(pair, lambda e: (e.unwrapped is e, e.env_fns is factories))
        both(pair, lambda e: repr(e).partition("(")[2])
        both(pair, lambda e: {process.daemon for process in e.processes})
    assert "autoreset_mode" not in ScriptedEnv.metadata


def test_environments_made_by_functions_of_the_caller_cross_to_the_workers() -> None:
    bonus = 5

    class Local(ScriptedEnv):
        def step(self, action: Any) -> Any:
            obs, reward, *rest = super().step(action)
            return obs, reward + bonus, *rest

    factories = [lambda i=i: gym.wrappers.TimeLimit(Local(i), 2) for i in range(NUM_ENVS)]
    with side_by_side(factories) as pair:
        rolled(pair)
        both(pair, methodcaller("call", "message", 1))
