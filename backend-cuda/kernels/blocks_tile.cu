// out = input x weight^T (+ bias) on tensor cores, with a weight in blocks of quants; see blocks.cuh.
//
// Layout      input: [rows][inner]; out: [rows][columns], 16-bit or f32; weight: planes of chunks.
// Tile        64 rows x 128 columns a block, 4 warps of 32 x 64; 64 of the inner dimension at a time. Each thread loads a
//             chunk of the weight into registers while the tensor cores work on the one before, and decodes it to 16 bits
//             in shared memory; the input comes by asynchronous copies through two buffers. A row of a buffer is 8
//             pieces of 16 bytes; a piece's place is its number xor a function of the row, so neither ldmatrix nor the
//             stores of decoded weights have bank conflicts.
// Intensity   64 operations for each weight: at 4 bits about 110 a byte, near an A100's ratio of tensor operations to
//             bandwidth (150). Decoding takes about 4 instructions a weight, which 64 rows hide partly.
#include "blocks.cuh"

constexpr int ROWS = 64, COLUMNS = 128, INNER = 64;
constexpr int THREADS = 128;
constexpr int PIECES = INNER / 8;

// Four rows apart, the rows of two neighbouring groups get different halves of the pieces.
__device__ __forceinline__ u32 place(u32 base, int row, int piece) {
    return base + row * INNER * 2 + ((piece ^ (row % 4 * 2 + row / 4 % 2)) * 16);
}

__device__ __forceinline__ void store_shared(u32 address, const float (&x)[8]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(pack(x[0], x[1])),
                 "r"(pack(x[2], x[3])), "r"(pack(x[4], x[5])), "r"(pack(x[6], x[7]))
                 : "memory");
}

// Arguments as in blocks_vector.cu; tiles have up to ROWS rows. grid: (columns / COLUMNS, tiles), rounded up.
extern "C" __global__ void __launch_bounds__(THREADS)
blocks_tile(void* __restrict__ out, const u16* __restrict__ input, const u8* __restrict__ weight,
            const u16* __restrict__ bias, const int4* __restrict__ tiles, const int* __restrict__ order,
            const int chosen, const int rows, const int columns, const int inner, const unsigned long long stride,
            const int wide) {
    __shared__ __align__(128) u16 inputs[2][ROWS * INNER];
    __shared__ __align__(128) u16 weights[COLUMNS * INNER];
    __shared__ float table[16];
    const Span span = span_of(tiles, rows, ROWS);
    if (span.count <= 0) return;
    fill_table(table);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int groups = (columns + 3) / 4, chunks = (inner + 15) / 16;
    const Planes matrix = planes(weight + span.expert * stride, size_t(groups) * chunks);
    // The thread's chunk of each step.
    const int group = blockIdx.x * (COLUMNS / 4) + thread / 4, in_step = thread % 4;

    auto fetch = [&](int from, int buffer) {
        const u32 base = shared_address(inputs[buffer]);
        for (int i = thread; i < ROWS * PIECES; i += THREADS) {
            const int row = i / PIECES, piece = i % PIECES, at = from + piece * 8;
            const bool exists = row < span.count && at < inner;
            const int where = span.first + (exists ? row : 0);
            const u16* source = input + size_t(order != nullptr ? order[where] / chosen : where) * inner;
            copy_async(place(base, row, piece), exists ? source + at : source, exists);
        }
        commit_copies();
    };
    auto load = [&](Chunk& chunk, int from) {
        const int at = from / 16 + in_step;
        if (group < groups && at < chunks) chunk = load_chunk(matrix, size_t(group) * chunks + at);
    };

    float sum[2][8][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 8; ++n) sum[m][n][0] = sum[m][n][1] = sum[m][n][2] = sum[m][n][3] = 0.f;
    const int first_row = warp / 2 * 32, first_column = warp % 2 * 64;
    const int matrix_of_lane = lane / 8, in_matrix = lane % 8;
    const u32 weight_base = shared_address(weights);
    Chunk chunk;
    fetch(0, 0);
    load(chunk, 0);
    __syncthreads();
    for (int from = 0, buffer = 0; from < inner; from += INNER, buffer ^= 1) {
        const bool exists = group < groups && from / 16 + in_step < chunks;
#pragma unroll
        for (int row = 0; row < 4; ++row) {
#pragma unroll
            for (int octet = 0; octet < 2; ++octet) {
                float x[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
                if (exists) decode8(x, chunk, row, octet, table);
                store_shared(place(weight_base, thread / 4 * 4 + row, in_step * 2 + octet), x);
            }
        }
        if (from + INNER < inner) {
            fetch(from + INNER, buffer ^ 1);
            load(chunk, from + INNER);
            wait_copies<1>();
        } else {
            wait_copies<0>();
        }
        __syncthreads();
        const u32 input_base = shared_address(inputs[buffer]);
#pragma unroll
        for (int k = 0; k < INNER / 16; ++k) {
            u32 a[2][4];
#pragma unroll
            for (int m = 0; m < 2; ++m)
                load_matrices(a[m], place(input_base, first_row + m * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                u32 b[4];
                const int row = first_column + n * 16 + matrix_of_lane / 2 * 8 + in_matrix;
                load_matrices(b, place(weight_base, row, k * 2 + matrix_of_lane % 2));
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    multiply_add(sum[m][2 * n], a[m], b[0], b[1]);
                    multiply_add(sum[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int row = first_row + m * 16 + lane / 4 + e / 2 * 8;
                const int column = blockIdx.x * COLUMNS + first_column + n * 8 + lane % 4 * 2 + e % 2;
                if (row >= span.count || column >= columns) continue;
                const float x =
                    sum[m][n][e] + (bias != nullptr ? widen(bias[size_t(span.expert) * columns + column]) : 0.f);
                const size_t at = size_t(span.first + row) * columns + column;
                if (wide) {
                    static_cast<float*>(out)[at] = x;
                } else {
                    static_cast<u16*>(out)[at] = narrow(x);
                }
            }
        }
    }
}
