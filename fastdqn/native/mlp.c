/* One core, one multilayer perceptron: acting and whole DQN updates without an operator's overhead.
 *
 * The equations are those of the eager learner; this file only runs them faster. Activations are
 * stored with the batch as the last, contiguous axis ([units, batch]), so that a vector register
 * holds one unit of several rows of the batch, the weights are read as PyTorch stores them, and no
 * width but the batch's is padded.
 *
 *     forward     Y  [out, B]  = W [out, in] X [in, B] + b            then max(0, Y), or layer_norm.h
 *     backward    dX [in, B]   = W^T [in, out] dY [out, B]            then 0 where X is 0
 *                 dW [out, in] = dY [out, B] X^T [B, in]
 *     dueling     Q  [A, B]    = V [1, B] + Y [A, B] - mean_A(Y)      V has a layer of its own
 *
 * Nothing is allocated but in `fastdqn_open`. Longer than 300 lines: it is compiled as one unit.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../replay/sum_tree.h"

#if defined(__AVX512F__)
#define WIDTH 16 /* floats of a vector register */
#define ROWS 6   /* a tile of the product is ROWS x VECTORS registers */
#define VECTORS 4
#elif defined(__AVX__)
#define WIDTH 8
#define ROWS 6
#define VECTORS 2
#else
#define WIDTH 4
#define ROWS 6
#define VECTORS 3
#endif

#define MAX_LAYERS 16
#define ALIGNMENT 64
#define MAX_FETCHED 8 /* steps of an n-step return that are asked for early */

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

static inline float all_of(vec numbers)
{
    float total = 0.0f;
    for (int v = 0; v < WIDTH; v++) total += numbers[v];
    return total;
}

#include "layer_norm.h"

enum loss { HUBER, MSE };
enum optimizer { ADAM, ADAMW, RMSPROP };
enum target { SOFT, HARD, NONE };
enum answer { FINE, BAD_INDEX, BAD_ACTION, BAD_OBSERVATION };
enum dtype { FLOAT32, FLOAT16, UINT8, INT8, INT16, INT32, INT64 }; /* bool is UINT8 */

/* Filled in by the caller, field by field as in `fastdqn/native/c_library.py`. */
typedef struct {
    int64_t num_layers; /* linear layers; hidden ones are followed by a ReLU */
    int64_t sizes[MAX_LAYERS + 1];
    int64_t layer_norm; /* hidden layers are normalised before their ReLU */
    int64_t dueling; /* the last layer's outputs are advantages, and one more layer gives a value */
    int64_t divided; /* units of the last hidden layer that the value reads; the others are those of
                        the advantages; 0: both read all of them */
    int64_t batch; /* rows of a batch, B */
    int64_t one_hot, offset; /* values of a Discrete observation, or 0 */
    int64_t dtype; /* of the frames */
    float scale; /* of the observations */
    float gamma, tau;
    int64_t double_dqn, loss, optimizer, target, target_period, target_phase, amsgrad;
    float clip_norm, clip_value; /* infinity is none */
    float beta1, beta2, eps, weight_decay; /* RMSprop: beta2 is alpha */
    /* the learner's state */
    float *online, *bootstrap, *slots[3];
    int64_t *updates, *skipped;
    const float *learning_rate;
    float *metrics;
} Settings;

/* The replay ring, as the learner reads it. */
typedef struct {
    const void *frames;
    const int64_t *next_index, *action;
    const float *reward;
    const uint8_t *terminated, *masks;
    const uint8_t *continues; /* read for n_step above 1 */
    const float *discount, *weight; /* of a batch that brings its own, or NULL */
    int64_t num_transitions, num_frames, frame_bytes;
    int64_t n_step, stride; /* rewards that are added up; from a transition to its column's next */
} Ring;

/* Which transitions may be drawn: `count` of them, from number `first` on, in a circle. */
typedef struct {
    const int64_t *order;
    int64_t size, first, count, newest;
} Valid;

/* A linear layer: from `in` units of a layer of units to `out` of the next. */
typedef struct {
    int64_t layer; /* of what it reads */
    int64_t from, in, to, out;
    int64_t weight, bias; /* where they begin in the flat parameters */
} Linear;

