"""Bugs planted in the C: each is a change of its text, compiled into a library of its own."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

from fastdqn.native import library

__all__ = ["plants"]

NATIVE = "tests/equivalence/test_native.py::test_"
UPDATE = NATIVE + "each_of_many_updates_is_the_eager_one"
SIZES = NATIVE + "networks_and_batches_of_any_size"
ACTING = NATIVE + "acting_is_epsilon_greedy_over_the_allowed_actions"

ALTERATIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "native: next values of the online network": (
        "forward(plan, set->bootstrap, plan->aside, columns);",
        "forward(plan, set->online, plan->aside, columns);",
        (UPDATE,),
    ),
    "native: terminated ignored": ("ring->terminated[here] ?", "0 ?", (UPDATE, SIZES)),
    "native: masks ignored": ("if (mask && !mask[a]) continue;", "", (UPDATE, ACTING)),
    "native: slopes where units are silent": (".after = GATE", ".after = STORE", (UPDATE, SIZES)),
    "native: tau and 1 - tau exchanged": ("+= tau * (ahead", "+= (1 - tau) * (ahead", (UPDATE,)),
    "native: no bias correction": (
        "1.0f / sqrtf(1.0f - (float)pow(set->beta2, step))",
        "1.0f",
        (UPDATE,),
    ),
    "native: gradients not clipped": ("if (factor < 1.0f)", "if (0)", (UPDATE,)),
    "native: one draw for all environments": (
        "uniform + row * uniform_row",
        "uniform",
        (ACTING,),
    ),
    "native: units left over not turned": (
        "i < size / 4 * 4 ? batch / 4 * 4 : 0",
        "batch / 4 * 4",
        (UPDATE, SIZES),
    ),
    "native: half numbers without their bias": (
        "0x1p112f",
        "0x1p111f",
        (NATIVE + "half_precision_is_read_with_its_subnormal_and_largest_numbers",),
    ),
    "native: a step that is not finite taken": (
        "*set->skipped += 1;\n        return;",
        "*set->skipped += 1;",
        (NATIVE + "an_update_that_is_not_finite_changes_no_bit_and_is_counted",),
    ),
}
"""Name -> text of the C, what takes its place, tests that must turn red."""


def plant(old: str, new: str) -> None:
    """Let the library be compiled from an altered text, in this process and for good."""
    text = library.SOURCE.read_text()
    assert text.count(old) == 1, old
    folder = Path(tempfile.mkdtemp(prefix="fastdqn-mutant-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "mlp.c").write_text(text.replace(old, new))
    os.environ["XDG_CACHE_HOME"] = str(folder)
    library.SOURCE = folder / "mlp.c"


def plants() -> dict[str, tuple[partial[None], tuple[str, ...]]]:
    """Return what plants each bug, and the tests that must turn red."""
    return {name: (partial(plant, old, new), red) for name, (old, new, red) in ALTERATIONS.items()}
