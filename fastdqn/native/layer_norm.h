/* LayerNorm of a layer's units, and its gradient, over [units, columns] with the batch contiguous.
 *
 *     y = relu(gamma h + beta),   h = (x - mean(x)) / sqrt(var(x) + EPS)     over the units of a row
 *
 * Each function takes VECTORS registers of columns at a time, so that sums over the units of as many
 * rows run side by side. mlp.c defines the registers.
 */

#define EPS 1e-5f /* as PyTorch's layer_norm */

/* One layer. gamma and beta are [units], x and normal [units, columns], rate [columns]. */
typedef struct {
    int64_t units, columns;
    int64_t width; /* columns in use: whole registers */
    const float *gamma, *beta;
    float *normal; /* h, or NULL where no gradient is asked for */
    float *rate; /* 1 / sqrt(var(x) + EPS), or NULL likewise */
} Norm;

static inline __attribute__((always_inline)) void normalize_some(
    const Norm *norm, const int vectors, int64_t column, float *x)
{
    const int64_t units = norm->units, columns = norm->columns;
    vec mean[VECTORS] = {{0}}, square[VECTORS] = {{0}};
    float rate[VECTORS * WIDTH];
    x += column;
    for (int64_t i = 0; i < units; i++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) mean[v] += *(const vec *)(x + i * columns + v * WIDTH);
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) mean[v] /= (float)units;
    for (int64_t i = 0; i < units; i++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            const vec away = *(const vec *)(x + i * columns + v * WIDTH) - mean[v];
            square[v] += away * away;
        }
    memcpy(rate, square, (size_t)(vectors * WIDTH) * sizeof(float));
    for (int c = 0; c < vectors * WIDTH; c++) {
        const float variance = rate[c] / (float)units;
        rate[c] = 1.0f / sqrtf(variance + EPS) + (variance - variance); /* NaN beyond float32 */
    }
    if (norm->rate) memcpy(norm->rate + column, rate, (size_t)(vectors * WIDTH) * sizeof(float));
    for (int64_t i = 0; i < units; i++) {
        const float gamma = norm->gamma[i], beta = norm->beta[i];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            const int64_t here = i * columns + v * WIDTH;
            const vec h = (*(const vec *)(x + here) - mean[v]) * *(const vec *)(rate + v * WIDTH);
            const vec y = h * gamma + beta;
            if (norm->normal) *(vec *)(norm->normal + column + here) = h;
            *(vec *)(x + here) = (vec)((ivec)y & ~(y < 0));
        }
    }
}

/* Turn the outputs of a linear layer into the units of the next one, in place. */
static void normalize(const Norm *norm, float *x)
{
    int64_t column = 0;
    for (; column + VECTORS * WIDTH <= norm->width; column += VECTORS * WIDTH)
        normalize_some(norm, VECTORS, column, x);
    for (; column < norm->width; column += WIDTH) normalize_some(norm, 1, column, x);
}

static inline __attribute__((always_inline)) void undo_some(
    const Norm *norm, const int vectors, int64_t column, float *slopes, float *by_gamma,
    float *by_beta)
{
    const int64_t units = norm->units, columns = norm->columns;
    vec level[VECTORS] = {{0}}, along[VECTORS] = {{0}};
    const float *normal = norm->normal + column;
    slopes += column;
    for (int64_t i = 0; i < units; i++) {
        vec beside = {0}, total = {0};
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            const vec slope = *(const vec *)(slopes + i * columns + v * WIDTH);
            const vec h = *(const vec *)(normal + i * columns + v * WIDTH);
            const vec by_h = slope * norm->gamma[i];
            beside += slope * h;
            total += slope;
            level[v] += by_h;
            along[v] += by_h * h;
        }
        by_gamma[i] += all_of(beside);
        by_beta[i] += all_of(total);
    }
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
        level[v] /= (float)units;
        along[v] /= (float)units;
    }
    for (int64_t i = 0; i < units; i++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            vec *slope = (vec *)(slopes + i * columns + v * WIDTH);
            const vec h = *(const vec *)(normal + i * columns + v * WIDTH);
            const vec rate = *(const vec *)(norm->rate + column + v * WIDTH);
            *slope = rate * (*slope * norm->gamma[i] - level[v] - h * along[v]);
        }
}

/* Turn the gradient by gamma h + beta into that by x, in place; write those by gamma and beta. */
static void undo_normalize(const Norm *norm, float *slopes, float *by_gamma, float *by_beta)
{
    int64_t column = 0;
    memset(by_gamma, 0, (size_t)norm->units * sizeof(float));
    memset(by_beta, 0, (size_t)norm->units * sizeof(float));
    for (; column + VECTORS * WIDTH <= norm->width; column += VECTORS * WIDTH)
        undo_some(norm, VECTORS, column, slopes, by_gamma, by_beta);
    for (; column < norm->width; column += WIDTH)
        undo_some(norm, 1, column, slopes, by_gamma, by_beta);
}