typedef struct {
    Settings set;
    int64_t frame_size; /* numbers of one stored frame */
    int64_t width; /* the batch, rounded up to whole registers */
    int64_t columns; /* from one row of `width` numbers to the next, see `apart` */
    int64_t num_parameters;
    int64_t num_linear;
    Linear linear[MAX_LAYERS + 1]; /* that of the value is last */
    int64_t gamma[MAX_LAYERS], beta[MAX_LAYERS]; /* of a hidden layer's norm, likewise */
    float *units[MAX_LAYERS + 1]; /* [size, columns] activations of the pass that is differentiated */
    float *aside[MAX_LAYERS + 1]; /* the same of passes that are not */
    float *slopes[MAX_LAYERS + 1]; /* [size, columns] gradient by units */
    float *normal[MAX_LAYERS], *rate[MAX_LAYERS]; /* of the pass that is differentiated, see Norm */
    float *observations; /* [batch, size] the first layer's input with its units as the last axis */
    float *turned; /* [batch, size] the same of a hidden layer's */
    float *gradient;
    int64_t *index; /* [batch] what is learned from */
    int64_t *next; /* [batch] the frame that follows, n steps later */
    float *reward, *discount; /* [batch] of these n steps, and of the value that follows */
    int64_t *best; /* [batch] next actions */
    float *goal; /* [batch] bootstrapped targets */
    float *weights, *priority; /* [batch] of rows that are drawn from a tree */
    char *memory; /* holds all of these */
} Plan;

static int64_t round_up(int64_t number, int64_t step) { return (number + step - 1) / step * step; }

/* Numbers from one row to the next: whole registers, and not a multiple of 512 bytes, since such
 * rows would share half of the first cache. */
static int64_t apart(int64_t size)
{
    const int64_t width = round_up(size, WIDTH);
    return width % 128 ? width : width + WIDTH;
}

/* Products. c[m, n] = start + sum_k a(m, k) b[k, n]; b and c have the last axis contiguous. */

enum after { STORE, RELU, GATE };

typedef struct {
    const float *a;
    int64_t a_row, a_column;
    const float *b;
    int64_t b_row;
    float *c;
    int64_t c_row;
    int64_t m, n, k;
    const float *start; /* [m], or NULL for zeros */
    enum after after;
    const float *gate; /* laid out as c: where it is 0 the result is 0 */
} Product;

static inline __attribute__((always_inline)) void tile(
    const Product *p, const int rows, const int vectors, int64_t row, int64_t column)
{
    vec sum[ROWS][VECTORS];
    const float *a = p->a + row * p->a_row, *b = p->b + column;
    const int64_t a_row = p->a_row, a_column = p->a_column, b_row = p->b_row;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            sum[r][v] = (vec){0} + (p->start ? p->start[row + r] : 0.0f);
    for (int64_t k = 0; k < p->k; k++) {
        vec right[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) right[v] = *(const vec *)(b + k * b_row + v * WIDTH);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const float left = a[r * a_row + k * a_column];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) sum[r][v] += left * right[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            const int64_t here = (row + r) * p->c_row + column + v * WIDTH;
            vec value = sum[r][v];
            if (p->after == RELU) value = (vec)((ivec)value & ~(value < 0));
            if (p->after == GATE) value = (vec)((ivec)value & (*(const vec *)(p->gate + here) > 0));
            const int64_t left = p->n - column - v * WIDTH;
            if (left >= WIDTH)
                *(vec *)(p->c + here) = value;
            else
                memcpy(p->c + here, &value, left * sizeof(float));
        }
}

/* All rows of `vectors` registers' columns: as many large tiles as fit, then the rest of them. */
static inline __attribute__((always_inline)) void strip(
    const Product *p, const int vectors, int64_t column)
{
    int64_t row = 0;
    for (; row + ROWS <= p->m; row += ROWS) tile(p, ROWS, vectors, row, column);
    for (; row + 2 <= p->m; row += 2) tile(p, 2, vectors, row, column);
    if (row < p->m) tile(p, 1, vectors, row, column);
}

static void multiply(const Product *p)
{
    int64_t column = 0;
    for (; column + (VECTORS - 1) * WIDTH < p->n; column += VECTORS * WIDTH)
        strip(p, VECTORS, column);
#if VECTORS > 2
    for (; column + WIDTH < p->n; column += 2 * WIDTH) strip(p, 2, column);
#endif
    if (column < p->n) strip(p, 1, column);
}

/* Observations become the first layer's input, [size, columns] and, if asked, [batch, size]. */

#define ENCODE(type, as_float)                                                                     \
    {                                                                                              \
        const type *frame = (const type *)frames + place * plan->frame_size;                       \
        for (int64_t i = 0; i < size; i++) {                                                       \
            const float value = as_float(frame[i]) * scale;                                        \
            out[i * columns + row] = value;                                                        \
            if (turned) turned[row * turned_row + i] = value;                                      \
        }                                                                                          \
        break;                                                                                     \
    }

