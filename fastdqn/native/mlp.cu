/* One card, one multilayer perceptron: whole DQN updates, and acting, in a few kernels.
 *
 * The equations are those of the eager learner; this file only runs them faster. It is compiled
 * for one network and one batch size when they are known, by NVRTC, which comes with PyTorch.
 * An update is three kernels, since a gradient's norm needs all of the gradient, and that needs
 * all rows:
 *
 *     learn      a block for every ROWS rows: both networks forward, the error, back to all slopes
 *     gradients  a block for every tile of 32 x 32 weights: dW = dY^T X, and its square
 *     commit     the same tiles: clip, optimizer, soft or hard target
 *
 * `prepare` goes before the updates of a call. It gathers the batches of all of them, so that the
 * ring's latency is paid once, and turns the weights over, [in, out], so that a forward pass reads
 * them along its outputs; `commit` keeps them so. All sums are taken in one fixed order: equal
 * states give equal results, to the bit.
 *
 * Shared memory is the dynamic one only and there are no warp operations, so that the file also
 * compiles as C++, one thread after the other: see tests/emulated. Longer than 300 lines, since it
 * is compiled as one unit.
 *
 * Given on the command line: SIZES, LAYERS, BATCH, ROWS, THREADS, FRAME, FRAME_SIZE, ONE_HOT,
 * MASKED, DOUBLE_DQN, SHARED (bootstraps from the online network), LOSS, OPTIMIZER, AMSGRAD,
 * TARGET, PARTS (floats of the largest product's parts).
 */

typedef long long int64;
typedef unsigned char uint8;

#define HUBER 0
#define MSE 1
#define ADAM 0
#define ADAMW 1
#define RMSPROP 2
#define SOFT 0
#define HARD 1

#define TILE 32
#define TILE_THREADS 256 /* of `prepare`, `gradients` and `commit` */
#define MOST_GROUPS 32   /* of threads that share a sum */

#if FRAME == 0
typedef float frame_t;
#elif FRAME == 1 || FRAME == 4
typedef short frame_t; /* of a half only the bits */
#elif FRAME == 2
typedef uint8 frame_t;
#elif FRAME == 3
typedef signed char frame_t;
#elif FRAME == 5
typedef int frame_t;
#else
typedef int64 frame_t;
#endif

/* Field by field as in `fastdqn/native/cuda_plan.py`. */
struct Call {
    /* the learner's state */
    float *online, *bootstrap, *slots[3];
    int64 *updates, *skipped;
    const float *learning_rate;
    float *metrics;
    /* the replay ring */
    const frame_t *frames;
    const int64 *next_index, *action;
    const float *reward;
    const uint8 *terminated, *masks;
    const float *discount, *weight; /* of a batch that brings its own, or null */
    int64 num_transitions, num_frames;
    /* what is learned: indices, or numbers that `order` turns into some */
    const int64 *numbers, *order, *first, *count;
    int64 order_size, newest;
    /* memory to work in */
    float *turned[2];          /* weights of the online and of the other network, [in, out] */
    float *inputs[2];           /* [rows, in] observations and next observations of all updates */
    float *rewards, *discounts, *weights; /* [rows] */
    int *actions;              /* [rows] */
    int64 *next;               /* [rows] frames of the next observations, for their masks */
    float *units, *slopes;     /* [BATCH, size] by layer: its input; the gradient by its output */
    float *by_row;             /* [3, BATCH] loss, error, Q-value */
    float *gradient, *squares; /* [P]; [tiles] */
    /* plain numbers */
    float scale, gamma, tau, clip_norm, clip_value;
    float beta1, beta2, rest1, rest2, eps, weight_decay; /* rest is 1 - beta */
    int64 offset, target_period, target_phase;
    int64 num_rows; /* of `prepare`: rows of all updates; of `act`: environments */
    int64 update;   /* which of the prepared updates this is */
    /* acting */
    const float *epsilon, *uniform;
    int64 uniform_row;
    int64 *chosen;
};

