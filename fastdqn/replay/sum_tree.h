/* Rows drawn in proportion to their priorities: the sum tree of `fastdqn/replay/sum_tree.py` in C.
 *
 * A child is found in two steps, its chunk of 16 by the sums of the chunks and then itself, so that
 * a draw touches two lines of memory of each level. Sums run in double precision, as PyTorch's own
 * running sum does. Nothing is allocated.
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define LEVEL_BITS 20  /* random bits that choose a child */
#define CHUNK 16       /* children whose sum is kept */
#define MAX_CHUNKS 64  /* of a node */
#define LARGEST 1e30f  /* bounds of a leaf, so that no sum overflows and none is 0 */
#define SMALLEST 1e-30f
#define BLOCK 64       /* rows that are drawn side by side */
#define LEVELS 4       /* above the leaves: chunks, nodes, chunks of nodes, the top */

typedef float half_chunk __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t half_flags __attribute__((vector_size(32)));
typedef double wide __attribute__((vector_size(64)));

/* Filled in by the caller, field by field as in `fastdqn/replay/c_tree.py`. */
typedef struct {
    float *leaves;
    float *sums[LEVELS], *largest[LEVELS];
    int64_t *draws; /* batches so far, which anneal beta */
    const int64_t *anneal; /* over so many batches */
    int64_t fan_out;
    float alpha, eps, beta_start, beta_end;
} Tree;

/* Which chunk of a node holds the child whose running sum first passes a share of the whole. */
typedef struct {
    int64_t chunk;
    double before; /* the sum of the chunks before it */
    float bound;
} Place;

/* No branch hangs on the numbers, here and below. sums: [chunks] of each chunk. */
static inline Place place_of(const float *sums, int64_t chunks, int64_t bits)
{
    const float share = (float)(bits & ((1 << LEVEL_BITS) - 1)) * 0x1p-20f;
    double reached[MAX_CHUNKS], sum = 0.0;
    for (int64_t i = 0; i < chunks; i++) {
        reached[i] = sum;
        sum += sums[i];
    }
    const float bound = share * (float)sum;
    int64_t chunk = 0;
    for (int64_t i = 1; i < chunks; i++) chunk += (float)reached[i] <= bound;
    return (Place){chunk, reached[chunk], bound};
}

/* Return that child; where rounding lets none of the chunk pass, the last one above 0 there. */
static inline int64_t child_at(const float *children, Place place)
{
    const float *some = children + place.chunk * CHUNK;
    double sum = place.before;
    int64_t child = 0;
    for (int i = 0; i < CHUNK; i++) {
        sum += some[i];
        child += (float)sum <= place.bound;
    }
    if (child == CHUNK)
        for (child = CHUNK - 1; child && !(some[child] > 0.0f); child--) continue;
    return place.chunk * CHUNK + child;
}

static inline float sum_of(const float *numbers, int64_t count)
{
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) sum += numbers[i];
    return (float)sum;
}

static inline float largest_of(const float *numbers, int64_t count)
{
    float largest = 0.0f;
    for (int64_t i = 0; i < count; i++) largest = numbers[i] > largest ? numbers[i] : largest;
    return largest;
}

static inline double sum_of_chunk(const float *numbers)
{
    const wide w = __builtin_convertvector(*(const half_chunk *)numbers, wide) +
                   __builtin_convertvector(*(const half_chunk *)(numbers + CHUNK / 2), wide);
    return ((w[0] + w[4]) + (w[1] + w[5])) + ((w[2] + w[6]) + (w[3] + w[7]));
}

static inline float largest_of_chunk(const float *numbers)
{
    half_chunk most = *(const half_chunk *)numbers;
    const half_chunk other = *(const half_chunk *)(numbers + CHUNK / 2);
    const half_flags larger = other > most;
    most = (half_chunk)(((half_flags)other & larger) | ((half_flags)most & ~larger));
    return largest_of((const float *)&most, CHUNK / 2);
}

/* Take anew the numbers of one level, of `width` below it, above some rows. */
static inline __attribute__((always_inline)) void refresh_level(
    const Tree *tree, int level, const int64_t *rows, int64_t count, const int64_t width,
    const int64_t leaves)
{
    const float *sums = level ? tree->sums[level - 1] : tree->leaves;
    const float *largest = level ? tree->largest[level - 1] : tree->leaves;
    int64_t before = -1;
    for (int64_t i = 0; i < count; i++) {
        const int64_t here = rows[i] / leaves;
        if (here == before) continue;
        before = here;
        const float *below = sums + here * width, *most = largest + here * width;
        tree->sums[level][here] =
            width == CHUNK ? (float)sum_of_chunk(below) : sum_of(below, width);
        tree->largest[level][here] =
            width == CHUNK ? largest_of_chunk(most) : largest_of(most, width);
    }
}

