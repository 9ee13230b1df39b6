// Adds up the parts of a row's attention.
//
// Tile        a warp for each (row, head); a lane takes every 32nd element.
// Intensity   2 operations for each f32 of a part: bound by memory, and small beside the KV that the parts come from.
#include "attention.cuh"

struct Whole {
    int row;
    // Its parts: `count` entries of `part_list` from `first` on.
    int first;
    int count;
};

// out: [row][head][HEAD]. sinks: [head], or null. grid: (wholes, heads), 32 threads.
extern "C" __global__ void __launch_bounds__(32)
attention_merge(u16* __restrict__ out, const Parts parts, const Whole* __restrict__ wholes,
                const int* __restrict__ part_list, const u16* __restrict__ sinks, const int heads) {
    const Whole whole = wholes[blockIdx.x];
    const int head = blockIdx.y, lane = threadIdx.x;

    float largest = NEVER;
    for (int p = 0; p < whole.count; ++p) {
        const size_t part = size_t(part_list[whole.first + p]) * heads + head;
        largest = fmaxf(largest, parts.marks[part * 2]);
    }
    if (sinks != nullptr) largest = fmaxf(largest, widen(sinks[head]) * LOG2_E);
    float all = sinks != nullptr ? exp2_fast(widen(sinks[head]) * LOG2_E - largest) : 0.f;
    float sum[(HEAD + 31) / 32] = {};
    for (int p = 0; p < whole.count; ++p) {
        const size_t part = size_t(part_list[whole.first + p]) * heads + head;
        const float weight = exp2_fast(parts.marks[part * 2] - largest);
        all += weight * parts.marks[part * 2 + 1];
#pragma unroll
        for (int i = 0; i < (HEAD + 31) / 32; ++i) {
            if (i * 32 + lane < HEAD) sum[i] += weight * parts.sums[part * HEAD + i * 32 + lane];
        }
    }
    u16* to = out + (size_t(whole.row) * heads + head) * HEAD;
#pragma unroll
    for (int i = 0; i < (HEAD + 31) / 32; ++i) {
        if (i * 32 + lane < HEAD) to[i * 32 + lane] = narrow(sum[i] / all);
    }
}
