// Attention of many queries over paged KV that already holds the new tokens, on tensor cores (FlashAttention-2, Dao,
// 2023): prefill in chunks, spans to verify, and rows that share a prefix (cascade attention, Ye et al., 2024).
//
// Layout      KV as in attention.cuh. A block computes ROWS rows of one KV head: a row is a (token, head of the group)
//             pair, so the GROUP heads of a token read K and V once.
// Tile        4 warps of 16 rows; KEYS keys and values at a time through two buffers in shared memory, the next ones while
//             the current ones are used. A row of shared memory is STRIDE elements in chunks of 16 bytes; a chunk's place is
//             its number xor the row, so ldmatrix has no bank conflicts.
// Intensity   4 * HEAD operations a (row, key) pair, and 4 * HEAD bytes a key for ROWS rows: 64 operations a byte and more,
//             so from a few hundred keys on the tensor cores bound it.
//
// Heads wider than 256 are computed in slices of the output, each by a block of its own, which computes the scores anew:
// sums of all dimensions don't fit the registers.
//
// A tile whose part is not negative writes parts for `attention_merge`: the shared prefix of several rows.
#include "attention.cuh"

constexpr int ROWS = 64;
constexpr int KEYS = 32;
constexpr int THREADS = 128;
constexpr int CHUNKS = HEAD / 8;
// The products take 16 dimensions at a time; what a head lacks is zero.
constexpr int STEPS = (HEAD + 15) / 16;
constexpr int FILLED = STEPS * 2;
// Slices of the output, and dimensions of one.
constexpr int SLICES = HEAD > 256 ? 2 : 1;
constexpr int OUT = HEAD / SLICES;
static_assert(HEAD <= 512 && HEAD % (8 * SLICES) == 0, "a slice is whole chunks of at most 256 dimensions");
constexpr int OUT_STEPS = (OUT + 15) / 16;
constexpr int OUT_FILLED = OUT_STEPS * 2;
static_assert(GROUP <= ROWS, "a token's heads are rows of one tile");
constexpr int stride_for(int head) {
    int stride = 64;
    while (stride < head) stride *= 2;
    return stride;
}
constexpr int STRIDE = stride_for(HEAD), OUT_STRIDE = stride_for(OUT);
// Wider heads leave no registers to keep the queries in.
constexpr bool KEEPS_QUERIES = HEAD <= 128;

struct Tile {
    int slot;
    // Tokens first, first + 1, .. of the batch, or entries of `token_list` where the tile writes parts.
    int first;
    int tokens;
    // Absolute position of the first token; each token sees positions up to its own. A tile that writes parts sees all.
    int position;
    // Positions of KV.
    int begin;
    int end;
    int part;
};

template <int WIDTH = STRIDE> __device__ __forceinline__ u32 place(u32 base, int row, int chunk) {
    return base + row * WIDTH * 2 + ((chunk ^ (row % 8)) * 16);
}

