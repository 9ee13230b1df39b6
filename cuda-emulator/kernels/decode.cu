// Attention of one new token of each sequence over a paged KV cache.
//
// One block for each (KV head, sequence); the query heads that share a KV head are computed
// together, so that K and V are read once. Each warp takes every fourth token with a running
// softmax of its own; shared memory merges the four.
//
// cache: [page][position in page][KV head][HEAD], bf16. table: [sequence][page index].
#include "device.cuh"

constexpr int HEAD = 128;
constexpr int GROUP = 4;
constexpr int WARPS = 4;
constexpr int OWN = HEAD / 32;
constexpr float LOWEST = -1e30f;
constexpr float LOG2_E = 1.4426950408889634f;

extern "C" __global__ void __launch_bounds__(WARPS * 32)
decode(bf16* __restrict__ out, const bf16* __restrict__ queries, const bf16* __restrict__ keys,
       const bf16* __restrict__ values, const int* __restrict__ table, const int* __restrict__ lengths,
       int kv_heads, int page_size, int table_width, float scale, float softcap, int window) {
    __shared__ float maxima[WARPS][GROUP];
    __shared__ float totals[WARPS][GROUP];
    __shared__ float partial[WARPS][GROUP][HEAD];

    const int head = blockIdx.x, sequence = blockIdx.y;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int length = lengths[sequence];
    const int begin = window > 0 && length > window ? length - window : 0;
    const size_t first_row = (size_t(sequence) * kv_heads + head) * GROUP;

    float query[GROUP][OWN], sum[GROUP][OWN], maximum[GROUP], total[GROUP];
#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
        const uint2 bits = *reinterpret_cast<const uint2*>(queries + (first_row + g) * HEAD + lane * OWN);
        query[g][0] = low_half(bits.x);
        query[g][1] = high_half(bits.x);
        query[g][2] = low_half(bits.y);
        query[g][3] = high_half(bits.y);
        maximum[g] = LOWEST;
        total[g] = 0.f;
#pragma unroll
        for (int i = 0; i < OWN; ++i) sum[g][i] = 0.f;
    }

    for (int token = begin + warp; token < length; token += WARPS) {
        const int page = table[sequence * table_width + token / page_size];
        const size_t at = ((size_t(page) * page_size + token % page_size) * kv_heads + head) * HEAD + lane * OWN;
        const uint2 k = *reinterpret_cast<const uint2*>(keys + at);
        const uint2 v = *reinterpret_cast<const uint2*>(values + at);
        const float key[OWN] = {low_half(k.x), high_half(k.x), low_half(k.y), high_half(k.y)};
        const float value[OWN] = {low_half(v.x), high_half(v.x), low_half(v.y), high_half(v.y)};
#pragma unroll
        for (int g = 0; g < GROUP; ++g) {
            float score = 0.f;
#pragma unroll
            for (int i = 0; i < OWN; ++i) score += query[g][i] * key[i];
            score = warp_sum(score) * scale;
            if (softcap > 0.f) score = softcap * tanh_fast(score / softcap);
            score *= LOG2_E;
            const float larger = fmaxf(maximum[g], score);
            const float shrink = exp2_fast(maximum[g] - larger);
            const float weight = exp2_fast(score - larger);
            maximum[g] = larger;
            total[g] = total[g] * shrink + weight;
#pragma unroll
            for (int i = 0; i < OWN; ++i) sum[g][i] = sum[g][i] * shrink + weight * value[i];
        }
    }

#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
        if (lane == 0) {
            maxima[warp][g] = maximum[g];
            totals[warp][g] = total[g];
        }
#pragma unroll
        for (int i = 0; i < OWN; ++i) partial[warp][g][lane + i * 32] = sum[g][i];
    }
    __syncthreads();

    for (int g = warp; g < GROUP; g += WARPS) {
        float largest = LOWEST;
        for (int w = 0; w < WARPS; ++w) largest = fmaxf(largest, maxima[w][g]);
        float all = 0.f, merged[OWN] = {0.f, 0.f, 0.f, 0.f};
        for (int w = 0; w < WARPS; ++w) {
            const float weight = exp2_fast(maxima[w][g] - largest);
            all += weight * totals[w][g];
            for (int i = 0; i < OWN; ++i) merged[i] += weight * partial[w][g][lane + i * 32];
        }
        const float norm = all > 0.f ? 1.f / all : 0.f;
        uint2 bits;
        bits.x = pack(merged[0] * norm, merged[1] * norm);
        bits.y = pack(merged[2] * norm, merged[3] * norm);
        *reinterpret_cast<uint2*>(out + (first_row + g) * HEAD + lane * OWN) = bits;
    }
}