static float of_half(uint16_t half)
{
    const uint32_t rest = half & 0x7fffu;
    uint32_t bits = rest << 13;
    float value;
    memcpy(&value, &bits, sizeof(value));
    value *= 0x1p112f; /* the exponents' biases differ by 112 */
    memcpy(&bits, &value, sizeof(bits));
    bits = (rest < 0x7c00u ? bits : 0x7f800000u | rest << 13) | (uint32_t)(half & 0x8000u) << 16;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static int64_t whole(const void *frames, int64_t dtype, int64_t place)
{
    switch (dtype) {
    case UINT8: return ((const uint8_t *)frames)[place];
    case INT8: return ((const int8_t *)frames)[place];
    case INT16: return ((const int16_t *)frames)[place];
    case INT32: return ((const int32_t *)frames)[place];
    default: return ((const int64_t *)frames)[place];
    }
}

/* Whether a whole number is none of those that one-hot vectors stand for. */
static int is_beyond(const Plan *plan, const void *frames, int64_t place)
{
    const int64_t first = plan->set.offset, number = whole(frames, plan->set.dtype, place);
    return number < first || number >= first + plan->set.sizes[0];
}

static void encode(
    const Plan *plan, const void *frames, int64_t row, int64_t place, int64_t columns, float *out,
    float *turned, int64_t turned_row)
{
    const int64_t size = plan->set.sizes[0];
    const float scale = plan->set.scale;
    if (plan->set.one_hot) {
        const int64_t hot = whole(frames, plan->set.dtype, place) - plan->set.offset;
        for (int64_t i = 0; i < size; i++) {
            out[i * columns + row] = i == hot;
            if (turned) turned[row * turned_row + i] = i == hot;
        }
        return;
    }
    switch (plan->set.dtype) {
    case FLOAT32: ENCODE(float, )
    case FLOAT16: ENCODE(uint16_t, of_half)
    case UINT8: ENCODE(uint8_t, (float))
    case INT8: ENCODE(int8_t, (float))
    case INT16: ENCODE(int16_t, (float))
    case INT32: ENCODE(int32_t, (float))
    default: ENCODE(int64_t, (float))
    }
}

/* The network. */

static Norm norm_of_layer(const Plan *plan, const float *flat, int64_t layer, int kept)
{
    return (Norm){
        .units = plan->set.sizes[layer], .columns = plan->columns, .width = plan->width,
        .gamma = flat + plan->gamma[layer], .beta = flat + plan->beta[layer],
        .normal = kept ? plan->normal[layer] : NULL, .rate = kept ? plan->rate[layer] : NULL,
    };
}

/* Turn advantages [num, columns], below which lies the value [1, columns], into Q-values. */
static void join(float *q, int64_t num, int64_t columns, int64_t width)
{
    for (int64_t column = 0; column < width; column += WIDTH) {
        vec total = {0};
        for (int64_t a = 0; a < num; a++) total += *(const vec *)(q + a * columns + column);
        const vec mean = total / (float)num, value = *(const vec *)(q + num * columns + column);
        for (int64_t a = 0; a < num; a++) {
            vec *advantage = (vec *)(q + a * columns + column);
            *advantage = value + *advantage - mean;
        }
    }
}

/* Turn the gradient by Q-values into that by advantages, and write that by the value below. */
static void part(float *slopes, int64_t num, int64_t columns, int64_t width)
{
    for (int64_t column = 0; column < width; column += WIDTH) {
        vec total = {0};
        for (int64_t a = 0; a < num; a++) total += *(const vec *)(slopes + a * columns + column);
        *(vec *)(slopes + num * columns + column) = total;
        for (int64_t a = 0; a < num; a++)
            *(vec *)(slopes + a * columns + column) -= total / (float)num;
    }
}

/* Compute `units` from units[0]; with `kept`, write what `backward` reads besides. */
static void forward(const Plan *plan, const float *flat, float *const *units, int64_t columns,
                    int kept)
{
    const Settings *set = &plan->set;
    const int64_t last = set->num_layers;
    for (int64_t i = 0; i < plan->num_linear; i++) {
        const Linear *linear = plan->linear + i;
        const int hidden = linear->layer + 1 < last, normed = hidden && set->layer_norm;
        const Product p = {
            .a = flat + linear->weight, .a_row = linear->in, .a_column = 1,
            .b = units[linear->layer] + linear->from * columns, .b_row = columns,
            .c = units[linear->layer + 1] + linear->to * columns, .c_row = columns,
            .m = linear->out, .n = plan->width, .k = linear->in,
            .start = flat + linear->bias,
            .after = hidden && !normed ? RELU : STORE,
        };
        multiply(&p);
        if (!normed) continue;
        const Norm norm = norm_of_layer(plan, flat, linear->layer + 1, kept);
        normalize(&norm, units[linear->layer + 1]);
    }
    if (set->dueling) join(units[last], set->sizes[last], columns, plan->width);
}

/* Write [batch, size] of [size, columns]: squares of four by four, then what is left. */
static void turn(const float *units, int64_t size, int64_t columns, float *turned,
                 int64_t turned_row, int64_t batch)
{
    for (int64_t i = 0; i + 4 <= size; i += 4)
        for (int64_t row = 0; row + 4 <= batch; row += 4) {
            const float *from = units + i * columns + row;
            float *to = turned + row * turned_row + i;
            const four a = *(const four *)from, b = *(const four *)(from + columns);
            const four c = *(const four *)(from + 2 * columns);
            const four d = *(const four *)(from + 3 * columns);
            const four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5);
            const four cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
            const four ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
            const four cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
            *(four *)to = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
            *(four *)(to + turned_row) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
            *(four *)(to + 2 * turned_row) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
            *(four *)(to + 3 * turned_row) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
        }
    for (int64_t i = 0; i < size; i++)
        for (int64_t row = i < size / 4 * 4 ? batch / 4 * 4 : 0; row < batch; row++)
            turned[row * turned_row + i] = units[i * columns + row];
}