/* Sizes and places, all known to the compiler. */

constexpr int size(int layer)
{
    constexpr int sizes[] = {SIZES};
    return sizes[layer];
}

constexpr int before(int layer) /* units of all earlier layers */
{
    int sum = 0;
    for (int i = 0; i < layer; i++) sum += size(i);
    return sum;
}

constexpr int weight_at(int layer)
{
    int at = 0;
    for (int i = 0; i < layer; i++) at += size(i + 1) * (size(i) + 1);
    return at;
}

constexpr int bias_at(int layer) { return weight_at(layer) + size(layer) * size(layer + 1); }

constexpr int turned_at(int layer) /* each begins where four floats can be loaded at once */
{
    int at = 0;
    for (int i = 0; i < layer; i++) at += (size(i) * size(i + 1) + 3) / 4 * 4;
    return at;
}

constexpr int tiles_along(int length) { return (length + TILE - 1) / TILE; }

constexpr int tiles_before(int layer)
{
    int tiles = 0;
    for (int i = 0; i < layer; i++) tiles += tiles_along(size(i)) * tiles_along(size(i + 1));
    return tiles;
}

constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int larger(int a, int b) { return a > b ? a : b; }

constexpr int NUM_ACTIONS = size(LAYERS);
constexpr int TILES = tiles_before(LAYERS);
constexpr int PASSED = DOUBLE_DQN ? 2 * ROWS : ROWS; /* rows of the online network's pass */

extern __shared__ float memory[];

/* Products. sum[n, r] = start[n] + sum_k weights[k, n] x[k, r], with n along the threads: groups
 * of threads take a part of k each, and leave what they have to be added up. */

template <int N> constexpr int at_once(int place) { return N % 4 || place % 4 ? 1 : 4; }

template <int K, int COLUMNS> constexpr int groups()
{
    return larger(1, smaller(smaller(THREADS / COLUMNS, K), MOST_GROUPS));
}

template <int N> constexpr int parted() { return N % 4 ? N + 1 : N + 4; }

template <int R> void load_rows(float (&to)[R], const float *from)
{
    if constexpr (R % 4 == 0) {
#pragma unroll
        for (int i = 0; i < R / 4; i++) {
            const float4 four = ((const float4 *)from)[i];
            to[4 * i] = four.x, to[4 * i + 1] = four.y;
            to[4 * i + 2] = four.z, to[4 * i + 3] = four.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < R; i++) to[i] = from[i];
    }
}

template <int V> void load_weights(float (&to)[V], const float *from)
{
    if constexpr (V == 4) {
        const float4 four = *(const float4 *)from;
        to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
    } else {
        to[0] = *from;
    }
}

template <int K, int N, int R, int V, class Finish>
void layer(const float *weights, const float *start, const float *x, float *parts, Finish finish)
{
    constexpr int COLUMNS = N / V, GROUPS = groups<K, COLUMNS>();
    constexpr int SHARE = (K + GROUPS - 1) / GROUPS, ROW = parted<N>();
    static_assert(GROUPS * R * ROW <= PARTS, "the parts need more shared memory");
    for (int place = threadIdx.x; place < COLUMNS * GROUPS; place += THREADS) {
        const int group = place / COLUMNS, n = place % COLUMNS * V;
        const int begin = group * SHARE, end = smaller(K, begin + SHARE);
        float sum[R][V];
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int v = 0; v < V; v++) sum[r][v] = start && !group ? start[n + v] : 0.0f;
#pragma unroll 8
        for (int k = begin; k < end; k++) {
            float some[V], rows[R];
            load_weights<V>(some, weights + k * N + n);
            load_rows<R>(rows, x + k * R);
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int v = 0; v < V; v++) sum[r][v] += rows[r] * some[v];
        }
