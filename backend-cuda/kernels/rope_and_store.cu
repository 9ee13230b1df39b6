// Rotary position embedding (Su et al., 2021) of queries and keys, and K and V of the new tokens into their pages.
//
// Layout      queries: [token][heads][HEAD], rotated in place. keys, values: [token][KV heads][HEAD].
// Tile        a block for each token, a warp for each head: of queries, then of keys, then of values.
// Intensity   under one operation a byte: bound by memory. The keys are rotated on their way into the pages.
#include "attention.cuh"

// frequencies: [pairs] f32, radians a position; dimensions beyond 2 * pairs pass unchanged. adjacent: pairs are (2i, 2i + 1),
// otherwise (i, i + pairs). slots, positions: by token. grid: (tokens), block: 32 * any.
extern "C" __global__ void __launch_bounds__(1024)
rope_and_store(u16* __restrict__ queries, const u16* __restrict__ keys, const u16* __restrict__ values,
               const Layer layer, kv_t* __restrict__ kv, const int* __restrict__ slots,
               const int* __restrict__ positions, const float* __restrict__ frequencies, const int pairs,
               const float factor, const int adjacent) {
    const int token = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const int heads = layer.kv_heads * GROUP, position = positions[token];

    for (int unit = warp; unit < heads + 2 * layer.kv_heads; unit += warps) {
        const bool is_query = unit < heads, is_value = unit >= heads + layer.kv_heads;
        const int head = is_query ? unit : (unit - heads) % layer.kv_heads;
        const u16* from = is_query ? queries + (size_t(token) * heads + head) * HEAD
                                   : (is_value ? values : keys) + (size_t(token) * layer.kv_heads + head) * HEAD;
        size_t at = 0;
        if (!is_query) {
            at = key_place(layer, slots[token], position, head);
            if (is_value) at += value_distance(layer);
        }
        auto put = [&](int dimension, float x) {
            if (is_query) {
                queries[(size_t(token) * heads + head) * HEAD + dimension] = narrow(x);
                return;
            }
#ifdef FP8
            u16 both;
            const float scaled = x / (is_value ? layer.value_scale : layer.key_scale);
            asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(0.f), "f"(scaled));
            kv[at + dimension] = u8(both);
#else
            kv[at + dimension] = narrow(x);
#endif
        };
        const int turned = is_value ? 0 : pairs;
        for (int pair = lane; pair < turned; pair += 32) {
            const int a = adjacent ? 2 * pair : pair, b = adjacent ? a + 1 : pair + pairs;
            float sine, cosine;
            sincosf(position * frequencies[pair], &sine, &cosine);
            sine *= factor;
            cosine *= factor;
            const float x = widen(from[a]), y = widen(from[b]);
            put(a, x * cosine - y * sine);
            put(b, y * cosine + x * sine);
        }
        for (int dimension = 2 * turned + lane; dimension < HEAD; dimension += 32) put(dimension, widen(from[dimension]));
    }
}