/* From the gradient by what a linear layer gives to that by its parameters and what it reads.
 *
 * turned: [batch, size] all units of the layer that it reads from. */
static void backward_linear(Plan *plan, const Linear *linear, const float *turned)
{
    const int64_t columns = plan->columns, layer = linear->layer, from = linear->from * columns;
    const float *slopes = plan->slopes[layer + 1] + linear->to * columns;
    const Product by_weight = {
        .a = slopes, .a_row = columns, .a_column = 1,
        .b = turned + linear->from, .b_row = apart(plan->set.sizes[layer]),
        .c = plan->gradient + linear->weight, .c_row = linear->in,
        .m = linear->out, .n = linear->in, .k = plan->set.batch, .after = STORE,
    };
    multiply(&by_weight);
    float *by_bias = plan->gradient + linear->bias;
    for (int64_t o = 0; o < linear->out; o++) {
        vec sum = {0};
        for (int64_t column = 0; column < plan->width; column += WIDTH)
            sum += *(const vec *)(slopes + o * columns + column);
        by_bias[o] = all_of(sum);
    }
    if (!layer) return;
    const Product by_units = {
        .a = plan->set.online + linear->weight, .a_row = 1, .a_column = linear->in,
        .b = slopes, .b_row = columns,
        .c = plan->slopes[layer] + from, .c_row = columns,
        .m = linear->in, .n = plan->width, .k = linear->out,
        .after = GATE, .gate = plan->units[layer] + from,
    };
    multiply(&by_units);
}

/* From the gradient by the Q-values, in slopes[L], to that by the parameters. */
static void backward(Plan *plan)
{
    const Settings *set = &plan->set;
    const int64_t columns = plan->columns, last = set->num_layers;
    if (set->dueling) part(plan->slopes[last], set->sizes[last], columns, plan->width);
    for (int64_t layer = last - 1; layer >= 0; layer--) {
        const int64_t size = set->sizes[layer];
        float *turned = layer ? plan->turned : plan->observations;
        if (layer) turn(plan->units[layer], size, columns, turned, apart(size), set->batch);
        backward_linear(plan, plan->linear + layer, turned);
        if (set->dueling && layer == last - 1)
            backward_linear(plan, plan->linear + last, turned);
        if (!layer || !set->layer_norm) continue;
        const Norm norm = norm_of_layer(plan, set->online, layer, 1);
        undo_normalize(&norm, plan->slopes[layer], plan->gradient + plan->gamma[layer],
                       plan->gradient + plan->beta[layer]);
    }
}

/* Return the first largest value among the allowed ones of a column, as PyTorch does: a NaN is
 * larger than everything, and where nothing is allowed everything is. */
static int64_t argmax(const float *q, int64_t columns, int64_t num, const uint8_t *mask)
{
    int64_t best = -1;
    for (int64_t a = 0; a < num; a++) {
        if (mask && !mask[a]) continue;
        const float value = q[a * columns];
        if (best < 0 || value > q[best * columns] || (isnan(value) && !isnan(q[best * columns])))
            best = a;
    }
    return best < 0 ? argmax(q, columns, num, NULL) : best;
}

/* Return one of 0 ... count - 1, by a number in [0, 1); others are taken for the nearest. */
static int64_t any_of(int64_t count, float uniform)
{
    const float place = (float)count * uniform;
    return place >= (float)count ? count - 1 : place > 0.0f ? (int64_t)place : 0;
}

