"""Plant bugs and see that the comparisons with other libraries find them: part of `make oracles`.

The bugs are those of `make mutants`, which finds them by the project's own tests.
"""

from __future__ import annotations

import sys

from tests.mutants.__main__ import main

__all__ = ["FOUND"]

LOSSES = "tests/peers/test_td_losses.py::test_"
REPLAY = "tests/peers/test_replay.py::test_"
PRIORITIES = "tests/peers/test_priorities.py::test_"
ROW_LOSSES = LOSSES + "losses_and_td_errors_are_torchrls"
GRADIENTS = LOSSES + "gradients_are_torchrls_but_for_the_mean_of_the_weights"
UPDATES = LOSSES + "fifty_updates_lead_to_the_parameters_of_torchrl_adam_and_soft_targets"
N_STEPS = REPLAY + "n_steps_are_those_of_sb3"
SINGLE_STEPS = REPLAY + "single_transitions_and_their_time_limits_are_those_of_sb3"
UNIFORM = REPLAY + "draws_are_uniform_in_both"
HISTORY = PRIORITIES + "chances_and_weights_are_torchrls_over_a_history_of_writes_and_updates"

FOUND: dict[str, tuple[str, ...]] = {
    "double dqn with the networks swapped": (ROW_LOSSES,),
    "huber replaced by mse": (ROW_LOSSES, UPDATES),
    "forbidden actions in the target": (UPDATES,),
    "native: masks ignored": (UPDATES,),
    "terminated ignored": (UPDATES,),
    "weights of rows ignored": (UPDATES,),
    "native: weights ignored": (UPDATES,),
    "native: terminated ignored": (UPDATES,),
    "target moved before the update": (UPDATES,),
    "oldest row drawn after it was overwritten": (SINGLE_STEPS,),
    "draws that prefer old transitions": (UNIFORM,),
    "n steps over the end of an episode": (N_STEPS,),
    "n steps to the neighbouring environment": (N_STEPS,),
    "gamma once for n steps": (N_STEPS,),
    "the newest transition continued at the write head": (N_STEPS,),
    "priorities without their exponent": (HISTORY,),
    "weights that favour what is drawn often": (HISTORY,),
    "new rows of priority 1": (HISTORY,),
    "errors below zero taken for small": (HISTORY,),
}
"""Planted bug -> tests that must turn red."""

if __name__ == "__main__":
    raise SystemExit(main({name: FOUND[name] for name in sys.argv[1:] or FOUND}))
