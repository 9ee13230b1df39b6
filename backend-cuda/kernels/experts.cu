// Mixtures of experts, but for their products: which experts a row goes through, which rows an expert gets, and the sum
// of their results. The products are those of blocks_vector.cu and blocks_tile.cu.
//
//     scores --route--> (expert, weight) of each choice --sort--> choices by expert --tiles--> work of the products
//
// Layout      scores: [rows][experts], 16-bit. A *choice* is row * chosen + the rank of the expert in the row's choice. A
//             *place* is a choice's number in the order by expert.
// Tile        route: a warp a row. sort: a warp an expert, which looks through all choices twice; no atomics, so the
//             order is the same in every run. tiles: one block. combine: a thread for 8 neighbours of a row.
// Intensity   a few operations a byte: bound by memory or, for few rows, by the launches.
#include "common.cuh"

constexpr int MOST_EXPERTS = 1024;

// An unsigned integer that is greater where the number is; what is no number is greatest.
__device__ __forceinline__ u32 ordered(float x) {
    const u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0xffffffffu;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// chosen: at most 32 and at most experts. selection_bias, scales: [experts], f32, or null. sigmoid: otherwise a softmax.
// chosen_experts, weights: [rows][chosen]. grid: rows.
extern "C" __global__ void __launch_bounds__(32)
route(int* __restrict__ chosen_experts, float* __restrict__ weights, const u16* __restrict__ scores,
      const float* __restrict__ selection_bias, const float* __restrict__ scales, const int experts, const int chosen,
      const int sigmoid, const int normalize, const float factor) {
    __shared__ u32 keys[MOST_EXPERTS];
    const int lane = threadIdx.x;
    const u16* row = scores + size_t(blockIdx.x) * experts;
    float largest = __uint_as_float(0xff800000u);
    for (int i = lane; i < experts; i += 32) largest = fmaxf(largest, widen(row[i]));
    largest = warp_max(largest);
    float total = 0.f;
    if (!sigmoid) {
        for (int i = lane; i < experts; i += 32) total += expf(widen(row[i]) - largest);
        total = lanes_sum(total);
    }
    auto weight = [&](float score) { return sigmoid ? 1.f / (1.f + expf(-score)) : expf(score - largest) / total; };
    for (int i = lane; i < experts; i += 32) {
        const float score = widen(row[i]);
        keys[i] = ordered(selection_bias != nullptr ? weight(score) + selection_bias[i] : score);
    }
    __syncwarp();
    int own = 0;
    for (int rank = 0; rank < chosen; ++rank) {
        // The greatest key and of equal ones the lowest index; 0 marks what was chosen and is below every key.
        u64 best = 0;
        for (int i = lane; i < experts; i += 32) {
            const u64 candidate = u64(keys[i]) << 32 | u32(~i);
            if (keys[i] != 0 && candidate > best) best = candidate;
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            const u64 other = __shfl_xor_sync(ALL_LANES, best, step);
            if (other > best) best = other;
        }
        const int expert = int(~u32(best));
        if (lane == rank) own = expert;
        __syncwarp();
        if (lane == 0) keys[expert] = 0;
        __syncwarp();
    }
    const float probability = lane < chosen ? weight(widen(row[own])) : 0.f;
    const float sum = lanes_sum(probability);
    if (lane < chosen) {
        float x = (normalize ? probability / (sum + 1e-20f) : probability) * factor;
        if (scales != nullptr) x *= scales[own];
        chosen_experts[size_t(blockIdx.x) * chosen + lane] = own;
        weights[size_t(blockIdx.x) * chosen + lane] = x;
    }
}

// order: by place its choice. places: by choice its place. counts: by expert its first place and its number of places.
// grid: experts.
extern "C" __global__ void __launch_bounds__(32)
sort_choices(int* __restrict__ order, int* __restrict__ places, int2* __restrict__ counts,
             const int* __restrict__ chosen_experts, const int choices) {
    const int expert = blockIdx.x, lane = threadIdx.x;
    int below = 0;
    for (int i = lane; i < choices; i += 32) below += chosen_experts[i] < expert;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) below += __shfl_xor_sync(ALL_LANES, below, step);
    int found = 0;
    for (int base = 0; base < choices; base += 32) {
        const int i = base + lane;
        const bool is_own = i < choices && chosen_experts[i] == expert;
        const u32 own = __ballot_sync(ALL_LANES, is_own);
        if (is_own) {
            const int place = below + found + __popc(own & ((1u << lane) - 1));
            order[place] = i;
            places[i] = place;
        }
        found += __popc(own);
    }
    if (lane == 0) counts[expert] = make_int2(below, found);
}

// Divides each expert's places into tiles of at most `height`: (first place, places, expert, 0); the rest of the `most`
// tiles is empty. grid: 1. block: MOST_EXPERTS.
extern "C" __global__ void __launch_bounds__(MOST_EXPERTS)
list_tiles(int4* __restrict__ tiles, const int2* __restrict__ counts, const int experts, const int height,
           const int most) {
    __shared__ int of_warps[MOST_EXPERTS / 32];
    const int expert = threadIdx.x, warp = expert / 32, lane = expert % 32;
    const int2 own = expert < experts ? counts[expert] : make_int2(0, 0);
    const int needed = (own.y + height - 1) / height;
    int up_to = needed;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int before = __shfl_up_sync(ALL_LANES, up_to, step);
        if (lane >= step) up_to += before;
    }
    if (lane == 31) of_warps[warp] = up_to;
    __syncthreads();
    int first = up_to - needed, all = 0;
    for (int i = 0; i < MOST_EXPERTS / 32; ++i) {
        if (i < warp) first += of_warps[i];
        all += of_warps[i];
    }
    for (int i = 0; i < needed; ++i)
        tiles[first + i] = make_int4(own.x + i * height, min(height, own.y - i * height), expert, 0);
    for (int i = all + expert; i < most; i += MOST_EXPERTS) tiles[i] = make_int4(0, 0, 0, 0);
}

// out[row] = the sum of the row's results, each times its weight, in the order of choice. results: [choices][width], by
// place. width: a multiple of 8. count: rows * width / 8.
extern "C" __global__ void __launch_bounds__(256)
combine(u16* __restrict__ out, const u16* __restrict__ results, const int* __restrict__ places,
        const float* __restrict__ weights, const int chosen, const int width, const int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int row = i / (width / 8), column = i % (width / 8) * 8;
    float sum[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
    for (int rank = 0; rank < chosen; ++rank) {
        const size_t choice = size_t(row) * chosen + rank;
        float x[8];
        load8(x, results + size_t(places[choice]) * width + column);
        const float weight = weights[choice];
#pragma unroll
        for (int e = 0; e < 8; ++e) sum[e] += weight * x[e];
    }
    store8(out + size_t(row) * width + column, sum);
}