/* Return one of the allowed actions, likewise. */
static int64_t any_allowed(const uint8_t *mask, int64_t num, float uniform)
{
    int64_t allowed = 0;
    for (int64_t a = 0; mask && a < num; a++) allowed += mask[a] != 0;
    if (!allowed) return any_of(num, uniform);
    int64_t rank = any_of(allowed, uniform), a = 0;
    for (; !mask[a] || rank; a++) rank -= mask[a] != 0;
    return a;
}

static const uint8_t *mask_of(const Ring *ring, int64_t frame, int64_t num)
{
    return ring->masks ? ring->masks + frame * num : NULL;
}

/* Add up the rewards of n transitions, or of as many as continue each other. */
static void add_rewards(Plan *plan, const Ring *ring, const int64_t *index)
{
    const float gamma = plan->set.gamma;
    for (int64_t row = 0; row < plan->set.batch; row++) {
        int64_t here = index[row];
        float reward = ring->reward[here], factor = gamma;
        for (int64_t k = 1; k < ring->n_step && ring->continues[here]; k++) {
            here = (here + ring->stride) % ring->num_transitions;
            reward += factor * ring->reward[here];
            factor *= gamma;
        }
        plan->reward[row] = reward;
        plan->next[row] = ring->next_index[here];
        plan->discount[row] = ring->discount           ? ring->discount[here]
                              : ring->terminated[here] ? 0.0f
                                                       : factor;
    }
}

/* The bootstrapped targets of a batch. Afterwards plan->aside holds nothing of use. */
static void set_goals(Plan *plan, const Ring *ring)
{
    const Settings *set = &plan->set;
    const int64_t columns = plan->columns, last = set->num_layers, num = set->sizes[last];
    for (int64_t row = 0; row < set->batch; row++)
        encode(plan, ring->frames, row, plan->next[row], columns, plan->aside[0], NULL, 0);
    const float *q = plan->aside[last];
    if (set->double_dqn) {
        forward(plan, set->online, plan->aside, columns, 0);
        for (int64_t row = 0; row < set->batch; row++)
            plan->best[row] = argmax(q + row, columns, num, mask_of(ring, plan->next[row], num));
    }
    const int bootstrapped_by_another = set->bootstrap != set->online;
    if (!set->double_dqn || bootstrapped_by_another)
        forward(plan, set->bootstrap, plan->aside, columns, 0);
    for (int64_t row = 0; row < set->batch; row++) {
        int64_t best = plan->best[row];
        if (!set->double_dqn)
            best = argmax(q + row, columns, num, mask_of(ring, plan->next[row], num));
        const float value = q[best * columns + row];
        const float reward = plan->reward[row], discount = plan->discount[row];
        plan->goal[row] = discount == 0.0f ? reward : reward + discount * value;
    }
}

/* The loss's gradient by the Q-values, and three of the metrics. */
static void set_errors(Plan *plan, const Ring *ring, const int64_t *index, const float *weights,
                       float *metrics)
{
    const Settings *set = &plan->set;
    const int64_t columns = plan->columns, last = set->num_layers, num = set->sizes[last];
    const float share = 1.0f / (float)set->batch;
    double loss = 0.0, magnitude = 0.0, value = 0.0;
    memset(plan->slopes[last], 0, (size_t)(num * columns) * sizeof(float));
    for (int64_t row = 0; row < set->batch; row++) {
        const int64_t at = ring->action[index[row]] * columns + row;
        const float q = plan->units[last][at], error = q - plan->goal[row], size = fabsf(error);
        float of_row = error * error, slope = 2.0f * error;
        if (set->loss == HUBER) {
            of_row = size < 1.0f ? 0.5f * error * error : size - 0.5f;
            slope = size < 1.0f ? error : copysignf(1.0f, error);
        }
        if (ring->weight || weights) {
            const float weight = weights ? weights[row] : ring->weight[index[row]];
            of_row *= weight;
            slope *= weight;
        }
        loss += of_row;
        plan->slopes[last][at] = slope * share;
        plan->priority[row] = size;
        magnitude += size;
        value += q;
    }
    metrics[0] = (float)(loss * share);
    metrics[1] = (float)(magnitude * share);
    metrics[2] = (float)(value * share);
}

static float norm_of(const float *numbers, int64_t count)
{
    vec sums[4] = {{0}};
    double total = 0.0;
    int64_t i = 0;
    for (; i + 4 * WIDTH <= count; i += 4 * WIDTH)
        for (int v = 0; v < 4; v++) {
            const vec some = *(const vec *)(numbers + i + v * WIDTH);
            sums[v] += some * some;
        }
    for (int v = 0; v < 4; v++)
        for (int w = 0; w < WIDTH; w++) total += sums[v][w];
    for (; i < count; i++) total += (double)numbers[i] * numbers[i];
    return (float)sqrt(total);
}

/* The optimizers, on one flat vector. */

