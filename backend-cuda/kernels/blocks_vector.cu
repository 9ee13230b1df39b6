// out = input x weight^T (+ bias) for 1 to 8 rows, with a weight in blocks of quants; see blocks.cuh.
//
// Layout      input: [rows][inner]; out: [rows][columns], 16-bit or f32; weight: planes of chunks.
// Tile        8 or 4 columns a block for all rows; its 4 warps take turns along the inner dimension, 16 elements a lane,
//             and add up in shared memory. Each block reads the input anew, from the caches.
// Intensity   2 operations for each row and weight, 0.6 bytes a weight at 4 bits: bound by memory up to about 2 rows on
//             an A100 (9.5 f32 operations a byte), by f32 arithmetic and decoding from there on. Weights are f32 here,
//             not rounded to 16 bits as tensor cores would have them.
#include "blocks.cuh"

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;

template <int ROWS, int GROUPS>
__device__ __forceinline__ void product(void* __restrict__ out, const u16* __restrict__ input,
                                        const u8* __restrict__ weight, const u16* __restrict__ bias,
                                        const int4* __restrict__ tiles, const int* __restrict__ order, const int chosen,
                                        const int rows, const int columns, const int inner,
                                        const unsigned long long stride, const int wide) {
    constexpr int SUMS = GROUPS * 4 * ROWS;
    __shared__ float partial[WARPS][SUMS];
    __shared__ float table[16];
    const Span span = span_of(tiles, rows, ROWS);
    if (span.count <= 0) return;
    fill_table(table);
    __syncthreads();
    const int groups = (columns + 3) / 4, chunks = (inner + 15) / 16;
    const Planes matrix = planes(weight + span.expert * stride, size_t(groups) * chunks);
    const int first_group = blockIdx.x * GROUPS;

    float sums[SUMS];
#pragma unroll
    for (int i = 0; i < SUMS; ++i) sums[i] = 0.f;
    const u16* from[ROWS];
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
        const int place = span.first + min(row, span.count - 1);
        from[row] = input + size_t(order != nullptr ? order[place] / chosen : place) * inner;
    }
    for (int at = threadIdx.x; at < chunks; at += THREADS) {
        Chunk chunk[GROUPS];
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            if (first_group + g < groups) chunk[g] = load_chunk(matrix, size_t(first_group + g) * chunks + at);
        }
#pragma unroll
        for (int octet = 0; octet < 2; ++octet) {
            const int element = at * 16 + octet * 8;
            if (element >= inner) continue;
            float x[ROWS][8];
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                if (row < span.count) load8(x[row], from[row] + element);
            }
#pragma unroll
            for (int g = 0; g < GROUPS; ++g) {
                if (first_group + g >= groups) continue;
#pragma unroll
                for (int column = 0; column < 4; ++column) {
                    float w[8];
                    decode8(w, chunk[g], column, octet, table);
#pragma unroll
                    for (int row = 0; row < ROWS; ++row) {
                        if (row >= span.count) continue;
                        float& sum = sums[(g * 4 + column) * ROWS + row];
#pragma unroll
                        for (int i = 0; i < 8; ++i) sum += w[i] * x[row][i];
                    }
                }
            }
        }
    }
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < SUMS; ++i) {
        const float sum = lanes_sum(sums[i]);
        if (lane == 0) partial[warp][i] = sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < SUMS; i += THREADS) {
        const int row = i % ROWS, column = first_group * 4 + i / ROWS;
        if (row >= span.count || column >= columns) continue;
        float sum = bias != nullptr ? widen(bias[size_t(span.expert) * columns + column]) : 0.f;
        for (int warp = 0; warp < WARPS; ++warp) sum += partial[warp][i];
        const size_t at = size_t(span.first + row) * columns + column;
        if (wide) {
            static_cast<float*>(out)[at] = sum;
        } else {
            static_cast<u16*>(out)[at] = narrow(sum);
        }
    }
}

// inner: a multiple of 8. bias: [columns], or [experts][columns], or null. tiles: (first row, rows, expert, 0) of each
// tile, or null for rows 0 to rows - 1 of one matrix. order: of each row of out, `chosen` times its row of the input plus
// anything below `chosen`; or null, where they are the same. stride: bytes from one expert's matrix to the next.
// wide: out is f32. grid: (columns / (4 * GROUPS), tiles), rounded up. BLOCKS of a multiprocessor say how many registers
// there are: left to itself, ptxas takes fewer and spills.
#define PRODUCT(NAME, ROWS, GROUPS, BLOCKS)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(                                                  \
        void* __restrict__ out, const u16* __restrict__ input, const u8* __restrict__ weight,                            \
        const u16* __restrict__ bias, const int4* __restrict__ tiles, const int* __restrict__ order, const int chosen,   \
        const int rows, const int columns, const int inner, const unsigned long long stride, const int wide) {           \
        product<ROWS, GROUPS>(out, input, weight, bias, tiles, order, chosen, rows, columns, inner, stride, wide);       \
    }

PRODUCT(blocks_vector_1, 1, 2, 4)
PRODUCT(blocks_vector_2, 2, 2, 3)
PRODUCT(blocks_vector_4, 4, 1, 4)
PRODUCT(blocks_vector_8, 8, 1, 2)
