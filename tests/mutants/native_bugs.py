"""Bugs planted in the C and in the card's kernels: each is a change of a text that is compiled."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import fastdqn
from fastdqn.native import c_library, cuda_plan
from fastdqn.replay import c_tree, row_writer
from tests.mutants.native_network_bugs import HEADS, NORMS

__all__ = ["plants"]

NATIVE = "tests/equivalence/test_native.py::test_"
UPDATE = NATIVE + "each_of_many_updates_is_the_eager_one"
SIZES = NATIVE + "networks_and_batches_of_any_size"
WEIGHTED = "tests/golden/test_equations.py::test_the_loss_of_a_row_is_weighted_and_then_averaged"
ACTING = NATIVE + "acting_is_epsilon_greedy_over_the_allowed_actions"

BINDING = "tests/unit/native/test_binding.py::test_"
SANITIZED = "tests/faults/test_sanitized_c.py::test_"
REPLAY = "tests/equivalence/test_replay_options.py::test_"
OPTIONS = REPLAY + "two_hundred_updates_are_the_eager_ones"
TREE = "tests/unit/replay/test_sum_tree.py::test_"
CHOICE = NATIVE + "batches_are_chosen_as_the_sampler_chooses_them"

ALTERATIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "native: next values of the online network": (
        "forward(plan, set->bootstrap, plan->aside, columns, 0);",
        "forward(plan, set->online, plan->aside, columns, 0);",
        (UPDATE,),
    ),
    "native: terminated ignored": ("ring->terminated[here] ?", "0 ?", (UPDATE, SIZES)),
    "native: masks ignored": ("if (mask && !mask[a]) continue;", "", (UPDATE, ACTING)),
    "native: weights ignored": (
        "weights ? weights[row] : ring->weight[index[row]]",
        "weights ? weights[row] : 1.0f",
        (SIZES, WEIGHTED),
    ),
    "native: weights of priorities ignored": ("tree ? plan->weights : NULL", "NULL", (OPTIONS,)),
    "native: priorities of a skipped update": (
        "if (tree && made)",
        "if (tree)",
        (REPLAY + "a_skipped_update_writes_no_priority",),
    ),
    "native: n steps over the end of an episode": (
        "k < ring->n_step && ring->continues[here]",
        "k < ring->n_step",
        (OPTIONS,),
    ),
    "native: a batch's own discount ignored": (
        "ring->discount           ?",
        "0 ?",
        (SIZES,),
    ),
    "native: slopes where units are silent": (".after = GATE", ".after = STORE", (UPDATE, SIZES)),
    "native: tau and 1 - tau exchanged": ("+= tau * (ahead", "+= (1 - tau) * (ahead", (UPDATE,)),
    "native: no bias correction": (
        "1.0f / sqrtf(1.0f - (float)pow(set->beta2, step))",
        "1.0f",
        (UPDATE,),
    ),
    "native: a period that begins again": (
        "(step + set->target_phase)",
        "step",
        (NATIVE + "the_hard_target_goes_on_from_earlier_updates_as_the_eager_one",),
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
    "native: the oldest transition forgotten": ("(nth + valid->first)", "nth", (CHOICE,)),
    "native: half numbers without their bias": (
        "0x1p112f",
        "0x1p111f",
        (NATIVE + "half_precision_is_read_with_its_subnormal_and_largest_numbers",),
    ),
    "native: a step that is not finite taken": (
        "*set->skipped += 1;\n        return 0;",
        "*set->skipped += 1;",
        (NATIVE + "an_update_that_is_not_finite_changes_no_bit_and_is_counted",),
    ),
    "native: observations that no one-hot vector stands for": (
        "return number < first || number >= first + plan->set.sizes[0];",
        "return number == first - 1000;",
        (
            BINDING + "a_one_hot_observation_out_of_range_is_an_error",
            BINDING + "acting_on_a_one_hot_observation_out_of_range_is_an_error",
        ),
    ),
    "native: an observation read beyond its end": (
        "const type *frame = (const type *)frames + place * plan->frame_size; ",
        "const type *frame = (const type *)frames + (place + 1) * plan->frame_size; ",
        (UPDATE, SANITIZED + "the_c_stays_within_its_memory"),
    ),
    "native: a part of the memory too small": (
        "plan->goal = taken(memory, &used, set->batch, real);",
        "plan->goal = taken(memory, &used, set->batch - 1, real);",
        (SANITIZED + "the_c_stays_within_its_memory",),
    ),
    "native: a draw that no number bounds": (
        "return place >= (float)count ? count - 1 : place > 0.0f ? (int64_t)place : 0;",
        "return (int64_t)place;",
        (SANITIZED + "the_c_stays_within_its_memory",),
    ),
}
"""Name -> text of the C, what takes its place, tests that must turn red."""


CARD = "tests/equivalence/test_native_card.py::test_"
CARD_UPDATE = CARD + "each_of_many_updates_is_the_eager_one"
CARD_SIZES = CARD + "networks_and_batches_of_any_size"
CARD_CHOICE = CARD + "batches_are_chosen_as_the_sampler_chooses_them"
WRITER = "tests/equivalence/test_row_writer.py::test_a_kernel_writes_what_pytorch_writes"
KERNELS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "card: next values of the online network": (
        "call.bootstrap, call.turned[!SHARED], aside",
        "call.online, call.turned[0], aside",
        (CARD_UPDATE,),
    ),
    "card: masks ignored": ("if (mask && !pass && !mask[a]) continue;", "", (CARD_UPDATE,)),
    "card: terminated ignored": ("call.terminated[here] ?", "0 ?", (CARD_UPDATE, CARD_SIZES)),
    "card: weights ignored": ("slope *= call.weights[place];", "", (CARD_SIZES,)),
    "card: a batch's own discount ignored": ("call.discount           ?", "0 ?", (CARD_SIZES,)),
    "card: slopes where units are silent": (
        "<= 0.0f ? 0.0f : sum;",
        "<= -1 ? 0 : sum;",
        (CARD_SIZES,),
    ),
    "card: weights not turned over after an update": (
        "call.turned[0][at] = online[row * (TILE + 1) + column];",
        "",
        (CARD_UPDATE,),
    ),
    "card: biases share what they became": (
        "tile.bias + out, moved, followed",
        "tile.bias + out, moved, moved",
        (CARD_UPDATE,),
    ),
    "card: no bias correction": (
        "step.rate /= 1.0f - powf(call.beta1, (float)number);",
        "",
        (CARD_UPDATE,),
    ),
    "card: a period that begins again": (
        "(number + call.target_phase)",
        "number",
        (CARD + "the_hard_target_goes_on_from_earlier_updates",),
    ),
    "card: gradients not clipped": ("most < 1.0f ? most : 1.0f", "1.0f", (CARD_UPDATE,)),
    "card: the rows of the first update again": (
        "(call.update * BATCH + row) * size(0)",
        "row * size(0)",
        (CARD_UPDATE,),
    ),
    "card: no wait before parts are added up": (
        "    __syncthreads();\n    for (int place = threadIdx.x; place < N * R;",
        "    for (int place = threadIdx.x; place < N * R;",
        (CARD_SIZES,),
    ),
    "card: the oldest transition forgotten": ("(nth + *call.first)", "nth", (CARD_CHOICE,)),
    "card: a step that is not finite taken": (
        "    if (!step.fine) return;\n",
        "",
        (CARD + "an_update_that_is_not_finite_changes_no_bit_and_is_counted",),
    ),
    "card: what lies outside of the ring taken for the first transition": (
        "const bool fine = inside &&",
        "const bool fine =",
        (CARD + "what_does_not_lie_in_the_ring_is_never_read_and_changes_nothing",),
    ),
    "card: observations that no one-hot vector stands for": (
        "return ONE_HOT && (number < call.offset || number >= call.offset + size(0));",
        "return ONE_HOT && number == call.offset - 1000;",
        (BINDING + "compiled_or_on_a_card_it_changes_nothing_and_is_counted",),
    ),
}
"""Name -> text of mlp.cu, what takes its place, tests that must turn red."""
WRITES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "card: transitions continued over an end": (
        "!call.terminated[last] && !call.truncated[last]",
        "1",
        (WRITER,),
    ),
    "card: last observations forgotten": (
        "if (call.ended[i] == env)",
        "if (0)",
        (WRITER,),
    ),
    "card: the window is not written": ("call.window[1] = call.count;", "", (WRITER,)),
    "card: no mask allows nothing": ("from ? from[i] : 1", "from ? from[i] : 0", (WRITER,)),
}
"""The same of ring.cu."""


TREES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "tree: the child after the chosen one": (
        "sum += some[i];",
        "sum += i ? some[i - 1] : 0.0f;",
        (TREE + "draws_follow_the_leaves_and_none_is_of_a_dead_one",),
    ),
    "tree: the last priority of a row that comes twice": (
        "if (leaf > tree->leaves[rows[i]]) ",
        "",
        (
            "tests/unit/replay/test_prioritized.py::test_"
            "a_row_that_was_drawn_twice_takes_its_larger_priority",
        ),
    ),
    "tree: sums of the level above forgotten": (
        "refresh_level(tree, 3, rows, count, chunks, fan_out * fan_out);",
        "",
        (TREE + "sums_equal_dense_ones_after_a_hundred_thousand_changes",),
    ),
}
"""The same of sum_tree.h."""
PARTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "tree: priorities of rows that were overwritten": (
        "|| row <= newest - num_rows",
        "",
        (
            "tests/property/test_ring_laws.py::test_"
            "the_ring_holds_the_newest_transitions_of_any_history",
        ),
    ),
    "tree: a priority that is not finite": (
        "if (!isfinite(priority[i])) return -1;",
        "",
        ("tests/unit/replay/test_prioritized.py::test_other_priorities_are_refused",),
    ),
}
"""The same of sum_tree.c."""


def plant(module: Any, old: str, new: str, header: str = "") -> None:
    """Let the source of a module, or its header, be another text, in this process and for good."""
    package = Path(fastdqn.__file__).parent
    altered = package / header if header else module.SOURCE
    text = altered.read_text()
    assert text.count(old) == 1, old
    folder = Path(tempfile.mkdtemp(prefix="fastdqn-mutant-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for source in (module.SOURCE, *package.glob("*/*.h")):
        copy = folder / source.relative_to(package)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(text.replace(old, new) if source == altered else source.read_text())
    os.environ["XDG_CACHE_HOME"] = str(folder)
    module.SOURCE = folder / module.SOURCE.relative_to(package)


def altered() -> list[tuple[str, Any, str, dict[str, tuple[str, str, tuple[str, ...]]]]]:
    """Return what is altered: a header or nothing, its module, its text, and the alterations."""
    package = Path(fastdqn.__file__).parent
    headers = ("replay/sum_tree.h", c_tree, TREES), ("native/layer_norm.h", c_library, NORMS)
    sources = (
        *((c_tree, PARTS), (c_library, {**ALTERATIONS, **HEADS})),
        *((cuda_plan, KERNELS), (row_writer, WRITES)),
    )
    return [
        *((name, module, (package / name).read_text(), found) for name, module, found in headers),
        *(("", module, module.SOURCE.read_text(), found) for module, found in sources),
    ]


def plants() -> dict[str, tuple[partial[None], tuple[str, ...]]]:
    """Return what plants each bug, and the tests that must turn red."""
    return {
        name: (partial(plant, module, old, new, header), red)
        for header, module, _, alterations in altered()
        for name, (old, new, red) in alterations.items()
    }