static void clip(const Settings *set, float *restrict gradient, int64_t count, float norm)
{
    const float bound = set->clip_value, factor = set->clip_norm / (norm + 1e-6f);
    if (factor < 1.0f)
        for (int64_t i = 0; i < count; i++) gradient[i] *= factor;
    if (bound < INFINITY)
        for (int64_t i = 0; i < count; i++) {
            const float number = gradient[i];
            gradient[i] = number > bound ? bound : number < -bound ? -bound : number;
        }
}

static void adam(const Settings *set, float *restrict flat, const float *restrict gradient,
                 int64_t count, double step)
{
    float *restrict first = set->slots[0], *restrict second = set->slots[1];
    float *restrict largest = set->amsgrad ? set->slots[2] : NULL;
    const float rate = *set->learning_rate;
    const float scale = rate / (1.0f - (float)pow(set->beta1, step));
    const float root = 1.0f / sqrtf(1.0f - (float)pow(set->beta2, step)), eps = set->eps;
    const float beta2 = set->beta2, rest1 = 1.0f - set->beta1, rest2 = 1.0f - set->beta2;
    const float coupled = set->optimizer == ADAM ? set->weight_decay : 0.0f;
    const float kept = set->optimizer == ADAMW ? rate * set->weight_decay : 0.0f;
    if (largest) {
        for (int64_t i = 0; i < count; i++) {
            const float slope = gradient[i] + coupled * flat[i];
            first[i] += rest1 * (slope - first[i]);
            second[i] = second[i] * beta2 + rest2 * slope * slope;
            largest[i] = largest[i] > second[i] ? largest[i] : second[i];
            flat[i] = flat[i] - kept * flat[i] - scale * first[i] / (sqrtf(largest[i]) * root + eps);
        }
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        const float slope = gradient[i] + coupled * flat[i];
        first[i] += rest1 * (slope - first[i]);
        second[i] = second[i] * beta2 + rest2 * slope * slope;
        flat[i] = flat[i] - kept * flat[i] - scale * first[i] / (sqrtf(second[i]) * root + eps);
    }
}

static void rmsprop(const Settings *set, float *restrict flat, const float *restrict gradient,
                    int64_t count)
{
    float *restrict square = set->slots[0];
    const float rate = *set->learning_rate, alpha = set->beta2, rest = 1.0f - set->beta2;
    for (int64_t i = 0; i < count; i++) {
        const float slope = gradient[i] + set->weight_decay * flat[i];
        square[i] = square[i] * alpha + rest * slope * slope;
        flat[i] -= rate * slope / (sqrtf(square[i]) + set->eps);
    }
}

static void move_target(const Settings *set, int64_t count, int64_t step)
{
    float *restrict behind = set->bootstrap;
    const float *restrict ahead = set->online;
    const float tau = set->tau;
    if (set->target == HARD && set->target_period
        && (step + set->target_phase) % set->target_period == 0)
        memcpy(behind, ahead, (size_t)count * sizeof(float));
    if (set->target != SOFT) return;
    if (tau < 0.5f)
        for (int64_t i = 0; i < count; i++) behind[i] += tau * (ahead[i] - behind[i]);
    else
        for (int64_t i = 0; i < count; i++)
            behind[i] = ahead[i] - (ahead[i] - behind[i]) * (1.0f - tau);
}

/* Ask for what a batch will read, so that it arrives together, and add up its rewards; return what
 * is out of range. */
static int64_t fetch(Plan *plan, const Ring *ring, const int64_t *index)
{
    for (int64_t row = 0; row < plan->set.batch; row++) {
        const int64_t here = index[row];
        if (here < 0 || here >= ring->num_transitions) return BAD_INDEX;
        __builtin_prefetch(ring->next_index + here);
        __builtin_prefetch(ring->action + here);
        __builtin_prefetch(ring->reward + here);
        __builtin_prefetch(ring->terminated + here);
        __builtin_prefetch((const char *)ring->frames + here * ring->frame_bytes);
        for (int64_t k = 1; k < ring->n_step && k < MAX_FETCHED; k++) {
            const int64_t later = (here + k * ring->stride) % ring->num_transitions;
            __builtin_prefetch(ring->continues + later);
            __builtin_prefetch(ring->reward + later);
            __builtin_prefetch(ring->next_index + later);
            __builtin_prefetch(ring->terminated + later);
        }
    }
    add_rewards(plan, ring, index);
    int64_t wrong = 0;
    for (int64_t row = 0; row < plan->set.batch; row++) {
        const int64_t action = ring->action[index[row]], next = plan->next[row];
        wrong |= action < 0 || action >= plan->set.sizes[plan->set.num_layers];
        wrong |= next < 0 || next >= ring->num_frames;
        __builtin_prefetch((const char *)ring->frames + next * ring->frame_bytes);
    }
    if (wrong) return BAD_ACTION;
    for (int64_t row = 0; plan->set.one_hot && row < plan->set.batch; row++)
        if (is_beyond(plan, ring->frames, index[row]) ||
            is_beyond(plan, ring->frames, plan->next[row]))
            return BAD_OBSERVATION;
    return FINE;
}

