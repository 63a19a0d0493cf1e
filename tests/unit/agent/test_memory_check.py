"""Atoms and quantiles that do not fit into memory are refused before anything starts."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from fastdqn import DQN, MLP, C51Objective, IQNObjective, QRObjective, UsageError
from fastdqn.agent import memory_check, preflight
from fastdqn.cli.commands import main
from fastdqn.config import flag_of
from fastdqn.training.checkpoint import load_policy, save_policy
from tests.small_agents import OWN_PROCESS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("c51", {"num_atoms": 20_000}),
        ("qr", {"num_quantiles": 20_000}),
        ("iqn", {"num_quantiles": 20_000}),
        ("iqn", {"num_quantiles": 2_000_000_000}),
        ("iqn", {"num_quantiles": 2_000_000, "batch_size": 1}),
    ],
)
def test_numbers_that_do_not_fit_into_memory_are_refused_by_name(
    name: str, given: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ((number, count), *_) = given.items()
    settings = {**OWN_PROCESS, "batch_size": 512, "buffer_size": 1_000, **given}
    with pytest.raises(UsageError) as refused:
        DQN("CartPole-v1", objective=name, **settings)
    assert refused.value.got == f"{flag_of(number)} {count}"
    flags = [word for name, value in given.items() for word in (flag_of(name), str(value))]
    flags += ["--objective", name, "--num-workers", "0", "--run-dir", str(tmp_path / "run")]
    assert main(["train", "--env-id", "CartPole-v1", "--batch-size", "512", *flags]) == 2
    assert f"{flag_of(number)} {count}" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("c51", 4 * 2 * 8 * 5_000**2),
        ("qr", 4 * 6 * 8 * 5_000**2),
        ("iqn", 4 * 6 * 8 * 5_000**2),
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_memory_is_counted_to_the_byte(
    name: str, needed: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = "num_atoms" if name == "c51" else "num_quantiles"
    made = {"c51": C51Objective, "qr": QRObjective, "iqn": IQNObjective}[name](**{number: 5_000})
    given = {"objective": made} if own else {"objective": name, number: 5_000}
    network = None if name == "iqn" else MLP((4,), 2, (8,), num_atoms=5_000)
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(memory_check, "available_bytes", lambda _, free=free: free)
        context = nullcontext() if fits else pytest.raises(UsageError, match=flag_of(number))
        with context:
            DQN("CartPole-v1", network=network, **{**OWN_PROCESS, **given})


@pytest.mark.parametrize(("num_envs", "hidden", "width"), [(20, (8,), 2 + 64 + 16), (2, (), 66)])
def test_the_fractions_of_iqn_are_counted_in_every_row(
    num_envs: int, hidden: tuple[int, ...], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**OWN_PROCESS, "batch_size": 4, "num_quantiles": 3, "hidden_sizes": hidden}
    settings["num_envs"] = num_envs
    needed = 4 * max(num_envs, 4) * 3 * width
    monkeypatch.setattr(preflight, "refuse_wide", lambda *_: None)
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(memory_check, "available_bytes", lambda _, free=free: free)
        with nullcontext() if fits else pytest.raises(UsageError, match="--num-quantiles 3"):
            DQN("CartPole-v1", objective="iqn", **settings)


def test_a_file_that_names_too_many_quantiles_is_refused(tmp_path: Path) -> None:
    DQN("CartPole-v1", objective="iqn", **OWN_PROCESS).save(tmp_path / "saved")
    saved = load_policy(tmp_path / "saved")
    described = {k: v for k, v in saved.description.items() if k not in {"schema", "sha256"}}
    described["config"] = {**described["config"], "num_quantiles": 2_000_000_000}
    save_policy(tmp_path / "forged", saved.parameters, described)
    smallest: dict[str, Any] = {"batch_size": 1, "num_envs": 1}
    for settings in (OWN_PROCESS, smallest):
        with pytest.raises(UsageError, match="--num-quantiles 2000000000"):
            DQN.load(tmp_path / "forged", **settings)
