"""The settings of a run: frozen, checked before anything starts, documented at the field.

The text below each field is the help of its flag; it gives the unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from dataclasses import field as field_of
from pathlib import Path
from typing import Any, Literal

from fastdqn.foundation.idle_settings import idle_in
from fastdqn.foundation.pair_checks import check_pairs, of_epsilon, refuse_epsilon
from fastdqn.foundation.setting_checks import check, choices_of, flag_of, plain_value, spelled

__all__ = [
    "Config",
    "Draft",
    "check",
    "choices_of",
    "flag_of",
    "of_epsilon",
    "plain",
    "refuse_epsilon",
    "settled",
    "spelled",
    "with_named",
]


@dataclass(frozen=True)
class Config:
    """Settings of one training run. Later flags win over the preset."""

    env_id: str = "LunarLander-v3"
    """Gymnasium id with a discrete action space; `module:Name-v0` imports the module first."""
    env_kwargs: dict[str, Any] = field_of(default_factory=dict)
    """Arguments of the environment, KEY=VALUE each: numbers, true, lists; all else is text."""
    wrapper: tuple[str, ...] = ()
    """Wrappers around it, the innermost first: Gymnasium's, as FlattenObservation or
    'TimeLimit(max_episode_steps=100)', or yours, as module:Name."""
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
    """What steps them: our grouped workers, Gymnasium's AsyncVectorEnv or SyncVectorEnv, EnvPool,
    or tensor environments on the device."""
    worker_deadline_s: float = 120.0
    """Seconds that a worker may take for a step or a reset; one that takes longer is restarted."""
    max_worker_restarts: int = 100
    """Restarts of workers within ten minutes; one more ends the run."""
    restore_episodes: bool = False
    """Let the environments of a restarted worker go on with their open episodes, which are played
    again and compared, instead of losing them."""
    restore_limit_s: float = 60.0
    """Seconds that playing open episodes again may take, after a resume or the restart of a worker;
    environments that are not ready by then begin new ones."""
    action_masks: bool = True
    """Obey the action masks of environments, when acting and in the target."""
    expect_action_masks: bool = False
    """Keep room for action masks though an environment's first infos hold none."""

    double: bool = True
    """Double DQN: the online network chooses the next action, the target network values it. Without
    effect on munchausen, whose target weighs all actions."""
    objective: Literal["dqn", "munchausen", "c51", "qr", "iqn"] = "dqn"
    """What is learned of returns: their mean, by dqn or munchausen (rewards likely actions); or
    their distribution, by c51 (atoms between v_min and v_max), qr or iqn (quantiles)."""
    num_atoms: int = 51
    """Atoms of c51 for each action, v_min and v_max among them."""
    v_min: float = -200.0
    """Smallest discounted return that c51 represents."""
    v_max: float = 200.0
    """Largest discounted return that c51 represents."""
    num_quantiles: int = 51
    """Quantiles of qr for each action; of iqn, quantile fractions of a forward pass."""
    munchausen_alpha: float = 0.9
    """Factor of the log-probability of the action that munchausen adds to its reward."""
    munchausen_temperature: float = 0.03
    """Temperature of the softmax policy of munchausen; larger is more random."""
    munchausen_clip: float = -1.0
    """Smallest log-probability that munchausen adds, times the temperature; negative."""
    gamma: float = 0.99
    """Discount per env step."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Units of each hidden layer of the MLP."""
    kaiming: bool = False
    """Start the MLP from He's normal initialisation instead of PyTorch's."""
    dueling: bool = False
    """Let the MLP estimate the value of a state apart from the advantages of its actions."""
    noisy: bool = False
    """Explore by noise in the weights of the MLP, whose size is learned; epsilon is 0 then."""
    layer_norm: bool = False
    """Normalise the units of each hidden layer of the MLP before the activation."""
    activation: Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"] = "relu"
    """What follows a hidden layer of the MLP."""
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
    """Step size of the optimizer; that at the first env step, if it falls."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the step size falls over the env steps of the run: not at all, along a straight line, or
    along half a cosine wave."""
    learning_rate_end: float = 0.0
    """Step size at the last env step of the linear and the cosine schedule."""
    weight_decay: float = 0.0
    """Weight decay of the optimizer."""
    amsgrad: bool = False
    """Let Adam and AdamW divide by the largest second moment so far."""
    clip_norm: float | None = 10.0
    """Largest norm of the gradient; None leaves it."""
    clip_value: float | None = None
    """Largest magnitude of each element of the gradient; None leaves it."""

    replay: Literal["uniform", "prioritized", "newest"] = "uniform"
    """Learn from all stored transitions alike, more often from those with large priorities (the
    |TD error| of a DQN, the loss of a distribution), or, without replay, from the newest only."""
    priority_alpha: float = 0.6
    """How much priorities count when batches are drawn; 0 draws uniformly."""
    priority_beta_start: float = 0.4
    """How far the weights of losses make up for it at the first update; 1 is wholly."""
    priority_beta_end: float = 1.0
    """How far at the last update of the run; it moves linearly over the updates."""
    priority_eps: float = 1e-6
    """Added to each priority (|TD error|, or a loss), so that none is 0."""
    n_step: int = 1
    """Rewards added up before the target network's value, over env steps of one episode."""
    buffer_size: int | Literal["auto"] = 100_000
    """Transitions that the replay ring holds; auto is as many as fit into the free memory, of which
    a tenth stays free, and at least 512 MiB, and no more than the run has env steps."""
    batch_size: int = 128
    """Transitions per update."""
    learning_starts: int = 1_024
    """Env steps before the first update is due."""
    on_nonfinite: Literal["raise", "skip", "replace"] = "raise"
    """What follows a NaN or an infinity of an environment: an error; skip, the transition is left
    out and its episode begins anew; or replace, by a finite number. Updates that are not finite
    change nothing, and end the run only with raise."""
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
    epsilon_ladder: bool = False
    """Let each environment explore with a probability of its own while training: the schedule's in
    the first one, less in each that follows."""
    epsilon_ladder_alpha: float = 7.0
    """How far they lie apart: environment i of N explores with epsilon ** (1 + alpha i / (N - 1)),
    epsilon being the schedule's."""

    stop_at_return: float | None = None
    """Stop when the mean return of a greedy evaluation on fresh environments reaches this."""
    eval_episodes: int = 100
    """Fresh episodes of a full evaluation: one that may stop the run or may find the best policy so
    far, and the one at its end."""
    eval_interval: int = 10_000
    """Env steps between greedy evaluations of 5 or 20 episodes, all where they promise a new best
    policy; 0 is none before the end of the run."""
    eval_max_steps: int | None = None
    """Env steps after which an episode of an evaluation is cut, and counted as it is; 0 is never,
    None is 10,000, or the environment's own time limit where that is longer."""

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
    """Env steps between checkpoints, from which a run can go on; one is always made at the end."""
    checkpoint_every: str | None = None
    """Time between checkpoints as well, as 90s, 10m or 1h, looked at with each report; None is no
    such time."""
    keep_last: int = 3
    """Checkpoints that are kept, the newest ones; the best policy is kept beside them."""
    save_replay: bool = True
    """Save the replay ring with each checkpoint. Without it a run that goes on refills the ring to
    learning_starts env steps before its next update."""
    tensorboard: bool = False
    """Write TensorBoard events beside metrics.jsonl."""
    quiet: bool = False
    """Show no progress on the terminal; the files are written all the same."""
    preset: str = ""
    """Name of a preset that fills the other settings (see `fastdqn presets`)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain_value(field, getattr(self, field.name)))
        check(self)
        check_pairs(self)


@dataclass(frozen=True)
class Draft(Config):
    """Settings of one training run. Later flags win over the preset."""

    def __post_init__(self) -> None:
        """Check nothing: the named ones are checked beside the others by `with_named`."""


def with_named(inherited: Config, named: Mapping[str, Any]) -> Config:
    """Return settings with those that the caller named.

    What these leave without effect is inherited from the defaults instead, so that the caller need
    not know of it.

    Args:
        inherited: Settings of a preset, or the defaults.
        named: The caller's, by name.

    Raises:
        UsageError: A value cannot be used, or has no effect and was named.
    """
    default = Config()
    idle = idle_in(Config, {**vars(inherited), **named}) - named.keys()
    return replace(inherited, **{name: getattr(default, name) for name in idle}, **named)


def settled(config: Config) -> Config:
    """Return the settings that count: a noisy network explores, and epsilon is 0 beside it."""
    if not config.noisy:
        return config
    default: dict[str, Any] = {
        field.name: field.default for field in fields(config) if of_epsilon(field.name)
    }
    return replace(config, **{**default, "epsilon_start": 0.0, "epsilon_end": 0.0})


def plain(config: Config) -> dict[str, Any]:
    """Return the settings as values that JSON knows."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(config).items()}
