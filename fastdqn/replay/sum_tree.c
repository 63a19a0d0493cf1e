/* The sum tree as Python calls it, apart from the updates of `fastdqn/native/mlp.c`. */

#include "sum_tree.h"

void fastdqn_tree_draw(const Tree *tree, const int64_t *random_bits, int64_t count, int64_t *rows,
                       float *weights)
{
    draw_from_tree(tree, random_bits, count, rows, weights);
}

void fastdqn_tree_feed(const Tree *tree, const int64_t *rows, const float *priority, int64_t count)
{
    feed_tree(tree, rows, priority, count);
}

/* Write priorities of transitions known by number, but for those that have left a ring of
 * [num_rows, row_size] whose newest row is `newest`; nothing where one is not finite.
 *
 * rows, kept: [count] memory to work in. Returns how many were written, -1 for none. */
int64_t fastdqn_tree_feed_known(const Tree *tree, const int64_t *numbers, const float *priority,
                                int64_t count, int64_t newest, int64_t num_rows, int64_t row_size,
                                int64_t *rows, float *kept)
{
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(priority[i])) return -1;
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = numbers[i] / row_size;
        if (numbers[i] < 0 || row > newest || row <= newest - num_rows) continue;
        const int64_t place = row % num_rows * row_size + numbers[i] % row_size;
        if (!(tree->leaves[place] > 0.0f)) continue;
        rows[found] = place;
        kept[found++] = priority[i];
    }
    feed_tree(tree, rows, kept, found);
    return found;
}

float fastdqn_tree_most(const Tree *tree)
{
    return largest_of(tree->largest[LEVELS - 1], tree->fan_out);
}

/* Write a value into `count` neighbours. */
void fastdqn_tree_fill(const Tree *tree, int64_t first, int64_t count, float value)
{
    for (int64_t row = first; row < first + count; row++) tree->leaves[row] = value;
    for (int64_t row = first; row < first + count;) {
        refresh(tree, &row, 1);
        row = (row / CHUNK + 1) * CHUNK;
    }
}
