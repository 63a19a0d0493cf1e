"""The settings of a run: frozen, checked before anything starts, documented at the field.

The text below each field is the help of its flag; it gives the unit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from fastdqn.errors import UsageError

__all__ = ["Config", "check", "choices_of", "flag_of", "plain", "spelled"]


@dataclass(frozen=True)
class Config:
    """Settings of one training run. Later flags win over the preset."""

    env_id: str = "LunarLander-v3"
    """Gymnasium id with a discrete action space; `module:Name-v0` imports the module first."""
    seed: int = 0
    """Seed of everything: environments, network, exploration, replay."""
    total_timesteps: int = 300_000
    """Length of the run in env steps, over all environments."""
    num_envs: int = 16
    """Environments stepped side by side."""
    num_workers: int | None = None
    """Worker processes that host them; 0 is none, None is one per core but one, which learns."""
    env_groups: int = 1
    """Groups of environments; of 2, one steps while the network acts for the other."""
    vectorizer: Literal["grouped", "async", "sync", "envpool", "tensor"] = "grouped"
    """Who steps them: our grouped workers, Gymnasium's AsyncVectorEnv or SyncVectorEnv, EnvPool,
    or tensor environments on the device."""
    worker_deadline_s: float = 120.0
    """Seconds that a worker may take for a step or a reset; one that takes longer is restarted."""
    max_worker_restarts: int = 100
    """Restarts of workers within ten minutes; one more ends the run."""
    action_masks: bool = True
    """Obey the action masks of environments that give some, when acting and in the target."""
    expect_action_masks: bool = False
    """Keep room for action masks though an environment's first infos hold none."""

    double: bool = True
    """Double DQN: the online network chooses the next action, the target network values it."""
    gamma: float = 0.99
    """Discount per env step."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Units of each hidden layer of the MLP."""
    kaiming: bool = False
    """Start the MLP from He's normal initialisation instead of PyTorch's."""
    loss: Literal["huber", "mse"] = "huber"
    """Loss of the TD error."""
    target: Literal["soft", "hard", "none"] = "soft"
    """Target network: moved softly each update, copied now and then, or none at all."""
    tau: float = 0.005
    """Fraction that the soft target moves per update."""
    target_period: int = 0
    """Updates between hard copies; 0 is never."""
    target_period_episodes: int = 0
    """Finished episodes between hard copies; 0 is never."""

    optimizer: Literal["adam", "adamw", "rmsprop"] = "adam"
    """Optimizer of the online network."""
    learning_rate: float = 5e-4
    """Step size of the optimizer."""
    weight_decay: float = 0.0
    """Weight decay of the optimizer."""
    amsgrad: bool = False
    """Let Adam and AdamW divide by the largest second moment so far."""
    clip_norm: float | None = 10.0
    """Largest norm of the gradient; None leaves it."""
    clip_value: float | None = None
    """Largest magnitude of each element of the gradient; None leaves it."""

    replay: Literal["uniform", "newest"] = "uniform"
    """Learn from all stored transitions alike, or, without replay, from the newest ones only."""
    buffer_size: int = 100_000
    """Transitions that the replay ring holds."""
    batch_size: int = 128
    """Transitions per update."""
    learning_starts: int = 1_024
    """Env steps before the first update is owed."""
    replay_ratio: float = 0.25
    """Updates per env step, kept exactly."""

    epsilon_schedule: Literal["exponential", "linear", "multiplicative", "constant"] = "exponential"
    """How exploration falls: over env steps, over env steps, per episode, not at all."""
    epsilon_start: float = 0.9
    """Probability of a random action at the first env step."""
    epsilon_end: float = 0.05
    """Probability of a random action in the end; both 0 is greedy from the start."""
    epsilon_decay_steps: int = 20_000
    """Env steps: time constant of the exponential, length of the linear schedule."""
    epsilon_decay_factor: float = 0.995
    """Factor per finished episode of the multiplicative schedule."""

    stop_at_return: float | None = None
    """Stop when the mean return of a greedy evaluation on fresh environments reaches this."""
    eval_episodes: int = 100
    """Fresh episodes of the evaluation that may stop the run and of the one at its end."""
    eval_interval: int = 10_000
    """Env steps between evaluations while `stop_at_return` is set."""

    device: str = "auto"
    """Where replay and network live: auto, cpu, cuda, cuda:N or mps."""
    execution: Literal["auto", "eager", "native", "compile", "cudagraph", "compile+cudagraph"] = (
        "auto"
    )
    """How the update runs: as it is; native, for an MLP: in C on the CPU, by kernels of our own
    on CUDA; compiled; or recorded as a CUDA graph. auto measures what is fastest."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Bits of a number in the forward and backward passes of the update: 32; products of 19 bits
    (CUDA); or 16 (CUDA and CPU). Parameters always have 32."""
    cpu_threads: int = 1
    """Threads of PyTorch's CPU operations; more than one slows small networks down."""

    run_dir: Path | None = None
    """Folder of the run; None is runs/<env>__<preset or algo>__<seed>__<time>."""
    log_interval: int = 5_000
    """Env steps between reports and lines of metrics.jsonl."""
    checkpoint_interval: int = 50_000
    """Env steps between saved policies; one is always saved at the end."""
    tensorboard: bool = False
    """Write TensorBoard events beside metrics.jsonl."""
    quiet: bool = False
    """Show no progress on the terminal; the files are written all the same."""
    preset: str = ""
    """Name of a preset that fills the other settings (see `fastdqn presets`)."""

    def __post_init__(self) -> None:
        check(self)


