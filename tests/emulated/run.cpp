/* Kernels of the card on one core: a block after the other, and within it a thread after the other,
 * each a coroutine that runs to the next __syncthreads. Shared memory begins as NaN, and what is
 * written beyond it is told. */

#include <math.h>
#include <string.h>
#include <ucontext.h>

#include <vector>

struct Index {
    int x;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

static Index threadIdx, blockIdx;
static const int MOST_SHARED = 60000, STACK = 1 << 16;
alignas(16) float memory[MOST_SHARED];

#define __global__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(threads)

static std::vector<ucontext_t> threads;
static std::vector<bool> waiting;
static ucontext_t scheduler;

static void __syncthreads()
{
    waiting[threadIdx.x] = true;
    swapcontext(&threads[threadIdx.x], &scheduler);
}

#include SOURCE

static void (*kernel)(const Call);
static Call call;

static void run_thread()
{
    kernel(call);
    waiting[threadIdx.x] = false;
}

/* Return how many threads of a block were still waiting where others had ended, or -1 where a block
 * wrote beyond its shared memory. */
extern "C" int launch(void (*of)(const Call), const Call *with, int blocks, int num_threads,
                      int shared)
{
    static std::vector<char> stacks;
    kernel = of, call = *with;
    threads.resize(num_threads), waiting.resize(num_threads);
    stacks.resize((size_t)num_threads * STACK);
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        memset(memory, 0xff, sizeof(memory));
        for (int t = 0; t < num_threads; t++) {
            getcontext(&threads[t]);
            threads[t].uc_stack.ss_sp = stacks.data() + (size_t)t * STACK;
            threads[t].uc_stack.ss_size = STACK;
            threads[t].uc_link = &scheduler;
            makecontext(&threads[t], run_thread, 0);
            waiting[t] = true;
        }
        for (int alive = num_threads; alive;) {
            if (alive != num_threads) return alive;
            alive = 0;
            for (threadIdx.x = 0; threadIdx.x < num_threads; threadIdx.x++) {
                swapcontext(&scheduler, &threads[threadIdx.x]);
                alive += waiting[threadIdx.x];
            }
        }
        for (int i = shared / (int)sizeof(float); i < MOST_SHARED; i++) {
            unsigned bits;
            memcpy(&bits, memory + i, sizeof(bits));
            if (bits != 0xffffffffu) return -1;
        }
    }
    return 0;
}

extern "C" int call_bytes() { return sizeof(Call); }