#pragma unroll
        for (int r = 0; r < R; r++) {
            float *part = parts + (group * R + r) * ROW + n;
            if constexpr (V == 4)
                *(float4 *)part = {sum[r][0], sum[r][1], sum[r][2], sum[r][3]};
            else
                *part = sum[r][0];
        }
    }
    __syncthreads();
    for (int place = threadIdx.x; place < N * R; place += THREADS) {
        const int n = place / R, r = place % R;
        float sum = parts[r * ROW + n];
#pragma unroll
        for (int group = 1; group < GROUPS; group++) sum += parts[(group * R + r) * ROW + n];
        finish(n, r, sum);
    }
    __syncthreads();
}

template <int L> struct Layer {
    static constexpr int at = L;
};

/* Both passes. units[l] is [size(l), R] at R * before(l); slopes[l] lie likewise. */

template <int R, int L, class Keep>
void forward(const float *flat, const float *turned, float *units, float *parts, Keep keep)
{
    if constexpr (L < LAYERS) {
        float *out = units + R * before(L + 1);
        layer<size(L), size(L + 1), R, at_once<size(L + 1)>(0)>(
            turned + turned_at(L), flat + bias_at(L), units + R * before(L), parts,
            [&](int n, int r, float sum) {
                const float value = L + 1 < LAYERS && sum < 0.0f ? 0.0f : sum;
                out[n * R + r] = value;
                keep(Layer<L + 1>{}, n, r, value);
            });
        forward<R, L + 1>(flat, turned, units, parts, keep);
    }
}

template <int L, class Keep>
void backward(const float *flat, const float *units, float *slopes, float *parts, Keep keep)
{
    if constexpr (L > 0) {
        layer<size(L + 1), size(L), ROWS, at_once<size(L)>(weight_at(L))>(
            flat + weight_at(L), nullptr, slopes + ROWS * before(L + 1), parts,
            [&](int n, int r, float sum) {
                const float slope = units[PASSED * before(L) + n * PASSED + r] <= 0.0f ? 0.0f : sum;
                slopes[ROWS * before(L) + n * ROWS + r] = slope;
                keep(Layer<L>{}, n, r, slope);
            });
        backward<L - 1>(flat, units, slopes, parts, keep);
    }
}

/* Choices. q[a] lies at q[a * stride]. */

inline bool is_nan(float value) { return value != value; }

/* The first largest value among the allowed ones, as in PyTorch: a NaN is larger than everything,
 * and where nothing is allowed everything is. */
inline int best_of(const float *q, int stride, const uint8 *mask)
{
    int best = -1;
    for (int pass = 0; pass < 2 && best < 0; pass++)
        for (int a = 0; a < NUM_ACTIONS; a++) {
            if (mask && !pass && !mask[a]) continue;
            const float value = q[a * stride];
            if (best < 0 || value > q[best * stride] ||
                (is_nan(value) && !is_nan(q[best * stride])))
                best = a;
        }
    return best;
}

/* One of 0 ... count - 1, by a number in [0, 1); others are taken for the nearest. */
inline int among(int count, float uniform)
{
    const float place = count * uniform;
    return place >= (float)count ? count - 1 : place > 0.0f ? (int)place : 0;
}

inline int any_of(const uint8 *mask, float uniform)
{
    int allowed = 0;
    for (int a = 0; mask && a < NUM_ACTIONS; a++) allowed += mask[a] != 0;
    if (!allowed) return among(NUM_ACTIONS, uniform);
    int rank = among(allowed, uniform), a = 0;
    for (; !mask[a] || rank; a++) rank -= mask[a] != 0;
    return a;
}

/* Observations. */

union Number {
    unsigned bits;
    float value;
};

inline float of_half(short half)
{
    Number number;
    const unsigned rest = half & 0x7fffu;
    number.bits = rest << 13;
    number.value *= 0x1p112f; /* the exponents' biases differ by 112 */
    number.bits = (rest < 0x7c00u ? number.bits : 0x7f800000u | rest << 13) |
                  (unsigned)(half & 0x8000) << 16;
    return number.value;
}

