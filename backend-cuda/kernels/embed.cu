// Rows of the embedding: out[t] = table[token[t]] * scale, as activations.
//
// Layout      table: [vocabulary][width]. A token is known, or negative: -1 - slot takes the slot's next token, which an
//             earlier launch sampled.
// Tile        a block for each token, eight elements a thread at a time.
// Intensity   no arithmetic: bound by memory.
#include "common.cuh"

// grid: tokens.
extern "C" __global__ void __launch_bounds__(256)
embed(u16* __restrict__ out, const u16* __restrict__ table, const int* __restrict__ tokens,
      const int* __restrict__ next, const int width, const float scale) {
    const int given = tokens[blockIdx.x];
    const int token = given < 0 ? next[-1 - given] : given;
    if (width % 8 != 0) {
        // Rows begin anywhere: a number at a time.
        for (int column = threadIdx.x; column < width; column += blockDim.x)
            out[size_t(blockIdx.x) * width + column] = narrow(widen(table[size_t(token) * width + column]) * scale);
        return;
    }
    for (int column = threadIdx.x * 8; column < width; column += blockDim.x * 8) {
        float x[8];
        load8(x, table + size_t(token) * width + column);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] *= scale;
        store8(out + size_t(blockIdx.x) * width + column, x);
    }
}
