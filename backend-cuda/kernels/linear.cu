// out = input x weight^T (+ bias), on tensor cores.
//
// Layout      input: [rows][inner], weight: [columns][inner], as checkpoints have them; out: [rows][columns], 16-bit or f32.
// Tile        64 x 64 outputs a block, 4 warps of 16 rows; 32 of the inner dimension at a time through two buffers in
//             shared memory. A row of a buffer is 4 chunks of 16 bytes; a chunk's place is its number xor a function of
//             the row, so ldmatrix has no bank conflicts.
// Intensity   32 operations a byte from device memory at 64 rows: below that the weights' bandwidth bounds it, above
//             the tensor cores do, from shared memory.
#include "common.cuh"

constexpr int TILE = 64;
constexpr int INNER = 32;
constexpr int CHUNKS = INNER / 8;
constexpr int THREADS = 128;

__device__ __forceinline__ u32 place(u32 base, int row, int chunk) {
    return base + row * INNER * 2 + ((chunk ^ (row / 2 % 4)) * 16);
}

// inner: a multiple of 8. bias: [columns], or null. wide: out is f32. grid: (columns / TILE, rows / TILE), rounded up.
extern "C" __global__ void __launch_bounds__(THREADS)
linear(void* __restrict__ out, const u16* __restrict__ input, const u16* __restrict__ weight,
       const u16* __restrict__ bias, const int rows, const int columns, const int inner, const int wide) {
    __shared__ __align__(128) u16 inputs[2][TILE * INNER];
    __shared__ __align__(128) u16 weights[2][TILE * INNER];
    const int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;

    auto fetch = [&](int from, int buffer) {
        const u32 input_base = shared_address(inputs[buffer]), weight_base = shared_address(weights[buffer]);
        for (int i = thread; i < TILE * CHUNKS; i += THREADS) {
            const int row = i / CHUNKS, chunk = i % CHUNKS, at = from + chunk * 8;
            const bool has_input = first_row + row < rows && at < inner;
            const bool has_weight = first_column + row < columns && at < inner;
            copy_async(place(input_base, row, chunk), has_input ? input + size_t(first_row + row) * inner + at : input,
                       has_input);
            copy_async(place(weight_base, row, chunk),
                       has_weight ? weight + size_t(first_column + row) * inner + at : weight, has_weight);
        }
        commit_copies();
    };

    float sum[TILE / 8][4];
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) sum[n][0] = sum[n][1] = sum[n][2] = sum[n][3] = 0.f;
    const int matrix = lane / 8, in_matrix = lane % 8;
    fetch(0, 0);
    for (int from = 0, buffer = 0; from < inner; from += INNER, buffer ^= 1) {
        if (from + INNER < inner) {
            fetch(from + INNER, buffer ^ 1);
            wait_copies<1>();
        } else {
            wait_copies<0>();
        }
        __syncthreads();
        const u32 input_base = shared_address(inputs[buffer]), weight_base = shared_address(weights[buffer]);
#pragma unroll
        for (int k = 0; k < INNER / 16; ++k) {
            u32 a[4];
            load_matrices(a, place(input_base, warp * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
            for (int n = 0; n < TILE / 16; ++n) {
                u32 b[4];
                load_matrices(b, place(weight_base, n * 16 + matrix / 2 * 8 + in_matrix, k * 2 + matrix % 2));
                multiply_add(sum[2 * n], a, b[0], b[1]);
                multiply_add(sum[2 * n + 1], a, b[2], b[3]);
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int row = first_row + warp * 16 + lane / 4 + e / 2 * 8;
            const int column = first_column + n * 8 + lane % 4 * 2 + e % 2;
            if (row >= rows || column >= columns) continue;
            const float x = sum[n][e] + (bias != nullptr ? widen(bias[column]) : 0.f);
            const size_t at = size_t(row) * columns + column;
            if (wide) {
                static_cast<float*>(out)[at] = x;
            } else {
                static_cast<u16*>(out)[at] = narrow(x);
            }
        }
    }
}