_AT_LEAST_ONE = (
    "total_timesteps",
    "num_envs",
    "env_groups",
    "buffer_size",
    "batch_size",
    "epsilon_decay_steps",
    "eval_episodes",
    "eval_interval",
    "cpu_threads",
    "log_interval",
    "checkpoint_interval",
)
_NOT_NEGATIVE = (
    "seed",
    "target_period",
    "target_period_episodes",
    "weight_decay",
    "learning_starts",
    "learning_rate",
    "max_worker_restarts",
)
_NOT_NEGATIVE_OR_NONE = ("num_workers",)
_FRACTIONS = ("gamma", "epsilon_start", "epsilon_end")
_POSITIVE_FRACTIONS = ("tau", "epsilon_decay_factor")
_POSITIVE = ("replay_ratio", "clip_norm", "clip_value", "worker_deadline_s")


def check(config: Config) -> None:
    """Refuse what cannot be used, naming the flag, the value and the way out.

    Raises:
        UsageError: A value is of a wrong type or out of its range, or two exclude each other.
    """
    _check_types(config)
    for name in _AT_LEAST_ONE:
        _demand(config, name, lambda v: v >= 1, "it must be at least 1")
    for name in _NOT_NEGATIVE:
        _demand(config, name, lambda v: v >= 0, "it must not be negative")
    for name in _NOT_NEGATIVE_OR_NONE:
        _demand(config, name, lambda v: v is None or v >= 0, "it must not be negative")
    for name in _FRACTIONS:
        _demand(config, name, lambda v: 0 <= v <= 1, "it must lie in [0, 1]")
    for name in _POSITIVE:
        _demand(config, name, lambda v: v is None or v > 0, "it must be positive")
    for name in _POSITIVE_FRACTIONS:
        _demand(config, name, lambda v: 0 < v <= 1, "it must lie in (0, 1]")
    _demand(config, "hidden_sizes", _are_sizes, "a layer has a whole number of units, 1 or more")
    _check_choices(config)
    for got, reason, way_out in _conflicts(config):
        raise UsageError(got, reason, way_out)


def _demand(config: Config, name: str, fine: Callable[[Any], bool], reason: str) -> None:
    value = getattr(config, name)
    if not fine(value):
        way_out = f"The default is {spelled(Config.__dataclass_fields__[name].default)}."
        raise UsageError(f"{flag_of(name)} {spelled(value)}", reason, way_out)


def _check_types(config: Config) -> None:
    """Hold numbers to be numbers, and finite, for those who build a Config in Python."""
    for field in fields(config):
        kind, _, optional = str(field.type).partition(" | ")
        if kind in _NUMBERS and not (optional and getattr(config, field.name) is None):
            _demand(config, field.name, *_NUMBERS[kind])


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


_NUMBERS = {
    "int": (_is_whole, "it must be a whole number (int)"),
    "float": (_is_finite, "it must be a finite number"),
}


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(_is_whole(size) and size > 0 for size in value)


def _check_choices(config: Config) -> None:
    """Hold the Literal fields to their choices, for those who build a Config in Python."""
    for field in fields(config):
        choices, value = choices_of(field), getattr(config, field.name)
        if choices and value not in choices:
            raise UsageError(
                f"{flag_of(field.name)} {value}",
                "there is no such choice",
                f"Choose {', '.join(choices)}.",
            )


def _conflicts(config: Config) -> Iterator[tuple[str, str, str]]:
    """Name the pairs of values that exclude each other."""
    if config.batch_size > config.buffer_size:
        yield (
            f"--batch-size {config.batch_size}",
            f"it is larger than --buffer-size {config.buffer_size}",
            "Make the batch smaller or the buffer larger.",
        )
    if config.learning_starts >= config.total_timesteps:
        yield (
            f"--learning-starts {config.learning_starts}",
            f"the run ends at --total-timesteps {config.total_timesteps}, so nothing is learned",
            "Start earlier or run longer.",
        )
    if config.num_envs > config.buffer_size:
        yield (
            f"--num-envs {config.num_envs}",
            f"one vector step does not fit into --buffer-size {config.buffer_size}",
            "Use fewer environments or a larger buffer.",
        )
    if config.num_envs % config.env_groups:
        yield (
            f"--env-groups {config.env_groups}",
            f"--num-envs {config.num_envs} do not fall into that many equal groups",
            "Choose --num-envs as a multiple of it.",
        )
    if config.env_groups > 1 and config.vectorizer != "grouped":
        yield (
            f"--env-groups {config.env_groups} with --vectorizer {config.vectorizer}",
            "only our own workers step in groups",
            "Leave one of the two out.",
        )
    if config.target == "hard" and not (config.target_period or config.target_period_episodes):
        yield (
            "--target hard",
            "the target would never be copied",
            "Give --target-period (updates) or --target-period-episodes.",
        )


def choices_of(field: Field[Any]) -> tuple[str, ...]:
    """Return what a Literal field may be, nothing for a field of another type."""
    return tuple(re.findall(r"'([^']+)'", str(field.type)))


def flag_of(name: str) -> str:
    """Return the flag of a field: `num_envs` is `--num-envs`."""
    return f"--{name.replace('_', '-')}"


def plain(config: Config) -> dict[str, Any]:
    """Return the settings as values that JSON knows."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(config).items()}


def spelled(value: Any) -> str:
    """Return a value as it is typed behind its flag: sizes stand apart, without brackets."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
