/* One vector step into the replay ring in one kernel: a block for every environment.
 *
 * What lies where is said in buffer.py. Numbers that only the host knows come with the launch, so
 * that nothing has to be copied for them. A frame is copied as BYTES bytes, in words of WORD.
 */

typedef long long int64;
typedef unsigned char uint8;

#define MOST_ENDED 192 /* a launch takes 4 KB of numbers at most */

/* Field by field as in `fastdqn/replay/row_writer.py`. */
struct Call {
    uint8 *frames;
    int64 *next_index, *action;
    float *reward;
    uint8 *terminated, *truncated, *continues, *masks;
    int64 *window; /* number of the oldest transition, and how many there are */
    const uint8 *obs, *final_obs;
    const int64 *new_action;
    const float *new_reward;
    const uint8 *new_terminated, *new_truncated, *new_mask, *final_mask;
    int64 here, after; /* places of the first transition, and of the first frame that is shown now */
    int64 before;      /* place of the first transition that may continue here, or -1 */
    int64 first, count;
    int64 num_masked, num_ended;
    int ended[MOST_ENDED];         /* environments whose last observation is kept, and */
    int64 final_place[MOST_ENDED]; /* the frames that take them */
};

inline void copy(uint8 *to, const uint8 *from)
{
    for (int i = threadIdx.x; i < BYTES / (int)sizeof(WORD); i += THREADS)
        ((WORD *)to)[i] = ((const WORD *)from)[i];
}

/* Copy a mask; no mask allows everything. */
inline void copy_mask(uint8 *to, const uint8 *from, int64 size)
{
    for (int i = threadIdx.x; i < size; i += THREADS) to[i] = from ? from[i] : 1;
}

extern "C" __global__ void __launch_bounds__(THREADS) write_row(const __grid_constant__ Call call)
{
    const int64 env = blockIdx.x, size = call.num_masked;
    const int64 place = call.here + env, shown = call.after + env;
    int64 next = shown;
    for (int i = 0; i < call.num_ended; i++)
        if (call.ended[i] == env) next = call.final_place[i];
    copy(call.frames + shown * BYTES, call.obs + env * BYTES);
    if (size)
        copy_mask(call.masks + shown * size, call.new_mask ? call.new_mask + env * size : nullptr,
                  size);
    if (next != shown) {
        copy(call.frames + next * BYTES, call.final_obs + env * BYTES);
        if (size)
            copy_mask(call.masks + next * size,
                      call.final_mask ? call.final_mask + env * size : nullptr, size);
    }
    if (threadIdx.x) return;
    call.next_index[place] = next;
    call.action[place] = call.new_action[env];
    call.reward[place] = call.new_reward[env];
    call.terminated[place] = call.new_terminated[env];
    call.truncated[place] = call.new_truncated[env];
    if (call.before >= 0) {
        const int64 last = call.before + env;
        call.continues[last] = !call.terminated[last] && !call.truncated[last];
    }
    call.continues[shown] = 0;
    if (env) return;
    call.window[0] = call.first;
    call.window[1] = call.count;
}