/* One update; return whether it was made. */

static int update(Plan *plan, const Ring *ring, const int64_t *index, const float *weights)
{
    const Settings *set = &plan->set;
    const int64_t count = plan->num_parameters;
    set_goals(plan, ring);
    const int64_t turned_row = apart(set->sizes[0]);
    for (int64_t row = 0; row < set->batch; row++)
        encode(plan, ring->frames, row, index[row], plan->columns, plan->units[0],
               plan->observations, turned_row);
    forward(plan, set->online, plan->units, plan->columns, 1);
    float metrics[4];
    set_errors(plan, ring, index, weights, metrics);
    backward(plan);
    metrics[3] = norm_of(plan->gradient, count);
    memcpy(set->metrics, metrics, sizeof(metrics));
    *set->updates += 1;
    if (!isfinite(metrics[0]) || !isfinite(metrics[1]) || !isfinite(metrics[2]) ||
        !isfinite(metrics[3])) {
        *set->skipped += 1;
        return 0;
    }
    const int64_t step = *set->updates - *set->skipped;
    clip(set, plan->gradient, count, metrics[3]);
    if (set->optimizer == RMSPROP)
        rmsprop(set, set->online, plan->gradient, count);
    else
        adam(set, set->online, plan->gradient, count, (double)step);
    move_target(set, count, step);
    return 1;
}

/* What Python calls. */

#ifdef __SANITIZE_ADDRESS__ /* a test's build: nothing may touch what lies between two parts */
#include <sanitizer/asan_interface.h>
#define GUARD ALIGNMENT
#define FORBID(from, to) ASAN_POISON_MEMORY_REGION(from, (char *)(to) - (char *)(from))
#else
#define GUARD 0
#define FORBID(from, to)
#endif

/* Take a part of the memory behind `used` bytes of it; NULL only counts them. */
static void *taken(char *memory, int64_t *used, int64_t numbers, int64_t bytes_each)
{
    const int64_t here = *used, end = here + numbers * bytes_each;
    *used = round_up(end, ALIGNMENT) + GUARD;
    if (!memory) return NULL;
    FORBID(memory + end, memory + *used);
    return memory + here;
}

/* Deal out the memory; return how many bytes that needs. */
static int64_t lay_out(Plan *plan, char *memory)
{
    const Settings *set = &plan->set;
    const int64_t real = sizeof(float), whole_number = sizeof(int64_t);
    int64_t used = 0, widest = 0;
    for (int64_t layer = 0; layer <= set->num_layers; layer++) {
        const int64_t size = set->sizes[layer], value = set->dueling && layer == set->num_layers;
        const int64_t numbers = (size + value) * plan->columns;
        const int normed = set->layer_norm && layer && layer < set->num_layers;
        plan->units[layer] = taken(memory, &used, numbers, real);
        plan->aside[layer] = taken(memory, &used, numbers, real);
        plan->slopes[layer] = layer ? taken(memory, &used, numbers, real) : NULL;
        if (normed) {
            plan->normal[layer] = taken(memory, &used, numbers, real);
            plan->rate[layer] = taken(memory, &used, plan->columns, real);
        }
        if (layer && layer < set->num_layers && size > widest) widest = size;
    }
    plan->observations = taken(memory, &used, set->batch * apart(set->sizes[0]), real);
    plan->turned = taken(memory, &used, set->batch * (round_up(widest, WIDTH) + WIDTH), real);
    plan->gradient = taken(memory, &used, plan->num_parameters, real);
    plan->goal = taken(memory, &used, set->batch, real);
    plan->reward = taken(memory, &used, set->batch, real);
    plan->discount = taken(memory, &used, set->batch, real);
    plan->next = taken(memory, &used, set->batch, whole_number);
    plan->weights = taken(memory, &used, set->batch, real);
    plan->priority = taken(memory, &used, set->batch, real);
    plan->best = taken(memory, &used, set->batch, whole_number);
    plan->index = taken(memory, &used, set->batch, whole_number);
    return used;
}

static void add_linear(Plan *plan, Linear linear)
{
    linear.weight = plan->num_parameters;
    linear.bias = linear.weight + linear.in * linear.out;
    plan->num_parameters = linear.bias + linear.out;
    plan->linear[plan->num_linear++] = linear;
}