inline float encoded(const Call &call, int64 frame, int i)
{
    const frame_t *numbers = call.frames + frame * FRAME_SIZE;
    if (ONE_HOT) return (int64)numbers[0] - call.offset == i ? 1.0f : 0.0f;
    const float value = FRAME == 1 ? of_half((short)numbers[i]) : (float)numbers[i];
    return call.scale == 1.0f ? value : value * call.scale;
}

/* Whether a whole number is none of those that one-hot vectors stand for. */
inline bool is_beyond(const Call &call, int64 frame)
{
    const int64 number = (int64)call.frames[frame * FRAME_SIZE];
    return ONE_HOT && (number < call.offset || number >= call.offset + size(0));
}

/* Tiles of weights: which layer, and where in it. */

struct Tile {
    int out, in;       /* sizes of the layer */
    int row, column;   /* of the tile's first weight */
    int weights, bias; /* places in the flat parameters */
    int turned;        /* place of the layer's weights turned over */
    int units, slopes; /* places in the stored rows */
};

template <int L> void find_tile(int number, Tile &tile)
{
    if constexpr (L < LAYERS) {
        if (number >= tiles_before(L + 1)) {
            find_tile<L + 1>(number, tile);
            return;
        }
        constexpr int across = tiles_along(size(L));
        tile.out = size(L + 1), tile.in = size(L);
        tile.row = (number - tiles_before(L)) / across * TILE;
        tile.column = (number - tiles_before(L)) % across * TILE;
        tile.weights = weight_at(L), tile.bias = bias_at(L), tile.turned = turned_at(L);
        tile.units = BATCH * before(L), tile.slopes = BATCH * before(L + 1);
    }
}

/* Write a tile of weights [out, in] to its place in [in, out]. */
inline void turn(const Tile &tile, const float *weights, float *turned, float *square)
{
    for (int place = threadIdx.x; place < TILE * TILE; place += TILE_THREADS) {
        const int row = place / TILE, column = place % TILE;
        const int o = tile.row + row, i = tile.column + column;
        if (o < tile.out && i < tile.in)
            square[column * (TILE + 1) + row] = weights[tile.weights + o * tile.in + i];
    }
    __syncthreads();
    for (int place = threadIdx.x; place < TILE * TILE; place += TILE_THREADS) {
        const int row = place / TILE, column = place % TILE;
        const int i = tile.column + row, o = tile.row + column;
        if (o < tile.out && i < tile.in)
            turned[tile.turned + i * tile.out + o] = square[row * (TILE + 1) + column];
    }
    __syncthreads();
}

/* The blocks up to TILES turn the weights over, the others gather a row for every 32 threads. */
extern "C" __global__ void __launch_bounds__(TILE_THREADS) prepare(const __grid_constant__ Call call)
{
    if (blockIdx.x < TILES) {
        Tile tile;
        find_tile<0>(blockIdx.x, tile);
        turn(tile, call.online, call.turned[0], memory);
        if (!SHARED && call.num_rows) turn(tile, call.bootstrap, call.turned[1], memory);
        return;
    }
    const int64 row = (int64)(blockIdx.x - TILES) * (TILE_THREADS / 32) + threadIdx.x / 32;
    if (row >= call.num_rows) return;
    const int lane = threadIdx.x % 32;
    int64 here = call.numbers[row];
    if (call.order && here >= 0 && *call.count > 0) {
        const int64 count = *call.count, back = here % count;
        const int64 nth = call.newest ? count - 1 - back : back;
        here = call.order[(nth + *call.first) % call.order_size];
    }
    const bool drawn = !call.order || *call.count > 0;
    const bool inside = drawn && here >= 0 && here < call.num_transitions;
    here = inside ? here : 0;
    int64 next = call.next_index[here];
    const int64 action = call.action[here];
    const bool leads = next >= 0 && next < call.num_frames;
    next = leads ? next : 0;
    const bool fine = inside && leads && action >= 0 && action < NUM_ACTIONS &&
                      !is_beyond(call, here) && !is_beyond(call, next);
    for (int i = lane; i < size(0); i += 32) {
        call.inputs[0][row * size(0) + i] = encoded(call, here, i);
        call.inputs[1][row * size(0) + i] = encoded(call, next, i);
    }
    if (lane) return;
    /* What does not lie in the ring makes the update not finite, which changes nothing. */
    Number no_number;
    no_number.bits = 0x7fc00000u;
    call.rewards[row] = fine ? call.reward[here] : no_number.value;
    call.discounts[row] = call.discount           ? call.discount[here]
                          : call.terminated[here] ? 0.0f
                                                  : call.gamma;
    call.weights[row] = call.weight ? call.weight[here] : 1.0f;
    call.actions[row] = fine ? (int)action : 0;
    call.next[row] = next;
}