// out, queries: [token of the batch][KV head][GROUP][HEAD]. sinks: [head], or null. window: 0 is none.
// grid: (tiles, KV heads * SLICES); dynamic shared memory: ((ROWS + 2 * KEYS) * STRIDE + 2 * KEYS * OUT_STRIDE) * 2 bytes.
extern "C" __global__ void __launch_bounds__(THREADS)
attention_append(u16* __restrict__ out, const u16* __restrict__ queries, const Layer layer,
                 const Tile* __restrict__ tiles, const int* __restrict__ token_list, const u16* __restrict__ sinks,
                 const int window, const Parts parts) {
    extern __shared__ __align__(128) u16 shared[];
    const u32 query_base = shared_address(shared);
    constexpr u32 KEY_BYTES = KEYS * STRIDE * 2, VALUE_BYTES = KEYS * OUT_STRIDE * 2;
    const u32 first_tile = query_base + ROWS * STRIDE * 2;
    auto keys_of = [&](int buffer) { return first_tile + buffer * (KEY_BYTES + VALUE_BYTES); };
    auto values_of = [&](int buffer) { return keys_of(buffer) + KEY_BYTES; };

    const Tile tile = tiles[blockIdx.x];
    const int kv_head = blockIdx.y / SLICES, slice = blockIdx.y % SLICES, first_chunk = slice * OUT / 8;
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int rows = tile.tokens * GROUP;
    auto token_of = [&](int row) {
        const int token = tile.first + row / GROUP;
        return tile.part < 0 ? token : token_list[token];
    };
    auto head_of = [&](int row) { return size_t(kv_head) * GROUP + row % GROUP; };
    const size_t heads = size_t(layer.kv_heads) * GROUP;

    for (int i = thread; i < ROWS * FILLED; i += THREADS) {
        const int row = i / FILLED, chunk = i % FILLED;
        const bool exists = row < rows && chunk < CHUNKS;
        const size_t at = exists ? (token_of(row) * heads + head_of(row)) * HEAD + chunk * 8 : 0;
        copy_async(place(query_base, row, chunk), queries + at, exists);
    }
    auto fetch = [&](int from, int buffer) {
        const u32 key_base = keys_of(buffer), value_base = values_of(buffer);
        for (int i = thread; i < KEYS * FILLED; i += THREADS) {
            const int row = i / FILLED, chunk = i % FILLED, position = from + row;
            const bool exists = position < tile.end && chunk < CHUNKS;
            const size_t at =
                key_place(layer, tile.slot, exists ? position : tile.begin, kv_head) + (exists ? chunk * 8 : 0);
            // Chunks of the slice, and with the last those that the products take beyond it.
            const int of_slice = chunk - first_chunk;
            const bool has_value = of_slice >= 0 && of_slice < OUT_FILLED;
            const bool value_exists = exists && of_slice < OUT / 8;
#ifdef FP8
            float key[8] = {}, value[8] = {};
            if (exists) load8(key, layer.kv + at);
            if (value_exists && has_value) load8(value, layer.kv + at + value_distance(layer));
            store8(shared + (place(key_base, row, chunk) - query_base) / 2, key);
            if (has_value) store8(shared + (place<OUT_STRIDE>(value_base, row, of_slice) - query_base) / 2, value);
#else
            copy_async(place(key_base, row, chunk), layer.kv + at, exists);
            if (has_value)
                copy_async(place<OUT_STRIDE>(value_base, row, of_slice), layer.kv + at + value_distance(layer),
                           value_exists);
#endif
        }
        commit_copies();
    };

    fetch(tile.begin, 0);
    u32 query[KEEPS_QUERIES ? STEPS : 1][4];
    float sum[OUT_FILLED][4], maximum[2] = {NEVER, NEVER}, total[2] = {0.f, 0.f};
#pragma unroll
    for (int n = 0; n < OUT_FILLED; ++n) sum[n][0] = sum[n][1] = sum[n][2] = sum[n][3] = 0.f;
    const int matrix = lane / 8, in_matrix = lane % 8;
    // The two rows of this lane, and the positions that they see.
    int newest[2], oldest[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = warp * 16 + lane / 4 + half * 8;
        newest[half] = tile.part < 0 ? tile.position + row / GROUP : tile.end - 1;
        oldest[half] = window > 0 ? newest[half] - window + 1 : 0;
    }

    for (int from = tile.begin, buffer = 0; from < tile.end; from += KEYS, buffer ^= 1) {
        if (from + KEYS < tile.end) {
            fetch(from + KEYS, buffer ^ 1);
            wait_copies<1>();
        } else {
            wait_copies<0>();
        }
        __syncthreads();
        if (KEEPS_QUERIES && from == tile.begin) {
#pragma unroll
            for (int k = 0; k < STEPS; ++k)
                load_matrices(query[k], place(query_base, warp * 16 + lane % 16, k * 2 + lane / 16));
        }

        float score[KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) score[n][0] = score[n][1] = score[n][2] = score[n][3] = 0.f;
        const u32 key_base = keys_of(buffer), value_base = values_of(buffer);
#pragma unroll
        for (int k = 0; k < STEPS; ++k) {
            if (!KEEPS_QUERIES) load_matrices(query[0], place(query_base, warp * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                u32 key[4];
                load_matrices(key, place(key_base, n * 16 + matrix / 2 * 8 + in_matrix, k * 2 + matrix % 2));
                multiply_add(score[2 * n], query[KEEPS_QUERIES ? k : 0], key[0], key[1]);
                multiply_add(score[2 * n + 1], query[KEEPS_QUERIES ? k : 0], key[2], key[3]);
            }
        }

        float larger[2] = {maximum[0], maximum[1]};
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int position = from + n * 8 + lane % 4 * 2 + e % 2, half = e / 2;
                const bool seen = position <= newest[half] && position >= oldest[half];
                const float x = seen ? logit(score[n][e] * layer.key_scale, layer.scale, layer.soft_cap) : NEVER;
                score[n][e] = x;
                larger[half] = fmaxf(larger[half], x);
            }
        }
        float shrink[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            larger[half] = fmaxf(larger[half], __shfl_xor_sync(ALL_LANES, larger[half], 1));
            larger[half] = fmaxf(larger[half], __shfl_xor_sync(ALL_LANES, larger[half], 2));
            shrink[half] = exp2_fast(maximum[half] - larger[half]);
            maximum[half] = larger[half];
            total[half] *= shrink[half];
        }
#pragma unroll
        for (int n = 0; n < OUT_FILLED; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[n][e] *= shrink[e / 2];
        }
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                // A row that has seen nothing yet has no largest logit to subtract.
                const float weight = score[n][e] <= NEVER / 2 ? 0.f : exp2_fast(score[n][e] - maximum[e / 2]);
                score[n][e] = weight;
                total[e / 2] += weight;
            }
        }
