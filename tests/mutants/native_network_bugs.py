"""Bugs of dueling heads and of LayerNorm, planted in the C; see `tests.mutants.native_bugs`."""

from __future__ import annotations

__all__ = ["HEADS", "NORMS"]

NETWORKS = "tests/equivalence/test_native_networks.py::test_"
UPDATE = NETWORKS + "each_of_many_updates_is_the_eager_one"
SIZES = NETWORKS + "networks_and_batches_of_any_size"
ACTING = NETWORKS + "acting_is_that_of_the_eager_policy"
GOLDEN = "tests/golden/test_mlp_gradients.py::test_the_gradient_of_"
DUELING = GOLDEN + "dueling_heads"
LINEAR = GOLDEN + "dueling_heads_without_a_hidden_layer"
NORM = GOLDEN + "layer_norm"
SANITIZED = "tests/faults/test_sanitized_c.py::test_the_c_stays_within_its_memory"

HEADS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "native: the sum of advantages for their mean": (
        "mean = total / (float)num, value",
        "mean = total, value",
        (UPDATE, SIZES, DUELING, LINEAR),
    ),
    "native: advantages without their mean": (
        "*advantage = value + *advantage - mean;",
        "*advantage = value + *advantage;",
        (UPDATE, SIZES, DUELING, LINEAR),
    ),
    "native: advantages without the value": (
        "*advantage = value + *advantage - mean;",
        "*advantage = *advantage - mean;",
        (UPDATE, SIZES, DUELING, LINEAR),
    ),
    "native: advantages of the half of the value": (
        ".from = set->divided, .in = all - set->divided",
        ".in = all - set->divided",
        (UPDATE, DUELING, ACTING),
    ),
    "native: slopes of advantages without their mean": (
        "-= total / (float)num;",
        "-= 0.0f * total;",
        (UPDATE, SIZES, DUELING, LINEAR),
    ),
    "native: no slope of the value": (
        "*(vec *)(slopes + num * columns + column) = total;",
        "*(vec *)(slopes + num * columns + column) = 0.0f * total;",
        (UPDATE, SIZES, DUELING, LINEAR),
    ),
    "native: the weights of one head learn from the units of the other": (
        ".b = turned + linear->from,",
        ".b = turned,",
        (UPDATE, DUELING),
    ),
    "native: slopes of both heads written to the same units": (
        ".c = plan->slopes[layer] + from,",
        ".c = plan->slopes[layer],",
        (UPDATE, DUELING),
    ),
    "native: the gate of the other half": (
        ".after = GATE, .gate = plan->units[layer] + from,",
        ".after = GATE, .gate = plan->units[layer],",
        (UPDATE,),
    ),
    "native: no memory for the value": (
        "numbers = (size + value) * plan->columns",
        "numbers = (size + 0 * value) * plan->columns",
        (SANITIZED,),
    ),
    "native: a ReLU before LayerNorm": (
        ".after = hidden && !normed ? RELU : STORE",
        ".after = hidden ? RELU : STORE",
        (UPDATE, NORM),
    ),
    "native: the gradients by gamma and beta exchanged": (
        "plan->slopes[layer], plan->gradient + plan->gamma[layer],\n"
        "                       plan->gradient + plan->beta[layer]);",
        "plan->slopes[layer], plan->gradient + plan->beta[layer],\n"
        "                       plan->gradient + plan->gamma[layer]);",
        (UPDATE, NORM),
    ),
    "native: gamma and beta exchanged": (
        ".gamma = flat + plan->gamma[layer], .beta = flat + plan->beta[layer],",
        ".gamma = flat + plan->beta[layer], .beta = flat + plan->gamma[layer],",
        (UPDATE, NORM),
    ),
    "native: the target network normalised by the online one's gamma": (
        "const Norm norm = norm_of_layer(plan, flat, linear->layer + 1, kept);",
        "const Norm norm = norm_of_layer(plan, set->online, linear->layer + 1, kept);",
        (UPDATE,),
    ),
    "native: slopes that no LayerNorm bends": (
        "if (!layer || !set->layer_norm) continue;",
        "if (1) continue;",
        (UPDATE, SIZES, NORM),
    ),
}
"""Name -> text of mlp.c, what takes its place, tests that must turn red."""

NORMS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "layer norm: no eps": ("#define EPS 1e-5f", "#define EPS 0.0f", (NORM,)),
    "layer norm: a larger eps": ("#define EPS 1e-5f", "#define EPS 1e-4f", (NORM,)),
    "layer norm: eps beside the root": (
        "1.0f / sqrtf(variance + EPS)",
        "1.0f / (sqrtf(variance) + EPS)",
        (NORM,),
    ),
    "layer norm: units of 0 where the variance is beyond float32": (
        " + (variance - variance)",
        "",
        (NETWORKS + "a_variance_beyond_float32_is_no_update_as_in_eager_learning",),
    ),
    "layer norm: the variance of a sample": (
        "rate[c] / (float)units",
        "rate[c] / ((float)units - 1.0f)",
        (UPDATE, SIZES, NORM),
    ),
    "layer norm: no mean": (
        "for (int v = 0; v < vectors; v++) mean[v] /= (float)units;",
        "for (int v = 0; v < vectors; v++) mean[v] *= 0.0f;",
        (UPDATE, SIZES),
    ),
    "layer norm: units that are never silent": (
        "(vec)((ivec)y & ~(y < 0))",
        "y",
        (UPDATE, SIZES, NORM),
    ),
    "layer norm: the gradient by gamma of y alone": (
        "by_gamma[i] += all_of(beside);",
        "by_gamma[i] += all_of(total);",
        (UPDATE, SIZES, NORM),
    ),
    "layer norm: slopes through the variance forgotten": (
        " - h * along[v]",
        "",
        (UPDATE, SIZES, NORM),
    ),
    "layer norm: slopes through the mean forgotten": (
        " - level[v] - h",
        " - h",
        (UPDATE, SIZES, NORM),
    ),
    "layer norm: slopes without gamma": (
        "const vec by_h = slope * norm->gamma[i];",
        "const vec by_h = slope;",
        (UPDATE, SIZES, NORM),
    ),
    "layer norm: the gradient of the last columns alone": (
        "by_beta[i] += all_of(total);",
        "by_beta[i] = all_of(total);",
        (SIZES,),
    ),
}
"""The same of layer_norm.h."""