/* One row's error: its metrics, and the slopes of its Q-values. */
inline void set_error(const Call &call, int row, int r, const float *q, const float *next_q,
                      float *slopes)
{
    const int64 place = call.update * BATCH + row;
    const bool real = row < BATCH;
    float slope = 0.0f;
    int action = 0;
    if (real) {
        const uint8 *mask = MASKED ? call.masks + call.next[place] * NUM_ACTIONS : nullptr;
        action = call.actions[place];
        const int best = DOUBLE_DQN ? best_of(q + ROWS + r, PASSED, mask)
                                    : best_of(next_q + r, ROWS, mask);
        const float value = DOUBLE_DQN && SHARED ? q[best * PASSED + ROWS + r]
                                                 : next_q[best * ROWS + r];
        const float reward = call.rewards[place], discount = call.discounts[place];
        const float goal = discount == 0.0f ? reward : reward + discount * value;
        const float mine = q[action * PASSED + r], error = mine - goal;
        const float magnitude = error < 0.0f ? -error : error;
        float loss = error * error;
        slope = 2.0f * error;
        if (LOSS == HUBER) {
            loss = magnitude < 1.0f ? 0.5f * loss : magnitude - 0.5f;
            slope = error > 1.0f ? 1.0f : error < -1.0f ? -1.0f : error;
        }
        loss *= call.weights[place];
        slope *= call.weights[place];
        call.by_row[row] = loss;
        call.by_row[BATCH + row] = magnitude;
        call.by_row[2 * BATCH + row] = mine;
    }
    for (int a = 0; a < NUM_ACTIONS; a++) {
        const float here = a == action ? slope * (1.0f / BATCH) : 0.0f;
        slopes[a * ROWS + r] = here;
        if (real) call.slopes[BATCH * before(LAYERS) + row * NUM_ACTIONS + a] = here;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) learn(const __grid_constant__ Call call)
{
    float *units = memory;                           /* [size, PASSED] of all layers */
    float *aside = units + PASSED * before(LAYERS + 1); /* [size, ROWS] of the other network */
    float *slopes = aside;                           /* once its Q-values have been read */
    float *next_q = aside + ROWS * before(LAYERS + 1);
    float *parts = memory + (int)(next_q + ROWS * NUM_ACTIONS + 3 - memory) / 4 * 4;
    const int first = blockIdx.x * ROWS;
    if (!blockIdx.x && !threadIdx.x) ++*call.updates;
    for (int place = threadIdx.x; place < ROWS * size(0); place += THREADS) {
        const int r = place / size(0), i = place % size(0);
        const int row = smaller(first + r, BATCH - 1);
        const int64 from = (call.update * BATCH + row) * size(0) + i;
        const float here = call.inputs[0][from], next = call.inputs[1][from];
        units[i * PASSED + r] = here;
        if (DOUBLE_DQN) units[i * PASSED + ROWS + r] = next;
        aside[i * ROWS + r] = next;
        if (first + r < BATCH) call.units[(first + r) * size(0) + i] = here;
    }
    __syncthreads();
    if (!(DOUBLE_DQN && SHARED)) {
        forward<ROWS, 0>(call.bootstrap, call.turned[!SHARED], aside, parts,
                         [](auto, int, int, float) {});
        for (int place = threadIdx.x; place < ROWS * NUM_ACTIONS; place += THREADS)
            next_q[place] = aside[ROWS * before(LAYERS) + place];
    }
    forward<PASSED, 0>(call.online, call.turned[0], units, parts,
                       [&](auto layer, int n, int r, float value) {
                           constexpr int at = decltype(layer)::at;
                           if (at < LAYERS && r < ROWS && first + r < BATCH)
                               call.units[BATCH * before(at) + (first + r) * size(at) + n] = value;
                       });
    if (threadIdx.x < ROWS)
        set_error(call, first + threadIdx.x, threadIdx.x, units + PASSED * before(LAYERS), next_q,
                  slopes + ROWS * before(LAYERS));
    __syncthreads();
    const auto keep = [&](auto layer, int n, int r, float slope) {
        constexpr int at = decltype(layer)::at;
        if (first + r < BATCH)
            call.slopes[BATCH * before(at) + (first + r) * size(at) + n] = slope;
    };
    backward<LAYERS - 1>(call.online, units, slopes, parts, keep);
}

/* A tile of the gradient. Four groups of 64 threads take a part of the rows each, and each thread
 * four by four weights. */
extern "C" __global__ void __launch_bounds__(TILE_THREADS) gradients(const __grid_constant__ Call call)
{
    constexpr int GROUPS = 4, STRIDE = TILE + 4, AT_ONCE = smaller(BATCH, 128);
    float *slopes = memory, *units = slopes + AT_ONCE * STRIDE; /* [rows, TILE] each */
    float *parts = memory; /* [GROUPS, TILE, TILE + 1], once the rows are read; then [GROUPS, TILE] */
    float *by_bias = memory + larger(2 * AT_ONCE * STRIDE, GROUPS * TILE * (TILE + 1));
    float *squares = by_bias + GROUPS * TILE; /* [TILE_THREADS] */
    Tile tile;
    find_tile<0>(blockIdx.x, tile);
    const int group = threadIdx.x / 64, lane = threadIdx.x % 64;
    const int o = lane / 8 * 4, i = lane % 8 * 4;
    float sum[4][4] = {}, bias[4] = {};
    for (int begin = 0; begin < BATCH; begin += AT_ONCE) {
        for (int place = threadIdx.x; place < AT_ONCE * TILE; place += TILE_THREADS) {
            const int r = place / TILE, column = place % TILE, row = begin + r;
            const int out = tile.row + column, in = tile.column + column;
            const bool has_slope = row < BATCH && out < tile.out;
            const bool has_unit = row < BATCH && in < tile.in;
            slopes[r * STRIDE + column] =
                has_slope ? call.slopes[tile.slopes + row * tile.out + out] : 0.0f;
            units[r * STRIDE + column] =
                has_unit ? call.units[tile.units + row * tile.in + in] : 0.0f;
        }
        __syncthreads();
#pragma unroll 4
        for (int r = group; r < AT_ONCE; r += GROUPS) {
            float left[4], right[4];
            load_rows<4>(left, slopes + r * STRIDE + o);
            load_rows<4>(right, units + r * STRIDE + i);
#pragma unroll
            for (int a = 0; a < 4; a++) {
                bias[a] += left[a];
#pragma unroll
                for (int b = 0; b < 4; b++) sum[a][b] += left[a] * right[b];
            }
        }
        __syncthreads();
    }
    for (int a = 0; a < 4; a++) {
        for (int b = 0; b < 4; b++) parts[(group * TILE + o + a) * (TILE + 1) + i + b] = sum[a][b];
        if (!i) by_bias[group * TILE + o + a] = bias[a];
    }
    __syncthreads();
    float square = 0.0f;
    for (int place = threadIdx.x; place < TILE * TILE; place += TILE_THREADS) {
        const int row = place / TILE, column = place % TILE;
        const int out = tile.row + row, in = tile.column + column;
        if (out >= tile.out || in >= tile.in) continue;
        float slope = 0.0f;
        for (int g = 0; g < GROUPS; g++) slope += parts[(g * TILE + row) * (TILE + 1) + column];
        call.gradient[tile.weights + out * tile.in + in] = slope;
        square += slope * slope;
    }
    const int out = tile.row + threadIdx.x;
    if (!tile.column && threadIdx.x < TILE && out < tile.out) {
        float slope = 0.0f;
        for (int g = 0; g < GROUPS; g++) slope += by_bias[g * TILE + threadIdx.x];
        call.gradient[tile.bias + out] = slope;
        square += slope * slope;
    }
    squares[threadIdx.x] = square;
    for (int half = TILE_THREADS / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) squares[threadIdx.x] += squares[threadIdx.x + half];
    }
    if (!threadIdx.x) call.squares[blockIdx.x] = squares[0];
}

