// Rows of an embedding in blocks of quants: out[t] = table[token[t]] * scale, as activations; see blocks.cuh.
//
// Layout      weight: planes of chunks, of a table [vocabulary][width]. Tokens as in embed.cu.
// Tile        a block for each token, a chunk a thread, of which one row in four is kept.
// Intensity   no arithmetic to speak of: bound by memory.
#include "blocks.cuh"

// width: a multiple of 16. grid: tokens.
extern "C" __global__ void __launch_bounds__(128)
blocks_embed(u16* __restrict__ out, const u8* __restrict__ weight, const int* __restrict__ tokens,
             const int* __restrict__ next, const int vocabulary, const int width, const float scale) {
    __shared__ float table[16];
    fill_table(table);
    __syncthreads();
    const int given = tokens[blockIdx.x];
    const int token = given < 0 ? next[-1 - given] : given;
    const int groups = (vocabulary + 3) / 4, chunks = width / 16;
    const Planes matrix = planes(weight, size_t(groups) * chunks);
    for (int at = threadIdx.x; at < chunks; at += blockDim.x) {
        const Chunk chunk = load_chunk(matrix, size_t(token / 4) * chunks + at);
#pragma unroll
        for (int row = 0; row < 4; ++row) {
            if (row != token % 4) continue;
#pragma unroll
            for (int octet = 0; octet < 2; ++octet) {
                float x[8];
                decode8(x, chunk, row, octet, table);
#pragma unroll
                for (int i = 0; i < 8; ++i) x[i] *= scale;
                store8(out + size_t(blockIdx.x) * width + at * 16 + octet * 8, x);
            }
        }
    }
}
