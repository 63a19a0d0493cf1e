"""Environments that an import registers in the caller's process are known in the workers."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import threading
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.registration import WrapperSpec

from fastdqn import DQN
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.specs import registrations
from fastdqn.envs.specs.registrations import packed_registry, register
from fastdqn.envs.workers.supervision import Supervision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[3]
PACKAGE = '''
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Bird(CartPoleEnv):
    def __init__(self, wings=2, **kwargs):
        super().__init__(**kwargs)
        self.wings = wings

class Odd:
    """An argument that is no plain data."""

gym.register("Bird-v0", "birds_of_a_test:Bird", max_episode_steps=20, kwargs={"wings": 4})
gym.register("nest/Bird-v1", Bird, kwargs={"wings": 6})
gym.register("Odd-v0", "birds_of_a_test:Bird", kwargs={"wings": Odd()})
gym.register("Still-v0", "gymnasium.envs.toy_text:FrozenLakeEnv", kwargs={"is_slippery": False})
gym.register("Acrobot-v1", "birds_of_a_test:Bird")
'''


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a package that registers environments, and know nothing of it afterwards."""
    (tmp_path / "birds_of_a_test.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(gym.registry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield importlib.import_module("birds_of_a_test")
    sys.modules.pop("birds_of_a_test")
    gym.registry.clear()
    gym.registry.update(before)


FACTORIES: dict[str, Callable[[], Any]] = {
    "lambda": lambda: gym.make("Bird-v0"),
    "partial": partial(gym.make, "Bird-v0"),
    "wrapped": lambda: gym.wrappers.FlattenObservation(gym.make("Bird-v0")),
}


@pytest.mark.usefixtures("birds", "nothing_left")
@pytest.mark.parametrize("context", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("name", FACTORIES)
def test_an_id_that_an_import_registered_is_known_in_workers(name: str, context: str) -> None:
    envs = GroupedVectorEnv([FACTORIES[name]] * 2, num_workers=2, context=context)
    try:
        assert envs.get_attr("wings") == (4, 4)
        assert [spec.max_episode_steps for spec in envs.get_attr("spec")] == [20, 20]
    finally:
        envs.close()


@pytest.mark.usefixtures("birds", "nothing_left")
@pytest.mark.parametrize("vectorizer", ["grouped", "async", "sync"])
def test_an_agent_trains_and_is_evaluated_where_an_import_registered_its_environment(
    vectorizer: str,
) -> None:
    workers = 2 if vectorizer == "grouped" else None
    settings: dict[str, Any] = {
        "num_envs": 2,
        "num_workers": workers,
        "learning_starts": 64,
        "device": "cpu",
    }
    agent = DQN(
        FACTORIES["lambda"],
        vectorizer=vectorizer,
        execution="eager",
        **settings,
    )
    assert agent.learn(80).evaluate(2).episodes == 2


@pytest.mark.usefixtures("birds", "nothing_left")
def test_a_worker_that_is_restarted_knows_the_ids_as_well() -> None:
    envs = GroupedVectorEnv([FACTORIES["lambda"]] * 2, num_workers=1, supervision=Supervision())
    try:
        envs.reset(seed=1)
        envs.processes[0].kill()
        while envs.num_restarts == 0 or envs._pool.restarted.any():
            envs.step([0, 0])
        assert envs.get_attr("wings") == (4, 4)
    finally:
        envs.close()


@pytest.mark.usefixtures("birds", "nothing_left")
@pytest.mark.parametrize(
    ("env_id", "wings"),
    [
        ("Bird-v0", 4),
        ("nest/Bird-v1", 6),
        ("Odd-v0", None),
        ("Still-v0", None),
        ("Acrobot-v1", 2),  # Gymnasium's own id, and not its environment
    ],
)
def test_workers_build_what_the_caller_would(env_id: str, wings: int | None) -> None:
    def make() -> gym.Env[Any, Any]:
        return gym.make(env_id)

    envs = GroupedVectorEnv([make], num_workers=1)
    try:
        (spec,) = envs.get_attr("spec")
        here = make()
        assert spec.id == env_id
        assert envs.single_observation_space == here.observation_space
        assert wings is None or envs.get_attr("wings") == (wings,) == (here.unwrapped.wings,)  # type: ignore[attr-defined]
        assert env_id != "Still-v0" or spec.kwargs == {"is_slippery": False}
    finally:
        envs.close()


@pytest.mark.usefixtures("birds", "nothing_left")
def test_an_id_that_cannot_travel_is_named_with_what_to_write() -> None:
    def make() -> gym.Env[Any, Any]:
        return gym.make("Unsendable-v0")

    gym.register("Unsendable-v0", "birds_of_a_test:Bird", kwargs={"wings": Unpicklable()})
    with pytest.raises(gym.error.UnregisteredEnv) as refused:
        GroupedVectorEnv([make], num_workers=1)
    said = str(refused.value)
    assert "Unsendable-v0 (TypeError: never" in said
    assert "def make():\n    import module_that_registers_it\n    return gymnasium.make(" in said


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("never")

    def __deepcopy__(self, memo: Any) -> Unpicklable:
        return self


def test_an_environment_of_the_callers_script_is_known_in_workers(tmp_path: Path) -> None:
    """By name, by class, and with a factory that imports the module once more, silently."""
    (tmp_path / "birds_of_a_test.py").write_text(PACKAGE.replace("Acrobot-v1", "Another-v1"))
    script = tmp_path / "script.py"
    script.write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "from fastdqn.envs.grouped import GroupedVectorEnv\n"
        "import birds_of_a_test\n"
        "class Own(CartPoleEnv):\n    metadata = {'render_modes': ['rgb_array']}\n"
        "gym.register('Own-v0', '__main__:Own')\n"
        "gym.register('Other-v1', Own)\n"
        "def late():\n    import birds_of_a_test\n    return gym.make('Bird-v0')\n"
        "def drawn():\n    return gym.make('Own-v0', render_mode='rgb_array')\n"
        "makes = [drawn, lambda: gym.make('Other-v1'), late]\n"
        "envs = GroupedVectorEnv(makes, num_workers=2)\n"
        "print([spec.id for spec in envs.get_attr('spec')])\n"
        "envs.close()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("['Own-v0', 'Other-v1', 'Bird-v0']\n", "")


def test_what_is_registered_travels_once_and_is_then_the_same() -> None:
    before = dict(gym.registry)
    gym.register("Twice-v0", CartPoleEnv, kwargs={"render_mode": None})  # type: ignore[arg-type]
    wrapper = WrapperSpec("Flat", "gymnasium.wrappers:FlattenObservation", {})
    gym.register("Thrice-v0", "gymnasium.envs.classic_control:CartPoleEnv")
    gym.registry["Thrice-v0"].additional_wrappers = (wrapper,)
    gym.registry["Thrice-v0"].vector_entry_point = threading.Lock  # type: ignore[assignment]
    packed = packed_registry()
    try:
        gym.registry.clear()
        register(packed)
        after = dict(gym.registry)
        gym.registry.clear()
        register(packed)
        again = len(gym.registry)
    finally:
        gym.registry.clear()
        gym.registry.update(before)
    assert set(after) == {*before, "Twice-v0", "Thrice-v0"}
    assert again == 0
    assert all(
        after[name] == spec for name, spec in before.items() if isinstance(spec.entry_point, str)
    )
    assert after["Thrice-v0"].additional_wrappers == (wrapper,)
    env = after["Twice-v0"].make()
    assert type(env.unwrapped) is CartPoleEnv


def test_a_creator_that_carries_much_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrations, "LARGEST_BYTES", 1000)
    heavy = bytes(2000)
    monkeypatch.setitem(gym.registry, "Heavy-v0", gym.spec("CartPole-v1"))
    gym.registry["Heavy-v0"] = gym.envs.registration.EnvSpec("Heavy-v0", lambda: heavy)  # type: ignore[arg-type]
    specs, left_out = pickle.loads(packed_registry())  # noqa: S301 - packed here
    assert "Heavy-v0" not in specs
    assert "ValueError" in left_out["Heavy-v0"]
    assert "CartPole-v1" in specs