/* What the optimizer needs of a whole update; every block works it out for itself. */
struct Step {
    float metrics[4]; /* loss, error, Q-value, norm */
    bool fine;
    float factor; /* of the gradient, so that its norm is within its bound */
    float rate, root; /* of Adam, without its bias */
    bool target_is_due;
};

inline void sum_up(const Call &call, Step &step, float *sums)
{
    float mine[4] = {};
    for (int row = threadIdx.x; row < BATCH; row += TILE_THREADS)
        for (int m = 0; m < 3; m++) mine[m] += call.by_row[m * BATCH + row];
    for (int tile = threadIdx.x; tile < TILES; tile += TILE_THREADS) mine[3] += call.squares[tile];
    for (int m = 0; m < 4; m++) sums[m * TILE_THREADS + threadIdx.x] = mine[m];
    for (int half = TILE_THREADS / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            for (int m = 0; m < 4; m++)
                sums[m * TILE_THREADS + threadIdx.x] += sums[m * TILE_THREADS + threadIdx.x + half];
    }
    __syncthreads();
    for (int m = 0; m < 4; m++) step.metrics[m] = sums[m * TILE_THREADS] * (1.0f / BATCH);
    step.metrics[3] = sqrtf(sums[3 * TILE_THREADS]);
    step.fine = true;
    for (int m = 0; m < 4; m++) step.fine &= step.metrics[m] - step.metrics[m] == 0.0f;
    /* `skipped` is written only where nothing of what follows from it is used. */
    const int64 number = *call.updates - *call.skipped;
    const float most = call.clip_norm / (step.metrics[3] + 1e-6f);
    step.factor = most < 1.0f ? most : 1.0f;
    step.rate = *call.learning_rate;
    step.root = 1.0f;
    if (OPTIMIZER != RMSPROP) {
        step.rate /= 1.0f - powf(call.beta1, (float)number);
        step.root = sqrtf(1.0f - powf(call.beta2, (float)number));
    }
    step.target_is_due = TARGET == HARD && call.target_period
                         && (number + call.target_phase) % call.target_period == 0;
    __syncthreads();
}

