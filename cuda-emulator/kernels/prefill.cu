// Attention of many new tokens over a paged KV cache that already holds them, on tensor cores.
//
// A block computes 64 queries of one head: 16 for each warp. Tiles of 32 keys and values come
// through two buffers in shared memory, the next one while the current one is used. Rows are 8
// chunks of 16 bytes; a chunk's place is its number xor the row, so that ldmatrix has no bank
// conflicts.
//
// queries, out: [token of the batch][head][HEAD]. starts: first token of each sequence, one more at
// the end. lengths: tokens of each sequence in the cache, new ones included.
#include "device.cuh"

constexpr int HEAD = 64;
constexpr int ROWS = 64;
constexpr int KEYS = 32;
constexpr int CHUNKS = HEAD / 8;
constexpr int THREADS = 128;
constexpr float LOWEST = -1e30f;
constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ u32 place(u32 base, int row, int chunk) {
    return base + row * HEAD * 2 + ((chunk ^ (row % 8)) * 16);
}

extern "C" __global__ void __launch_bounds__(THREADS)
prefill(bf16* __restrict__ out, const bf16* __restrict__ queries, const bf16* __restrict__ keys,
        const bf16* __restrict__ values, const int* __restrict__ table, const int* __restrict__ starts,
        const int* __restrict__ lengths, int heads, int kv_heads, int page_size, int table_width, float scale,
        float softcap, int window) {
    __shared__ __align__(128) bf16 query_tile[ROWS * HEAD];
    __shared__ __align__(128) bf16 key_tiles[2][KEYS * HEAD];
    __shared__ __align__(128) bf16 value_tiles[2][KEYS * HEAD];

    const int sequence = blockIdx.z, head = blockIdx.y, kv_head = head / (heads / kv_heads);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int start = starts[sequence], fresh = starts[sequence + 1] - start;
    const int length = lengths[sequence], prefix = length - fresh, first = blockIdx.x * ROWS;
    if (first >= fresh) return;

    const u32 query_base = shared_address(query_tile);
    for (int i = thread; i < ROWS * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool exists = first + row < fresh;
        const int token = start + (exists ? first + row : 0);
        copy_async(place(query_base, row, chunk), queries + (size_t(token) * heads + head) * HEAD + chunk * 8, exists);
    }
    auto fetch = [&](int tile, int buffer) {
        const u32 key_base = shared_address(key_tiles[buffer]), value_base = shared_address(value_tiles[buffer]);
        for (int i = thread; i < KEYS * CHUNKS; i += THREADS) {
            const int row = i / CHUNKS, chunk = i % CHUNKS, position = tile + row;
            const bool exists = position < length;
            const int safe = exists ? position : 0;
            const int page = table[sequence * table_width + safe / page_size];
            const size_t at = ((size_t(page) * page_size + safe % page_size) * kv_heads + kv_head) * HEAD + chunk * 8;
            copy_async(place(key_base, row, chunk), keys + at, exists);
            copy_async(place(value_base, row, chunk), values + at, exists);
        }
        commit_copies();
    };

    const int end = min(length, prefix + first + ROWS);
    const int oldest = window > 0 ? max(0, prefix + first - window + 1) : 0;
    const int begin = oldest / KEYS * KEYS;
    fetch(begin, 0);

    u32 query[HEAD / 16][4];
    float sum[HEAD / 8][4], maximum[2] = {LOWEST, LOWEST}, total[2] = {0.f, 0.f};
#pragma unroll
    for (int n = 0; n < HEAD / 8; ++n) sum[n][0] = sum[n][1] = sum[n][2] = sum[n][3] = 0.f;

    for (int tile = begin, buffer = 0; tile < end; tile += KEYS, buffer ^= 1) {
        if (tile + KEYS < end) {
            fetch(tile + KEYS, buffer ^ 1);
            wait_copies<1>();
        } else {
            wait_copies<0>();
        }
        __syncthreads();
        if (tile == begin) {
#pragma unroll
            for (int k = 0; k < HEAD / 16; ++k)
                load_matrices(query[k], place(query_base, warp * 16 + lane % 16, k * 2 + lane / 16));
        }

        float score[KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) score[n][0] = score[n][1] = score[n][2] = score[n][3] = 0.f;
        const u32 key_base = shared_address(key_tiles[buffer]), value_base = shared_address(value_tiles[buffer]);
        const int matrix = lane / 8, in_matrix = lane % 8;
#pragma unroll
        for (int k = 0; k < HEAD / 16; ++k) {
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                u32 key[4];
                load_matrices(key, place(key_base, n * 16 + matrix / 2 * 8 + in_matrix, k * 2 + matrix % 2));
                multiply_add(score[2 * n], query[k], key[0], key[1]);
                multiply_add(score[2 * n + 1], query[k], key[2], key[3]);
            }
        }

        const int row = prefix + first + warp * 16 + lane / 4;
        float larger[2] = {maximum[0], maximum[1]};
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int position = tile + n * 8 + lane % 4 * 2 + e % 2, at = row + e / 2 * 8;
                float x = score[n][e] * scale;
                if (softcap > 0.f) x = softcap * tanh_fast(x / softcap);
                const bool seen = position <= at && position < length && (window <= 0 || position > at - window);
                x = seen ? x * LOG2_E : LOWEST;
                score[n][e] = x;
                larger[e / 2] = fmaxf(larger[e / 2], x);
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
        for (int n = 0; n < HEAD / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[n][e] *= shrink[e / 2];
        }
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                // A row that has seen nothing yet has no maximum to subtract.
                const float weight = score[n][e] <= LOWEST / 2 ? 0.f : exp2_fast(score[n][e] - maximum[e / 2]);
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
            for (int n = 0; n < HEAD / 16; ++n) {
                u32 value[4];
                load_matrices_transposed(value,
                                         place(value_base, k * 16 + matrix % 2 * 8 + in_matrix, n * 2 + matrix / 2));
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
        total[half] = total[half] > 0.f ? 1.f / total[half] : 0.f;
    }
    const int row = first + warp * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < HEAD / 8; ++n) {
        const int column = n * 8 + lane % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (row + half * 8 < fresh) {
                const size_t at = (size_t(start + row + half * 8) * heads + head) * HEAD + column;
                *reinterpret_cast<u32*>(out + at) =
                    pack(sum[n][half * 2] * total[half], sum[n][half * 2 + 1] * total[half]);
            }
        }
    }
}
