"""Ids and the modules that register them: found where they should be, or refused with a way out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium as gym
import pytest

from fastdqn.envs.description import describe
from fastdqn.envs.specs.ids import factory_of, spec_of
from fastdqn.envs.specs.wrapping import factory_with
from fastdqn.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
GRIDS = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Grid(CartPoleEnv):
    pass

class Around(gym.Wrapper):
    pass

gym.register("Grid-v0", "far_away_envs:Grid", max_episode_steps=20)
gym.register("space/Grid-v3", "far_away_envs:Grid", max_episode_steps=20)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module of environments, which is nowhere on the path."""
    (tmp_path / "far_away_envs.py").write_text(GRIDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part])
    registered = dict(gym.registry)
    yield tmp_path
    sys.modules.pop("far_away_envs", None)
    gym.registry.clear()
    gym.registry.update(registered)


# Modules


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["Grid-v0", "space/Grid-v3"])
def test_a_module_of_the_current_folder_is_imported_first(name: str) -> None:
    assert describe(factory_of(f"far_away_envs:{name}")).env_id == name
    assert sys.path[0] == str(Path.cwd())


@pytest.mark.usefixtures("folder")
def test_the_current_folder_is_looked_in_for_modules_alone_and_once() -> None:
    before = list(sys.path)
    spec_of("CartPole-v1")
    assert sys.path == before
    spec_of("far_away_envs:Grid-v0")
    spec_of("far_away_envs:Grid-v0")
    assert sys.path == [str(Path.cwd()), *before]


@pytest.mark.usefixtures("folder")
def test_an_interpreter_that_is_to_be_safe_does_not_look_in_the_current_folder() -> None:
    run = "from fastdqn.envs.specs.ids import spec_of; spec_of('far_away_envs:Grid-v0')"
    done = subprocess.run(
        [sys.executable, "-P", "-c", run],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No module named 'far_away_envs'" in done.stderr


@pytest.mark.slow
def test_a_command_finds_a_module_of_its_folder_in_workers_and_evaluations(folder: Path) -> None:
    """As a console script, whose own folder takes the place of the current one on the path."""
    script = folder / "bin" / "command.py"
    script.parent.mkdir()
    script.write_text("import sys\nfrom fastdqn.__main__ import run\nsys.exit(run())\n")
    words = "train --env-id far_away_envs:Grid-v0 --total-timesteps 300 --learning-starts 100"
    words += " --num-envs 2 --num-workers 2 --device cpu --execution eager --eval-episodes 2"
    words += f" --run-dir {folder / 'run'}"
    done = subprocess.run(
        [sys.executable, str(script), *words.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "over 2 fresh episodes" in done.stdout


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("env_id", "reason", "way_out"),
    [
        ("no_such_module:CartPole-v1", "No module named 'no_such_module'", "no_such_module.py"),
        ("no_such.module:CartPole-v1", "No module named 'no_such'", "folder of no_such.py"),
        ("broken:X-v0", r"broken cannot be imported \(SyntaxError", "fix the module"),
        ("raising:X-v0", r"raising cannot be imported \(KeyError: 'x'", "fix the module"),
        ("lacking:X-v0", r"lacking cannot be imported .*No module named 'lost'", "fix the module"),
        ("./far_away_envs.py:Grid-v0", "cannot be imported|No module", "myenvs.py|install"),
        (".far:Grid-v0", "cannot be imported", "module:Name-v0"),
        ("far_away_envs:Gird-v0", "`Gird` doesn't exist", r"Did you mean Grid-v0"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_what_to_do(
    env_id: str, reason: str, way_out: str
) -> None:
    Path("broken.py").write_text("def")
    Path("raising.py").write_text("{}['x']")
    Path("lacking.py").write_text("import lost")
    with pytest.raises(UsageError) as refused:
        factory_of(env_id)
    assert refused.value.got == f"--env-id {env_id}"
    refused.match(reason)
    assert any(part in refused.value.way_out for part in way_out.split("|"))


@pytest.mark.usefixtures("folder")
def test_a_wrapper_of_the_current_folder_is_found_as_an_id_is() -> None:
    env = factory_with("CartPole-v1", None, ("far_away_envs:Around",))()
    assert type(env).__name__ == "Around"
    env.close()


# Packages that are known to register ids


@pytest.mark.parametrize(
    ("env_id", "package"),
    [
        ("ALE/Pong-v5", "fastdqn[atari]"),
        ("ale/pong-v5", "fastdqn[atari]"),
        ("PongNoFrameskip-v4", "fastdqn[atari]"),
        ("MiniGrid-Empty-5x5-v0", "minigrid"),
        ("BabyAI-GoToObj-v0", "minigrid"),
    ],
)
def test_an_id_of_a_package_that_is_not_installed_says_how_to_install_it(
    env_id: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("ale_py", "minigrid"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError) as refused:
        factory_of(env_id)
    assert refused.value.way_out == f'Run: pip install "{package}"'
    assert "Did you mean" not in str(refused.value)


@pytest.mark.parametrize("wrong", ["ALE/Pnog-v5", "ale/Pong-v5"])
@pytest.mark.usefixtures("folder")
def test_an_id_of_a_package_that_is_installed_needs_no_module(
    wrong: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake of the package; the true one is tried by hand, since it is large."""
    monkeypatch.syspath_prepend(folder)
    (folder / "ale_py.py").write_text(GRIDS.replace("space/Grid-v3", "ALE/Pong-v5"))
    monkeypatch.delitem(sys.modules, "ale_py", raising=False)
    assert spec_of("ALE/Pong-v5").max_episode_steps == 20
    with pytest.raises(UsageError, match=r"Did you mean ALE/Pong-v5\?"):
        spec_of(wrong)
    monkeypatch.delitem(sys.modules, "ale_py")


def test_what_is_like_an_id_in_another_namespace_is_not_named() -> None:
    with pytest.raises(UsageError, match="CartPole-v1") as refused:
        factory_of("nowhere/CartPole-v1")
    assert "Did you mean" not in str(refused.value)
    assert "--env-id package:nowhere/CartPole-v1" in refused.value.way_out