/* One parameter: clipped gradient, optimizer, target. Returns the new ones in `online`, `target`. */
inline void move(const Call &call, const Step &step, int at, float &online, float &target)
{
    float slope = call.gradient[at] * step.factor;
    slope = slope > call.clip_value ? call.clip_value
            : slope < -call.clip_value ? -call.clip_value : slope;
    online = call.online[at];
    const float rate = *call.learning_rate;
    if (OPTIMIZER == ADAMW) online -= rate * call.weight_decay * online;
    if (OPTIMIZER != ADAMW) slope += call.weight_decay * online;
    if (OPTIMIZER == RMSPROP) {
        const float square = call.slots[0][at] * call.beta2 + call.rest2 * slope * slope;
        call.slots[0][at] = square;
        online -= rate * slope / (sqrtf(square) + call.eps);
    } else {
        float first = call.slots[0][at], second = call.slots[1][at];
        first += call.rest1 * (slope - first);
        second = second * call.beta2 + call.rest2 * slope * slope;
        call.slots[0][at] = first, call.slots[1][at] = second;
        if (AMSGRAD) {
            const float most = call.slots[2][at];
            second = second > most ? second : most;
            call.slots[2][at] = second;
        }
        online -= step.rate * first / (sqrtf(second) / step.root + call.eps);
    }
    call.online[at] = online;
    if (SHARED) return;
    target = call.bootstrap[at];
    if (TARGET == SOFT) {
        const float apart = online - target;
        target = call.tau < 0.5f ? target + call.tau * apart : online - apart * (1.0f - call.tau);
    } else if (step.target_is_due) {
        target = online;
    }
    call.bootstrap[at] = target;
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS) commit(const __grid_constant__ Call call)
{
    float *online = memory, *target = online + TILE * (TILE + 1);
    Step step;
    Tile tile;
    find_tile<0>(blockIdx.x, tile);
    sum_up(call, step, target + TILE * (TILE + 1));
    if (!blockIdx.x && !threadIdx.x) {
        for (int m = 0; m < 4; m++) call.metrics[m] = step.metrics[m];
        if (!step.fine) ++*call.skipped;
    }
    if (!step.fine) return;
    for (int place = threadIdx.x; place < TILE * TILE; place += TILE_THREADS) {
        const int row = place / TILE, column = place % TILE;
        const int out = tile.row + row, in = tile.column + column;
        if (out >= tile.out || in >= tile.in) continue;
        move(call, step, tile.weights + out * tile.in + in, online[column * (TILE + 1) + row],
             target[column * (TILE + 1) + row]);
    }
    const int out = tile.row + threadIdx.x;
    float moved, followed;
    if (!tile.column && threadIdx.x < TILE && out < tile.out)
        move(call, step, tile.bias + out, moved, followed);
    __syncthreads();
    for (int place = threadIdx.x; place < TILE * TILE; place += TILE_THREADS) {
        const int row = place / TILE, column = place % TILE;
        const int in = tile.column + row, to = tile.row + column;
        if (to >= tile.out || in >= tile.in) continue;
        const int at = tile.turned + in * tile.out + to;
        call.turned[0][at] = online[row * (TILE + 1) + column];
        if (!SHARED) call.turned[1][at] = target[row * (TILE + 1) + column];
    }
}