static inline __attribute__((always_inline)) void refresh_with(
    const Tree *tree, const int64_t *rows, int64_t count, const int64_t chunks)
{
    const int64_t fan_out = chunks * CHUNK;
    refresh_level(tree, 0, rows, count, CHUNK, CHUNK);
    refresh_level(tree, 1, rows, count, chunks, fan_out);
    refresh_level(tree, 2, rows, count, CHUNK, CHUNK * fan_out);
    refresh_level(tree, 3, rows, count, chunks, fan_out * fan_out);
}

/* Take anew the sums and largest values above some rows. */
static void refresh(const Tree *tree, const int64_t *rows, int64_t count)
{
    switch (tree->fan_out / CHUNK) {
    case 4: refresh_with(tree, rows, count, 4); break;
    case 8: refresh_with(tree, rows, count, 8); break;
    default: refresh_with(tree, rows, count, tree->fan_out / CHUNK);
    }
}

/* Choose a child of a node for each random number, the same node for all where `rows` is NULL.
 * Places come before children, each in a loop of its own, so that neither waits for the other. */
static inline __attribute__((always_inline)) void choose(
    const float *children, const float *sums, const int64_t chunks, const int64_t *random_bits,
    int level, int64_t count, const int64_t *rows, int64_t *chosen)
{
    Place places[BLOCK];
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = rows ? rows[i] : 0;
        places[i] = place_of(sums + row * chunks, chunks, random_bits[i] >> level * LEVEL_BITS);
        __builtin_prefetch(children + (row * chunks + places[i].chunk) * CHUNK);
    }
    for (int64_t i = 0; i < count; i++) {
        const int64_t first = rows ? rows[i] * chunks * CHUNK : 0;
        chosen[i] = first + child_at(children + first, places[i]);
    }
}

/* Draw rows for at most BLOCK random numbers; loops of a few turns take less where their number is
 * known to the compiler, so that this is inlined for the usual fan-outs. */
static inline __attribute__((always_inline)) void draw_block(
    const Tree *tree, const int64_t *random_bits, int64_t count, int64_t *rows,
    const int64_t chunks)
{
    float top[MAX_CHUNKS];
    for (int64_t i = 0; i < chunks; i++) top[i] = (float)sum_of_chunk(tree->sums[3] + i * CHUNK);
    choose(tree->sums[3], top, chunks, random_bits, 2, count, NULL, rows);
    for (int64_t i = 0; i < count; i++) __builtin_prefetch(tree->sums[2] + rows[i] * chunks);
    choose(tree->sums[1], tree->sums[2], chunks, random_bits, 1, count, rows, rows);
    for (int64_t i = 0; i < count; i++) __builtin_prefetch(tree->sums[0] + rows[i] * chunks);
    choose(tree->leaves, tree->sums[0], chunks, random_bits, 0, count, rows, rows);
}

/* Draw a row for each random number, and the weights of their losses; see `PrioritizedSampler`.
 * Where no leaf is above 0 the rows are -1. */
static void draw_from_tree(const Tree *tree, const int64_t *random_bits, int64_t count,
                           int64_t *rows, float *weights)
{
    if (!(sum_of(tree->sums[LEVELS - 1], tree->fan_out) > 0.0f)) { /* nothing may be drawn */
        for (int64_t i = 0; i < count; i++) rows[i] = -1, weights[i] = 0.0f;
        return;
    }
    for (int64_t i = 0; i < count; i += BLOCK) {
        const int64_t some = count - i < BLOCK ? count - i : BLOCK;
        switch (tree->fan_out / CHUNK) {
        case 4: draw_block(tree, random_bits + i, some, rows + i, 4); break;
        case 8: draw_block(tree, random_bits + i, some, rows + i, 8); break;
        default: draw_block(tree, random_bits + i, some, rows + i, tree->fan_out / CHUNK);
        }
    }
    float smallest = INFINITY;
    for (int64_t i = 0; i < count; i++) {
        weights[i] = tree->leaves[rows[i]];
        if (weights[i] < smallest) smallest = weights[i];
    }
    const int64_t steps = *tree->anneal > 1 ? *tree->anneal - 1 : 1;
    const float passed = (float)*tree->draws / (float)steps;
    const float beta =
        tree->beta_start + (tree->beta_end - tree->beta_start) * (passed < 1.0f ? passed : 1.0f);
    for (int64_t i = 0; i < count; i++) weights[i] = powf(smallest / weights[i], beta);
    *tree->draws += 1;
}

/* Write finite priorities; the largest one counts where a row comes more than once. */
static void feed_tree(const Tree *tree, const int64_t *rows, const float *priority, int64_t count)
{
    for (int64_t i = 0; i < count; i++) tree->leaves[rows[i]] = 0.0f;
    for (int64_t i = 0; i < count; i++) {
        float leaf = powf(fabsf(priority[i]) + tree->eps, tree->alpha);
        leaf = leaf < SMALLEST ? SMALLEST : leaf > LARGEST ? LARGEST : leaf;
        if (leaf > tree->leaves[rows[i]]) tree->leaves[rows[i]] = leaf;
    }
    refresh(tree, rows, count);
}
