// The gated activation of a feed-forward network (Shazeer, 2020): out = activation(gate) * up.
//
// Layout      gate and up beside each other, as one product gives them: [rows][2 * width]. out: [rows][width].
// Tile        eight elements a thread, 16 bytes of each operand.
// Intensity   about two operations a byte: bound by memory.
#include "common.cuh"

// kind: 0 is x * sigmoid(x), 1 is GELU by its tanh form. width: a multiple of 8. grid: covers rows * width / 8 threads.
extern "C" __global__ void __launch_bounds__(256)
gated_activation(u16* __restrict__ out, const u16* __restrict__ both, const int rows, const int width, const int kind) {
    const size_t chunk = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int chunks = width / 8;
    if (chunk >= size_t(rows) * chunks) return;
    const size_t row = chunk / chunks, column = chunk % chunks * 8;
    float gate[8], up[8];
    load8(gate, both + row * 2 * width + column);
    load8(up, both + (row * 2 + 1) * width + column);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float x = gate[i];
        const float activated = kind == 0
            ? x / (1.f + exp2_fast(-x * LOG2_E))
            : 0.5f * x * (1.f + tanh_fast(0.7978845608028654f * (x + 0.044715f * x * x * x)));
        gate[i] = activated * up[i];
    }
    store8(out + row * width + column, gate);
}