/* Choose an action for `num_rows` frames: one of the allowed ones where the first uniform number
 * is less than epsilon, the best of them elsewhere. */
extern "C" __global__ void __launch_bounds__(THREADS) act(const __grid_constant__ Call call)
{
    float *units = memory, *parts = units + (ROWS * before(LAYERS + 1) + 3) / 4 * 4;
    const int64 first = (int64)blockIdx.x * ROWS;
    for (int place = threadIdx.x; place < ROWS * size(0); place += THREADS) {
        const int r = place / size(0), i = place % size(0);
        const int64 row = first + r;
        units[i * ROWS + r] = row < call.num_rows ? encoded(call, row, i) : 0.0f;
    }
    __syncthreads();
    forward<ROWS, 0>(call.online, call.turned[0], units, parts, [](auto, int, int, float) {});
    const int64 row = first + threadIdx.x;
    if (threadIdx.x >= ROWS || row >= call.num_rows) return;
    const uint8 *mask = MASKED ? call.masks + row * NUM_ACTIONS : nullptr;
    const float *uniform = call.uniform + row * call.uniform_row;
    call.chosen[row] = uniform[0] < *call.epsilon
                           ? any_of(mask, uniform[1])
                           : best_of(units + ROWS * before(LAYERS) + threadIdx.x, ROWS, mask);
}