/* Find out where all parameters lie: of the layers, of the value, of the norms. */
static void place_parameters(Plan *plan)
{
    const Settings *set = &plan->set;
    const int64_t last = set->num_layers - 1, num = set->sizes[last + 1], all = set->sizes[last];
    for (int64_t layer = 0; layer < last; layer++)
        add_linear(plan, (Linear){.layer = layer, .in = set->sizes[layer],
                                  .out = set->sizes[layer + 1]});
    add_linear(plan, (Linear){.layer = last, .from = set->divided, .in = all - set->divided,
                              .out = num});
    if (set->dueling)
        add_linear(plan, (Linear){.layer = last, .in = set->divided ? set->divided : all,
                                  .to = num, .out = 1});
    for (int64_t layer = 1; set->layer_norm && layer <= last; layer++) {
        plan->gamma[layer] = plan->num_parameters;
        plan->beta[layer] = plan->gamma[layer] + set->sizes[layer];
        plan->num_parameters = plan->beta[layer] + set->sizes[layer];
    }
}

/* Allocate all that calls with these settings need; NULL where memory is short. */
Plan *fastdqn_open(const Settings *set)
{
    Plan *plan = calloc(1, sizeof(Plan));
    if (!plan) return NULL;
    plan->set = *set;
    plan->width = round_up(set->batch, WIDTH);
    plan->columns = apart(set->batch);
    plan->frame_size = set->one_hot ? 1 : set->sizes[0];
    place_parameters(plan);
    const int64_t bytes = lay_out(plan, NULL);
    plan->memory = aligned_alloc(ALIGNMENT, (size_t)bytes);
    if (!plan->memory) {
        free(plan);
        return NULL;
    }
    memset(plan->memory, 0, (size_t)bytes);
    lay_out(plan, plan->memory);
    return plan;
}

void fastdqn_close(Plan *plan)
{
    free(plan->memory);
    free(plan);
}

/* Turn random numbers, or distances from the newest, into what they choose; -1 is nothing. */
static void draw(const Plan *plan, const Valid *valid, const int64_t *numbers)
{
    for (int64_t row = 0; row < plan->set.batch; row++) {
        if (numbers[row] < 0 || valid->count <= 0) {
            plan->index[row] = -1;
            continue;
        }
        const int64_t back = numbers[row] % valid->count;
        const int64_t nth = valid->newest ? valid->count - 1 - back : back;
        plan->index[row] = valid->order[(nth + valid->first) % valid->size];
    }
}

/* Make one update for each row of numbers [updates, batch], in order: indices, or what `valid` or
 * `tree` turns into some; a tree is fed the new priorities before the next row. None for a row that
 * holds something out of range, and no further ones. */
int64_t fastdqn_update(Plan *plan, const Ring *ring, const Valid *valid, const Tree *tree,
                       const int64_t *numbers, int64_t updates)
{
    const int64_t batch = plan->set.batch;
    for (int64_t i = 0; i < updates; i++, numbers += batch) {
        if (valid) draw(plan, valid, numbers);
        if (tree) draw_from_tree(tree, numbers, batch, plan->index, plan->weights);
        const int64_t *index = valid || tree ? plan->index : numbers;
        const int64_t answer = fetch(plan, ring, index);
        if (answer != FINE) return answer;
        const int made = update(plan, ring, index, tree ? plan->weights : NULL);
        if (tree && made) feed_tree(tree, index, plan->priority, batch);
    }
    return FINE;
}

/* Choose actions [batch] for frames [batch, size]: one of the allowed ones by uniform[row][1] where
 * uniform[row][0] < epsilon, the best of them elsewhere. None where a one-hot frame is out of range. */
int64_t fastdqn_act(Plan *plan, const void *frames, const uint8_t *masks, const float *uniform,
                    int64_t uniform_row, float epsilon, int64_t *actions)
{
    const Settings *set = &plan->set;
    const int64_t num = set->sizes[set->num_layers], columns = plan->columns;
    for (int64_t row = 0; set->one_hot && row < set->batch; row++)
        if (is_beyond(plan, frames, row)) return BAD_OBSERVATION;
    for (int64_t row = 0; row < set->batch; row++)
        encode(plan, frames, row, row, columns, plan->aside[0], NULL, 0);
    forward(plan, set->online, plan->aside, columns, 0);
    for (int64_t row = 0; row < set->batch; row++) {
        const uint8_t *mask = masks ? masks + row * num : NULL;
        const float *draw = uniform + row * uniform_row;
        if (draw[0] < epsilon)
            actions[row] = any_allowed(mask, num, draw[1]);
        else
            actions[row] = argmax(plan->aside[set->num_layers] + row, columns, num, mask);
    }
    return FINE;
}
