"""Named settings: environments that these solve, and the lessons that led here."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from fastdqn.config import Config
from fastdqn.errors import UsageError

__all__ = ["PRESETS", "Preset", "preset_config"]


@dataclass(frozen=True)
class Preset:
    """Settings, what they come to, and how that is known.

    Attributes:
        summary: One sentence about them.
        config: The settings.
        expected: The score that a run ends with, or NOT_MEASURED.
        source: Where score and settings come from.
    """

    summary: str
    config: Config
    expected: str
    source: str


NOT_MEASURED = "not measured yet"
LESSONS = "settings: the steps of docs/runs.md"


# Both stop above the return that counts as solved (200 and 475), by two standard errors of a mean
# over 100 episodes or more, so that a second evaluation agrees with the first.
_LUNARLANDER = Config(
    env_id="LunarLander-v3",
    total_timesteps=1_500_000,
    stop_at_return=220.0,
)
# CartPole with gamma 0.99 diverges for about one seed in ten: its Q-values pass 100, which no
# return of discounted ones can. With 0.98 none of the seeds 0 to 22 did.
_CARTPOLE = Config(
    env_id="CartPole-v1",
    total_timesteps=500_000,
    gamma=0.98,
    hidden_sizes=(64, 64),
    batch_size=64,
    tau=0.01,
    replay_ratio=0.5,
    epsilon_end=0.02,
    epsilon_decay_steps=5_000,
    stop_at_return=485.0,
)
_ACROBOT = Config(
    env_id="Acrobot-v1",
    total_timesteps=300_000,
    hidden_sizes=(64, 64),
    batch_size=64,
    stop_at_return=-88.0,
    eval_interval=5_000,
)
# Of eight settings that were tried on five seeds this is the only one that reached -110 with all of
# them: targets of ten steps, inputs within [-1, 1] and a ladder. What each of these does alone was
# not measured.
_MOUNTAINCAR = Config(
    env_id="MountainCar-v0",
    wrapper=("RescaleObservation(min_obs=-1,max_obs=1)",),
    total_timesteps=300_000,
    hidden_sizes=(64, 64),
    batch_size=64,
    learning_rate=1e-3,
    replay_ratio=0.5,
    n_step=10,
    epsilon_schedule="linear",
    epsilon_start=1.0,
    epsilon_decay_steps=50_000,
    epsilon_ladder=True,
    epsilon_ladder_alpha=3.0,
    stop_at_return=-110.0,
    eval_interval=5_000,
)
_RAINBOW = replace(
    _LUNARLANDER,
    objective="c51",
    dueling=True,
    noisy=True,
    epsilon_start=0.0,
    epsilon_end=0.0,
    replay="prioritized",
    priority_alpha=0.5,
    n_step=3,
)
_LESSON = replace(
    _LUNARLANDER, num_envs=1, replay_ratio=1.0, total_timesteps=100_000, stop_at_return=None
)
_LESSON_REPLAY = replace(
    _LESSON,
    double=False,
    target="none",
    epsilon_schedule="constant",
    epsilon_start=0.0,
    epsilon_end=0.0,
)

PRESETS: dict[str, Preset] = {
    "lunarlander": Preset(
        "LunarLander-v3 by Double DQN, until solved.",
        _LUNARLANDER,
        "greedy mean >= 220 over 100 fresh episodes, all of 10 seeds",
        "measured: benchmarks/results/lunarlander-solved-2-cores.md; settings: found by trying",
    ),
    "cartpole": Preset(
        "CartPole-v1 by Double DQN, until solved.",
        _CARTPOLE,
        "greedy mean >= 485 over 100 fresh episodes, all of 10 seeds",
        "measured: benchmarks/results/cartpole-solved-2-cores.md; settings: found by trying",
    ),
    "acrobot": Preset(
        "Acrobot-v1 by Double DQN, until the mean return is -88.",
        _ACROBOT,
        "greedy mean >= -90 over 100 fresh episodes, all of 5 seeds",
        "measured: benchmarks/results/acrobot-solved-busy-2-cores.md; settings: found by trying",
    ),
    "mountaincar": Preset(
        "MountainCar-v0 by Double DQN over ten steps, until solved.",
        _MOUNTAINCAR,
        "greedy mean >= -110 over 100 fresh episodes, all of 5 seeds",
        "measured: benchmarks/results/mountaincar-solved-busy-2-cores.md; settings: found by "
        "trying; ladder: Horgan et al. (2018), arXiv:1803.00933",
    ),
    "rainbow": Preset(
        "LunarLander-v3 by Rainbow: C51, dueling, noisy, prioritized, three steps.",
        _RAINBOW,
        NOT_MEASURED,
        "settings: of lunarlander; steps, alpha, atoms: Hessel et al. (2018), arXiv:1710.02298",
    ),
    "lesson-bare": Preset(
        "The bare Q-network: greedy, newest transition only, its own target. Does not learn.",
        replace(_LESSON_REPLAY, replay="newest", batch_size=1),
        NOT_MEASURED,
        LESSONS,
    ),
    "lesson-replay": Preset(
        "The bare Q-network with replay: still greedy, still its own target.",
        _LESSON_REPLAY,
        NOT_MEASURED,
        LESSONS,
    ),
    "lesson-target": Preset(
        "Replay, epsilon-greedy and a target network copied every 10 episodes: DQN.",
        replace(
            _LESSON,
            double=False,
            target="hard",
            target_period_episodes=10,
            epsilon_schedule="multiplicative",
            epsilon_start=1.0,
        ),
        NOT_MEASURED,
        f"{LESSONS}; Mnih et al. (2015), Nature 518",
    ),
    "lesson-double": Preset(
        "The same with Double DQN and a soft target.",
        _LESSON,
        NOT_MEASURED,
        f"{LESSONS}; van Hasselt et al. (2016), arXiv:1509.06461",
    ),
    "lesson-per": Preset(
        "The same with prioritized replay.",
        replace(_LESSON, replay="prioritized"),
        NOT_MEASURED,
        f"{LESSONS}; Schaul et al. (2016), arXiv:1511.05952",
    ),
}


def preset_config(name: str) -> Config:
    """Return the settings of a preset, which also carry its name.

    Raises:
        UsageError: There is no such preset; close matches are named.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"Did you mean {close[0]}?" if close else f"Choose {', '.join(PRESETS)}."
        raise UsageError(f"--preset {name}", "there is no such preset", hint)
    return replace(PRESETS[name].config, preset=name)