#pragma unroll
        for (int k = 0; k < KEYS / 16; ++k) {
            const u32 weight[4] = {pack(score[2 * k][0], score[2 * k][1]), pack(score[2 * k][2], score[2 * k][3]),
                                   pack(score[2 * k + 1][0], score[2 * k + 1][1]),
                                   pack(score[2 * k + 1][2], score[2 * k + 1][3])};
#pragma unroll
            for (int n = 0; n < OUT_STEPS; ++n) {
                u32 value[4];
                load_matrices_transposed(
                    value, place<OUT_STRIDE>(value_base, k * 16 + matrix % 2 * 8 + in_matrix, n * 2 + matrix / 2));
                multiply_add(sum[2 * n], weight, value[0], value[1]);
                multiply_add(sum[2 * n + 1], weight, value[2], value[3]);
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        total[half] += __shfl_xor_sync(ALL_LANES, total[half], 1);
        total[half] += __shfl_xor_sync(ALL_LANES, total[half], 2);
        const int row = warp * 16 + lane / 4 + half * 8;
        if (row >= rows) continue;
        if (tile.part < 0) {
            float largest = maximum[half], shrink = layer.value_scale;
            if (sinks != nullptr) {
                const float sink = widen(sinks[head_of(row)]) * LOG2_E;
                largest = fmaxf(largest, sink);
                const float mine = exp2_fast(maximum[half] - largest);
                total[half] = total[half] * mine + exp2_fast(sink - largest);
                shrink *= mine;
            }
            shrink /= total[half];
            u16* to = out + (token_of(row) * heads + head_of(row)) * HEAD + slice * OUT;
#pragma unroll
            for (int n = 0; n < OUT / 8; ++n)
                *reinterpret_cast<u32*>(to + n * 8 + lane % 4 * 2) =
                    pack(sum[n][half * 2] * shrink, sum[n][half * 2 + 1] * shrink);
        } else {
            const size_t part = size_t(tile.part + row / GROUP) * heads + head_of(row);
#pragma unroll
            for (int n = 0; n < OUT / 8; ++n)
                *reinterpret_cast<float2*>(parts.sums + part * HEAD + slice * OUT + n * 8 + lane % 4 * 2) =
                    make_float2(sum[n][half * 2] * layer.value_scale, sum[n][half * 2 + 1] * layer.value_scale);
            if (lane % 4 == 0 && slice == 0) {
                parts.marks[part * 2] = maximum[half];
                parts.marks[part * 2 + 1] = total[half];
            }
        }
    }
}
