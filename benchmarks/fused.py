"""Env steps per second of the fused iteration: CartPole on the device, one update per vector step.

`python -m benchmarks.fused` prints a row per setting: eager and compiled, measured in turns in
one process, with the ratio. The settings are those of PureJaxRL's DQN: 120-84 units, batch 128,
plain DQN, 10 and 64 environments.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import torch

from benchmarks.provenance import as_markdown, provenance
from fastdqn.blocks import Block, plan
from fastdqn.device import resolve_device, synchronize
from fastdqn.envs.tensor import make_tensor_env
from fastdqn.fused import FusedRollout
from fastdqn.learner import Learner
from fastdqn.networks import MLP

HIDDEN, BATCH, CAPACITY = (120, 84), 128, 10_000
EPSILON = 0.05
FILL_STEPS = 2_000


def build(num_envs: int, execution: str, device: torch.device) -> FusedRollout:
    """Return a rollout that has filled a part of its ring and made its first updates."""
    torch.manual_seed(0)
    env = make_tensor_env("CartPole-v1", num_envs, device)
    learner = Learner(
        MLP((4,), 2, HIDDEN),
        double=False,
        loss="mse",
        learning_rate=2.5e-4,
        clip_norm=None,
        target="hard",
        target_period=500,
        device=device,
    )
    state = learner.state
    learned = (state.online, state.target, *state.slots, state.updates, state.skipped)
    rollout = FusedRollout(
        env,
        learner.network,
        partial(learner.step, state),
        capacity=CAPACITY,
        batch_size=BATCH,
        seed=0,
        execution=execution,
        learned=(*learned, state.metrics),
        learn_natively=partial(learner.natively, state),
    )
    while rollout.env_steps < FILL_STEPS:
        rollout.advance(Block(1, 0, 16, rare=True), 1.0)
    return rollout


def rate(rollout: FusedRollout, block: Block, seconds: float) -> float:
    """Return env steps per second over at least so many seconds."""
    synchronize(rollout.device)
    before, start = rollout.env_steps, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        rollout.advance(block, EPSILON)
    synchronize(rollout.device)
    elapsed = time.perf_counter() - start
    return (rollout.env_steps - before) / elapsed


def compare(num_envs: int, fast: str, device: torch.device, repeats: int, seconds: float) -> str:
    """Time eager and fast in turns; return a row of the table."""
    block = plan(1 / num_envs, num_envs, unrolled=repeats)
    rollouts = {execution: build(num_envs, execution, device) for execution in ("eager", fast)}
    for rollout in rollouts.values():
        rate(rollout, block, 0.5)
    rounds = [
        {execution: rate(rollout, block, seconds) for execution, rollout in rollouts.items()}
        for _ in range(5)
    ]
    eager, quick = (statistics.median(turn[name] for turn in rounds) for name in ("eager", fast))
    ratio = statistics.median(turn[fast] / turn["eager"] for turn in rounds)
    compile_s = rollouts[fast].compile_s
    return (
        f"| {num_envs} | {eager:,.0f} | {quick:,.0f} | {num_envs / quick * 1e6:.0f} | "
        f"{ratio:.1f} | {compile_s:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--execution", default="native", choices=("native", "compile", "cudagraph"))
    parser.add_argument("--repeats", type=int, default=4, help="iterations of one call")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one timing, s")
    parser.add_argument("--threads", type=int, default=1, help="threads of one operation")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(as_markdown(provenance("python -m benchmarks.fused")), end="\n\n")
    print(
        f"| envs | eager, env steps/s | {given.execution}, env steps/s | us per iteration |", end=""
    )
    print(" ratio | compile s |\n|---|---|---|---|---|---|")
    for num_envs in (10, 64):
        device = resolve_device(given.device)
        print(compare(num_envs, given.execution, device, given.repeats, given.seconds), flush=True)


if __name__ == "__main__":
    main()
